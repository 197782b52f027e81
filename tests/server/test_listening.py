"""How processes that accept from the same socket divide the connections."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from gemini_proxy.proxy.tasks import Tasks
from gemini_proxy.server.listening import Acceptor, Balance, Listener, Share

SOON = 20.0


class Counted(asyncio.Protocol):
    """A connection of one of the processes."""

    def __init__(self, share: Share) -> None:
        self._share = share

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._share.add(1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._share.add(-1)


@pytest.fixture
def balance() -> Iterator[Balance]:
    descriptor, made = Balance.create(2)
    yield made
    os.close(descriptor)


@contextlib.asynccontextmanager
async def accepting(listener: socket.socket, share: Share) -> AsyncIterator[None]:
    """A process that accepts from ``listener``."""
    tasks = Tasks()
    acceptor = Acceptor(Listener(listener.dup(), lasting=True, shared=True), lambda: Counted(share), tasks, share)
    share.begin()
    acceptor.start()
    yield
    share.end()
    await acceptor.stop()
    await tasks.close(0.0)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as opened:
        opened.setblocking(False)
        yield opened


async def connected(listener: socket.socket, count: int, stack: contextlib.AsyncExitStack) -> None:
    """Open connections, which end with ``stack``."""
    for _ in range(count):
        connection = stack.enter_context(socket.socket())
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, listener.getsockname())


async def opened(shares: tuple[Share, Share], count: int) -> list[int]:
    """How many each process has, once they have so many."""
    async with asyncio.timeout(SOON):
        while sum(found := [share.open for share in shares]) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    return found


async def test_whoever_has_more_leaves_connections_to_the_other(balance: Balance, listener: socket.socket) -> None:
    """They stay within a few of each other, wherever they began."""
    shares = Share(balance, 1), Share(balance, 2)
    shares[0].add(20)
    async with accepting(listener, shares[0]), accepting(listener, shares[1]), contextlib.AsyncExitStack() as stack:
        await connected(listener, 12, stack)
        first, second = await opened(shares, 32)
        assert first <= 22, (first, second)
        await connected(listener, 32, stack)
        first, second = await opened(shares, 64)
        assert abs(first - second) <= 8, (first, second)


async def test_nobody_waits_for_a_process_that_does_not_come(balance: Balance, listener: socket.socket) -> None:
    """One that stands still takes nothing, and one that accepts no more is not even waited for."""
    shares = Share(balance, 1), Share(balance, 2)
    shares[1].begin()
    shares[0].add(20)
    async with accepting(listener, shares[0]), contextlib.AsyncExitStack() as stack:
        assert shares[0].is_ahead
        await connected(listener, 40, stack)
        assert await opened(shares, 60) == [60, 0]
        shares[1].end()
        assert not shares[0].is_ahead
