"""Live sessions without sockets: whatever both sides send, in any order."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.guardrails.coverage import Coverage
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.rules import GuardrailSet, guardrail
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.proxy.allowed_turns import AllowedTurns
from gemini_proxy.proxy.approval import ApprovalDesk
from gemini_proxy.proxy.credentials import Credentials
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.exchange_trace import ExchangeRecorder
from gemini_proxy.proxy.live_session import Leaving, LiveFrame, LiveSession, SessionSettings, SessionTooLarge
from gemini_proxy.proxy.masker import Masker
from gemini_proxy.proxy.pipeline import Pipeline
from gemini_proxy.proxy.request_reader import RequestReader
from gemini_proxy.proxy.response import ClientResponse
from gemini_proxy.proxy.tasks import Tasks
from gemini_proxy.sections import Guardrails, Refusals
from gemini_proxy.traces.known_digests import KnownDigests
from tests.proxy.responses import done
from tests.support.live import GEMINI_PATH, SETUP, Frame, answers, asks, calls, says

RULES = GuardrailSet(
    (
        guardrail(
            "test policy",
            'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m.content\n'
            'raise "no calls" if:\n    (c: ToolCall)\n    c is tool:bad\n',
            "block",
        ),
    )
)
ENGINE = NativeEngine(Workers(), 5.0)
PROXY = "[Invariant]"
REFUSED_ANSWER = f"{PROXY} The response"


@dataclass
class Recorded:
    """Keeps exchanges in the place of their traces."""

    exchanges: list[Exchange] = field(default_factory=list)

    def coverage(self, exchange: Exchange) -> Coverage:
        return Coverage("final", (), 0, (), "passed")

    async def record(self, exchange: Exchange, coverage: Coverage) -> None:
        self.exchanges.append(exchange)

    async def read_again(self, exchange: Exchange) -> GeminiRequest:
        """Nothing was masked."""
        return exchange.checked_request

    async def remember(self, exchange: Exchange) -> None:
        """Forget it."""

    async def follow_references(self, exchange: Exchange) -> None:
        """There are none."""


def begun(mode: str, max_bytes: int = 1 << 20, rules: GuardrailSet = RULES) -> tuple[LiveSession, Recorded]:
    """A session past its setup."""
    kept = Recorded()
    guardrails = Guardrails.model_validate({"stream_check": mode, "window_overlap": 8, "history": "refuse"})
    reader, recorder = cast(RequestReader, kept), cast(ExchangeRecorder, kept)
    masker = Masker(guardrails, cast(KnownDigests, None), None)
    desk, turns = cast(ApprovalDesk, None), cast(AllowedTurns, kept)
    steps = Pipeline(reader, desk, masker, turns, ENGINE, guardrails, Refusals(), recorder, Tasks(), 1 << 24)
    call = read_call("GET", GEMINI_PATH)

    def new_exchange() -> Exchange:
        exchange = Exchange(call, Credentials("AIzaTest", None), ClientResponse(make_mocked_request("GET", "/")))
        exchange.rules = rules
        return exchange

    session = LiveSession(
        steps,
        reader,
        SessionSettings(PROXY, mode != "final", False, False, max_bytes),
        new_exchange,
        lambda usage: None,
        kept.remember,
    )
    setup = orjson.dumps(SETUP)
    assert done(session.start(setup)) == setup
    return session, kept


Step = tuple[str, str]
pieces = st.sampled_from(["Dub", "lin", "Dublin", "in Dub", " ", "Cork. ", "lorem ipsum "])
steps = st.one_of(
    st.tuples(st.sampled_from(["text", "text", "speech", "ask", "ask", "realtime", "heard"]), pieces),
    st.tuples(st.just("call"), st.sampled_from(["good", "bad"])),
    st.sampled_from([("end", ""), ("end", ""), ("interrupt", ""), ("sound", ""), ("handle", ""), ("usage", "")]),
)


def frame_of(step: Step, number: int) -> tuple[bool, Frame]:
    """Whether the client sends it, and the frame."""
    kind, text = step
    made: dict[str, tuple[bool, Frame]] = {
        "text": (False, says(text)),
        "speech": (False, {"serverContent": {"outputTranscription": {"text": text}}}),
        "heard": (False, {"serverContent": {"inputTranscription": {"text": text}}}),
        "call": (False, calls(text, f"call-{number}")),
        "end": (False, says(complete=True)),
        "interrupt": (False, says(interrupted=True)),
        "handle": (False, {"sessionResumptionUpdate": {"newHandle": "h"}}),
        "usage": (False, {"usageMetadata": {"totalTokenCount": 1}}),
        "ask": (True, asks(text)),
        "realtime": (True, {"realtimeInput": {"text": text}}),
        "sound": (True, {"realtimeInput": {"audio": {"mimeType": "audio/pcm", "data": "AA"}}}),
    }
    return made[kind]


@dataclass
class Held:
    """What came of a session: each step with what left after it, and the exchanges."""

    leaving: list[tuple[Step, Frame, Leaving]]
    recorded: list[Exchange]

    def down(self) -> list[Frame]:
        """What the client has seen, without the proxy's own words, and without handles: they wait for a turn's end."""
        return [frame for frame in self.seen() if PROXY not in str(frame) and "sessionResumptionUpdate" not in frame]

    def seen(self) -> list[Frame]:
        """What the client has seen."""
        return [orjson.loads(frame.data) for _, _, leaving in self.leaving for frame in leaving.down]

    @property
    def refused(self) -> bool:
        return any(PROXY in str(frame.data) for _, _, leaving in self.leaving for frame in (*leaving.up, *leaving.down))


def held(mode: str, script: Sequence[Step]) -> Held:
    session, kept = begun(mode)
    found = []
    for number, step in enumerate(script):
        from_client, frame = frame_of(step, number)
        sent = LiveFrame(orjson.dumps(frame), binary=True)
        found.append((step, frame, done(session.from_client(sent) if from_client else session.from_server(sent))))
    return Held(found, kept.exchanges)


def spoken(frames: Sequence[Frame], kind: str) -> list[str]:
    """What the model says in each of its turns, in one kind of text."""
    turns = [""]
    for frame in frames:
        content = frame.get("serverContent", {})
        parts = (
            content.get("modelTurn", {}).get("parts", ())
            if kind == "text"
            else [content.get("outputTranscription", {})]
        )
        turns[-1] += "".join(part.get("text", "") for part in parts)
        if content.get("turnComplete") or content.get("interrupted") or "toolCall" in frame:
            turns.append("")
    return turns


@pytest.mark.parametrize("mode", ["final", "window", "hold"])
@settings(max_examples=40)
@given(script=st.lists(steps, max_size=14))
def test_nothing_forbidden_passes(mode: str, script: list[Step]) -> None:
    """Whatever is sent in whatever order.

    A forbidden call never reaches the client and is answered; forbidden text reaches nobody whole, but for that of the
    model with ``final``; a handle never leaves after a refusal of the model's; frames pass unchanged, in order.
    """
    came = held(mode, script)
    for step, frame, leaving in came.leaving:
        ups = [orjson.loads(up.data) for up in leaving.up]
        if step == ("call", "bad"):
            [answer] = ups
            assert answer["toolResponse"]["functionResponses"][0]["id"] == frame["toolCall"]["functionCalls"][0]["id"]
        elif step[0] in ("ask", "realtime", "sound"):
            assert ups in ([], [frame]) and "Dublin" not in str(ups)
            assert ups or PROXY in str(leaving.down[0].data)
    others = ("ask", "realtime", "sound", "handle")
    down, sent = came.down(), [frame for step, frame, _ in came.leaving if step[0] not in others]
    if refused_at := [index for index, frame in enumerate(came.seen()) if REFUSED_ANSWER in str(frame)]:
        assert "sessionResumptionUpdate" not in str(came.seen()[refused_at[0] :])
    assert '"bad"' not in orjson.dumps(down).decode()
    rest = iter(sent)
    assert all(frame in rest for frame in down)
    if mode != "final":
        assert not any("Dublin" in text for kind in ("text", "speech") for text in spoken(down, kind))
    for before, after in itertools.pairwise(came.leaving):
        if before[0][0] == after[0][0] == "ask" and before[0][1] + after[0][1] == "Dublin":
            assert not (before[2].up and after[2].up)
    if not came.refused:
        ended = max((index for index, step in enumerate(script) if step[0] in ("end", "interrupt", "call")), default=-1)
        assert down[: len(sent)] == sent if mode == "final" else True
        until = [frame for step, frame, _ in came.leaving[: ended + 1] if step[0] not in others]
        assert down[: len(until)] == until


@pytest.mark.parametrize("mode", ["final", "window", "hold"])
def test_a_session_lives_on_after_refusals(mode: str) -> None:
    """Each kind of refusal, one after the other, and each time the next turn is whole."""
    refusals: list[list[Step]] = [
        [("ask", "Dublin")],
        [("ask", "x"), ("text", "Dub"), ("text", "lin"), ("end", "")],
        [("ask", "x"), ("call", "bad"), ("end", "")],
        [("heard", "Dublin"), ("text", "x"), ("end", "")],
    ]
    good: list[Step] = [("ask", "Where?"), ("text", "Cork. "), ("end", "")]
    script = [step for refused in refusals for step in (*refused, *good)]
    came = held(mode, script)
    assert "".join(spoken(came.down(), "text")).count("Cork. ") == len(refusals)
    outcomes = [str(exchange.outcome) for exchange in came.recorded]
    assert [outcome for outcome in outcomes if outcome != "completed"] == [
        "refused_request",
        "refused_response",
        "refused_response",
        "refused_request",
    ]
    last: Any = came.recorded[-1].messages
    assert "Dublin" not in str(last) and str(last).count("Cork. ") == len(refusals)


def test_a_turn_that_never_comes_keeps_no_other_back() -> None:
    """A transcription may be refused once its turn is over: then nothing is left to be withheld."""
    script: list[Step] = [("heard", "Dublin"), ("ask", "Where?"), ("text", "Cork. "), ("end", "")]
    assert spoken(held("final", script).down(), "text") == ["Cork. ", ""]
    withheld: list[Step] = [("heard", "Dublin"), ("text", "It "), ("ask", "Where?"), ("text", "is."), ("end", "")]
    assert spoken(held("final", withheld).down(), "text") == [""]


def test_a_handle_does_not_leave_after_a_refusal_of_the_model() -> None:
    """Nor does one that came in the middle of the refused turn; of a turn that passes it comes at the end."""
    handle: Step = ("handle", "")
    good: list[Step] = [handle, ("text", "Cork. "), handle, ("end", "")]
    script = [*good, ("text", "Dub"), handle, ("text", "lin"), ("end", ""), *good]
    seen = held("final", script).seen()
    at = [index for index, frame in enumerate(seen) if "sessionResumptionUpdate" in frame]
    assert at == [0, 3] and seen[2] == says(complete=True)


PICTURE = {"clientContent": {"turns": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}]}]}}


@pytest.mark.parametrize("between", [PICTURE, answers("weather", celsius=12)])
def test_refused_speech_of_the_user_with_other_input_behind_it(between: Frame) -> None:
    """It alone leaves the conversation, whatever the client has sent since it began."""
    session, kept = begun("final")
    heard = [{"serverContent": {"inputTranscription": {"text": text}}} for text in ("Dub", "lin")]
    for frame in (heard[0], between, heard[1], says("No.", complete=True), asks("Where?"), says("Cork", complete=True)):
        sent = LiveFrame(orjson.dumps(frame), binary=True)
        from_client = frame.keys() <= {"clientContent", "toolResponse"}
        done(session.from_client(sent) if from_client else session.from_server(sent))
    assert [str(exchange.outcome) for exchange in kept.exchanges] == ["refused_request", "completed"]
    said = kept.exchanges[-1].messages
    assert len(said) == 4 and "lin" not in str(said) and "Dub" not in str(said)


def test_a_session_of_many_short_texts_ends() -> None:
    """Each of them costs a check of all before it, which their bytes do not show."""
    session, _ = begun("final", max_bytes=20_000)
    letter = LiveFrame(b'{"realtimeInput": {"text": "a"}}', binary=True)
    for _ in range(9):
        done(session.from_client(letter))
    with pytest.raises(SessionTooLarge):
        done(session.from_client(letter))


# Masking ------------------------------------------------------------------------------------------------------------

SECRETS = ("ada.lovelace@example.com", "the blue door", 'a "quoted" \\ name\u00e9')
FOUND = 'find("ada.lovelace@example.com|the blue door|a .quoted. .{1,3} name.", x)'
MASKED = GuardrailSet(
    masking=(
        guardrail(
            "mask policy",
            f'raise "a secret" if:\n    (x: Message)\n    x.role != "assistant"\n    {FOUND}\n'
            f'raise "a secret of a tool" if:\n    (x: ToolOutput)\n    {FOUND}\n',
            "mask",
        ),
    )
)
PIECES = [*SECRETS, *SECRETS, " ", "<", "<MASKED_0123456789>", "E", "_", "&lt;", "\n", "Cork"]
WORDS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)
SAYS: dict[str, Any] = {
    "ask": asks,
    "realtime": lambda text: {"realtimeInput": {"text": text}},
    "output": lambda text: answers("weather", deep=[{"said": text}]),
    "context": lambda text: {"contextUpdate": {"systemInstruction": {"parts": {"text": text}}}},
}
ANSWERS: dict[str, Any] = {
    "text": says,
    "thought": lambda text: says(modelTurn={"parts": [{"text": text, "thought": True}]}),
    "speech": lambda text: says(outputTranscription={"text": text}),
}


def up_of(session: LiveSession, frame: Frame) -> bytes:
    """A frame of the client as it goes up."""
    [up] = done(session.from_client(LiveFrame(orjson.dumps(frame), binary=True))).up
    return up.data


def down_of(session: LiveSession, *frames: Frame) -> list[bytes]:
    """What leaves of frames of the server, which have no refusal."""
    leaving = [done(session.from_server(LiveFrame(orjson.dumps(frame), binary=True))) for frame in frames]
    assert not any(one.up for one in leaving)
    return [frame.data for one in leaving for frame in one.down]


def strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [text for inner in (value.values() if isinstance(value, dict) else value) for text in strings(inner)]
    return [value] if isinstance(value, str) and value not in ("user", "model", "weather", "call-1") else []


@settings(max_examples=50)
@given(
    mode=st.sampled_from(["final", "window", "hold"]),
    turns=st.lists(
        st.tuples(
            st.sampled_from([*SAYS]),
            WORDS,
            st.sampled_from([*ANSWERS, "call"]),
            st.lists(st.integers(0, 80), max_size=5).map(sorted),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_what_is_masked_comes_back_wherever_it_is_split(mode: str, turns: list[Any]) -> None:
    """Nothing of a value goes up, the client reads what it said, and all other frames are the bytes that came."""
    session, kept = begun(mode, rules=MASKED)
    for kind, text, answer, cuts in turns:
        frame = SAYS[kind](text)
        up = up_of(session, frame)
        assert (up == orjson.dumps(frame)) is not any(secret in text for secret in SECRETS)
        [masked] = strings(orjson.loads(up))
        assert not any(secret in masked for secret in SECRETS)
        if answer == "call":
            [left] = down_of(session, calls("tell", said=[masked, {"again": masked}]))
            assert orjson.loads(left) == calls("tell", said=[text, {"again": text}])
            continue
        pieces = [masked[start:end] for start, end in itertools.pairwise([0, *cuts, len(masked)])]
        came = [*map(ANSWERS[answer], pieces), says(complete=True)]
        down = down_of(session, *came)
        assert "".join(said for raw in down for said in strings(orjson.loads(raw))) == text
        assert len(down) == len(came) and (masked != text or down == [orjson.dumps(one) for one in came])
    said = [exchange.checked_request.messages for exchange in kept.exchanges]
    assert not any(secret in orjson.dumps(said).decode() for secret in SECRETS[:2])


def test_what_waits_for_the_end_of_a_placeholder_leaves_with_its_turn() -> None:
    """Where the model breaks off, is interrupted or has generated all; and no turn goes on with the end of another."""
    session, _ = begun("window", rules=MASKED)
    masked = strings(orjson.loads(up_of(session, asks(SECRETS[0]))))[0]
    half, rest = says(masked[:9]), says(masked[9:])
    for last in (says(generationComplete=True), says(interrupted=True), calls("tell")):
        assert down_of(session, half) == []
        assert down_of(session, last) == [orjson.dumps(half), orjson.dumps(last)]
        down_of(session, says(complete=True))
        up_of(session, asks("And now?"))
    assert down_of(session, rest, says(complete=True)) == [orjson.dumps(rest), orjson.dumps(says(complete=True))]


def test_what_is_masked_while_the_model_speaks_comes_back_at_once() -> None:
    session, kept = begun("final", rules=MASKED)
    up_of(session, asks("Count"))
    down = down_of(session, says("One, "))
    masked = strings(orjson.loads(up_of(session, {"realtimeInput": {"text": SECRETS[1]}})))[0]
    down += down_of(session, says(f"two, {masked[:5]}"), says(masked[5:]), says(complete=True))
    assert "".join(said for raw in down for said in strings(orjson.loads(raw))) == f"One, two, {SECRETS[1]}"
    assert [exchange.masks is not None for exchange in kept.exchanges] == [True]


def test_no_refusal_tells_the_model_what_it_may_not_read() -> None:
    """A message that repeats what the rule found reaches the client alone."""
    quotes = (
        'raise PolicyViolation("no mail to " + c.function.arguments.to) if:\n    (c: ToolCall)\n    c is tool:mail\n'
    )
    rules = GuardrailSet(masking=MASKED.masking, blocking=(guardrail("test policy", quotes, "block"),))
    session, _ = begun("final", rules=rules)
    masked = strings(orjson.loads(up_of(session, asks(SECRETS[0]))))[0]
    call = LiveFrame(orjson.dumps(calls("mail", to=masked)), binary=True)
    leaving = done(session.from_server(call))
    assert [SECRETS[0] in str(frame.data) for frame in (*leaving.down, *leaving.up)] == [True, False]
    assert orjson.loads(leaving.up[0].data) == answers("mail", error=f"{REFUSED_ANSWER} did not pass the guardrails")
