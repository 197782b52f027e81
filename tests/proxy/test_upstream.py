"""The client half of the proxy against upstreams that speak HTTP badly, or stop speaking it."""

import asyncio
import contextlib
import itertools
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import DecodeError, ProxyError, UpstreamCut, UpstreamError, UpstreamTimeout
from gemini_proxy.proxy.upstream import UpstreamClient
from gemini_proxy.proxy.upstream_connection import Connection
from gemini_proxy.sections import Upstream as Config
from tests.conftest import StartProxy
from tests.support.proxy import prompt
from tests.support.upstream import Reply, ScriptedUpstream, candidate, unary

OK = b"HTTP/1.1 200 OK\r\n"
HI = b"content-length: 2\r\n\r\nhi"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
CLOSE = "close"
HANG = "hang"
Steps = Sequence[bytes | str]


class RawUpstream:
    """Answers each request, on whatever connection it comes, with the next of ``wires``: bytes, then an ending."""

    def __init__(self, *wires: Steps) -> None:
        self.wires = list(wires)
        self.connections = 0
        self.requests = 0
        self.ended = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def started(
        self, read_timeout: float = 0.3, tls: ssl.SSLContext | None = None
    ) -> AsyncIterator[UpstreamClient]:
        """Yield a client of it."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1024, ssl=tls)
        url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        upstream = UpstreamClient(Config(base_url=url, read_timeout=read_timeout), url)
        try:
            yield upstream
        finally:
            await upstream.close()
            server.close()
            await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._answer(reader, writer):
                pass
        writer.transport.abort()
        self.ended.set()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        for step in self.wires.pop(0):
            if step == CLOSE:
                writer.close()
                return False
            if step == HANG:
                await reader.read()
                return False
            assert isinstance(step, bytes)
            writer.write(step)
            await writer.drain()
        await reader.readexactly(2)
        return True


async def asked(upstream: UpstreamClient, body: bytes = b"{}") -> tuple[int, bytes]:
    """The status and the body of a call's response."""
    answer = await upstream.open("POST", "/v1beta/models/m:generateContent", {"content-type": "application/json"}, body)
    try:
        return answer.status, await answer.read(1_000_000)
    finally:
        answer.close()


class Wire(asyncio.Transport):
    """A transport that goes nowhere: what comes over it is said by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send nothing."""

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True


async def called() -> tuple[Connection, "asyncio.Task[None]"]:
    """A connection over which a call has been made, and the wait for the head of its response."""
    connection = Connection(60.0, lambda kept: None, lambda lost: None)
    connection.connection_made(Wire())
    call = asyncio.ensure_future(connection.call(b"POST / HTTP/1.1\r\n\r\n", b""))
    await asyncio.sleep(0)
    return connection, call


async def received(pieces: Sequence[bytes]) -> bytes:
    """Return the body of a response that comes in ``pieces`` before the connection ends."""
    connection, call = await called()
    for piece in pieces:
        connection.data_received(piece)
    connection.connection_lost(None)
    await call
    body = b""
    while data := await connection.receive():
        body += data
    return body


async def flowed(head: bytes, pieces: Sequence[bytes], takes: Sequence[bool]) -> bytes:
    """Return the body as it is handed on, of which a sink takes the one piece and leaves the other.

    The wait for the next piece begins before it comes, or, where nothing was left, after.
    """
    connection, call = await called()
    connection.data_received(head)
    await call
    body = b""
    decisions = itertools.cycle(takes)

    def sink(data: bytes) -> bytes | None:
        nonlocal body
        if not next(decisions):
            return data
        body += data
        return None

    async def read() -> None:
        nonlocal body
        while (left := await connection.flow(sink)) is not None:
            body += left

    reading = asyncio.ensure_future(read())
    for piece in pieces:
        if next(decisions):
            await asyncio.sleep(0)
        connection.data_received(piece)
    connection.connection_lost(None)
    await reading
    assert connection.received == len(body)
    return body


