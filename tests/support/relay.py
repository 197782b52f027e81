"""A network that can fall silent: what is sent through it arrives, until it does not, and no connection is closed."""

import asyncio
import ssl
from typing import Self


class Relay:
    """Listens on ``port`` and passes everything on to ``target``, in both directions, until ``freeze``.

    ``sent`` is what came of each connection, byte for byte.
    """

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        """With ``tls`` it ends TLS here, and what it passes on is plain."""
        self.sent: list[bytearray] = []
        self._target = target
        self._tls = tls
        self._open = asyncio.Event()
        self._open.set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def freeze(self) -> None:
        """From now on nothing arrives."""
        self._open.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, onward_writer]
        self.sent.append(sent := bytearray())
        for source, sink, kept in ((reader, onward_writer, sent), (onward_reader, writer, None)):
            pump = asyncio.create_task(self._pump(source, sink, kept))
            self._pumps.add(pump)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray | None) -> None:
        while data := await source.read(65536):
            if kept is not None:
                kept += data
            await self._open.wait()
            sink.write(data)
            await sink.drain()
        await self._open.wait()
        sink.close()
