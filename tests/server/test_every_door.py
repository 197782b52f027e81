"""Every guarded door does the same: what is allowed, refused, masked and asked, found afterwards in traces and metrics.

``DOORS`` is also the table of docs/doors.md that says what each door can do.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gemini_proxy.traces.trace import Outcome, Trace
from tests.conftest import StartProxy
from tests.gemini.interactions.streams import DONE, completed, created, delta, interaction, sse, start, stop, text_step
from tests.proxy.test_approvals import decide
from tests.proxy.test_kept_values import KEPT as KEPT_VALUES
from tests.proxy.test_masking import EMAIL, EVERYWHERE, OTHER, PLACEHOLDER, TO_THE_MODEL, placeholder_in
from tests.server.test_uploads import BEGUN, KEPT, begin
from tests.server.test_uploads import send as send_chunk
from tests.support.live import asks, running_live, says, session, texts
from tests.support.proxy import MODEL, Proxy
from tests.support.upstream import Call, Reply, ScriptedUpstream, Step, candidate, stream, unary

CANARY = "AIzaCANARY0123456789"
POLICY = 'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m\n'
ASK = 'raise "a merger" if:\n    (m: Message)\n    "merger" in m\n'
BEHIND = " is all there is to say of it." * 20
"""Text behind which a stream that is checked as it comes lets go of what stands before it."""

Answer = Callable[[str], Reply]
Body = Callable[[str], Any]
Pieces = Callable[..., list[Step]]


@dataclass(frozen=True)
class Door:
    """One door in one form. ``body`` is a request that says a text, ``answer`` a response that says one.

    ``repeats`` says that a response has text for rules. ``pieces`` are the steps of a stream whose text may leave
    before its end. ``remembered`` is what of it has an owner.
    """

    name: str
    form: str
    path: str
    body: Body
    answer: Answer
    repeats: bool = True
    pieces: Pieces | None = None
    remembered: str = ""
    bearer: bool = False

    @property
    def headers(self) -> Mapping[str, str]:
        return {"authorization": f"Bearer {CANARY}"} if self.bearer else {"x-goog-api-key": CANARY}


def contents(text: str) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]}]}


def event(payload: object) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def generated(text: str) -> Reply:
    return unary(candidate(text, "STOP"))


def sse_pieces(*texts: str) -> list[Step]:
    return [*(event(candidate(text)) for text in texts), event(candidate(".", "STOP"))]


def array_pieces(*texts: str) -> list[Step]:
    first, *rest = [*(candidate(text) for text in texts), candidate(".", "STOP")]
    *more, last = [b",\r\n" + orjson.dumps(one) for one in rest]
    return [b"[" + orjson.dumps(first), *more, last + b"]"]


def completion(part: str, text: str, reason: str | None = "stop") -> dict[str, Any]:
    kind = "chat.completion" if part == "message" else "chat.completion.chunk"
    choice = {"index": 0, part: {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"id": "r", "object": kind, "created": 1, "model": "m", "choices": [choice]}


def openai_pieces(*texts: str) -> list[Step]:
    end = event(completion("delta", ".")) + b"data: [DONE]\n\n"
    return [*(event(completion("delta", text, None)) for text in texts), end]


def interaction_pieces(*texts: str) -> list[Step]:
    events = [created(), start(0, {"type": "model_output"}), *(delta(0, type="text", text=text) for text in texts)]
    return [*(sse([one]).removesuffix(DONE) for one in events), sse([stop(0), completed()])]


def streamed(pieces: Pieces) -> Answer:
    return lambda text: stream(*pieces(text))


MODELS = f"/v1beta/models/{MODEL}"
VERTEX = f"/v1/projects/p/locations/europe-west4/publishers/google/models/{MODEL}"
CHAT = "/v1beta/openai/chat/completions"


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": text, **more}


def instances(text: str) -> dict[str, Any]:
    return {"instances": [{"prompt": text}]}


def decision(text: str) -> dict[str, Any]:
    return {"model": "m", "input": text, "questions": {"q": {"type": "noul", "instructions": "Is it?"}}}


def batch(text: str) -> dict[str, Any]:
    return {"batch": {"inputConfig": {"requests": {"requests": [{"request": contents(text)}]}}}}


def still(payload: Mapping[str, Any]) -> Answer:
    """A response that says nothing for rules."""
    return lambda text: unary(payload)


DOORS = (
    Door("generate", "whole", f"{MODELS}:generateContent", contents, generated),
    Door(
        "generate",
        "SSE",
        f"{MODELS}:streamGenerateContent?alt=sse",
        contents,
        streamed(sse_pieces),
        pieces=sse_pieces,
    ),
    Door(
        "generate",
        "JSON array",
        f"{MODELS}:streamGenerateContent",
        contents,
        lambda text: Reply(array_pieces(text)),
        pieces=array_pieces,
    ),
    Door("vertex", "whole", f"{VERTEX}:generateContent", contents, generated, bearer=True),
    Door(
        "vertex",
        "SSE",
        f"{VERTEX}:streamGenerateContent?alt=sse",
        contents,
        streamed(sse_pieces),
        pieces=sse_pieces,
        bearer=True,
    ),
    Door("tokens", "whole", f"{MODELS}:countTokens", contents, still({"totalTokens": 3}), repeats=False),
    Door(
        "embed",
        "whole",
        f"{MODELS}:embedContent",
        lambda text: {"content": {"parts": [{"text": text}]}},
        still({"embedding": {"values": [0.5]}}),
        repeats=False,
    ),
    Door("openai", "whole", CHAT, chat, lambda text: unary(completion("message", text)), bearer=True),
    Door(
        "openai",
        "SSE",
        CHAT,
        lambda text: chat(text, stream=True),
        streamed(openai_pieces),
        pieces=openai_pieces,
        bearer=True,
    ),
    Door(
        "interactions",
        "whole",
        "/v1/interactions",
        asked,
        lambda text: unary(interaction([text_step(text)])),
        remembered="interactions",
    ),
    Door(
        "interactions",
        "SSE",
        "/v1/interactions",
        lambda text: asked(text, stream=True),
        streamed(interaction_pieces),
        pieces=interaction_pieces,
        remembered="interactions",
    ),
    Door(
        "caches",
        "whole",
        "/v1beta/cachedContents",
        lambda text: {"model": f"models/{MODEL}", **contents(text)},
        still({"name": "cachedContents/c"}),
        repeats=False,
        remembered="caches",
    ),
    Door(
        "batches",
        "begun",
        f"{MODELS}:batchGenerateContent",
        batch,
        still({"name": "batches/b", "metadata": {"name": "batches/b", "state": "BATCH_STATE_PENDING"}}),
        repeats=False,
        remembered="batches",
    ),
    Door(
        "images",
        "whole",
        f"{MODELS}:predict",
        instances,
        lambda text: unary({"predictions": [{"prompt": text}]}),
    ),
    Door(
        "video",
        "begun",
        f"{MODELS}:predictLongRunning",
        instances,
        still({"name": "models/m/operations/o"}),
        repeats=False,
        remembered="operations",
    ),
    Door(
        "decisions",
        "whole",
        "/v1/decisions",
        decision,
        still({"answers": {"q": {"type": "noul", "noul": 0.9}}}),
        repeats=False,
    ),
)
"""Doors that take one request and give one response; files and live sessions are tried below."""

every_door = pytest.mark.parametrize("door", DOORS, ids=lambda door: f"{door.name} {door.form}")


@dataclass(frozen=True)
class Read:
    """What has come of a call to a door, as it is asked for later at ``path``. ``answer`` is what says a text then.

    ``named`` is where it is named before, and the response that names it.
    """

    name: str
    form: str
    begun: Door
    path: str
    answer: Answer
    named: tuple[str, Reply] | None = None


def begun(name: str) -> Door:
    return next(door for door in DOORS if door.name == name)


def responses(text: str) -> Reply:
    output = {"inlinedResponses": {"inlinedResponses": [{"response": candidate(text, "STOP")}]}}
    return unary({"name": "batches/b", "done": True, "response": output})


READS = (
    Read("batches", "results", begun("batches"), "/v1beta/batches/b", responses),
    Read(
        "batches",
        "results in a file",
        begun("batches"),
        "/v1beta/files/r:download?alt=media",
        lambda text: Reply([orjson.dumps({"key": "k", "response": candidate(text, "STOP")}) + b"\n"]),
        ("/v1beta/batches/b", unary({"name": "batches/b", "done": True, "response": {"responsesFile": "files/r"}})),
    ),
    Read(
        "video",
        "progress",
        begun("video"),
        "/v1beta/models/m/operations/o",
        lambda text: unary({"name": "models/m/operations/o", "response": {"raiMediaFilteredReasons": [text]}}),
    ),
    Read(
        "interactions",
        "read again",
        begun("interactions"),
        "/v1/interactions/v1_abc",
        lambda text: unary(interaction([text_step(text)])),
    ),
)
"""What is asked for later, by a call that says nothing itself."""

_ELSEWHERE = (
    ("files", "uploaded", "request", "yes", "yes", "", "files"),
    ("live", "turns", "request, response", "yes", "yes", "yes", "sessions"),
)
"""Lines of the table whose doors have a test of their own, here or in test_live.py."""


def table() -> str:
    """The table of docs/doors.md: what each door was seen to do."""
    lines = [
        ("door", "form", "checked", "masked", "asked", "as it comes", "remembered"),
        ("---",) * 7,
        *(
            (
                f"`{door.name}`",
                door.form,
                "request, response" if door.repeats else "request",
                "yes",
                "yes",
                "yes" if door.pieces else "",
                door.remembered,
            )
            for door in DOORS
        ),
        *((f"`{read.name}`", read.form, "response", "yes", "yes", "", "") for read in READS),
        *((f"`{name}`", *rest) for name, *rest in _ELSEWHERE),
    ]
    return "\n".join(re.sub(" +", " ", f"| {' | '.join(line)} |") for line in lines)


def test_the_documentation_says_what_each_door_does() -> None:
    document = (Path(__file__).parents[2] / "docs" / "doors.md").read_text()
    shown = re.search("<!-- tried -->\n\n(.*?)\n\n<!-- end tried -->", document, re.DOTALL)
    assert shown is not None and shown[1] == table()


async def send(proxy: Proxy, door: Door, text: str) -> tuple[int, str]:
    async with aiohttp.request("POST", proxy.url + door.path, json=door.body(text), headers=door.headers) as response:
        return response.status, await response.text()


def pointed_at(trace: Trace, address: str) -> str:
    """What a trace has at an address."""
    path, _, ends = address.partition(":")
    found: Any = {"messages": trace.messages}
    for step in path.split("."):
        found = found[int(step)] if step.isdecimal() else found[step]
    first, _, last = ends.partition("-")
    return str(found)[int(first) : int(last)] if ends else str(found)


def points_at_dublin(trace: Trace) -> None:
    """The trace of a refusal names the rule, and the range that it objected to."""
    [annotation] = [one for one in trace.annotations if one.content == "no Dublin"]
    assert annotation.guardrail["name"] == "test policy" and annotation.guardrail["action"] == "block"
    assert pointed_at(trace, annotation.address) == "Dublin"


async def counted(proxy: Proxy) -> dict[str, int]:
    """How many exchanges have ended in which way, by the metrics."""
    async with aiohttp.request("GET", f"{proxy.url}/metrics") as response:
        text = await response.text()
    assert CANARY not in text
    found: dict[str, int] = {}
    for outcome, count in re.findall(r'gemini_proxy_exchanges_total\{[^}]*outcome="(\w+)"[^}]*\} (\d+)', text):
        found[outcome] = found.get(outcome, 0) + int(count)
    return found


def nowhere(folder: Path, *said: str, values: Sequence[str] = ()) -> None:
    """The key is in nothing that was said or stored, and no value that was masked is stored."""
    stored = b"".join(file.read_bytes() for file in sorted(folder.glob("traces.db*")))
    assert stored and not [text for text in (CANARY, *values) if text.encode() in stored]
    assert not [text for text in said if CANARY in text]


def went_without(upstream: ScriptedUpstream, *values: str) -> None:
    """No value is in any byte that went upstream; the last call has a placeholder in its place."""
    assert not [call for call in upstream.calls for value in values if value.encode() in call.raw_head + call.body]
    assert PLACEHOLDER.search(upstream.calls[-1].body.decode())


@every_door
async def test_a_door_does_what_every_door_does(
    door: Door, start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = await start_proxy(
        policy=POLICY,
        mask_policy=TO_THE_MODEL,
        ask_policy=ASK,
        upstream={"vertex": upstream.url},
        guardrails={"ask_timeout": 10.0},
    )
    said: list[str] = []
    expected: dict[str, int] = {}

    def ended(trace: Trace, outcome: Outcome) -> None:
        assert trace.outcome is outcome
        expected[outcome] = expected.get(outcome, 0) + 1

    # Allowed: the response is Gemini's.
    reply = door.answer("Cork")
    upstream.reply(reply)
    status, body = await send(proxy, door, "where")
    assert (status, body.encode()) == (200, b"".join(step for step in reply.steps if isinstance(step, bytes)))
    ended(await proxy.trace(), Outcome.COMPLETED)
    assert any(CANARY in value for value in upstream.calls[-1].headers.values())

    # Refused before anything leaves.
    reached = len(upstream.calls)
    status, body = await send(proxy, door, "to Dublin")
    assert "no Dublin" in body and len(upstream.calls) == reached
    said.append(body)
    trace = await proxy.trace()
    ended(trace, Outcome.REFUSED_REQUEST)
    points_at_dublin(trace)

    # Asked: it goes on once somebody has allowed it.
    asking = asyncio.create_task(send(proxy, door, "of the merger"))
    await decide(proxy, allow=True)
    assert (await asking)[0] == 200
    trace = await proxy.trace()
    ended(trace, Outcome.COMPLETED)
    assert [one["state"] for one in trace.metadata["approvals"]] == ["allowed"]

    # Masked, and put back where the response repeats it.
    def repeats(call: Call) -> Reply:
        found = PLACEHOLDER.search(call.body.decode())
        return door.answer(found[0] if found else "none")

    upstream.reply(repeats)
    status, body = await send(proxy, door, f"mail {EMAIL}")
    trace = await proxy.trace()
    assert status == 200 and (EMAIL in body or not door.repeats), body
    went_without(upstream, EMAIL)
    assert trace.metadata["coverage"]["masked_values"] == 1 and EMAIL not in str(trace.messages)
    ended(trace, Outcome.COMPLETED)

    # Refused after Gemini has answered.
    if door.repeats:
        upstream.reply(door.answer("to Dublin"))
        status, body = await send(proxy, door, "where")
        assert "no Dublin" in body
        said.append(body)
        trace = await proxy.trace()
        ended(trace, Outcome.REFUSED_RESPONSE)
        points_at_dublin(trace)

    assert await counted(proxy) == expected
    nowhere(tmp_path, caplog.text, *said)


@pytest.mark.parametrize("read", READS, ids=lambda read: f"{read.name} {read.form}")
async def test_what_is_read_later_is_checked_like_any_response(
    read: Read, start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guardrails = {"ask_timeout": 10.0, **KEPT_VALUES}
    proxy = await start_proxy(policy=POLICY, mask_policy=EVERYWHERE, ask_policy=ASK, guardrails=guardrails)
    upstream.reply(read.begun.answer("begun"))
    assert (await send(proxy, read.begun, f"of {OTHER}"))[0] == 200
    sent = placeholder_in(upstream.calls[0].body)
    went_without(upstream, OTHER)

    async def get(path: str, reply: Reply) -> tuple[int, str]:
        upstream.reply(reply)
        async with aiohttp.request("GET", proxy.url + path, headers=read.begun.headers) as response:
            return response.status, await response.text()

    async def ask_for(text: str) -> tuple[int, str]:
        return await get(read.path, read.answer(text))

    if read.named is not None:
        assert (await get(*read.named))[0] == 200

    [whole] = read.answer("Cork").steps
    assert isinstance(whole, bytes) and await ask_for("Cork") == (200, whole.decode())
    trace = await proxy.trace()
    assert trace.outcome is Outcome.COMPLETED and "Cork" in str(trace.messages)

    asking = asyncio.create_task(ask_for("of the merger"))
    await decide(proxy, allow=True)
    assert (await asking)[0] == 200

    # What the client has sent comes back, and what the model made up does not get there.
    status, body = await ask_for(f"{sent} and {EMAIL}")
    assert status == 200 and OTHER in body and EMAIL not in body and PLACEHOLDER.search(body), body
    trace = await proxy.trace()
    coverage = trace.metadata["coverage"]
    assert (coverage["masked_values"], coverage["values_kept"]) == (2, True)
    assert sent in str(trace.messages) and not {EMAIL, OTHER} & set(re.findall(r"[\w.]+@[\w.]+", str(trace.messages)))

    status, refused = await ask_for("to Dublin")
    assert status == 400 and "no Dublin" in refused
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_RESPONSE
    points_at_dublin(trace)
    assert await counted(proxy) == {"completed": 4 + (read.named is not None), "refused_response": 1}
    nowhere(tmp_path, caplog.text, refused, body, values=(EMAIL, OTHER))


@pytest.mark.parametrize("door", [door for door in DOORS if door.pieces], ids=lambda door: f"{door.name} {door.form}")
async def test_windows_let_go_of_text_as_it_comes(
    door: Door, start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """What passed leaves before the response has ended."""
    proxy = await start_proxy(
        policy=POLICY, guardrails={"stream_check": "window", "window_overlap": 50}, upstream={"vertex": upstream.url}
    )
    assert door.pieces is not None
    *steps, last = door.pieces("Cork", BEHIND, BEHIND)
    seen = asyncio.Event()
    kind = "application/json" if door.form == "JSON array" else "text/event-stream"
    upstream.reply(Reply([*steps, seen, last], content_type=kind))
    url, body = proxy.url + door.path, door.body("where")
    async with asyncio.timeout(10), aiohttp.request("POST", url, json=body, headers=door.headers) as response:
        received = b""
        while b"Cork" not in received:
            received += await response.content.readany()
        seen.set()
        received += await response.read()
    assert received == b"".join(step for step in [*steps, last] if isinstance(step, bytes))
    trace = await proxy.trace()
    assert (trace.outcome, trace.metadata["coverage"]["mode"]) == (Outcome.COMPLETED, "window")


async def test_files_do_what_every_door_does(
    start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes go as they are, masked or not at all."""
    proxy = await start_proxy(policy=POLICY, mask_policy=TO_THE_MODEL, ask_policy=ASK, guardrails={"ask_timeout": 10.0})

    async def upload(text: str) -> tuple[int, str]:
        upstream.reply(BEGUN, KEPT)
        async with aiohttp.ClientSession() as client:
            status, url, body = await begin(client, proxy, len(text), **{"x-goog-api-key": CANARY})
            assert status == 200, body
            status, _, body = await send_chunk(client, url, text.encode())
            return status, body

    status, body = await upload("Cork")
    assert (status, (await proxy.trace()).outcome) == (200, Outcome.COMPLETED)
    status, body = await upload("to Dublin")
    assert status == 400 and "no Dublin" in body
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_REQUEST
    points_at_dublin(trace)
    assert (await upload(f"mail {EMAIL}"))[0] == 200
    trace = await proxy.trace()
    assert trace.metadata["coverage"]["masked_values"] == 1 and EMAIL not in str(trace.messages)
    went_without(upstream, EMAIL)
    start, chunk = upstream.calls[-2:]
    assert PLACEHOLDER.fullmatch(chunk.body.decode().removeprefix("mail "))
    assert start.headers["x-goog-upload-header-content-length"] == str(len(chunk.body))
    asking = asyncio.create_task(upload("of the merger"))
    await decide(proxy, allow=True)
    assert (await asking)[0] == 200
    trace = await proxy.trace()
    assert [one["state"] for one in trace.metadata["approvals"]] == ["allowed"]
    assert await counted(proxy) == {"completed": 3, "refused_request": 1}
    nowhere(tmp_path, caplog.text, body)


