"""Live sessions: what passes both ways, what is refused, and what is kept of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gemini_proxy.server.live import LIVE
from tests.conftest import StartProxy
from tests.proxy.test_approvals import decide
from tests.proxy.test_kept_values import KEPT
from tests.proxy.test_masking import EMAIL, EVERYWHERE, LEAVES, OTHER, PLACEHOLDER, TO_THE_MODEL
from tests.support.live import (
    GEMINI_PATH,
    SETUP,
    SETUP_COMPLETE,
    Answer,
    Close,
    Frame,
    LiveClient,
    LiveServer,
    answers,
    asks,
    calls,
    running_live,
    says,
    session,
    texts,
)
from tests.support.otlp import otlp_receiver
from tests.support.proxy import Proxy, proxy_before

POLICY = """
raise "no Dublin" if:
    (m: Message)
    "Dublin" in m.content
raise "no deletion" if:
    (c: ToolCall)
    c is tool:delete_all
raise "no secrets from tools" if:
    (o: ToolOutput)
    "hunter2" in o.content
"""
REFUSED = "[Invariant] The response did not pass the guardrails: "
REFUSED_INPUT = "[Invariant] The request did not pass the guardrails: "


@pytest.fixture
async def live() -> AsyncIterator[LiveServer]:
    async with running_live() as server:
        yield server


async def before(server: LiveServer, start_proxy: StartProxy, **options: Any) -> Proxy:
    return await start_proxy(**{"policy": POLICY, **options, "upstream": {"base_url": server.url}})


async def outcomes(proxy: Proxy, count: int) -> list[str]:
    """The outcomes of all traces, the oldest first, once there are so many."""
    async with asyncio.timeout(10):
        # Some are written after the session has ended.
        while len(found := await proxy.store.recent(100)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return [summary.outcome.value for summary in reversed(found)]


async def test_frames_pass_as_they_came(live: LiveServer, start_proxy: StartProxy) -> None:
    """Allowed frames are byte for byte those of the other side, text stays text, and each turn is a trace."""
    raw = b'{ "serverContent" : {"modelTurn":{"parts":[{"text":"C\\u006frk"}]} } }'
    live.script = lambda frame: [raw, says(complete=True)]
    proxy = await before(live, start_proxy)
    async with session(proxy.url) as client:
        sent = (
            b'{"clientContent": {"turns": [{"role":"user","parts":[{"text":"Wh\\u0065re?"}]}], "turnComplete": true}}'
        )
        await client.send(sent)
        assert await client.raw() == raw
        assert await client.receive() == says(complete=True)
        await client.socket.send_str(sent.decode())
        await client.turn()
    assert live.raw == [orjson.dumps(SETUP), sent, sent]
    assert [kind.name for kind in live.kinds] == ["BINARY", "BINARY", "TEXT"]
    assert live.targets == ["/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent"]
    assert live.headers[0]["x-goog-api-key"] == "AIzaTestKey"
    assert await outcomes(proxy, 2) == ["completed", "completed"]
    trace = await proxy.trace()
    said = [message["content"] for message in trace.messages]
    user = [{"type": "text", "text": "Where?"}]
    assert said == [user, "Cork", user, "Cork"]
    assert trace.model == "gemini-live-2.5-flash"
    assert trace.metadata["coverage"]["verdict"] == "passed"
    conversations = {(await proxy.store.get(one.id)).metadata["conversation"] for one in await proxy.store.recent(9)}  # type: ignore[union-attr]
    assert len(conversations) == 1


async def test_key_in_the_query(live: LiveServer, start_proxy: StartProxy) -> None:
    """As @google/genai sends it, with any prefix; upstream it is in a header."""
    proxy = await before(live, start_proxy)
    prefixes = ["", "/", "/api/v1/gateway/gemini", "/gemini/"]
    for prefix in prefixes:
        path = f"{prefix}/ws/google.ai.generativelanguage.v1.GenerativeService.BidiGenerateContent?key=AIzaQueryKey"
        async with session(proxy.url, path, headers={}):
            assert live.headers[-1]["x-goog-api-key"] == "AIzaQueryKey"
    assert live.targets == ["/ws/google.ai.generativelanguage.v1.GenerativeService.BidiGenerateContent"] * 4


async def test_refused_text_of_the_client(live: LiveServer, start_proxy: StartProxy) -> None:
    """It does not go up, the client is told in the place of an answer, and the session goes on."""
    live.script = lambda frame: [says("Cork", complete=True)] if "Cork" in str(frame) else []
    proxy = await before(live, start_proxy)
    async with session(proxy.url) as client:
        await client.send(asks("Is it Dublin?"))
        assert await client.turn() == [says(REFUSED_INPUT + "no Dublin", complete=True)]
        await client.send({"realtimeInput": {"text": "Dub"}}, {"realtimeInput": {"text": "lin"}})
        assert texts(await client.turn()) == REFUSED_INPUT + "no Dublin"
        await client.send(asks("Is it Cork?"))
        assert texts(await client.turn()) == "Cork"
    assert live.frames == [{"realtimeInput": {"text": "Dub"}}, asks("Is it Cork?")]
    assert await outcomes(proxy, 3) == ["refused_request", "refused_request", "completed"]


async def test_refused_text_of_the_model(live: LiveServer, start_proxy: StartProxy) -> None:
    """The end of the turn is replaced, nothing more of it leaves, no handle does, and the next turn does."""
    replies = [[says("Dub"), says("lin"), says(complete=True), {"sessionResumptionUpdate": {"newHandle": "h"}}]]
    live.script = lambda frame: replies.pop() if replies else [says("Cork", complete=True)]
    proxy = await before(live, start_proxy)
    async with session(proxy.url) as client:
        await client.send(asks("Where?"))
        assert await client.turn() == [says("Dub"), says("lin"), says(REFUSED + "no Dublin", complete=True)]
        await client.send(asks("And now?"))
        assert await client.turn() == [says("Cork", complete=True)]
    assert await outcomes(proxy, 2) == ["refused_response", "completed"]


@pytest.mark.parametrize("mode", ["window", "hold"])
async def test_refused_in_the_middle(live: LiveServer, start_proxy: StartProxy, mode: str) -> None:
    """What the model says behind a refusal stays here, until its turn is over."""
    live.script = lambda frame: (
        [says("Cork. ", complete=True)]
        if "Cork" in str(frame)
        else [
            says("It is Dublin, "),
            says("as you know"),
            {"usageMetadata": {"totalTokenCount": 3}},
            says(complete=True),
        ]
    )
    proxy = await before(live, start_proxy, guardrails={"stream_check": mode, "window_overlap": 4})
    async with session(proxy.url) as client:
        await client.send(asks("Where?"))
        assert await client.turn() == [says(REFUSED + "no Dublin", complete=True)]
        await client.send(asks("Is it Cork?"))
        assert await client.turn() == [says("Cork. ", complete=True)]


async def test_tool_round_trip(live: LiveServer, start_proxy: StartProxy) -> None:
    live.script = lambda frame: (
        [says("It is 12.", complete=True)] if "toolResponse" in frame else [calls("weather", city="Cork")]
    )
    noted = 'raise "weather was asked" if:\n    (c: ToolCall)\n    c is tool:weather\n'
    proxy = await before(live, start_proxy, log_policy=noted)
    async with session(proxy.url) as client:
        await client.send(asks("How warm is it?"))
        assert await client.turn() == [calls("weather", city="Cork")]
        await client.send(answers("weather", celsius=12))
        assert texts(await client.turn()) == "It is 12."
    assert live.frames[-1] == answers("weather", celsius=12)
    trace = await proxy.trace()
    assert [message["role"] for message in trace.messages] == ["user", "assistant", "tool", "assistant"]
    assert trace.messages[2]["content"] == {"celsius": 12}
    assert len({summary.id for summary in await proxy.store.recent(10)}) == 2
    trace = await proxy.eventually(lambda trace: trace.annotations)
    assert [(one.content, one.address) for one in trace.annotations] == [
        ("weather was asked", "messages.1.tool_calls.0")
    ]


async def test_refused_call(live: LiveServer, start_proxy: StartProxy) -> None:
    """It never reaches the client; the model gets an error with its id, and goes on."""
    live.script = lambda frame: (
        [says("Then not.", complete=True)] if "toolResponse" in frame else [says("Well, "), calls("delete_all", "c7")]
    )
    proxy = await before(live, start_proxy)
    async with session(proxy.url) as client:
        await client.send(asks("Delete it all"))
        assert await client.turn() == [
            says("Well, "),
            says(REFUSED + "no deletion"),
            says("Then not.", complete=True),
        ]
    assert live.frames[-1] == answers("delete_all", "c7", error=REFUSED + "no deletion")
    assert await outcomes(proxy, 2) == ["refused_response", "completed"]


async def test_refused_output(live: LiveServer, start_proxy: StartProxy) -> None:
    """An error goes up in the place of a refused output, so that the model does not wait for ever."""
    live.script = lambda frame: [says("I see.", complete=True)] if "toolResponse" in frame else [calls("read", "c9")]
    proxy = await before(live, start_proxy)
    async with session(proxy.url) as client:
        await client.send(asks("Read it"))
        await client.turn()
        await client.send(answers("read", "c9", text="password hunter2"))
        assert texts(await client.turn()) == REFUSED_INPUT + "no secrets from toolsI see."
        await client.send(asks("And?"))
        await client.turn()
    assert live.frames[1] == answers("read", "c9", error=REFUSED_INPUT + "no secrets from tools")
    assert "hunter2" not in b"".join(live.raw).decode()


async def test_interruption(live: LiveServer, start_proxy: StartProxy) -> None:
    """An interrupted turn is recorded as far as it came; what interrupted it belongs to the next one."""
    live.script = lambda frame: (
        [says(interrupted=True), says(complete=True), says("Right.", complete=True)]
        if "Stop" in str(frame)
        else [says("One, two, ")]
    )
    proxy = await before(live, start_proxy)
    async with session(proxy.url) as client:
        await client.send(asks("Count"))
        assert await client.receive() == says("One, two, ")
        await client.send(asks("Stop"))
        assert await client.turn() == [says(interrupted=True), says(complete=True)]
        assert await client.turn() == [says("Right.", complete=True)]
    assert await outcomes(proxy, 2) == ["completed", "completed"]
    trace = await proxy.trace()
    assert [message["content"] for message in trace.messages if message["role"] == "assistant"] == [
        "One, two, ",
        "Right.",
    ]


AUDIO = {"mimeType": "audio/pcm;rate=24000", "data": "AAAA"}
SOUND = {"realtimeInput": {"audio": AUDIO}}


def speaks(text: str = "", **content: Any) -> Frame:
    """Sound of the model, with its transcription."""
    transcription = {"outputTranscription": {"text": text}} if text else {}
    sound = {"modelTurn": {"parts": [{"inlineData": AUDIO}]}}
    return {"serverContent": {**sound, **transcription, **content}}


async def test_speech(live: LiveServer, start_proxy: StartProxy) -> None:
    """With "hold" no sound leaves before its transcription is checked; the user's is part of the conversation."""
    heard = {"serverContent": {"inputTranscription": {"text": "Where "}}}
    more = {"serverContent": {"inputTranscription": {"text": "is it?"}}}
    live.script = lambda frame: (
        [heard, speaks("Dub"), more, speaks("lin"), says(complete=True)] if "audio" in str(frame) else []
    )
    proxy = await before(live, start_proxy, guardrails={"stream_check": "hold"}, live={"transcription": "add"})
    async with session(proxy.url) as client:
        await client.send(SOUND)
        assert await client.turn() == [heard, says(REFUSED + "no Dublin", complete=True)]
    setup = {**SETUP["setup"], "inputAudioTranscription": {}, "outputAudioTranscription": {}}
    assert orjson.loads(live.raw[0])["setup"] == setup
    trace = await proxy.trace()
    assert [message["content"] for message in trace.messages] == [
        [{"type": "text", "text": "Where is it?", "field": "inputTranscription"}],
        "Dublin",
    ]
    reasons = {entry["reason"] for entry in trace.metadata["coverage"]["not_checked"]}
    assert reasons == {"realtime audio"}


