"""An upstream that stops in the middle of its answer."""

import aiohttp
import pytest

from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.support.proxy import prompt
from tests.support.upstream import Hang, Reply, ScriptedUpstream, candidate, sse, stream


async def test_stream_that_falls_silent_breaks_off(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Events that came go out; when no more come within the read timeout the body breaks off, and the trace says so."""
    events = sse(candidate("Hel"), candidate("lo"))
    proxy = await start_proxy(upstream={"read_timeout": 0.2})
    upstream.reply(stream(*events, Hang()))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert await response.content.readexactly(len(events[0] + events[1])) == events[0] + events[1]
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    trace = await proxy.trace()
    assert trace.outcome is Outcome.UPSTREAM_CUT
    assert trace.metadata["error"] == "The upstream fell silent"


async def test_half_a_unary_answer_is_a_timeout(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A body that begins and does not end within the read timeout is 504, and nothing of it is passed on."""
    proxy = await start_proxy(upstream={"read_timeout": 0.2})
    upstream.reply(Reply([b'{"candidates": [', Hang()]))
    async with client.post(proxy.method(), json=prompt("hi")) as response:
        assert response.status == 504
        assert (await response.json())["error"]["status"] == "DEADLINE_EXCEEDED"
    assert (await proxy.trace()).outcome is Outcome.UPSTREAM_CUT
