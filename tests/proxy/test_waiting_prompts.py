"""Streams whose prompt a person is asked for: signs of life, then the bytes as they were, or what else came of it."""

import asyncio
from typing import Any

import aiohttp
import orjson

from gemini_proxy.traces.approvals import Approvals
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.gemini.interactions.streams import DONE, completed, created, delta, start, stop
from tests.support.proxy import asked, prompt
from tests.support.upstream import Abort, Call, Reply, ScriptedUpstream, candidate, sse, stream

MERGER = """
raise "asks about the merger" if:
    (m: Message)
    m.role == "user"
    any(find("(?s).*merger.*", m.content))
"""
FINE = candidate("fine", "STOP")
GEMINI = b"".join(sse(FINE))
ARRAY = b"[" + orjson.dumps(FINE) + b"]"
CHUNK = {
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": "fine"}, "finish_reason": "stop"}],
}
OPENAI = b"data: " + orjson.dumps(CHUNK) + b"\n\ndata: [DONE]\n\n"
STEPS = (created(), start(0, {"type": "model_output"}), delta(0, type="text", text="fine"), stop(0), completed())
INTERACTION = b"".join(b"event: %s\ndata: %s\n\n" % (one["event_type"].encode(), orjson.dumps(one)) for one in STEPS)
OVERLOADED = {"error": {"code": 503, "message": "try later", "status": "UNAVAILABLE"}}
PLAIN = {"sse": GEMINI, "array": ARRAY, "openai": OPENAI, "interactions": INTERACTION + DONE}
"""What the upstream answers at each door."""
CASES = [
    *(f"{door} {what}" for door in PLAIN for what in ("allowed", "denied", "overloaded", "unreachable")),
    "sse commented",
    "sse array",
]


def answer(call: Call) -> Reply:
    """Answer as the prompt says."""
    door = next((door for door in ("openai", "interactions") if door in call.target), "")
    door = door or ("sse" if "alt=sse" in call.target else "array")
    if b"unreachable" in call.body:
        return Reply(before_head=Abort())
    if b"overloaded" in call.body:
        return Reply([orjson.dumps(OVERLOADED, option=orjson.OPT_INDENT_2)], status=503)
    if door == "array" or b"sse array" in call.body:
        return Reply([ARRAY])
    comment = [b": hello\r\n\r\n"] if b"commented" in call.body else []
    return stream(*comment, PLAIN[door])


async def test_a_stream_shows_life_while_its_prompt_waits(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(ask_policy=MERGER, refusals={"before_stream": "event"})
    upstream.reply(answer)
    urls = {
        "sse": proxy.stream,
        "array": proxy.method("streamGenerateContent"),
        "openai": f"{proxy.url}/v1beta/openai/chat/completions",
        "interactions": f"{proxy.url}/v1beta/interactions",
    }
    shown, decided = asyncio.Semaphore(0), asyncio.Event()

    async def received(name: str) -> tuple[bytes, bytes]:
        """What came before the decision, and all of it."""
        door, text = name.split()[0], f"the merger: {name}"
        bodies: dict[str, Any] = {
            "openai": {"model": "m", "stream": True, "messages": [{"role": "user", "content": text}]},
            "interactions": {"model": "m", "stream": True, "input": text},
        }
        async with client.post(urls[door], json=bodies.get(door, prompt(text))) as response:
            assert response.status == 200
            assert "pending" in response.headers["x-gemini-proxy-guardrails"]
            life = await response.content.readany()
            shown.release()
            await decided.wait()
            return life, life + await response.read()

    asking = {name: asyncio.create_task(received(name)) for name in CASES}
    for _ in CASES:
        await asyncio.wait_for(shown.acquire(), 30)
    assert not upstream.calls
    approvals = Approvals(proxy.store.database)
    for approval in await approvals.latest(50, waiting=True):
        allow = "denied" not in str(approval.request.shown)
        assert await approvals.decide(approval.id, allow=allow, by="ada") is not None
    decided.set()
    got = {name: await task for name, task in asking.items()}
    for name, (life, whole) in got.items():
        door, case = name.split()
        space = {"sse": b"data:", "openai": b"data:"}.get(door, b"")
        assert not life.removeprefix(space).strip(b" :\n"), name
        # White space within the first event, or before the array; comments where events have names.
        begins = {"interactions": b"event:", "array": b"["}.get(door, b"{")
        rest = {"sse": b"data: ", "openai": b"data: "}.get(door, b"") + whole[whole.index(begins) :]
        if case in ("allowed", "commented"):
            assert rest == PLAIN[door], name
        elif case == "denied":
            assert b"asks about the merger; denied" in rest and b"fine" not in rest, name
        else:
            said = b"try later" if case == "overloaded" else b"upstream"
            assert said in rest and b'"error"' in rest and b"fine" not in rest, name
        if door == "array":
            assert isinstance(orjson.loads(whole), list)
    assert orjson.loads(got["array overloaded"][1]) == [OVERLOADED]
    traces = [await proxy.store.get(summary.id) for summary in await proxy.store.recent(50)]
    outcomes = {asked(trace)[12:]: trace.outcome for trace in traces if trace is not None}
    wanted = {"allowed": Outcome.COMPLETED, "commented": Outcome.COMPLETED, "denied": Outcome.REFUSED_REQUEST}
    assert outcomes == {name: wanted.get(name.split()[1], Outcome.UPSTREAM_ERROR) for name in CASES}