async def test_speech_of_the_user_is_refused(live: LiveServer, start_proxy: StartProxy) -> None:
    """The model has heard it: what it makes of that stays here. Sound that leaves is named as unchecked."""
    heard = {"serverContent": {"inputTranscription": {"text": "Is it Dublin?"}}}
    live.script = lambda frame: (
        [heard, speaks("Yes"), calls("visit"), says(complete=True)]
        if "audio" in str(frame)
        else [speaks(turnComplete=True)] * ("clientContent" in frame)
    )
    proxy = await before(live, start_proxy)
    async with session(proxy.url) as client:
        await client.send(SOUND)
        assert await client.turn() == [says(REFUSED_INPUT + "no Dublin", complete=True)]
        await live.got(2)
        await client.send(asks("And now?"))
        assert await client.turn() == [speaks(turnComplete=True)]
    assert live.frames[1]["toolResponse"]["functionResponses"][0]["name"] == "visit"
    trace = await proxy.trace()
    reasons = {entry["reason"] for entry in trace.metadata["coverage"]["not_checked"]}
    assert reasons == {"realtime audio", "inline audio/pcm"}


async def test_what_cannot_be_read_is_blocked(live: LiveServer, start_proxy: StartProxy) -> None:
    """Sound of either side, and what an earlier session was about, where unseen content is not allowed."""
    live.script = lambda frame: [speaks("Yes"), says(complete=True)]
    proxy = await before(live, start_proxy, guardrails={"unseen_content": "block"})
    resumed = {"setup": {**SETUP["setup"], "sessionResumption": {"handle": "h-1"}}}
    async with session(proxy.url, setup=None) as client:
        await client.send(resumed)
        code, reason = await client.closed()
        assert code == 1008 and "the session that this one continues" in reason
    async with session(proxy.url) as client:
        await client.send(SOUND)
        code, reason = await client.closed()
        assert code == 1008 and "realtime audio" in reason
    async with session(proxy.url) as client:
        await client.send(asks("Speak"))
        [refused] = await client.turn()
        assert "inline audio/pcm" in texts([refused])
    assert len(live.raw) == 3
    assert await outcomes(proxy, 3) == ["refused_request", "refused_request", "refused_response"]


