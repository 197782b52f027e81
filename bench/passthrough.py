"""The measure of things: a plain aiohttp pass-through that reads nothing, checks nothing and records nothing.

``python -m bench.passthrough http://127.0.0.1:UPSTREAM`` listens on a free port and prints it.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

_SESSION = web.AppKey("SESSION", aiohttp.ClientSession)
_BASE = web.AppKey("BASE", str)
_NOT_COPIED = frozenset(
    "connection content-encoding content-length host keep-alive te trailer transfer-encoding upgrade".split()
)


def _copied(headers: "CIMultiDict[str]") -> "CIMultiDict[str]":
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in _NOT_COPIED)


async def relay(request: web.Request) -> web.StreamResponse:
    """Send the request on and its answer back, chunk by chunk."""
    url = URL(request.app[_BASE] + request.raw_path, encoded=True)
    headers = _copied(CIMultiDict(request.headers))
    body = await request.read()
    async with request.app[_SESSION].request(request.method, url, headers=headers, data=body) as answer:
        response = web.StreamResponse(status=answer.status, headers=_copied(CIMultiDict(answer.headers)))
        response.content_length = answer.content_length
        await response.prepare(request)
        while data := await answer.content.readany():
            await response.write(data)
        await response.write_eof()
        return response


async def _session(app: web.Application) -> AsyncIterator[None]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        app[_SESSION] = session
        yield


async def serve(base: str) -> None:
    """Serve in front of ``base`` until killed."""
    app = web.Application(client_max_size=100 * 2**20)
    app[_BASE] = base
    app.cleanup_ctx.append(_session)
    app.router.add_route("*", "/{target:.*}", relay)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(f"listening on 127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