async def test_live_sessions_do_what_every_door_does(
    start_proxy: StartProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each turn is an exchange."""

    def repeats(frame: dict[str, Any]) -> list[Any]:
        found = PLACEHOLDER.search(str(frame))
        return [says(f"to {found[0]}" if found else "Cork"), says(complete=True)]

    async with running_live(script=repeats) as server:
        proxy = await start_proxy(
            policy=POLICY,
            mask_policy=TO_THE_MODEL,
            ask_policy=ASK,
            upstream={"base_url": server.url},
            guardrails={"ask_timeout": 10.0},
        )
        async with session(proxy.url, headers={"x-goog-api-key": CANARY}) as client:
            await client.send(asks("where"))
            assert texts(await client.turn()) == "Cork"
            assert (await proxy.eventually(lambda trace: True)).outcome is Outcome.COMPLETED
            await client.send(asks("to Dublin"))
            assert "no Dublin" in texts(await client.turn())
            trace = await proxy.eventually(lambda trace: trace.outcome is Outcome.REFUSED_REQUEST)
            points_at_dublin(trace)
            await client.send(asks("of the merger"))
            await decide(proxy, allow=True)
            assert texts(await client.turn()) == "Cork"
            trace = await proxy.eventually(lambda trace: "approvals" in trace.metadata)
            assert [one["state"] for one in trace.metadata["approvals"]] == ["allowed"]
            await client.send(asks(f"mail {EMAIL}"))
            assert texts(await client.turn()) == f"to {EMAIL}"
            assert EMAIL.encode() not in b"".join(server.raw) and PLACEHOLDER.search(server.raw[-1].decode())
            trace = await proxy.eventually(lambda trace: trace.metadata["coverage"].get("masked_values"))
            assert trace.outcome is Outcome.COMPLETED and EMAIL not in str(trace.messages)
        assert await counted(proxy) == {"completed": 3, "refused_request": 1}
        nowhere(tmp_path, caplog.text)
