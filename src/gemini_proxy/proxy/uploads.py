"""Keep the bytes of uploads in files without a name, until the last has come and all can be checked."""

import asyncio
import contextlib
import hashlib
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from multidict import CIMultiDict

from gemini_proxy.errors import BadRequest, Conflict, PayloadTooLarge, Unavailable
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.uploads import Announced, TextTest, UploadedFile
from gemini_proxy.proxy.credentials import Credentials
from gemini_proxy.sections import Files

MOST_UPLOADS: Final = 1_000
"""Uploads under way in one process: each holds a descriptor."""
MOST_OF_CLIENT: Final = 250
"""Uploads under way of one client in one process, so that others have room."""
SHARE_OF_CLIENT: Final = 4
"""One client may use a fourth of the spool, so that others have room; a single file is always allowed."""
_DIGITS: Final = 4
"""Of the number of a process."""
_LOOK: Final = 30.0
"""Seconds between two searches for abandoned uploads."""
_WRITTEN: Final = 1_048_576
"""Bytes that are written at once, in a thread."""
_READ: Final = 8_388_608
"""Bytes that go upstream at once, as clients send them."""


@dataclass(frozen=True, slots=True)
class Examined:
    """The result of a look at a file's bytes. ``encoding`` is as in ``TextTest``."""

    digest: str
    encoding: str


@dataclass(slots=True, eq=False)
class Upload:
    """An upload: its first request, with keys and headers, and the bytes received so far.

    ``client`` and ``owner`` are as for an exchange, ``address`` is where the client is. ``busy`` says that a request is
    adding bytes.
    """

    token: str
    call: ModelCall
    credentials: Credentials
    owner: str
    client: str
    address: str | None
    headers: CIMultiDict[str] = field(repr=False)
    body: bytes = field(repr=False)
    announced: Announced
    file: IO[bytes] = field(repr=False)
    received: int = 0
    touched: float = field(default_factory=time.monotonic)
    busy: bool = False


