"""Connect the WebSocket of a live session's client with the upstream, and move frames between the two.

``proxy.live_session`` decides which frames may leave. Each side is read only as fast as the other side takes its
frames.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web
from yarl import URL

from gemini_proxy.errors import (
    BadRequest,
    Forbidden,
    LimitExceeded,
    ProxyError,
    Unavailable,
    UpstreamCut,
    UpstreamError,
    UpstreamTimeout,
    origin_of,
)
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.live.frames import close_reason, go_away
from gemini_proxy.proxy.credentials import goes_as_bearer
from gemini_proxy.proxy.exchange import Exchange, Refused
from gemini_proxy.proxy.live_session import Leaving, LiveFrame, LiveSession, SessionSettings, SessionTooLarge
from gemini_proxy.proxy.tasks import Tasks
from gemini_proxy.proxy.upstream import upstream_headers, vertex_url
from gemini_proxy.sections import Upstream as UpstreamConfig
from gemini_proxy.server.app_keys import (
    CALL,
    CREDENTIALS,
    LIMITER,
    SETUPS,
    STATE,
    TASKS,
    TELEMETRY,
)
from gemini_proxy.server.exchanges import new_exchange
from gemini_proxy.server.limiter import Visit
from gemini_proxy.server.middlewares import charged_client
from gemini_proxy.server.reload import Setup
from gemini_proxy.traces.datasets import UNNAMED
from gemini_proxy.traces.trace import Outcome

log = logging.getLogger(__name__)
Server = aiohttp.ClientWebSocketResponse[bool]
Client = web.WebSocketResponse[bool]

_HEARTBEAT: Final = 30.0
"""Seconds between pings; a side that does not answer one within half of that is gone."""
_CLOSING: Final = 2.0
"""Seconds for which the answer to a close frame is waited for."""
_CHARGED: Final = 1_048_576
"""Bytes of streamed sound and pictures after which they are charged to the client."""
MAX_AHEAD: Final = 1_048_576
"""Bytes of frames that are read while one before them is decided on."""
_SENDABLE: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
"""Codes that a close frame may have, beside those from 3000 to 4999 (RFC 6455, section 7.4)."""


class LiveDoor:
    """The live sessions of this process: how many there are, their connections upstream, and how they end."""

    def __init__(self, config: UpstreamConfig, tasks: Tasks) -> None:
        self._config = config
        self._tasks = tasks
        self._http: aiohttp.ClientSession | None = None
        self._relays: set[_Relay] = set()

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._config.connect_timeout)
        self._http = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("user-agent", "accept"),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._http is not None
        await self._http.close()

    @property
    def sessions(self) -> int:
        """Return the current number of sessions."""
        return len(self._relays)

    @contextlib.contextmanager
    def opened(self, relay: "_Relay", most: int) -> Iterator[None]:
        """Count a session while it lasts. Raises Unavailable where there are ``most`` already."""
        if len(self._relays) >= most:
            raise Unavailable("The proxy has as many live sessions as live.max_sessions allows; try again later")
        self._relays.add(relay)
        try:
            yield
        finally:
            self._relays.discard(relay)

    def _base_url(self, call: ModelCall) -> str:
        if call.host != "vertex":
            return self._config.base_url
        return vertex_url(call.location) if self._config.vertex == "google" else self._config.vertex

    async def connect(self, call: ModelCall, headers: Mapping[str, str], max_frame_bytes: int) -> Server:
        """Open a session upstream. Raises UpstreamError with a sentence that names its status, UpstreamTimeout."""
        assert self._http is not None
        url = URL(self._base_url(call) + call.upstream_target, encoded=True)
        try:
            async with asyncio.timeout(self._config.connect_timeout + self._config.read_timeout):
                return await self._http.ws_connect(
                    url,
                    headers=headers,
                    heartbeat=_HEARTBEAT,
                    max_msg_size=max_frame_bytes,
                    decode_text=False,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSING),
                )
        except aiohttp.WSServerHandshakeError as error:
            raise RefusedHandshake(error.status) from None
        except TimeoutError:
            raise UpstreamTimeout("The upstream did not open the session in time") from None
        except (aiohttp.ClientError, OSError):
            raise UpstreamError("The upstream could not be reached") from None

    def drain(self, grace: float) -> None:
        """Tell every client that its session ends within ``grace`` seconds, and end those between turns."""
        for relay in tuple(self._relays):
            self._tasks.spawn(relay.drain(grace), "live session")


class RefusedHandshake(UpstreamError):
    """The upstream opened no session and answered with an HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"The upstream refused the session with status {status}")
        self.upstream_status = status


