"""Upstream answers that are none, or far more work than they look: what the client gets, what its neighbors notice."""

import asyncio
import gzip
import time

import aiohttp
import orjson
import pytest

from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import Reply, ScriptedUpstream, candidate, sse, stream

SSE = "text/event-stream"
NO_DUBLIN = """
raise "Dublin detected in the response" if:
    (m: Message)
    m.role == "assistant"
    "Dublin" in m.content
"""


KINDS = {"events": "streamGenerateContent?alt=sse", "array": "streamGenerateContent", "whole": "generateContent"}
"""A call that streams events, one that streams an array, and one that does not stream."""


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=101, chunked=False, headers={"upgrade": "websocket", "connection": "upgrade"}),
        Reply(status=204, chunked=False),
        Reply(status=205, chunked=False),
        Reply(status=200, chunked=False),
        Reply(status=200),
        stream(chunked=False),
        stream(),
    ],
    ids=["101", "204", "205", "no length", "no chunk", "no event", "no event in chunks"],
)
async def test_an_answer_without_content_is_an_error(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, reply: Reply
) -> None:
    """502 in Google's shape, which every client raises; an empty 200 is shown as an answer that says nothing."""
    proxy = await start_proxy()
    upstream.reply(reply)
    for method in (*KINDS.values(), "countTokens"):
        async with client.post(proxy.method(method), json=prompt("hi")) as response:
            assert response.status == 502, method
            error = (await response.json())["error"]
        assert (error["code"], error["status"]) == (502, "UNAVAILABLE")
        assert (await proxy.trace()).outcome is Outcome.UPSTREAM_ERROR


@pytest.mark.parametrize("mode", ["final", "window", "hold"])
async def test_a_stream_without_an_event_is_an_error(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, mode: str
) -> None:
    """Comments and blank lines are no answer, nor is the end of one."""
    proxy = await start_proxy(policy=NO_DUBLIN, guardrails={"stream_check": mode})
    for body in (b": hello\n\n", b"\r\n\r\n", b"data: [DONE]\n\n"):
        upstream.reply(stream(body))
        async with client.post(proxy.stream, json=prompt("hi")) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (502, 502)
        assert (await proxy.trace()).outcome is Outcome.UPSTREAM_ERROR


async def test_an_error_without_content_keeps_its_status(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """What is wrong is said by the status, and clients that retry go by it."""
    proxy = await start_proxy()
    upstream.reply(Reply(status=429, chunked=False))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert response.status == 429


ARRAY = b"[" + orjson.dumps(candidate("Dublin", "STOP")) + b"]"


OTHER_FORMS = [
    ("events", "application/json", ARRAY),
    ("events", "application/json", b"<html>oops</html>"),
    ("events", "application/json", sse(candidate("Cork", "STOP"))[0]),
    ("events", "text/html", b"<html>oops</html>"),
    ("events", SSE, b"<html>oops</html>"),
    ("array", SSE, b"data: {broken\r\n\r\n"),
    ("array", SSE, sse(candidate("Dublin", "STOP"))[0]),
    ("array", "text/html", b"<html>oops</html>"),
]


@pytest.mark.parametrize("mode", ["final", "window", "hold"])
async def test_a_refusal_comes_in_the_form_that_was_asked_for(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, mode: str
) -> None:
    """Whatever the upstream's framing was: the client reads only its own."""
    proxy = await start_proxy(policy=NO_DUBLIN, guardrails={"stream_check": mode})
    for kind, content_type, body in OTHER_FORMS:
        upstream.reply(Reply([body], content_type=content_type))
        async with client.post(proxy.method(KINDS[kind]), json=prompt("hi")) as response:
            assert response.status == 200
            answer = await response.read()
        assert response.content_type == (SSE if kind == "events" else "application/json"), (content_type, body)
        if kind == "events":
            assert answer.startswith(b"data: {") and answer.endswith(b"}\r\n\r\n") and answer.count(b"data:") == 1
            refusal = orjson.loads(answer.removeprefix(b"data: "))
        else:
            [refusal] = orjson.loads(answer)
        # The clients that read arrays raise on feedback.
        assert ("promptFeedback" in refusal) == (kind == "events")
        assert refusal["candidates"][0]["finishReason"] == "SAFETY"
        assert (await proxy.trace()).outcome is Outcome.REFUSED_RESPONSE


async def test_a_refusal_after_a_part_of_an_answer_goes_on_in_its_framing(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Elements of an array have left for a client that asked for events: one body has one framing."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    left = asyncio.Event()
    upstream.reply(Reply([b"[" + orjson.dumps(candidate("Hel")), left, b"," + ARRAY[1:]]))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        first = await response.content.readany()
        left.set()
        elements = orjson.loads(first + await response.read())
    assert elements[0] == candidate("Hel")
    assert elements[-1]["candidates"][0]["finishReason"] == "SAFETY"


async def neighbour(proxy: Proxy, client: aiohttp.ClientSession, done: asyncio.Event) -> int:
    """How often the server said that it lives until ``done``."""
    answered = 0
    while not done.is_set():
        async with client.get(f"{proxy.url}/healthz") as response:
            await response.read()
        answered += 1
    return answered


async def test_a_flood_of_comments_is_given_up(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The proxy's time goes by the size of an answer, not by the number of its pieces: these took 30 seconds."""
    proxy = await start_proxy()
    upstream.reply(stream(*[b":\n\n" * 10_000] * 640))
    began = time.process_time()
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        refusal = await response.read()
    assert b'"finishReason":"SAFETY"' in refusal and b"too many pieces" in refusal
    assert time.process_time() - began < 10
    assert (await proxy.trace()).outcome is Outcome.REFUSED_RESPONSE


async def test_a_compressed_answer_that_swells_stops_nobody(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A piece that inflates to 8 MB: others are answered while they do."""
    proxy = await start_proxy()
    bomb = gzip.compress(b"data: " + b" " * 8_000_000)
    upstream.reply(stream(bomb, headers={"content-encoding": "gzip"}))
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        asking = group.create_task(neighbour(proxy, client, done))
        async with client.post(proxy.stream, json=prompt("hi")) as response:
            await response.read()
        done.set()
    assert asking.result() > 20