async def test_a_sink_that_leaves_no_bytes_has_not_ended_the_body() -> None:
    """It has to wait for something, such as a verdict, before it takes more."""
    connection, call = await called()
    connection.data_received(OK + b"content-length: 4\r\n\r\n")
    await call
    taken: list[bytes] = []

    def sink(data: bytes) -> bytes:
        taken.append(data)
        return b""

    for piece in (b"hi", b"ho"):
        flowing = asyncio.ensure_future(connection.flow(sink))
        await asyncio.sleep(0)
        connection.data_received(piece)
        assert await flowing == b""
    assert await connection.flow(sink) is None
    assert taken == [b"hi", b"ho"]


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body and a response that carries it."""
    body = draw(st.binary(max_size=40))
    if draw(st.booleans()):
        return body, OK + b"content-length: %d\r\n\r\n%b" % (len(body), body)
    chunks = [chunk for chunk in cut(body, draw(st.lists(st.integers(0, len(body)), max_size=4))) if chunk]
    extension = draw(st.sampled_from([b"", b";a=b", b';a="b c"']))
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return body, CHUNKED + framed + b"0\r\n" + draw(st.sampled_from([b"", b"x-t: 1\r\n"])) + b"\r\n"


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """``data`` in pieces that begin at ``places``."""
    bounds = [0, *sorted(places), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(bounds)]


@given(response=responses(), data=st.data())
def test_a_body_is_the_same_however_it_comes(response: tuple[bytes, bytes], data: st.DataObject) -> None:
    """Read by who waits for it, or handed on as it comes."""
    body, wire = response
    pieces = cut(wire, data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    assert asyncio.run(received([piece for piece in pieces if piece])) == body
    head = wire.index(b"\r\n\r\n") + 4
    pieces = cut(wire[head:], data.draw(st.lists(st.integers(0, len(wire) - head), max_size=8)))
    takes = data.draw(st.lists(st.booleans(), min_size=1, max_size=8))
    assert asyncio.run(flowed(wire[:head], [piece for piece in pieces if piece], takes)) == body


@given(response=responses(), data=st.data())
def test_a_response_that_breaks_off_is_never_taken_for_whole(
    response: tuple[bytes, bytes], data: st.DataObject
) -> None:
    _, wire = response
    pieces = cut(wire[: data.draw(st.integers(0, len(wire) - 1))], data.draw(st.lists(st.integers(0, 60), max_size=3)))
    with pytest.raises(UpstreamError):
        asyncio.run(received([piece for piece in pieces if piece]))


async def test_what_a_sink_raises_is_raised_where_the_body_is_waited_for() -> None:
    connection, call = await called()
    connection.data_received(CHUNKED)
    await call

    def sink(data: bytes) -> None:
        raise DecodeError(data.decode())

    reading = asyncio.ensure_future(connection.flow(sink))
    await asyncio.sleep(0)
    connection.data_received(b"2\r\nhi\r\n")
    connection.data_received(b"5\r\nthere\r\n")
    with pytest.raises(DecodeError, match="^hi$"):
        await reading
    assert await connection.receive() == b"there"


READABLE: dict[str, Steps] = {
    "a length": [OK + HI],
    "no reason": [b"HTTP/1.1 200\r\n" + HI],
    "split everywhere": [bytes([byte]) for byte in OK + HI],
    "until the end": [OK + b"\r\nhi", CLOSE],
    "HTTP/1.0": [b"HTTP/1.0 200 OK\r\n" + HI],
    "chunks with extensions and trailers": [CHUNKED + b'1;a=b\r\nh\r\n1;c="d"\r\ni\r\n0\r\nx-t: 1\r\n\r\n'],
    "100 first": [b"HTTP/1.1 100 Continue\r\n\r\n" + OK + HI],
    "103 first": [b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", OK + HI],
    "more than was asked for": [OK + HI + OK + HI],
    "a header that is no UTF-8": [OK + b"x-a: \xff\r\n" + HI],
}


@pytest.mark.parametrize("wire", READABLE.values(), ids=list(READABLE))
async def test_what_the_standard_allows_is_read(wire: Steps) -> None:
    async with RawUpstream(wire).started() as upstream:
        assert await asked(upstream) == (200, b"hi")


UNREADABLE: dict[str, tuple[Steps, type[ProxyError]]] = {
    "two lengths": ([OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nhi"], UpstreamError),
    "the same length twice": ([OK + b"content-length: 2\r\n" + HI], UpstreamError),
    "a length and chunks": ([OK + b"transfer-encoding: chunked\r\n" + HI], UpstreamError),
    "chunks and a length": ([OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"], UpstreamError),
    "another coding": ([OK + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"], UpstreamError),
    "two codings": ([OK + b"transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"], UpstreamError),
    "a folded header": ([OK + b"x-a: 1\r\n  2\r\n" + HI], UpstreamError),
    "a space before the colon": ([OK + b"content-length : 2\r\n\r\nhi"], UpstreamError),
    "bare line feeds": ([b"HTTP/1.1 200 OK\ncontent-length: 2\n\nhi"], UpstreamError),
    "a control character": ([OK + b"x-a: a\0b\r\n" + HI], UpstreamError),
    "a negative length": ([OK + b"content-length: -2\r\n\r\nhi"], UpstreamError),
    "no HTTP": ([b"hello\r\n\r\n"], UpstreamError),
    "a switch of protocols": ([b"HTTP/1.1 101 Go\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhi"], UpstreamError),
    "a redirect": ([b"HTTP/1.1 302 Found\r\nlocation: /x\r\n" + HI], UpstreamError),
    "no byte": ([CLOSE], UpstreamError),
    "half a head": ([OK + b"content-le", CLOSE], UpstreamError),
    "a head too large": ([OK + b"x-a: " + b"a" * 100_000 + b"\r\n" + HI], UpstreamError),
    "an endless head": ([OK + b"x-a: aaaa\r\n" * 100_000, HANG], UpstreamError),
    "endless interim responses": ([b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50_000, HANG], UpstreamError),
    "endless trailers": ([CHUNKED + b"2\r\nhi\r\n0\r\n", b"x-a: y\r\n" * 100_000, HANG], UpstreamCut),
    "a body that breaks off": ([OK + b"content-length: 5\r\n\r\nhi", CLOSE], UpstreamCut),
    "a chunk that breaks off": ([CHUNKED + b"5\r\nhi", CLOSE], UpstreamCut),
    "chunks without their end": ([CHUNKED + b"2\r\nhi\r\n", CLOSE], UpstreamCut),
    "chunks without the last line": ([CHUNKED + b"2\r\nhi\r\n0\r\n", CLOSE], UpstreamCut),
    "a chunk of no size": ([CHUNKED, b"-2\r\nhi\r\n"], UpstreamCut),
    "silence": ([HANG], UpstreamTimeout),
    "silence in the head": ([OK + b"content-le", HANG], UpstreamTimeout),
    "silence in the body": ([OK + b"content-length: 5\r\n\r\nhi", HANG], UpstreamTimeout),
    "an extension without an end": ([CHUNKED + b"2;a=", *[b"b"] * 1000, HANG], UpstreamTimeout),
}


@pytest.mark.parametrize(("wire", "error"), UNREADABLE.values(), ids=list(UNREADABLE))
async def test_what_cannot_be_read_is_an_error_and_asked_for_once(wire: Steps, error: type[ProxyError]) -> None:
    """Within the patience; and a request that the upstream has taken may have been billed."""
    raw = RawUpstream(wire, [OK + HI])
    async with raw.started() as upstream:
        with pytest.raises(ProxyError) as raised:
            await asked(upstream)
        assert type(raised.value) is error
        assert (raw.connections, raw.requests) == (1, 1)
        raw.wires = [[OK + HI]]
        assert await asked(upstream) == (200, b"hi")
        assert raw.connections == 2


async def test_a_connection_serves_one_call_after_the_other() -> None:
    raw = RawUpstream([OK + HI], [CHUNKED + b"2\r\nhi\r\n0\r\n\r\n"], [OK + HI])
    async with raw.started() as upstream:
        for _ in range(3):
            assert await asked(upstream) == (200, b"hi")
    assert (raw.connections, raw.requests) == (1, 3)


@pytest.mark.parametrize("head", [OK + b"connection: close\r\n", b"HTTP/1.0 200 OK\r\n"], ids=["said so", "HTTP/1.0"])
async def test_a_connection_that_the_upstream_closes_is_not_kept(head: bytes) -> None:
    raw = RawUpstream([head + HI], [OK + HI])
    async with raw.started() as upstream:
        assert await asked(upstream) == (200, b"hi")
        assert await asked(upstream) == (200, b"hi")
    assert raw.connections == 2


async def test_a_call_on_a_kept_connection_that_closes_is_made_again() -> None:
    """Once, on a connection of its own: the upstream gave up the old one as the call was on its way."""
    raw = RawUpstream([OK + HI], [CLOSE], [OK + HI])
    async with raw.started() as upstream:
        assert await asked(upstream) == (200, b"hi")
        assert await asked(upstream) == (200, b"hi")
        assert (raw.connections, raw.requests) == (2, 3)
        raw.wires = [[CLOSE], [CLOSE], [OK + HI]]
        with pytest.raises(UpstreamError):
            await asked(upstream)
        assert raw.requests == 5


async def test_a_response_that_nobody_asked_for_is_no_answer_to_the_next_call() -> None:
    """It comes while the connection is idle, which is then dropped."""
    raw = RawUpstream([OK + HI + OK + b"content-length: 3\r\n\r\nbad"], [OK + HI])
    async with raw.started() as upstream:
        assert await asked(upstream) == (200, b"hi")
        await raw.ended.wait()
        assert await asked(upstream) == (200, b"hi")
    assert raw.connections == 2


async def test_a_call_that_is_given_up_takes_its_connection_along() -> None:
    raw = RawUpstream([OK + b"content-length: 5\r\n\r\nhi", HANG], [OK + HI])
    async with raw.started() as upstream:
        answer = await upstream.open("POST", "/x", {}, b"{}")
        assert await answer.receive() == b"hi"
        answer.close()
        await raw.ended.wait()
        assert await asked(upstream) == (200, b"hi")
    assert raw.connections == 2


async def test_a_large_body_is_answered_before_it_was_sent() -> None:
    """The upstream has seen enough: its answer counts, and the connection is not used again."""
    raw = RawUpstream([b"HTTP/1.1 413 Too Large\r\n" + HI, HANG])
    async with raw.started(read_timeout=5.0) as upstream:
        assert await asked(upstream, b" " * 64_000_000) == (413, b"hi")
        raw.wires = [[OK + HI]]
        assert await asked(upstream) == (200, b"hi")
        assert raw.connections == 2


async def test_what_http_cannot_carry_is_not_sent() -> None:
    raw = RawUpstream()
    async with raw.started() as upstream:
        for target, headers in (
            ("/a b", {}),
            ("/a\r\nx: y", {}),
            ("/a", {"x-a": "b\r\nx-c: d"}),
            ("/a", {"x-a": "\0"}),
        ):
            with pytest.raises(ProxyError) as raised:
                await upstream.open("POST", target, headers, b"{}")
            assert raised.value.status == 400
    assert raw.connections == 0


async def test_the_base_address_may_have_a_path(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(upstream={"base_url": f"{upstream.url}/some/prefix/"})
    upstream.reply(unary(candidate("hi", "STOP")))
    async with client.post(proxy.method(), json=prompt("hi")) as response:
        assert response.status == 200
    assert upstream.calls[0].target == "/some/prefix/v1beta/models/gemini-2.5-flash:generateContent"
    assert upstream.calls[0].headers["host"] == upstream.url.removeprefix("http://")


async def test_a_header_that_is_no_utf8_harms_nobody(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy()
    upstream.reply(Reply([b'{"candidates": []}'], chunked=False, headers={"x-a": "caf\xe9"}))
    async with client.post(proxy.method("countTokens"), json=prompt("hi")) as response:
        assert response.status == 200


@pytest.mark.parametrize("trusted", [True, False])
async def test_tls_with_an_authority_of_ones_own(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    """SSL_CERT_FILE names it, as for every program that uses OpenSSL; nobody else is believed."""
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    raw = RawUpstream([CHUNKED + b"2\r\nhi\r\n0\r\n\r\n"], [OK + HI], [OK + HI])
    async with raw.started(tls=context) as upstream:
        if trusted:
            assert [await asked(upstream) for _ in range(3)] == [(200, b"hi")] * 3
        else:
            with pytest.raises(UpstreamError, match="SSLCertVerificationError"):
                await asked(upstream)
    assert (raw.connections, raw.requests) == ((1, 3) if trusted else (0, 0))
