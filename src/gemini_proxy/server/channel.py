"""Carry messages between a server's parent process and its children."""

import asyncio
import pickle
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

_LENGTH: Final = 4
"""Bytes before each message that say how long it is."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """A listening socket that a child inherits: see ``Listener``."""

    descriptor: int
    lasting: bool
    name: str


@dataclass(frozen=True, slots=True)
class Start:
    """A child's instructions, the first message to it.

    ``sources`` are the sources to serve with, as another child packed them; None if it has to read ``config_file``. In
    ``folder`` each child has a socket by which the others reach it; None if there is no folder. ``pages`` are the
    descriptors of all processes' metrics, ``balance`` is that of their connection counts. ``alive_every`` is the
    interval, in seconds, at which it reports that its event loop turns.
    """

    number: int
    processes: int
    config_file: Path | None
    first_key: Path | None
    sources: bytes | None
    reload_failed: bool
    listeners: tuple[Inherited, ...]
    pages: tuple[int, ...]
    balance: int
    alive_every: float | None
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Ready:
    """A child accepts, with these sources."""

    sources: bytes


@dataclass(frozen=True, slots=True)
class Alive:
    """A child's event loop turns."""


@dataclass(frozen=True, slots=True)
class Load:
    """To one child: read the configuration again. It answers with Loaded."""

    turn: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Tell a child to put sources into force: these, or the old ones after a failed reload. It responds with Held."""

    turn: int
    sources: bytes | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A child's response to a load: the sources, None if they cannot be used."""

    turn: int
    sources: bytes | None


@dataclass(frozen=True, slots=True)
class Held:
    """A child's report that the loaded settings are in force."""

    turn: int


class Channel:
    """An end of a socket for pickled messages; the other end is this program as well."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """Use ``end`` from here on."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: object) -> None:
        """Send without waiting. Messages that the other process no longer takes are lost."""
        if not self._writer.is_closing():
            self._writer.write(_packed(message))

    async def receive(self) -> Any:
        """Return the next message; None if there will be no more."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH))
            return pickle.loads(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            return None

    def close(self) -> None:
        self._writer.close()


def receive_start(end: socket.socket) -> Start:
    """Wait for a child's first message and return it. Raises EOFError if the parent is gone."""
    with end.makefile("rb", buffering=0) as stream:
        length = int.from_bytes(_exactly(stream, _LENGTH))
        start = pickle.loads(_exactly(stream, length))
    assert isinstance(start, Start)
    return start


def _exactly(stream: Any, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = stream.read(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _packed(message: object) -> bytes:
    content = pickle.dumps(message)
    return len(content).to_bytes(_LENGTH) + content
