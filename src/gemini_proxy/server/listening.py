"""Open the sockets that the server listens on, or take passed ones, and accept connections in turn with its siblings.

A socket that was passed outlives the process. A client that connects while no process accepts waits in its queue, and
is served by the next process. Processes share one such socket rather than have one each (SO_REUSEPORT): then the queue
of a socket would die with its process, and reset the clients in it.
"""

import asyncio
import contextlib
import errno
import logging
import mmap
import os
import socket
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from gemini_proxy.http.listen_addresses import ListenAddress
from gemini_proxy.proxy.tasks import Tasks

log = logging.getLogger(__name__)

_QUEUE: Final = 1024
"""Connections that wait to be accepted."""
_AT_ONCE: Final = 64
_FEW: Final = 4
"""Connections by which processes may differ: to take turns for each would cost more than it evens out."""
_COURTESY: Final = 0.002
"""Seconds for which a process that has more leaves a connection to the others."""
_ENDLESS: Final = 0xFFFFFFFF
_PAUSE: Final = 1.0
"""Seconds until the next attempt if no descriptor is left for a connection."""
_CONNECTING: Final = "connection"
_NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NOT_HERE: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket that does not block.

    ``lasting`` says that it outlives the server, ``shared`` that other processes of the server accept from it as well.
    ``name`` is what the service manager calls it, if it does.
    """

    socket: socket.socket
    lasting: bool
    shared: bool = False
    name: str = ""

    @property
    def address(self) -> ListenAddress:
        """Return the actual address: port 0 is replaced by the real port."""
        return _address(self.socket)

    @property
    def shown(self) -> str:
        """Return the address, with the socket's name if it has one."""
        return f"{self.address} ({self.name})" if self.name else str(self.address)

    def remove_path(self) -> None:
        """Let a new connection to a unix socket be refused from here on, before anything was sent."""
        if path := self.address.path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


class NotAsked(Exception):
    """A socket was passed that no configured address names. The text is its address."""


def passed_listeners(descriptors: Mapping[int, str]) -> list[Listener]:
    """Return the sockets of systemd's descriptors, which have names. Processes started later do not inherit them."""
    return [inherited(number, lasting=True, name=name) for number, name in descriptors.items()]


def inherited(descriptor: int, *, lasting: bool, shared: bool = False, name: str = "") -> Listener:
    """Return the listener of an inherited descriptor. Processes that this one starts do not inherit it."""
    found = socket.socket(fileno=descriptor)
    found.set_inheritable(False)
    found.setblocking(False)
    return Listener(found, lasting, shared, name)


@contextlib.contextmanager
def listening(addresses: Sequence[ListenAddress], passed: Sequence[Listener] = ()) -> Iterator[list[Listener]]:
    """Listen on ``addresses``; no socket outlives the block. Raises as ``_open`` does."""
    listeners = _open(addresses, passed)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.socket.close()


def _open(addresses: Sequence[ListenAddress], passed: Sequence[Listener]) -> list[Listener]:
    """Listen on ``addresses``: by the passed sockets that are for one of them, else by new ones.

    Raises OSError if it cannot, and NotAsked for a passed socket that ``addresses`` do not name: only addresses in the
    configuration were checked.
    """
    left = list(passed)
    listeners: list[Listener] = []
    try:
        for address in addresses:
            if fitting := [one for one in left if one.address in _meanings(address)]:
                for listener in fitting:
                    left.remove(listener)
                    listeners.append(listener)
            else:
                listeners += [Listener(one, lasting=False) for one in _opened(address)]
        if left:
            raise NotAsked(left[0].shown)
    except BaseException:
        for listener in listeners:
            listener.socket.close()
        raise
    return listeners


def listening_status(listeners: Sequence[Listener]) -> str:
    """Return the addresses that a server listens on, for its service manager."""
    return f"listening on {', '.join(listener.shown for listener in listeners)}"


def _address(opened: socket.socket) -> ListenAddress:
    name = opened.getsockname()
    return ListenAddress(path=os.fsdecode(name)) if opened.family == socket.AF_UNIX else ListenAddress(*name[:2])


def _meanings(address: ListenAddress) -> Iterator[ListenAddress]:
    """Yield the addresses that a name stands for; an address stands for itself."""
    yield address
    if not address.path:
        for _, host, port in _resolved(address):
            yield ListenAddress(host, port)


def _resolved(address: ListenAddress) -> Iterator[tuple[socket.AddressFamily, str, int]]:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, name in found:
        yield family, str(name[0]), int(name[1])


def _opened(address: ListenAddress) -> list[socket.socket]:
    """Several where a name has several addresses, one at least."""
    if address.path:
        return [_unix_socket(address.path)]
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, host, port in _resolved(address):
        try:
            sockets.append(_tcp_socket(family, host, port))
        except OSError as error:
            failure = error
            if error.errno not in _NOT_HERE:
                break
    if failure is not None and (not sockets or failure.errno not in _NOT_HERE):
        for one in sockets:
            one.close()
        raise failure
    return sockets


