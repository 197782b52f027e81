"""A scripted Live server: answers each frame of the client with as many pieces of text as it asks for.

``python -m bench.live_server`` listens on a free port and prints it.
"""

import asyncio
from typing import Final

import orjson
from aiohttp import web

_PROSE: Final = (
    "The ferry leaves at seven and takes an hour and a half, so bring a coat and something to read on deck. "
)
_PIECE: Final = orjson.dumps({"serverContent": {"modelTurn": {"role": "model", "parts": [{"text": _PROSE[:60]}]}}})
_END: Final = orjson.dumps({"serverContent": {"turnComplete": True}, "usageMetadata": {"totalTokenCount": 42}})
_READY: Final = orjson.dumps({"setupComplete": {}})


async def serve(request: web.Request) -> web.StreamResponse:
    """Complete the setup; answer each turn with one piece of text at once, and an end."""
    socket = web.WebSocketResponse(compress=False, decode_text=False)
    await socket.prepare(request)
    async for message in socket:
        if b'"setup"' in message.data[:20]:
            await socket.send_bytes(_READY)
        elif b'"realtimeInput"' in message.data[:20]:
            await socket.send_bytes(_PIECE)
        else:
            await socket.send_bytes(_END)
    return socket


async def main() -> None:
    """Serve until killed."""
    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(f"listening on 127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