class IdleSession(ProxyError):
    """Neither side has sent a frame for ``live.idle_timeout`` seconds."""


LIVE = web.AppKey("LIVE", LiveDoor)


async def serve_session(request: web.Request) -> web.StreamResponse:
    """Serve one session from its handshake to its last trace. Raises ProxyError where there is none."""
    setup = request.app[SETUPS].current
    client = web.WebSocketResponse(
        timeout=_CLOSING,
        heartbeat=_HEARTBEAT,
        max_msg_size=setup.config.live.max_frame_bytes,
        compress=False,
        decode_text=False,
    )
    if not client.can_prepare(request).ok:
        raise BadRequest("This path takes WebSocket handshakes only")
    if (request[CREDENTIALS].gemini or "").startswith(_TOKEN):
        raise Forbidden(
            "The proxy does not serve sessions with ephemeral tokens: it cannot check the setup that a token holds"
        )
    if request.app[STATE].draining:
        raise Unavailable("The proxy is shutting down")
    first = new_exchange(request)
    first.rules = await setup.reader.read_rules(first, request.headers)
    headers = upstream_headers(
        request.headers,
        request[CREDENTIALS].gemini or "",
        setup.config.upstream.forward_headers,
        bearer=goes_as_bearer(request[CREDENTIALS], request[CALL]),
    )
    relay = _Relay(request, client, setup, first, {k: v for k, v in headers.items() if k not in _NOT_FORWARDED})
    with request.app[LIVE].opened(relay, setup.config.live.max_sessions):
        await client.prepare(request)
        await relay.run()
    return client


_TOKEN: Final = "auth_tokens/"
_NOT_FORWARDED: Final = frozenset({"accept-encoding", "content-type"})


