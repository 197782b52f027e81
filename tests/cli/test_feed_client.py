"""Following a feed over connections that break in every way, before a server that plays a script."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest

from gemini_proxy.cli.feed_client import FeedClient, FeedExchange, FeedRefused, Missed
from gemini_proxy.traces.feed_events import exchange_event, keep_alive, missed_event, opening
from tests.support.feed import SOON, summary

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n"
HEAD_CHUNKED = HEAD.replace(b"connection: close", b"transfer-encoding: chunked")


def answer(status: str, body: bytes, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
    return f"{head}location: http://127.0.0.1:1/\r\nconnection: close\r\n\r\n".encode() + body


@dataclass
class Script:
    """Answers one connection after the other; None is one that is closed without a word."""

    answers: list[bytes | None]
    requests: list[list[str]] = field(default_factory=list)

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n"))
        told = self.answers.pop(0) if self.answers else None
        if told:
            writer.write(told)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    def header(self, request: int, name: str) -> list[str]:
        found = [line.partition(": ") for line in self.requests[request]]
        return [value for key, _, value in found if key == name]


@contextlib.asynccontextmanager
async def following(*answers: bytes | None, told: list[str] | None = None) -> AsyncIterator[tuple[FeedClient, Script]]:
    """A client before a server that answers so."""
    script = Script(list(answers))
    server = await asyncio.start_server(script.play, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sentences = [] if told is None else told
    async with server, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/api/v1/feed"
        yield FeedClient(session, url, {"last": "0"}, "inv-key", sentences.append, pauses=(0.0,)), script


async def heard(client: FeedClient, count: int) -> list[int | Missed]:
    """The next events: an exchange's milliseconds, or what was missed."""
    found: list[int | Missed] = []
    async with asyncio.timeout(SOON), contextlib.aclosing(client.events()) as events:
        async for event in events:
            found.append(int(event.duration_ms) if isinstance(event, FeedExchange) else event)
            if len(found) == count:
                break
    return found


def exchange(seq: int) -> bytes:
    return exchange_event(summary(seq, duration_ms=float(seq)))


BEGUN = exchange(1) + exchange(2)
CUTS = [
    HEAD + opening(exchange(1), 1) + exchange(2),
    HEAD + opening(exchange(1), 1) + exchange(2) + exchange(3)[:-1],
    HEAD + opening(exchange(1), 1) + exchange(2) + exchange(3)[:30],
    HEAD_CHUNKED + b"%x\r\n%b\r\n" % (len(BEGUN), BEGUN),
    HEAD_CHUNKED + b"%x\r\n%b\r\n9999\r\nid: 3\n" % (len(BEGUN), BEGUN),
]


@pytest.mark.parametrize("cut", CUTS)
async def test_it_goes_on_after_the_last_whole_event(cut: bytes) -> None:
    """Wherever the connection ends, half an event is none, and the server is asked for what follows the last one."""
    told: list[str] = []
    rest = HEAD + opening(exchange(3), 3) + exchange(4)
    async with following(cut, None, answer("503 Busy", b'{"detail": "stopping"}'), rest, told=told) as (client, script):
        assert await heard(client, 4) == [1, 2, 3, 4]
    assert [script.header(n, "last-event-id") for n in range(4)] == [[], ["2"], ["2"], ["2"]]
    assert len(told) == 2
    assert told[0].endswith("; connecting again") and told[1] == "connected again"


@pytest.mark.parametrize("cut", CUTS)
async def test_half_an_event_is_not_made_whole_by_the_next_connection(cut: bytes) -> None:
    """Also where that comes at the first attempt."""
    async with following(cut, HEAD + opening(exchange(3), 3) + exchange(4)) as (client, script):
        assert await heard(client, 4) == [1, 2, 3, 4]
    assert len(script.requests) == 2


