"""The feed over HTTP: who may watch what, from where on, and when it ends."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gemini_proxy.explorer.api import feed_api
from gemini_proxy.explorer.api.endpoints import BAD_KEY
from gemini_proxy.explorer.app_keys import SESSION_COOKIE
from gemini_proxy.traces.access import DEVELOPER
from gemini_proxy.traces.datasets import Datasets
from gemini_proxy.traces.feed import MAX_WATCHERS_OF_ONE
from gemini_proxy.traces.keys import Keys, Sessions
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Outcome
from tests.support.feed import SOON, Traces
from tests.support.feed_server import KEY, FeedServer, feed_server, listening
from tests.support.sqlite import make_database
from tests.traces.samples import trace


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TraceStore]:
    opened = await TraceStore.open(make_database(tmp_path / "traces.db"))
    yield opened
    await opened.close()


@pytest.fixture
async def server(store: TraceStore) -> AsyncIterator[FeedServer]:
    async with feed_server(store) as running:
        yield running


@pytest.fixture
async def closed(store: TraceStore) -> AsyncIterator[FeedServer]:
    """A server that wants keys."""
    async with feed_server(store, mode="keys") as running:
        yield running


async def test_an_exchange_is_seen_as_it_is_recorded(
    server: FeedServer, store: TraceStore, session: aiohttp.ClientSession
) -> None:
    """In the form that a browser and a reverse proxy in between take for a stream."""
    async with listening(session, server.url) as listener:
        headers = listener.response.headers
        assert listener.response.status == 200
        assert listener.response.content_type == "text/event-stream"
        assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
        await listener.joined()
        written = trace(owner=DEVELOPER)
        await store.add([written])
        event = await listener.next()
        assert event and (event.kind, event.data["id"], event.data["dataset"]) == ("exchange", written.id, "demo")


async def test_a_key_sees_its_users_exchanges_only(
    closed: FeedServer, store: TraceStore, session: aiohttp.ClientSession
) -> None:
    """Live and replayed, with and without a dataset whose name both users have."""
    keys = Keys(store.database)
    (_, alice), (_, bob) = await keys.add("alice"), await keys.add("bob")
    for query in ("", "?dataset=demo"):
        old, new = trace(owner="alice"), trace(owner="alice")
        await store.add([old, trace(owner="bob"), trace(owner="")])
        async with (
            listening(session, closed.url, f"{query or '?'}&last=1", alice) as hers,
            listening(session, closed.url, f"{query or '?'}", bob) as his,
        ):
            first = await hers.next()
            assert first and first.data["id"] == old.id
            await his.joined()
            last = trace(owner="bob")
            await store.add([trace(owner=""), new, last])
            told = [await hers.next(), await his.next()]
            assert [event and event.data["id"] for event in told] == [new.id, last.id]


async def test_only_refused_ones_where_asked(
    server: FeedServer, store: TraceStore, session: aiohttp.ClientSession
) -> None:
    """Of the request or of the response."""
    outcomes = [Outcome.COMPLETED, Outcome.REFUSED_REQUEST, Outcome.FAILED, Outcome.REFUSED_RESPONSE]
    await store.add([trace(owner=DEVELOPER, outcome=outcome) for outcome in outcomes])
    async with listening(session, server.url, "?refused=1&last=10") as listener:
        told = [await listener.next(), await listener.next()]
        assert [event and event.data["outcome"] for event in told] == ["refused_request", "refused_response"]


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("?after=1", {}, [2, 3, 4]),
        ("?after=1&last=1", {}, [2, 3, 4]),
        ("?after=1&last=1", {"last_event_id": "2"}, [3, 4]),
        ("?last=1", {"last_event_id": "1"}, [2, 3, 4]),
        ("?last=2", {}, [2, 3, 4]),
        ("", {}, [4]),
    ],
)
async def test_where_it_begins(
    server: FeedServer,
    store: TraceStore,
    session: aiohttp.ClientSession,
    query: str,
    headers: dict[str, str],
    expected: list[int],
) -> None:
    """After an event, or with the last ones; what the browser says after a cut counts more than the address."""
    await store.add([trace(owner=DEVELOPER) for _ in range(3)])
    async with listening(session, server.url, query, **headers) as listener:
        heard: list[int] = []
        while len(heard) < len(expected) - 1:
            event = await listener.next()
            assert event
            heard.append(event.seq)
        await listener.joined()
        await store.add([trace(owner=DEVELOPER)])
        event = await listener.next()
        assert event and [*heard, event.seq] == expected


async def test_who_has_no_valid_key_sees_nothing(closed: FeedServer, session: aiohttp.ClientSession) -> None:
    """No key, another one, one in the query: 401 in the API's form."""
    for key in (None, KEY, "", "inv-x y"):
        async with listening(session, closed.url, f"?key={KEY}", key) as listener:
            assert listener.response.status == 401
            assert await listener.response.json() == {"detail": BAD_KEY}