class _Relay:
    """Move the frames of one session."""

    def __init__(
        self,
        request: web.Request,
        client: Client,
        setup: Setup,
        first: Exchange,
        headers: Mapping[str, str],
    ) -> None:
        self._request = request
        self._client = client
        self._config = setup.config
        self._headers = headers
        self._id = first.id
        self._limiter = request.app[LIMITER]
        self._dataset = first.call.dataset or UNNAMED
        self._visit: Visit | None = None
        self._streamed = 0
        self._draining = False
        self._reason = ""
        self._last_frame = asyncio.get_running_loop().time()
        live, guardrails = setup.config.live, setup.config.guardrails
        settings = SessionSettings(
            prefix=setup.config.refusals.prefix,
            sound_waits=guardrails.stream_check != "final",
            blocks_unseen=guardrails.unseen_content == "block",
            adds_transcription=live.transcription == "add",
            max_bytes=live.max_session_bytes,
        )

        def exchange_of_turn() -> Exchange:
            exchange = new_exchange(request)
            exchange.rules, exchange.conversation = first.rules, first.id
            return exchange

        def begin(exchange: Exchange) -> None:
            if (telemetry := request.app[TELEMETRY]) is not None:
                exchange.spans = telemetry.begin(exchange, None)

        remember = setup.keeper.remember
        self._session = LiveSession(
            setup.pipeline, setup.reader, settings, exchange_of_turn, self._spend, remember, begin
        )

    async def run(self) -> None:
        """Serve the session until either side ends it. Its last trace is written, or under way, when this returns."""
        outcome, error = Outcome.CLIENT_GONE, ""
        try:
            async with self._opened() as server:
                await self._move(server)
        except Refused as refused:
            await self._close(WSCloseCode.POLICY_VIOLATION, refused.refusal.text)
        except (ProxyError, ConnectionError) as failure:
            error = failure.message if isinstance(failure, ProxyError) else ""
            outcome = Outcome.UPSTREAM_ERROR if isinstance(failure, UpstreamError) else Outcome.CLIENT_GONE
            await self._fail(failure)
        except asyncio.CancelledError:
            outcome = Outcome.FAILED if self._request.app[STATE].draining else Outcome.CLIENT_GONE
            raise
        except Exception as failure:
            outcome = Outcome.FAILED
            log.error("live session failed: %s\n%s", type(failure).__name__, origin_of(failure))
            await self._close(WSCloseCode.INTERNAL_ERROR, "The proxy failed on this session")
        finally:
            self._session.leave(outcome, error)

    async def drain(self, grace: float) -> None:
        """Tell the client that the session ends; end it between turns."""
        self._draining = True
        with contextlib.suppress(ConnectionError):
            await self._client.send_bytes(go_away(grace))
            await self._end_if_drained()

    async def _end_if_drained(self) -> None:
        if self._draining and self._session.idle:
            await self._close(WSCloseCode.GOING_AWAY, "The proxy is shutting down; open a new session")

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[Server]:
        """Check the setup, open the session upstream and send it."""
        try:
            message = await self._client.receive(timeout=self._config.server.request_timeout)
        except TimeoutError:
            raise BadRequest("The setup did not arrive in time") from None
        frame = _frame(message)
        if frame is None:
            raise ConnectionError("the client is gone")
        self._visit = await self._limiter.charge(charged_client(self._request), len(frame.data))
        setup = await self._session.start(frame.data)
        live = self._request.app[LIVE]
        try:
            server = await live.connect(self._session.call, self._headers, self._config.live.max_frame_bytes)
        except RefusedHandshake as refused:
            self._settle(False if refused.upstream_status in (401, 403) else None)
            raise
        try:
            await _send(server, [LiveFrame(setup, frame.binary)])
            yield server
        finally:
            await server.close()

    async def _move(self, server: Server) -> None:
        """Move frames until one side closes or fails, or neither has sent one for too long."""
        tasks = self._request.app[TASKS]
        up, down = (
            tasks.beside(self._move_up(server), "live frames up"),
            tasks.beside(self._move_down(server), "live frames down"),
        )
        try:
            clock, idle = asyncio.get_running_loop().time, self._config.live.idle_timeout
            done: set[asyncio.Task[None]] = set()
            while not done:
                left = self._last_frame + idle - clock()
                if left <= 0:
                    raise IdleSession("The session was closed: no frame has come for live.idle_timeout seconds")
                done, _ = await asyncio.wait({up, down}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if down in done and up not in done:
                up.cancel()
                await self._end_as(server)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.wait({up, down})

    def _read(self, side: Server | Client) -> contextlib.AbstractAsyncContextManager["_Inbox"]:
        return _read_ahead(side, self._request.app[TASKS], self._note_frame)

    def _note_frame(self) -> None:
        self._last_frame = asyncio.get_running_loop().time()

    async def _move_up(self, server: Server) -> None:
        async with self._read(self._client) as inbox:
            while (frame := _frame(await inbox.take())) is not None:
                leaving = await self._session.from_client(frame)
                await self._charge(len(frame.data), checked=leaving.checked)
                await self._leave(server, leaving)

    async def _move_down(self, server: Server) -> None:
        async with self._read(server) as inbox:
            while (frame := _frame(message := await inbox.take())) is not None:
                if self._visit is not None:
                    self._settle(True)
                await self._leave(server, await self._session.from_server(frame))
        self._reason = message.extra if isinstance(message.extra, str) else ""

    async def _leave(self, server: Server, leaving: Leaving) -> None:
        if not server.closed:
            # If it has just ended, relay its earlier frames first, then the reason of its end.
            with contextlib.suppress(ConnectionError):
                await _send(server, leaving.up)
        await _send(self._client, leaving.down)
        if self._draining:
            await self._end_if_drained()

    async def _end_as(self, server: Server) -> None:
        """End the session as the upstream did, after what it had sent and may leave."""
        code = server.close_code or WSCloseCode.ABNORMAL_CLOSURE
        refuses_key = code in (1007, 1008) and "API key" in self._reason
        self._settle(False if refuses_key else None)
        await self._leave(server, await self._session.cut())
        if code not in _SENDABLE and not 3000 <= code <= 4999:
            raise UpstreamCut("The upstream broke off the session")
        await self._close(code, self._reason)

    # Charges for the client

    async def _charge(self, size: int, *, checked: bool) -> None:
        """Charge a frame like a request, streamed sound and pictures by their bytes. Raises LimitExceeded."""
        self._streamed += size
        if checked or self._streamed >= _CHARGED:
            size, self._streamed = self._streamed, 0
            client = charged_client(self._request)
            await self._limiter.charge(client, size)
            await self._limiter.afford(client, self._dataset)

    def _spend(self, usage: Mapping[str, Any]) -> None:
        if usage:
            self._limiter.spend(charged_client(self._request), self._dataset, usage)

    def _settle(self, accepted: bool | None) -> None:
        """Say whether the upstream took the client's key, once it is known."""
        if self._visit is not None:
            visit, self._visit = self._visit, None
            self._limiter.settle(visit, visit.size, accepted=accepted)

    # The end of a session

    async def _fail(self, error: ProxyError | ConnectionError) -> None:
        """Close the client's side with a code and the sentence of the error."""
        code = WSCloseCode.INTERNAL_ERROR
        if isinstance(error, SessionTooLarge):
            code = WSCloseCode.MESSAGE_TOO_BIG
        elif isinstance(error, BadRequest):
            code = WSCloseCode.INVALID_TEXT
        elif isinstance(error, LimitExceeded | Unavailable):
            code = WSCloseCode.TRY_AGAIN_LATER
        elif isinstance(error, IdleSession):
            code = WSCloseCode.GOING_AWAY
        elif isinstance(error, RefusedHandshake):
            code = WSCloseCode.POLICY_VIOLATION if error.upstream_status < 500 else WSCloseCode.INTERNAL_ERROR
        elif isinstance(error, ProxyError) and error.status < 500:
            code = WSCloseCode.POLICY_VIOLATION
        if isinstance(error, ProxyError):
            log.info("live session ended", extra={"reason": error.message, "trace_id": self._id})
            await self._close(code, error.message)

    async def _close(self, code: int, reason: str) -> None:
        with contextlib.suppress(ConnectionError):
            await self._client.close(code=code, message=close_reason(reason))


class _Inbox:
    """The messages of one side, read ahead while one of them is decided on, up to some bytes.

    A WebSocket answers pings while it is read. A side without an answer for some seconds considers the session lost.
    """

    def __init__(self, side: Server | Client, noted: Callable[[], None]) -> None:
        """``noted`` is told of every frame that comes."""
        self._side = side
        self._noted = noted
        self._waiting: deque[Any] = deque()
        self._size = 0
        self._changed = asyncio.Event()
        self._failure: Exception | None = None

    async def fill(self) -> None:
        """Read until the connection ends."""
        try:
            is_frame = True
            while is_frame:
                while self._size >= MAX_AHEAD:
                    self._changed.clear()
                    await self._changed.wait()
                message = await self._side.receive()
                is_frame = _frame(message) is not None
                self._size += len(message.data) if is_frame else 0
                self._waiting.append(message)
                self._changed.set()
                if is_frame:
                    self._noted()
        except Exception as failure:
            self._failure = failure
            self._changed.set()
            raise

    async def take(self) -> Any:
        """Return the next message, and what reading failed with once there is none before it."""
        while not self._waiting:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        message = self._waiting.popleft()
        self._size -= len(message.data) if _frame(message) is not None else 0
        self._changed.set()
        return message


@contextlib.asynccontextmanager
async def _read_ahead(side: Server | Client, tasks: Tasks, noted: Callable[[], None]) -> AsyncIterator[_Inbox]:
    inbox = _Inbox(side, noted)
    filling = tasks.beside(inbox.fill(), "live frames ahead")
    try:
        yield inbox
    finally:
        filling.cancel()
        await asyncio.wait({filling})


def _frame(message: Any) -> LiveFrame | None:
    """Return a message as a frame, None where it says that the connection ends."""
    if message.type is WSMsgType.BINARY:
        return LiveFrame(message.data, binary=True)
    if message.type is WSMsgType.TEXT:
        return LiveFrame(message.data, binary=False)
    return None


async def _send(side: Server | Client, frames: list[LiveFrame]) -> None:
    for frame in frames:
        await side.send_frame(frame.data, WSMsgType.BINARY if frame.binary else WSMsgType.TEXT)