@pytest.mark.parametrize("mode", ["final", "window"])
async def test_asking(live: LiveServer, start_proxy: StartProxy, mode: str) -> None:
    """A call waits until somebody allows it; allowed once, it is history for the rest of the session."""
    live.script = lambda frame: (
        [says("Done.", complete=True)] if "toolResponse" in frame else [says("Well. "), calls("delete_all")]
    )
    proxy = await before(live, start_proxy, ask_policy=POLICY, policy=None, guardrails={"stream_check": mode})
    async with session(proxy.url) as client:
        await client.send(asks("Delete it"))
        if mode == "final":
            assert await client.receive() == says("Well. ")
        await decide(proxy, allow=True)
        assert (await client.turn())[-1] == calls("delete_all")
        await client.send(answers("delete_all", done=True))
        assert texts(await client.turn()) == "Done."
        await client.send(asks("Again"))
        await decide(proxy, allow=False)
        assert texts(await client.turn()).startswith(
            ("Well. " if mode == "final" else "") + REFUSED + "no deletion; denied"
        )


async def test_setups_that_are_refused(live: LiveServer, start_proxy: StartProxy) -> None:
    proxy = await before(live, start_proxy)
    dublin = {"setup": {**SETUP["setup"], "systemInstruction": {"parts": [{"text": "You are in Dublin"}]}}}
    for setup, expected in [
        (dublin, (1008, REFUSED_INPUT + "no Dublin")),
        (asks("hi"), (1007, "The first frame of a session must be its setup")),
        ({"setup": {}}, (1007, '"setup.model" must name a model, such as "models/gemini-live-2.5-flash"')),
    ]:
        async with session(proxy.url, setup=None) as client:
            await client.send(setup)
            assert await client.closed() == expected
    assert not live.raw
    assert await outcomes(proxy, 1) == ["refused_request"]
    plain = {"x-goog-api-key": "AIzaTestKey"}
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    constrained = f"{GEMINI_PATH}Constrained"
    async with aiohttp.ClientSession() as http:
        for path, headers, status in [
            (GEMINI_PATH, plain, 400),
            (GEMINI_PATH, {"x-goog-api-key": "auth_tokens/t-1", **upgrade}, 403),
            (constrained, {**plain, **upgrade}, 404),
            (constrained, {"authorization": "Token auth_tokens/t-1", **upgrade}, 404),
        ]:
            async with http.get(proxy.url + path, headers=headers) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (status, status)