class Uploads:
    """The uploads of this process. ``settings`` are asked each time; ``processes`` share what may be spooled.

    ``number`` is that of this process among them, and begins every token.
    """

    def __init__(self, settings: Callable[[], Files], processes: int = 1, number: int = 1) -> None:
        self._settings = settings
        self._processes = processes
        self._number = number
        self._uploads: dict[str, Upload] = {}
        self._beginning = asyncio.Lock()

    async def begin(
        self,
        call: ModelCall,
        credentials: Credentials,
        owner: str,
        client: str,
        address: str | None,
        headers: CIMultiDict[str],
        body: bytes,
        announced: Announced,
    ) -> Upload:
        """Begin an upload. Raises PayloadTooLarge for a file over the limit, Unavailable where there is no room."""
        folder = self._settings().folder
        # One at a time: while a file is being made, no other upload may count on the same room.
        async with self._beginning:
            self._require_room(client, announced.size)
            with _spooling():
                file = await asyncio.to_thread(_file, folder)
            upload = Upload(
                f"{self._number}-{secrets.token_urlsafe(32)}",
                call,
                credentials,
                owner,
                client,
                address,
                headers,
                body,
                announced,
                file,
            )
            self._uploads[upload.token] = upload
        return upload

    def _require_room(self, client: str, size: int) -> None:
        """Raise PayloadTooLarge for a file over the limit, Unavailable where there is no room for it."""
        settings = self._settings()
        if size > settings.max_bytes:
            raise PayloadTooLarge(f"The file is over the limit of {settings.max_bytes} bytes (files.max_bytes)")
        held = sum(upload.announced.size for upload in self._uploads.values())
        most = settings.max_spooled_bytes // self._processes
        own = [upload.announced.size for upload in self._uploads.values() if upload.client == client]
        if len(own) >= MOST_OF_CLIENT:
            raise Unavailable(
                f"You have {len(own)} uploads in progress, the most that one client may have; finish or cancel some "
                "first"
            )
        if own and sum(own) + size > most // SHARE_OF_CLIENT:
            raise Unavailable(
                f"With this file your uploads in progress would have {sum(own) + size} bytes, but one client may have "
                f"{most // SHARE_OF_CLIENT}; finish or cancel some first"
            )
        if len(self._uploads) >= MOST_UPLOADS or (held and held + size > most):
            raise Unavailable("The server has reached its limit of uploads in progress; try again later")

    def of(self, address: str | None) -> int:
        """Return how many uploads are under way from an address."""
        return sum(upload.address == address for upload in self._uploads.values())

    def find(self, token: str) -> Upload | None:
        """Return the upload of that token, None if it has ended or is another process's."""
        return self._uploads.get(token)

    def process_of(self, token: str) -> int | None:
        """Return the number of the other process of this server that a token is of; None if it is of none."""
        number, _, secret = token.partition("-")
        if not secret or not number.isdecimal() or len(number) > _DIGITS:
            return None
        return int(number) if 1 <= int(number) <= self._processes and int(number) != self._number else None

    @contextlib.contextmanager
    def at_work(self, upload: Upload) -> Iterator[None]:
        """Let one request at a time go on with an upload. Raises Conflict for another."""
        if upload.busy:
            raise Conflict("Another request is using this upload; try again when it is done")
        upload.busy = True
        try:
            yield
        finally:
            upload.busy, upload.touched = False, time.monotonic()

    async def take(self, upload: Upload, offset: int, pieces: AsyncIterator[bytes]) -> None:
        """Put the bytes at ``offset``, which may be before the last that came. Raises BadRequest and Unavailable."""
        if offset > upload.received:
            raise BadRequest(f"The upload continues at byte {upload.received}, not at {offset}")
        with _spooling():
            await asyncio.to_thread(_cut, upload.file, offset)
        upload.received = offset
        waiting = bytearray()
        async for piece in pieces:
            waiting += piece
            if upload.received + len(waiting) > upload.announced.size:
                raise BadRequest(f"The file is larger than the {upload.announced.size} bytes that were declared")
            if len(waiting) >= _WRITTEN:
                await self._write(upload, bytes(waiting))
                waiting.clear()
        await self._write(upload, bytes(waiting))

    async def _write(self, upload: Upload, data: bytes) -> None:
        with _spooling():
            await asyncio.to_thread(upload.file.write, data)
        upload.received += len(data)

    async def examine(self, upload: Upload) -> Examined:
        """Return what the bytes are, once all are there. Raises BadRequest if some are missing."""
        if upload.received != upload.announced.size:
            raise BadRequest(f"Only {upload.received} of the {upload.announced.size} bytes of the file have arrived")
        with _spooling():
            return await asyncio.to_thread(_examine, upload.file)

    async def text(self, upload: Upload) -> bytes:
        """Return all bytes of a file that is text. Raises PayloadTooLarge for one that is too large to be checked."""
        most = self._settings().max_text_bytes
        if upload.received > most:
            raise PayloadTooLarge(f"The file is text and over the limit of {most} bytes (files.max_text_bytes)")
        with _spooling():
            return await asyncio.to_thread(_all, upload.file)

    async def replace(self, upload: Upload, file: UploadedFile) -> Examined:
        """Replace the received file by its masked form. Return what it is."""
        upload.announced, upload.body = file.announced, file.start
        if file.data is not None:
            await self.take(upload, 0, _whole(file.data))
        return await self.examine(upload)

    async def pieces(self, upload: Upload) -> AsyncIterator[tuple[int, bytes, bool]]:
        """Yield the bytes as chunks for the upstream: where each begins, and whether it is the last."""
        with _spooling():
            await asyncio.to_thread(upload.file.seek, 0)
        offset = 0
        while True:
            with _spooling():
                data = await asyncio.to_thread(upload.file.read, _READ)
            final = offset + len(data) >= upload.received
            yield offset, data, final
            offset += len(data)
            if final or not data:
                return

    def drop(self, upload: Upload) -> None:
        """End an upload; its bytes are gone."""
        if self._uploads.pop(upload.token, None) is not None:
            upload.file.close()

    async def run(self) -> None:
        """End abandoned uploads, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK)
            self.end_idle()

    def end_idle(self) -> None:
        """End the uploads that nobody has gone on with for ``upload_timeout``."""
        before = time.monotonic() - self._settings().upload_timeout
        for upload in [*self._uploads.values()]:
            if not upload.busy and upload.touched < before:
                self.drop(upload)

    def close(self) -> None:
        """End all uploads."""
        for upload in [*self._uploads.values()]:
            self.drop(upload)


@contextlib.contextmanager
def _spooling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        words = "the folder of files.folder cannot be used or is full"
        raise Unavailable(f"The file cannot be kept until it is checked: {words} ({type(error).__name__})") from None


def _file(folder: Path | None) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _cut(file: IO[bytes], offset: int) -> None:
    file.seek(offset)
    file.truncate()


def _all(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _examine(file: IO[bytes]) -> Examined:
    file.seek(0)
    digest, test = hashlib.sha256(), TextTest()
    while data := file.read(_WRITTEN):
        digest.update(data)
        test.feed(data)
    test.feed(b"", final=True)
    return Examined(digest.hexdigest(), test.encoding)