async def test_a_position_counts_as_an_event() -> None:
    """Who heard nothing but that goes on from there."""
    async with following(HEAD + opening(b"", 5) + keep_alive(17), HEAD + exchange(18)) as (client, script):
        assert await heard(client, 1) == [18]
    assert script.header(1, "last-event-id") == ["17"]


async def test_what_was_missed_is_told() -> None:
    """Exactly, or at most."""
    events = missed_event(3, 2, exact=True) + exchange(4) + missed_event(9, 5, exact=False)
    async with following(HEAD + opening(events, 9)) as (client, _):
        assert await heard(client, 3) == [Missed(2, True), 4, Missed(5, False)]


async def test_it_says_who_it_is() -> None:
    """With the key in the header, and nowhere else."""
    async with following(HEAD + opening(exchange(1), 1)) as (client, script):
        await heard(client, 1)
    assert script.header(0, "authorization") == ["bearer inv-key"]
    assert script.header(0, "accept") == ["text/event-stream"]
    assert script.requests[0][0] == "get /api/v1/feed?last=0 http/1.1"


BAD_KEY = b'{"detail": "You must provide a valid API key."}'


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (answer("401 No", BAD_KEY), "does not accept this key: You must provide a valid API key."),
        (answer("404 No", b'{"detail": "Dataset not found"}'), "there is no such dataset"),
        (answer("404 No", b'{"error": {"code": 404}}'), "no feed at this address (HTTP 404)"),
        (answer("404 No", b"<html>", "text/html"), "no feed at this address (HTTP 404)"),
        (answer("302 Found", b""), "no feed at this address (HTTP 302)"),
        (answer("200 OK", b"{}"), "no feed at this address (HTTP 200)"),
        (answer("204 Empty", b"", "text/event-stream"), "no feed at this address (HTTP 204)"),
        (answer("400 No", b'{"detail": "last must be a number"}'), "answered 400: last must be a number"),
        (answer("503 Busy", b'{"detail": "Too many"}'), "answered 503 (Too many)"),
        (None, "the connection was lost (ServerDisconnectedError)"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "the connection was lost"),
        (HEAD + b"id: 1\nevent: exchange\ndata: {}\n\n", "the server sent something other than the feed (KeyError)"),
        (HEAD + b"id: 1\nevent: exchange\ndata: [\n\n", "the server sent something other than the feed (not JSON)"),
        (HEAD + b"id: 1\nevent: missed\ndata: []\n\n", "the server sent something other than the feed (not an object)"),
        (HEAD + b"id: 1\nevent: missed\ndata: {}\n\n", "the server sent something other than the feed (no count)"),
        (HEAD + b"data: \xff\xfe\n\n", "the server sent something other than the feed (UnicodeDecodeError)"),
        (HEAD + b"data: " + b"x" * 1_000_000 + b"\n\n", "the server sent something other than the feed"),
    ],
)
async def test_what_cannot_be_followed_is_said_at_once(refusal: bytes | None, words: str) -> None:
    """No second attempt where the first finds no feed: the address, the key or the dataset is wrong."""
    async with following(refusal) as (client, script):
        with pytest.raises(FeedRefused) as raised:
            await heard(client, 1)
    assert words in str(raised.value)
    # A request that was not answered at all is repeated once by aiohttp.
    assert len(script.requests) == (2 if refusal is None else 1)


async def test_a_key_revoked_meanwhile_ends_it() -> None:
    """Coming back is no use then."""
    async with following(HEAD + opening(exchange(1), 1), answer("401 No", BAD_KEY)) as (client, _):
        with pytest.raises(FeedRefused, match="does not accept this key"):
            await heard(client, 2)


async def test_where_nobody_listens_it_says_so() -> None:
    """And with the system's words."""
    told: list[str] = []
    async with aiohttp.ClientSession() as session:
        client = FeedClient(session, "http://127.0.0.1:1/api/v1/feed", {}, "inv-key", told.append, pauses=(0.0,))
        with pytest.raises(FeedRefused, match="no connection to the server \\(Connect"):
            await heard(client, 1)
    assert told == []
