"""Pass a request on to the process of this server that has its upload: an upload belongs to one process."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

log = logging.getLogger(__name__)

_PASSED: Final = ("host", "content-length", "content-type", "x-goog-upload-command", "x-goog-upload-offset")
"""Headers that the other process reads of a request; of them the host says that it is this server's."""
_CONNECT: Final = 5.0
"""Seconds in which another process of this machine accepts, or has ended."""


class SiblingGone(Exception):
    """The other process has ended, and with it what it had."""


class Siblings:
    """The processes of one server, each on a socket named by its number in a folder that is theirs alone."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = folder
        self._number = number

    @contextlib.asynccontextmanager
    async def listening(self, server: web.Server) -> AsyncIterator[None]:
        """Serve what other processes pass on; if this fails, they respond that the upload is unknown."""
        path = self._folder / str(self._number)
        try:
            # The socket of this process's predecessor.
            path.unlink(missing_ok=True)
            own = await asyncio.get_running_loop().create_unix_server(server, path)
        except OSError as error:
            log.warning("uploads cannot be passed on between processes (%s)", type(error).__name__)
            yield
            return
        try:
            yield
        finally:
            own.close()
            # The last process to end leaves nothing, even if no other is left to clean up.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                self._folder.rmdir()

    async def ask(self, request: web.Request, number: int) -> web.Response:
        """Return what another process answers to a request. Raises SiblingGone."""
        target = request.raw_path.partition("?")[0]
        headers = {name: request.headers[name] for name in _PASSED if name in request.headers}
        connector = aiohttp.UnixConnector(str(self._folder / str(number)))
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False) as session,
                session.post(
                    f"http://sibling{target}", headers=headers, data=request.content, allow_redirects=False
                ) as answer,
            ):
                body = await answer.read()
        except aiohttp.ClientError:
            raise SiblingGone from None
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _OWN}
        return web.Response(status=answer.status, headers=kept, body=body)


_OWN: Final = frozenset({"content-length", "transfer-encoding", "connection", "date", "server"})
"""Headers of the answer that belong to the connection between the two."""