def _tcp_socket(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((host, port))
        return _listening(opened)
    except BaseException:
        opened.close()
        raise


def _unix_socket(path: str) -> socket.socket:
    _remove_stale(path)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        opened.bind(path)
        # nginx runs as another user; the permissions of the folder decide who can reach the socket.
        os.chmod(path, 0o666)
        return _listening(opened)
    except BaseException:
        opened.close()
        raise


def _listening(opened: socket.socket) -> socket.socket:
    opened.listen(_QUEUE)
    opened.setblocking(False)
    return opened


def _remove_stale(path: str) -> None:
    """Remove the socket that a killed server left; one that answers is another server's."""
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) != 0:
            os.unlink(path)


class Balance:
    """The number of connections of each process of a server, in shared memory."""

    def __init__(self, descriptor: int) -> None:
        """``descriptor`` is that of a file in memory with four bytes for each process."""
        self._counts = memoryview(mmap.mmap(descriptor, 0)).cast("I")

    @classmethod
    def create(cls, processes: int) -> tuple[int, Self]:
        """The descriptor of new memory for so many processes, none of which accepts yet."""
        descriptor = os.memfd_create("connections")
        os.write(descriptor, b"\xff" * 4 * processes)
        return descriptor, cls(descriptor)

    def has(self, process: int, connections: int) -> None:
        """Tell the others how many connections a process has; processes count from 1."""
        self._counts[process - 1] = connections

    def accepts_no_more(self, process: int) -> None:
        """Let nobody wait for a process."""
        self._counts[process - 1] = _ENDLESS

    def is_ahead(self, process: int) -> bool:
        """Return whether another accepting process has fewer by more than ``_FEW``."""
        return self._counts[process - 1] > min(self._counts) + _FEW


class Share:
    """The part of one process in the connections of its server: ``open`` are its own."""

    def __init__(self, balance: Balance, process: int) -> None:
        self._balance = balance
        self._process = process
        self.open = 0
        self._accepts = False

    @property
    def is_ahead(self) -> bool:
        """Return whether other processes should accept."""
        return self._balance.is_ahead(self._process)

    def begin(self) -> None:
        """This process accepts from now on."""
        self._accepts = True
        self._balance.has(self._process, self.open)

    def end(self) -> None:
        """It does not any more."""
        self._accepts = False
        self._balance.accepts_no_more(self._process)

    def add(self, connections: int) -> None:
        """So many more are open, or fewer."""
        self.open += connections
        if self._accepts:
            self._balance.has(self._process, self.open)


class Acceptor:
    """Give the connections of one listening socket to protocols of ``make``, from ``start`` to ``stop``.

    A process that has more than its ``share`` lets the others go first, for a moment.
    """

    def __init__(
        self, listener: Listener, make: Callable[[], asyncio.Protocol], tasks: Tasks, share: Share | None = None
    ) -> None:
        self._listener = listener
        self._make = make
        self._tasks = tasks
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None
        # Of a shared socket each process accepts one connection per turn, so that processes with time take the next.
        self._at_once = 1 if listener.lasting or listener.shared else _AT_ONCE

    def start(self) -> None:
        self._again = None
        self._loop.add_reader(self._listener.socket.fileno(), self._take)

    def _take(self) -> None:
        if self._share is not None and self._share.is_ahead:
            self._pause()
            self._again = self._loop.call_later(_COURTESY, self._take_after_others)
        else:
            self._accept(self._at_once)

    def _take_after_others(self) -> None:
        """Accept what other processes have left, since some of them may not come for it."""
        self.start()
        self._accept(_FEW)

    async def stop(self) -> None:
        """Accept no more. Where nobody else will, those who wait to be accepted are accepted first."""
        self._pause()
        if not self._listener.lasting:
            if not self._listener.shared:
                self._listener.remove_path()
            self._accept(_QUEUE)
            self._pause()
        self._listener.socket.close()
        # Accepted connections are not yet known to the server.
        await self._tasks.settle(_CONNECTING, _PAUSE)

    def _pause(self) -> None:
        self._loop.remove_reader(self._listener.socket.fileno())
        if self._again is not None:
            self._again.cancel()

    def _accept(self, most: int) -> None:
        for _ in range(most):
            try:
                connection, _ = self._listener.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NONE_LEFT:
                    raise
                log.error("a connection cannot be accepted: %s", error.strerror)
                self._pause()
                self._again = self._loop.call_later(_PAUSE, self.start)
                return
            connection.setblocking(False)
            self._tasks.spawn(self._connect(connection), _CONNECTING)

    async def _connect(self, connection: socket.socket) -> None:
        await self._loop.connect_accepted_socket(self._make, connection)
