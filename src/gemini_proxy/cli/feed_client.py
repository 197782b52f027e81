"""Follow a server's feed, whatever happens to the connection, without repeating an event."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import orjson
from aiohttp.http_exceptions import LineTooLong
from aiohttp_sse_client.client import LAST_EVENT_ID_HEADER, READY_STATE_CONNECTING, EventSource
from multidict import CIMultiDict

PAUSES: Final = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0)
"""Seconds between attempts to reach a server that has gone; the last is repeated."""
# The server sends something every 15 seconds; after three times that, the connection is dead.
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=45.0)
_ERROR_BYTES: Final = 2_000
_TEMPORARY: Final = frozenset({408, 429, 500, 502, 503, 504})


class FeedRefused(Exception):
    """This feed cannot be followed, now or later; the message says why."""


class _Lost(Exception):
    """The connection is lost, and another one may work."""


class _Ended(Exception):
    """Keep the library from connecting again by itself."""


@dataclass(frozen=True, slots=True)
class FeedExchange:
    """An exchange as told; ``text`` is the JSON object it came in, ``created`` in Unix seconds."""

    text: str
    id: str
    created: float
    dataset: str | None
    model: str | None
    outcome: str
    rule: str | None
    duration_ms: float


@dataclass(frozen=True, slots=True)
class Missed:
    """Exchanges that the feed left out: ``count``, or at most so many."""

    count: int
    exact: bool


class FeedClient:
    """Follow one feed by the ids of its events. ``tell`` gets a sentence when the connection is lost or restored.

    The library reads the stream. This class reconnects, with a new reader each time: the library gives up at the first
    refused connection, and would continue with half an event from the old connection.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        query: Mapping[str, str],
        key: str,
        tell: Callable[[str], None],
        pauses: Sequence[float] = PAUSES,
    ) -> None:
        self._session = session
        self._url = url
        self._query = query
        self._key = key
        self._tell = tell
        self._pauses = pauses
        self._last_id = ""
        self._failures = 0

    async def events(self) -> AsyncGenerator[FeedExchange | Missed, None]:
        """Yield the events of the feed, for ever. Raise FeedRefused, also if the server cannot be reached at first."""
        while True:
            try:
                async with contextlib.aclosing(self._connection()) as events:
                    async for event in events:
                        yield event
            except _Lost as reason:
                await self._pause(str(reason))

    async def _pause(self, reason: str) -> None:
        if not self._last_id:
            raise FeedRefused(reason)
        if not self._failures:
            self._tell(f"{reason}; connecting again")
        pause = self._pauses[min(self._failures, len(self._pauses) - 1)]
        self._failures += 1
        await asyncio.sleep(pause)

    async def _connection(self) -> AsyncGenerator[FeedExchange | Missed, None]:
        """Yield the events of one connection. Raise _Lost at its end, whatever that is."""
        source = self._source()
        with _translated():
            await source.connect()
        try:
            while True:
                with _translated():
                    message = await anext(source)
                self._arrived(message.last_event_id)
                if message.type == "exchange":
                    yield _exchange(message.data)
                elif message.type == "missed":
                    yield _missed(message.data)
        finally:
            await source.close()

    def _source(self) -> EventSource:
        headers = CIMultiDict({"Authorization": f"Bearer {self._key}"})
        if self._last_id:
            headers[LAST_EVENT_ID_HEADER] = self._last_id

        def failed() -> None:
            if source.ready_state == READY_STATE_CONNECTING:
                raise _Ended

        source = EventSource(
            self._url,
            session=self._session,
            max_connect_retry=0,
            on_error=failed,
            headers=headers,
            params=self._query,
            timeout=_TIMEOUT,
            allow_redirects=False,
            raise_for_status=_check,
        )
        return source

    def _arrived(self, event_id: str) -> None:
        if self._failures:
            self._tell("connected again")
            self._failures = 0
        self._last_id = event_id or self._last_id


async def _check(response: aiohttp.ClientResponse) -> None:
    """Accept only the feed. Raise _Lost for what may pass, and FeedRefused for what will not."""
    if response.status == 200 and response.content_type == "text/event-stream":
        return
    detail = _detail(await response.content.read(_ERROR_BYTES))
    response.close()
    if response.status in _TEMPORARY:
        raise _Lost(f"the server answered {response.status}{detail and f' ({detail})'}")
    if response.status == 401:
        raise FeedRefused("the server does not accept this key" + (f": {detail}" if detail else ""))
    if response.status == 404 and detail == "Dataset not found":
        raise FeedRefused("there is no such dataset")
    if detail:
        raise FeedRefused(f"the server answered {response.status}: {detail}")
    raise FeedRefused(f"there is no feed at this address (HTTP {response.status}); is explorer.enabled true there?")


def _detail(body: bytes) -> str:
    """Return what an error of the API says; empty for any other body."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    detail = answer.get("detail") if isinstance(answer, Mapping) else None
    return detail if isinstance(detail, str) else ""


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what a connection may end with into _Lost, and what is not the feed into FeedRefused."""
    try:
        yield
    except (_Ended, StopAsyncIteration):
        raise _Lost("the server ended the feed") from None
    except aiohttp.ClientConnectorError as error:
        raise _Lost(f"no connection to the server ({error.os_error.strerror or error.os_error})") from None
    except (aiohttp.ClientError, OSError) as error:
        raise _Lost(f"the connection was lost ({type(error).__name__})") from None
    except (ValueError, LineTooLong) as error:
        # ValueError: not UTF-8.
        raise FeedRefused(f"the server sent something other than the feed ({type(error).__name__})") from None


def _exchange(text: str) -> FeedExchange:
    data = _read(text)
    try:
        return FeedExchange(
            text,
            str(data["id"]),
            float(data["created"]),
            _text(data["dataset"]),
            _text(data["model"]),
            str(data["outcome"]),
            _text(data["rule"]),
            float(data["duration_ms"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FeedRefused(f"the server sent something other than the feed ({type(error).__name__})") from None


def _missed(text: str) -> Missed:
    data = _read(text)
    count = data.get("count")
    if not isinstance(count, int):
        raise FeedRefused("the server sent something other than the feed (no count)")
    return Missed(count, data.get("exact") is True)


def _read(text: str) -> Mapping[str, Any]:
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise FeedRefused("the server sent something other than the feed (not JSON)") from None
    if not isinstance(data, Mapping):
        raise FeedRefused("the server sent something other than the feed (not an object)")
    return data


def _text(value: object) -> str | None:
    return None if value is None else str(value)