async def test_another_users_dataset_is_not_there(
    closed: FeedServer, store: TraceStore, session: aiohttp.ClientSession
) -> None:
    """No more than one that nobody has."""
    _, key = await Keys(store.database).add("alice")
    await Datasets(store.database).create("bob", "his")
    for name in ("his", "nobodys", "%22%3Cb%3E", "a%2Fb"):
        async with listening(session, closed.url, f"?dataset={name}", key) as listener:
            assert listener.response.status == 404
            assert await listener.response.json() == {"detail": "Dataset not found"}


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=1.5", f"after={'9' * 19}", "last=x", "after=%D9%A1"])
async def test_what_is_no_number_is_refused(server: FeedServer, session: aiohttp.ClientSession, query: str) -> None:
    """400, and it says which."""
    async with listening(session, server.url, f"?{query}") as listener:
        assert listener.response.status == 400
        assert await listener.response.json() == {"detail": f"{query.partition('=')[0]} must be a number from 0"}


async def test_a_browser_watches_with_its_session(
    closed: FeedServer, store: TraceStore, session: aiohttp.ClientSession
) -> None:
    """From a page of this server; another site's page has no use of it."""
    _, key = await Keys(store.database).add("alice")
    token = await Sessions(store.database).open(key, 60.0)
    cookie = f"{SESSION_COOKIE}={token}"
    for site, status in (("same-origin", 200), ("cross-site", 401)):
        headers = {"cookie": cookie, "sec_fetch_site": site}
        async with listening(session, closed.url, key=None, **headers) as listener:
            assert listener.response.status == status


@pytest.mark.parametrize("way", ["key", "session"])
async def test_a_revoked_key_ends_its_watch(
    closed: FeedServer,
    store: TraceStore,
    session: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """What is recorded later is not told, though the connection was opened while the key was good."""
    monkeypatch.setattr(feed_api, "RECHECK", 0.0)
    keys = Keys(store.database)
    record, key = await keys.add("alice")
    token = await Sessions(store.database).open(key, 60.0)
    browser = {"cookie": f"{SESSION_COOKIE}={token}", "sec_fetch_site": "same-origin"}
    sent = {"key": None, **browser} if way == "session" else {"key": key}
    async with listening(session, closed.url, **sent) as listener:
        await listener.joined()
        await store.add([trace(owner="alice")])
        assert await listener.next()
        await keys.revoke(record.id)
        await store.add([trace(owner="alice")])
        assert await listener.next() is None
    assert closed.feed.watchers == 0


async def test_a_stop_waits_for_no_watcher(store: TraceStore, session: aiohttp.ClientSession) -> None:
    """Each stream has its proper end, and the server is gone long before its patience is over."""
    async with contextlib.AsyncExitStack() as stack:
        async with feed_server(store) as server:
            watches = [await stack.enter_async_context(listening(session, server.url)) for _ in range(3)]
            for watch in watches:
                await watch.joined()
            began = time.monotonic()
        assert time.monotonic() - began < SOON
        assert [await watch.next() for watch in watches] == [None] * 3


async def test_one_watcher_too_many_is_told_to_come_later(server: FeedServer, session: aiohttp.ClientSession) -> None:
    """503; when another leaves there is room again."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_WATCHERS_OF_ONE):
            await stack.enter_async_context(listening(session, server.url))
        async with listening(session, server.url) as listener:
            assert listener.response.status == 503
            assert await listener.response.json() == {"detail": "Too many clients follow the feed; try again later"}
            assert listener.response.headers["retry-after"]
    async with asyncio.timeout(SOON):
        while True:
            async with listening(session, server.url) as listener:
                if listener.response.status == 200:
                    break


async def test_who_stops_reading_is_cut_off(
    store: TraceStore, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while its place is free; meanwhile another hears everything."""
    monkeypatch.setattr(feed_api, "STALLED", 0.2)
    traces = Traces()
    async with feed_server(store, source=traces) as server, listening(session, server.url) as fast:
        await fast.joined()
        with socket.socket() as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stuck.connect(("127.0.0.1", server.port))
            stuck.sendall(
                f"GET /api/v1/feed HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
            )
            while server.feed.watchers < 2:
                traces.add(1, owner=DEVELOPER)
                assert await fast.next()
            async with asyncio.timeout(SOON):
                while server.feed.watchers > 1:
                    traces.add(100, owner=DEVELOPER, rule="x" * 300)
                    for _ in range(100):
                        assert await fast.next()
            # What the kernel had taken arrives, and no end of the stream.
            rest = await asyncio.to_thread(everything, stuck)
            assert rest and not rest.endswith(b"0\r\n\r\n")


def everything(connection: socket.socket) -> bytes:
    """What still comes over a connection until it is closed."""
    connection.settimeout(SOON)
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            pieces.append(piece)
    return b"".join(pieces)