# Masking ------------------------------------------------------------------------------------------------------------


MASKS = (
    TO_THE_MODEL
    + """
raise "personal data from a tool" if:
    (o: ToolOutput)
    any(pii(o, entities=["EMAIL_ADDRESS"]))
"""
)


def echoes(frame: Frame) -> list[Answer]:
    """A model that repeats the placeholder that it was sent, one letter a frame, and calls with it."""
    found = PLACEHOLDER.search(str(frame))
    if found is None:
        return [says("Cork", complete=True)]
    if "speak" in str(frame):
        said = [says(outputTranscription={"text": piece}) for piece in found[0]]
        return [*said, says(modelTurn={"parts": [SOUND_PART]}), says(complete=True)]
    return [*map(says, f"To {found[0]}."), calls("send", to=found[0], deep=[{"note": f"cc {found[0].lower()}"}])]


SOUND_PART = {"inlineData": {"mimeType": "audio/pcm", "data": "AAAA"}}


@pytest.mark.parametrize("mode", ["final", "hold"])
async def test_a_value_goes_up_masked_and_comes_back(live: LiveServer, start_proxy: StartProxy, mode: str) -> None:
    """From each frame of the client, as long as the session lasts; all other bytes of a frame stay."""
    live.script = echoes
    proxy = await before(live, start_proxy, mask_policy=MASKS, guardrails={"stream_check": mode})
    told = {"systemInstruction": {"parts": [{"text": f"Ada is {EMAIL}"}]}}
    async with session(proxy.url, setup={"setup": {**SETUP["setup"], **told}}) as client:
        sent = b'{ "clientContent":{"turns" :[ {"parts":[{"text":"Mail ' + EMAIL.encode() + b' \\u00e9"}]} ]} }'
        await client.send(sent)
        *said, call = await client.turn()
        assert texts(said) == f"To {EMAIL}." and call == calls("send", to=EMAIL, deep=[{"note": f"cc {EMAIL}"}])
        await client.send(answers("send", sent=[{"to": EMAIL, "cc": OTHER}]))
        await client.turn()
        await client.send({"realtimeInput": {"text": f"speak to {OTHER}"}})
        *said, _ = await client.turn()
        sound = says(modelTurn={"parts": [SOUND_PART]})
        # Where only what masks has it work as "window", sound overtakes the text that waits.
        assert said.pop(0 if mode == "final" else -1) == sound
        assert "".join(frame["serverContent"]["outputTranscription"]["text"] for frame in said) == OTHER
        await client.send(asks(f"{OTHER} again"))
        await client.turn()
    up = b"".join(live.raw)
    assert EMAIL.encode() not in up and OTHER.encode() not in up
    assert live.raw[1] == sent.replace(EMAIL.encode(), PLACEHOLDER.findall(live.raw[1].decode())[0].encode())
    found = [await proxy.store.get(summary.id) for summary in reversed(await proxy.store.recent(9))]
    traces = [trace for trace in found if trace is not None]
    assert [str(trace.outcome) for trace in traces] == ["completed"] * 4
    assert EMAIL not in str(traces) and OTHER not in str(traces)
    assert [trace.metadata["coverage"]["masked_values"] for trace in traces] == [1, 2, 2, 2]
    assert {trace.metadata["coverage"]["mode"] for trace in traces} == {"window" if mode == "final" else mode}
    masked = [[one.address.partition(":")[0] for one in trace.annotations] for trace in traces]
    assert masked[0] == ["messages.0.content", "messages.1.content.0.text"]
    async with aiohttp.request("GET", f"{proxy.url}/metrics") as response:
        assert 'gemini_proxy_guardrail_masks_total{rule="test mask policy"} 4' in await response.text()


