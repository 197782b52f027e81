"""curl, as someone tries the proxy by hand."""

import asyncio
import shutil

import orjson
import pytest

from tests.conftest import StartProxy
from tests.support.proxy import prompt
from tests.support.upstream import Abort, Reply, ScriptedUpstream, candidate, sse, stream, unary

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

NO_DUBLIN = 'raise "no Dublin" if:\n    (m: Message)\n    m.role == "assistant"\n    "Dublin" in m.content\n'
EVENTS = sse(candidate("Hel"), candidate("lo "), candidate("there", "STOP"))
PARTIAL_FILE, HTTP_ERROR = 18, 22
"""curl's exit codes for a body that breaks off, and for a status of 400 and more under --fail-with-body."""


async def curl(url: str, *options: str) -> asyncio.subprocess.Process:
    """Start curl on a request that says hi."""
    return await asyncio.create_subprocess_exec(
        *("curl", "-q", "--silent", "--show-error", "--no-buffer", "--noproxy", "*", "--max-time", "20", url),
        *("-H", "content-type: application/json", "-H", "x-goog-api-key: AIzaTestKey"),
        *("--data-binary", orjson.dumps(prompt("hi")).decode(), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def finish(process: asyncio.subprocess.Process) -> tuple[int | None, bytes, bytes]:
    """Exit code, standard output and standard error."""
    out, err = await process.communicate()
    return process.returncode, out, err


async def output(process: asyncio.subprocess.Process, size: int) -> bytes:
    assert process.stdout is not None
    return await asyncio.wait_for(process.stdout.readexactly(size), 10)


async def test_unary(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """The answer on standard output is the upstream's, byte for byte."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    reply = unary(candidate("Cork", "STOP"))
    upstream.reply(reply)
    assert await finish(await curl(proxy.method())) == (0, reply.steps[0], b"")


async def test_refused_unary_fails_with_words(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """A refusal is a status that --fail-with-body turns into an exit code, with the rule's words in the body."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    upstream.reply(unary(candidate("Dublin", "STOP")))
    code, out, _ = await finish(await curl(proxy.method(), "--fail-with-body"))
    assert code == HTTP_ERROR
    assert orjson.loads(out)["error"]["message"].endswith("did not pass the guardrails: no Dublin")


async def test_events_are_seen_as_they_come(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """The upstream sends an event only when curl has printed the one before."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    first, second = asyncio.Event(), asyncio.Event()
    upstream.reply(stream(EVENTS[0], first, EVENTS[1], second, EVENTS[2]))
    process = await curl(proxy.stream)
    assert await output(process, len(EVENTS[0])) == EVENTS[0]
    first.set()
    assert await output(process, len(EVENTS[1])) == EVENTS[1]
    second.set()
    assert await finish(process) == (0, EVENTS[2], b"")


async def test_refused_stream_ends_well(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """A stream refused on its way is a whole body to curl."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    upstream.reply(stream(*sse(candidate("In "), candidate("Dublin", "STOP"))))
    code, out, err = await finish(await curl(proxy.stream))
    assert (code, err) == (0, b"")
    assert b'"text":"Dublin"' not in out
    assert b"did not pass the guardrails: no Dublin" in out


async def test_array(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """Without alt=sse a stream is a JSON array, each element seen as it comes."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    seen = asyncio.Event()
    first, second = (orjson.dumps(candidate(*words)) for words in (("Hel", None), ("lo", "STOP")))
    upstream.reply(Reply([b"[" + first, seen, b"\n,\r\n" + second, b"\n]"]))
    process = await curl(proxy.method("streamGenerateContent"))
    assert await output(process, len(first) + 1) == b"[" + first
    seen.set()
    assert await finish(process) == (0, b"\n,\r\n" + second + b"\n]", b"")


@pytest.mark.parametrize("method", ["streamGenerateContent?alt=sse", "streamGenerateContent"])
async def test_upstream_death_is_a_partial_file(
    start_proxy: StartProxy, upstream: ScriptedUpstream, method: str
) -> None:
    """A stream that breaks off upstream breaks off for curl, which says so by its exit code."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    first = EVENTS[0] if "sse" in method else b"[" + orjson.dumps(candidate("Hel"))
    content_type = "text/event-stream" if "sse" in method else "application/json"
    seen = asyncio.Event()
    upstream.reply(Reply([first, seen, Abort()], content_type=content_type))
    process = await curl(proxy.method(method))
    assert await output(process, len(first)) == first
    seen.set()
    code, out, err = await finish(process)
    assert (code, out) == (PARTIAL_FILE, b"")
    assert b"transfer closed" in err