def makes_up(frame: Frame) -> list[Answer]:
    """A model that writes, says and calls with an address of its own, or gives the client's away."""
    if "toolResponse" in frame:
        return [says("Then not.", complete=True)]
    if placeholder := PLACEHOLDER.search(str(frame)):
        return [calls("send", to="eve@evil.test", body=placeholder[0])]
    if "call" in str(frame):
        return [says("Calling. "), calls("send", to=[OTHER])]
    spoken = says(outputTranscription={"text": f"It is {OTHER}"})
    return [*map(says, ("Behind " * 60, OTHER[:5], OTHER[5:])), spoken, says(complete=True)]


@pytest.mark.parametrize("mode", ["final", "hold"])
async def test_what_the_model_makes_up_is_masked(live: LiveServer, start_proxy: StartProxy, mode: str) -> None:
    """In what it writes, says and calls with. A value that comes back is private, and no refusal tells it upstream."""
    live.script = makes_up
    everywhere = EVERYWHERE + TO_THE_MODEL[TO_THE_MODEL.index('raise "personal data in a call"') :]
    guarded = {"stream_check": mode, "window_overlap": 64}
    proxy = await before(live, start_proxy, policy=LEAVES, mask_policy=everywhere, guardrails=guarded)
    async with session(proxy.url) as client:
        await client.send(asks("Whom?"))
        *said, spoken, _ = await client.turn()
        masked = texts(said).removeprefix("Behind " * 60)
        assert PLACEHOLDER.fullmatch(masked)
        assert spoken == says(outputTranscription={"text": f"It is {masked}"})
        await client.send(asks("Then call"))
        assert await client.turn() == [says("Calling. "), calls("send", to=[masked])]
        await client.send(answers("send", done=True))
        await client.turn()
        await client.send(asks(f"Mail {EMAIL}"))
        assert texts([await client.receive()]) == REFUSED + "private data leaves"
        assert texts(await client.turn()) == "Then not."
    assert EMAIL.encode() not in b"".join(live.raw)
    assert await outcomes(proxy, 5) == ["completed"] * 3 + ["refused_response", "completed"]
    assert OTHER not in str([await proxy.store.get(one.id) for one in await proxy.store.recent(9)])


async def test_what_the_model_has_already_cannot_be_masked(live: LiveServer, start_proxy: StartProxy) -> None:
    """The other half of a value, what was said by voice, and what is no text, such as the name of a field."""
    proxy = await before(live, start_proxy, mask_policy=MASKS)
    named = answers("send", **{EMAIL: "done"})
    half = f"{REFUSED_INPUT}personal data; cannot be masked: the model has some of it already"
    async with session(proxy.url) as client:
        await client.send({"realtimeInput": {"text": EMAIL[:8]}}, {"realtimeInput": {"text": EMAIL[8:]}})
        assert texts([await client.receive()]) == half
        await client.send(named)
        assert "cannot be masked" in texts([await client.receive()])
        await client.send({"realtimeInput": {"audio": SOUND_PART["inlineData"]}})
        await live.got(3)
        await live.push({"serverContent": {"inputTranscription": {"text": f"I am {EMAIL}"}}}, says("Hello"))
        assert texts([await client.receive()]) == half
    reason = "personal data from a tool; cannot be masked: it is found again"
    assert live.frames[1] == answers("send", error=REFUSED_INPUT + reason)
    assert EMAIL.encode() not in b"".join(live.raw)
    kept = [await proxy.store.get(one.id) for one in await proxy.store.recent(9)]
    # Names of fields stay in the trace of what was refused.
    assert [EMAIL in str(trace and trace.messages) for trace in reversed(kept)] == [False, True, False]


FOLLOWS = """
raise "Galway after Cork" if:
    (a: Message) -> (b: Message)
    "Cork" in a.content
    "Galway" in b.content
"""


async def test_a_session_goes_on_from_an_earlier_one(live: LiveServer, start_proxy: StartProxy) -> None:
    """By its handle: rules read what was said there, and what was masked there comes back."""
    update = {"sessionResumptionUpdate": {"newHandle": "handle-1", "resumable": True}}
    live.script = lambda frame: [says("Cork", complete=True), update]
    strict = {"unseen_content": "block", **KEPT}
    proxy = await before(live, start_proxy, policy=FOLLOWS, mask_policy=MASKS, guardrails=strict)
    async with session(proxy.url) as client:
        await client.send(asks(f"Mail {EMAIL}"))
        await client.turn()
        assert await client.receive() == update
    placeholder = PLACEHOLDER.findall(live.raw[1].decode())[0]
    resumed = {"setup": {**SETUP["setup"], "sessionResumption": {"handle": "handle-1"}}}
    live.script = lambda frame: [says(f"To {placeholder}"), says(complete=True)]
    async with session(proxy.url, setup=resumed) as client:
        await client.send(asks("Galway"))
        assert texts(await client.turn()) == REFUSED_INPUT + "Galway after Cork"
        await client.send(asks("Whom?"))
        assert texts(await client.turn()) == f"To {EMAIL}"
    assert live.raw[2] == orjson.dumps(resumed)
    found = [await proxy.store.get(summary.id) for summary in await proxy.store.recent(9)]
    assert EMAIL not in str(found)
    traces = [trace for trace in found if trace is not None]
    assert len({trace.metadata["conversation"] for trace in traces}) == 1
    assert [message["role"] for message in traces[0].messages] == ["user", "assistant"] * 2
    other = {"x-goog-api-key": "AIzaAnotherKey"}
    shared = await start_proxy(policy=FOLLOWS, upstream={"base_url": live.url, "api_key": "AIzaOperatorsKey"})
    for url, headers, said in [
        (proxy.url, other, "the session that this one continues"),
        (shared.url, {}, "session that does not exist"),
    ]:
        async with session(url, setup=None, headers=headers) as client:
            await client.send(resumed)
            code, reason = await client.closed()
            assert code == 1008 and said in reason


async def all_ended(proxy: Proxy) -> None:
    """Return once the proxy holds no session: a client sees the end of one before the proxy does."""
    async with asyncio.timeout(10):
        while proxy.app[LIVE].sessions:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_hostile_clients(live: LiveServer, start_proxy: StartProxy, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be read, or is too large, ends the session before it goes up, and is repeated nowhere."""
    canary = "AIzaCanary00000000000000000000000000000"
    limits = {"max_frame_bytes": 20_000, "max_session_bytes": 65_536, "max_sessions": 1}
    proxy = await before(live, start_proxy, live=limits)
    for frame, code in [
        (b'{"clientContent": {}, "realtimeInput": {}, "' + canary.encode() + b'": 1}', 1007),
        (b'{"' + canary.encode() + b'": ', 1007),
        (orjson.dumps(SETUP), 1007),
        (b"x" * 20_001, 1009),
    ]:
        async with session(proxy.url) as client:
            await client.send(frame)
            found, reason = await client.closed()
            assert found == code and canary not in reason
        await all_ended(proxy)
    async with session(proxy.url) as client:
        for _ in range(4):
            await client.send(asks("a" * 19_000))
        assert (await client.closed())[0] == 1009
    await all_ended(proxy)
    async with session(proxy.url):
        with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
            async with session(proxy.url):
                pass
    assert all(b"a" * 100 in raw or raw == orjson.dumps(SETUP) for raw in live.raw)
    assert canary not in caplog.text


def _answer(script: list[Answer], frame: Frame) -> list[Answer]:
    return script


async def test_upstreams_that_fail(live: LiveServer, start_proxy: StartProxy) -> None:
    """How the upstream ends a session is how the client sees it end; what it had sent comes first."""
    proxy = await before(live, start_proxy)
    scripts: list[tuple[list[Answer], tuple[int, str] | None]] = [
        ([says("Cork"), Close(1011, "Internal error")], (1011, "Internal error")),
        ([says("Cork"), Close(4000, "x")], (4000, "x")),
        ([says("Cork"), b'{"error": {"message": "AIzaCanary"}}'], None),
    ]
    for script, expected in scripts:
        live.script = partial(_answer, script)
        async with session(proxy.url) as client:
            await client.send(asks("Where?"))
            assert await client.receive() == says("Cork")
            code, reason = await client.closed()
            assert (code, reason) == expected if expected else (code == 1011 and "AIza" not in reason)
    assert await outcomes(proxy, 3) == ["upstream_cut", "upstream_cut", "upstream_error"]
    live.status = 403
    async with session(proxy.url, setup=None) as client:
        await client.send(SETUP)
        assert await client.closed() == (1008, "The upstream refused the session with status 403")
    trace = await proxy.eventually(lambda trace: "403" in trace.metadata.get("error", ""))
    assert trace.metadata["error"] == "The upstream refused the session with status 403"


async def test_limits_of_a_client(live: LiveServer, start_proxy: StartProxy) -> None:
    """A frame that rules read counts as a request; the session ends with the limit, and says so."""
    live.script = lambda frame: [says("Cork", complete=True)]
    proxy = await before(live, start_proxy, limits={"requests_per_minute": 4})
    async with session(proxy.url) as client:
        for _ in range(3):
            await client.send(asks("Where?"))
            assert await client.turn() == [says("Cork", complete=True)]
        await client.send(asks("Where?"))
        code, reason = await client.closed()
        assert code == 1013 and "requests" in reason


async def test_a_side_that_does_not_read_is_waited_for(live: LiveServer, start_proxy: StartProxy) -> None:
    """What the model says does not pile up in the proxy: its server has to wait, and nothing is lost."""
    sound, count = {"inlineData": {"mimeType": "audio/pcm", "data": "A" * 200_000}}, 150
    piece = says(modelTurn={"parts": [sound]})
    proxy = await before(live, start_proxy)
    async with session(proxy.url) as client:
        await client.send(asks("Where?"))
        await live.got(1)
        pushing = asyncio.create_task(live.push(*[piece] * count, says(complete=True)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(pushing), 0.5)
        for _ in range(count):
            await client.raw()
        assert await client.receive() == says(complete=True)
        await pushing


async def test_pings_are_answered_while_somebody_decides(live: LiveServer, start_proxy: StartProxy) -> None:
    """A client that gets no pong within seconds takes the session for lost, as the WebSockets of Python's SDK do."""
    live.script = lambda frame: [says("Cork", complete=True)]
    proxy = await before(live, start_proxy, ask_policy=POLICY, policy=None)
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(proxy.url + GEMINI_PATH, headers={"x-goog-api-key": "AIzaTestKey"}, autoping=False) as socket,
    ):
        client = LiveClient(socket)
        await client.send(SETUP)
        assert await client.receive() == SETUP_COMPLETE
        await client.send(asks("Is it Dublin?"), asks("Is it Cork?"))
        await socket.ping(b"?")
        message = await socket.receive(timeout=5)
        assert (message.type, bytes(message.data)) == (aiohttp.WSMsgType.PONG, b"?")
        assert live.frames == []
        await decide(proxy, allow=True)
        assert texts(await client.turn()) == "Cork"
    assert live.frames[0] == asks("Is it Dublin?")


async def test_silence_ends_a_session(live: LiveServer, start_proxy: StartProxy) -> None:
    proxy = await before(live, start_proxy, live={"idle_timeout": 0.2})
    async with session(proxy.url) as client:
        assert (await client.closed())[0] == 1001
    assert await outcomes(proxy, 1) == ["client_gone"]


async def test_a_stop_ends_sessions_between_turns(live: LiveServer, tmp_path: Path) -> None:
    """Clients are told, and a turn under way comes to its end."""
    live.script = lambda frame: [says("One, ")]
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(proxy_before(live.url, tmp_path, policy=POLICY))
        idle = await stack.enter_async_context(session(proxy.url))
        busy = await stack.enter_async_context(session(proxy.url))
        await busy.send(asks("Count"))
        assert await busy.receive() == says("One, ")
        stopping = asyncio.create_task(proxy.app.shutdown())
        for client in (idle, busy):
            assert await client.receive() == {"goAway": {"timeLeft": "30s"}}
        assert (await idle.closed())[0] == 1001
        await live.push(says("two.", complete=True))
        assert await busy.receive() == says("two.", complete=True)
        assert (await busy.closed())[0] == 1001
        await stopping


async def test_vertex(live: LiveServer, start_proxy: StartProxy) -> None:
    """Sessions of Vertex AI go to its host with the client's token; the setup says where that is."""
    model = "projects/p-1/locations/europe-west4/publishers/google/models/gemini-live"
    upstream = {"base_url": "http://127.0.0.1:9", "vertex": live.url}
    proxy = await start_proxy(policy=POLICY, upstream=upstream)
    path = "/ws/google.cloud.aiplatform.v1beta1.LlmBidiService/BidiGenerateContent"
    live.script = lambda frame: [says("Cork", complete=True)]
    headers = {"authorization": "Bearer ya29.token", "x-goog-user-project": "p-2"}
    async with session(proxy.url, path, setup={"setup": {"model": model}}, headers=headers) as client:
        await client.send(asks("Where?"))
        assert await client.turn() == [says("Cork", complete=True)]
    assert live.targets == [path]
    assert {name: live.headers[0].get(name) for name in (*headers, "x-goog-api-key")} == {
        **headers,
        "x-goog-api-key": None,
    }
    trace = await proxy.trace()
    assert trace.metadata["vertex"] == {"project": "p-1", "location": "europe-west4"}
    assert trace.model == "gemini-live"
    async with session(proxy.url, path, setup=None, headers=headers) as client:
        await client.send({"setup": {"model": model.replace("europe-west4", "evil.example/")}})
        assert (await client.closed())[0] == 1007


async def test_turns_are_told_to_telemetry(live: LiveServer, tmp_path: Path) -> None:
    """Each has spans of its own, that of a refused turn too."""
    live.script = lambda frame: [
        says("Cork"),
        {**says(complete=True), "usageMetadata": {"promptTokenCount": 7, "responseTokenCount": 3}},
    ]
    async with otlp_receiver() as receiver:
        told = {"enabled": True, "endpoint": receiver.url}
        async with (
            proxy_before(live.url, tmp_path, policy=POLICY, telemetry=told) as proxy,
            session(proxy.url) as client,
        ):
            await client.send(asks("Is it Dublin?"), asks("Where?"))
            await client.turn()
            await client.turn()
    turns = [span.attributes for span in receiver.spans if span.name == "generate_content gemini-live-2.5-flash"]
    assert [turn["gemini_proxy.outcome"] for turn in turns] == ["refused_request", "completed"]
    assert len({turn["gen_ai.conversation.id"] for turn in turns}) == 1
    tokens = {point["gen_ai.token.type"]: value for point, value in receiver.points["gen_ai.client.token.usage"]}
    assert tokens == {"input": (1, 7.0), "output": (1, 3.0)}
