"""Bodies and requests as hostile clients send them, over real sockets: what each gets, what its neighbors notice."""

import asyncio
import contextlib
import gzip
import resource
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from tests.support.proxy import MODEL, Proxy, prompt, proxy_before
from tests.support.raw import RawConnection, exchange, post_bytes
from tests.support.upstream import ScriptedUpstream, candidate, unary

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = f"/v1beta/models/{MODEL}:generateContent"
GOOD = orjson.dumps(prompt("hi"))
GZIP = b"content-encoding: gzip"
ZIPPED = gzip.compress(GOOD, mtime=0)
LIMIT = 2_000_000


def padded(size: int) -> bytes:
    """``ZIPPED`` with a comment in its header that brings it to ``size`` bytes."""
    return b"\x1f\x8b\x08\x10" + ZIPPED[4:10] + b"x" * (size - len(ZIPPED) - 1) + b"\0" + ZIPPED[10:]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answering() -> AsyncIterator[ScriptedUpstream]:
    """An upstream that always answers, for all tests of this module."""
    server = ScriptedUpstream()
    await server.start()
    server.reply(unary(candidate("ok", "STOP")))
    yield server
    await server.stop()


@pytest.fixture
def upstream(answering: ScriptedUpstream) -> ScriptedUpstream:
    """It, with nothing asked of it yet."""
    answering.calls.clear()
    return answering


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(answering: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """One proxy with small limits for all tests of this module: none of what they send may harm it."""
    limits = {"max_request_bytes": LIMIT, "request_timeout": 0.3}
    async with proxy_before(answering.url, tmp_path_factory.mktemp("traces"), server=limits) as running:
        yield running


class Neighbour:
    """An innocent client that asks again and again over one connection, and remembers its longest wait."""

    def __init__(self) -> None:
        self.answered = 0
        self.longest = 0.0
        self.done = asyncio.Event()
        self.settled = asyncio.Event()

    async def run(self, url: str) -> None:
        connection = await RawConnection.open(url)
        while not self.done.is_set():
            asked = time.perf_counter()
            await connection.send(post_bytes(PATH, body=GOOD))
            answer = await connection.answer()
            assert (answer.status, answer.closing) == (200, False)
            self.longest = max(self.longest, time.perf_counter() - asked)
            self.answered += 1
            self.settled.set()
        await connection.close()


@contextlib.asynccontextmanager
async def neighbour(url: str) -> AsyncIterator[Neighbour]:
    """A neighbor at work while the body of the block runs; it fails the test when it is disturbed."""
    one = Neighbour()
    async with asyncio.TaskGroup() as group:
        group.create_task(one.run(url))
        await one.settled.wait()
        one.longest = 0.0
        yield one
        one.done.set()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"x-none: 1", GOOD),
        (b"content-encoding: identity", GOOD),
        (b"content-encoding:", GOOD),
        (GZIP, ZIPPED),
        (b"Content-Encoding: GZIP", ZIPPED),
        (GZIP, padded(65_536)),
        (GZIP, padded(65_537)),
    ],
)
async def test_encodings_that_are_read(proxy: Proxy, upstream: ScriptedUpstream, encoding: bytes, body: bytes) -> None:
    """The upstream gets what was checked: the plain body, and no word of an encoding."""
    assert (await exchange(proxy.url, post_bytes(PATH, encoding, body=body))).status == 200
    assert upstream.calls[0].body == GOOD
    assert "content-encoding" not in upstream.calls[0].headers
    assert upstream.calls[0].headers["content-length"] == str(len(GOOD))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (ZIPPED[:-1], "truncated"),
        (ZIPPED[:-8], "truncated"),
        (ZIPPED[:20], "truncated"),
        (b"", "truncated"),
        (ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:], "corrupt"),
        (ZIPPED[:-4] + b"\0\0\0\0", "corrupt"),
        (ZIPPED[:12] + b"\xff" * 8 + ZIPPED[20:], "corrupt"),
        (ZIPPED + b"x", "goes on"),
        (ZIPPED + b"\0", "goes on"),
        (ZIPPED + ZIPPED, "goes on"),
        (ZIPPED + b"x" * 200_000, "goes on"),
        (padded(65_536) + b"x", "goes on"),
        (padded(65_536)[:-1], "truncated"),
        (padded(65_537)[:-1], "truncated"),
        (GOOD, "corrupt"),
        (zlib.compress(GOOD), "corrupt"),
    ],
)
async def test_gzip_that_is_not_whole_is_refused(
    proxy: Proxy, upstream: ScriptedUpstream, body: bytes, message: str
) -> None:
    """Cut, broken or followed by more: 400, and the upstream is not asked."""
    answer = await exchange(proxy.url, post_bytes(PATH, GZIP, body=body))
    assert (answer.status, answer.error["status"]) == (400, "INVALID_ARGUMENT")
    assert message in answer.error["message"]
    assert not upstream.calls


@pytest.mark.parametrize(
    "encoding",
    [b"br", b"zstd", b"deflate", b"x-gzip", b"gzip, gzip", b"gzip,identity", b"identity, gzip", b"foo", b"*"],
)
async def test_other_encodings_are_refused(proxy: Proxy, upstream: ScriptedUpstream, encoding: bytes) -> None:
    answer = await exchange(proxy.url, post_bytes(PATH, b"content-encoding: " + encoding, body=ZIPPED))
    assert (answer.status, answer.error["status"]) == (415, "INVALID_ARGUMENT")
    assert not upstream.calls


async def test_two_content_encoding_headers_are_refused(proxy: Proxy) -> None:
    assert (await exchange(proxy.url, post_bytes(PATH, GZIP, GZIP, body=ZIPPED))).error["code"] == 415


def bomb(megabytes: int) -> bytes:
    """A gzip body a thousandth of what it inflates to: the same flushed block again and again."""
    press = zlib.compressobj(9, wbits=31)
    start = press.compress(b" " * 1_000_000) + press.flush(zlib.Z_FULL_FLUSH)
    block = press.compress(b" " * 1_000_000) + press.flush(zlib.Z_FULL_FLUSH)
    return start + block * (megabytes - 1)


async def test_bomb_costs_little(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """10 MB that inflate to 10 GB are 413 within the limit's time and memory, while a neighbor goes on."""
    body = bomb(10_000)
    assert len(body) > 9_000_000
    data = post_bytes(PATH, GZIP, body=body)
    limits = {"max_request_bytes": 20_000_000}
    async with proxy_before(upstream.url, tmp_path, server=limits) as proxy, neighbour(proxy.url) as other:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, answered = time.perf_counter(), other.answered
        answer = await exchange(proxy.url, data)
        assert answer.status == answer.error["code"] == 413
        assert time.perf_counter() - started < 3
    assert other.answered > answered and other.longest < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


async def test_inflating_is_linear(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """A body near the limit costs its size, not its size squared: what zlib has not used is not copied each time."""
    data = post_bytes(PATH, GZIP, body=bomb(250) + bytes(60_000_000))
    async with proxy_before(upstream.url, tmp_path, server={"max_request_bytes": 240_000_000}) as proxy:
        started = time.process_time()
        assert (await exchange(proxy.url, data)).status == 413
        assert time.process_time() - started < 4


async def test_declared_length_over_the_limit_is_refused_at_once(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    """413 before a byte of the body is sent, and the connection closes: the rest is not waited for."""
    answer = await exchange(proxy.url, post_bytes(PATH, b"content-length: %d" % (LIMIT + 1)))
    assert answer.status == answer.error["code"] == 413
    assert str(LIMIT) in answer.error["message"]
    assert answer.closing and not upstream.calls


async def test_length_at_the_limit_is_read(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    body = GOOD + b" " * (LIMIT - len(GOOD))
    assert (await exchange(proxy.url, post_bytes(PATH, body=body))).status == 200
    assert upstream.calls[0].body == body


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


async def test_chunked_bodies_are_read(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    """In pieces, down to single bytes, and compressed as well; the upstream gets a whole one with a length."""
    pieces = [GOOD[i : i + 1] for i in range(len(GOOD))]
    coded = b"transfer-encoding: chunked"
    for body in (chunked(GOOD), chunked(*pieces)):
        assert (await exchange(proxy.url, post_bytes(PATH, coded, body=body))).status == 200
    assert (
        await exchange(proxy.url, post_bytes(PATH, coded, GZIP, body=chunked(ZIPPED[:9], ZIPPED[9:])))
    ).status == 200
    assert [call.body for call in upstream.calls] == [GOOD] * 3
    assert all("transfer-encoding" not in call.headers for call in upstream.calls)


async def test_chunked_body_over_the_limit_is_refused(proxy: Proxy) -> None:
    """Without a declared length it is what comes that counts."""
    data = post_bytes(PATH, b"transfer-encoding: chunked", body=chunked(*[b" " * 500_000] * 5))
    answer = await exchange(proxy.url, data)
    assert answer.status == answer.error["code"] == 413
    assert answer.closing


@pytest.mark.parametrize(
    "kind",
    [
        b"application/json",
        b"application/json; charset=utf-8",
        b"application/json;charset=UTF-8",
        b'Application/JSON ; charset="utf8"',
        b"application/json;",
    ],
)
async def test_json_in_utf8_is_read(proxy: Proxy, kind: bytes) -> None:
    assert (await exchange(proxy.url, post_bytes(PATH, b"content-type: " + kind, body=GOOD))).status == 200


@pytest.mark.parametrize(
    "kind",
    [
        b"application/json; charset=utf-7",
        b"application/json; charset=utf-16",
        b"application/json; charset=latin-1",
        b"application/json; charset=unicode_escape",
        b"application/json; charset=",
        b"application/json; charset=utf-8; charset=utf-7",
        b"application/json; charset*=utf-8''utf-7",
        b"application/json; charset=\xff",
        b"application/json; x=y",
        b"application/x-protobuf",
        b"application/x-www-form-urlencoded",
        b"multipart/mixed; boundary=x",
        b"text/plain",
        b"text/json",
        b"application/json+x",
        b"application/json, application/x-protobuf",
        b"json",
        b"*/*",
        b"\xff",
    ],
)
async def test_other_types_and_charsets_are_refused(proxy: Proxy, upstream: ScriptedUpstream, kind: bytes) -> None:
    """Under another name the same bytes are another text."""
    answer = await exchange(proxy.url, post_bytes(PATH, b"content-type: " + kind, body=GOOD))
    assert (answer.status, answer.error["status"]) == (415, "INVALID_ARGUMENT")
    assert not upstream.calls


async def test_two_content_types_are_refused(proxy: Proxy) -> None:
    headers = (b"content-type: application/json", b"content-type: application/x-protobuf")
    assert (await exchange(proxy.url, post_bytes(PATH, *headers, body=GOOD))).error["code"] == 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"[" + GOOD + b"]",
        b'"text"',
        b"{",
        GOOD + b"x",
        b'{"contents":[],"contents":[]}',
        b'{"contents":NaN}',
        b'{"contents":"\\ud800"}',
        b'{"contents":[{"parts":[{"text":"\\u12"}]}]}',
        b'{"contents":[{"parts":[{"text":"\\uZZZZ"}]}]}',
        b"\xef\xbb\xbf" + GOOD,
        GOOD.decode().encode("utf-16"),
        b'{"contents":"\xff"}',
        b'{"a":' * 65 + b"1" + b"}" * 65,
        b"[" * 100_000,
        b'{"contents":' + b"[" * 100_000,
        b'{"a":' + b"[" * 1000 + b"]" * 1000 + b',"a":1}',
        b'{"contents":"text"}',
        b'{"systemInstruction":{},"system_instruction":{}}',
    ],
    ids=lambda body: repr(body[:30]),
)
async def test_unreadable_bodies_are_refused(proxy: Proxy, upstream: ScriptedUpstream, body: bytes) -> None:
    """400 before any call upstream; the connection stays good for the next request."""
    connection = await RawConnection.open(proxy.url)
    await connection.send(post_bytes(PATH, body=body))
    answer = await connection.answer()
    assert (answer.status, answer.error["status"]) == (400, "INVALID_ARGUMENT")
    assert not upstream.calls and not answer.closing
    await connection.send(post_bytes(PATH, body=GOOD))
    assert (await connection.answer()).status == 200
    await connection.close()


@pytest.mark.parametrize(
    "start",
    [b"content-length: 100\r\n\r\n{", b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n", b"content-length: 1\r\n\r\n"],
)
async def test_slow_body_is_given_up(proxy: Proxy, upstream: ScriptedUpstream, start: bytes) -> None:
    """A body that does not come in time is 400, and nobody else waits for it."""
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\nx-goog-api-key: K\r\n".encode()
    connection = await RawConnection.open(proxy.url)
    async with neighbour(proxy.url) as other:
        started = time.perf_counter()
        await connection.send(head + start)
        answer = await connection.answer()
        assert 0.2 < time.perf_counter() - started < 2
    assert answer.status == answer.error["code"] == 400
    assert "0.3 seconds" in answer.error["message"]
    assert other.answered > 1
    await connection.close()


@pytest.mark.parametrize(
    ("line", "status", "word"),
    [
        (b"POST /v1beta/models/m:generateAnswer", 404, "NOT_FOUND"),
        (b"POST /v1beta/models/m:generateContents", 404, "NOT_FOUND"),
        (b"POST /v9/models/m:generateContent", 404, "NOT_FOUND"),
        (b"POST /v1beta/models/a/b:generateContent", 404, "NOT_FOUND"),
        (b"POST /v1beta/models/..%2f..%2fv1%2ffiles:generateContent", 404, "NOT_FOUND"),
        (b"POST http://evil.com/v1beta/models/m:generateContent", 404, "NOT_FOUND"),
        (b"POST /healthz", 404, "NOT_FOUND"),
        (b"GET /nothing", 404, "NOT_FOUND"),
        (b"OPTIONS *", 404, "NOT_FOUND"),
        (b"GET /v1beta/models/m:generateContent", 405, "UNIMPLEMENTED"),
        (b"PUT /v1beta/models/m:generateContent", 405, "UNIMPLEMENTED"),
        (b"TRACE /v1beta/models/m:generateContent", 405, "UNIMPLEMENTED"),
        (b"POST /v1beta/models", 405, "UNIMPLEMENTED"),
        (b"POST /v1beta/models/m:generateContent?alt=proto", 400, "INVALID_ARGUMENT"),
    ],
)
async def test_calls_that_are_not_served(
    proxy: Proxy, upstream: ScriptedUpstream, line: bytes, status: int, word: str
) -> None:
    """Unknown paths, methods and parameters get Google's error JSON, never a page or a framework's text."""
    head = b" HTTP/1.1\r\nhost: localhost\r\nx-goog-api-key: K\r\ncontent-length: 0\r\n\r\n"
    answer = await exchange(proxy.url, line + head)
    assert (answer.status, answer.error["status"]) == (status, word)
    assert not upstream.calls


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"POST %b HTTP/0.9", 400),
        (b"POST %b HTTP/2.0", 505),
        (b"POST %b HTTP/1.2", 400),
        (b"POST %b HTTP/3.0", 400),
        (b"POST %b http/1.1", 400),
        (b"POST %b", 400),
        (b"\x16\x03\x01 %b", 400),
        (b"{} %b", 400),
    ],
)
async def test_request_lines_that_are_not_of_http_1(
    proxy: Proxy, upstream: ScriptedUpstream, line: bytes, status: int
) -> None:
    """An old or new version of HTTP, or none: Google's error JSON and the end of the connection, and no call."""
    head = line % PATH.encode() + b"\r\nhost: x\r\nx-goog-api-key: K\r\ncontent-length: %d\r\n\r\n" % len(GOOD)
    answer = await exchange(proxy.url, head + GOOD)
    assert answer.status == answer.error["code"] == status
    assert answer.head.startswith(b"HTTP/1.") and answer.closing and not upstream.calls


@pytest.mark.parametrize(
    ("policy", "parts"),
    [
        ('raise "x" if:\\n    nonsense(', ["2:13", "never closed"]),
        ('raise "x" if\\n    True', ["1:"]),
        ("hello", ["1:"]),
        ("from os import system", ["1:"]),
        ('raise "x" if:\\n    (m: Nothing)\\n    m', ["2:", "Nothing"]),
        ("raise \\u12", ["unicode-escaped"]),
        ("raise \\x1", ["unicode-escaped"]),
        ("raise \\U00110000", ["unicode-escaped"]),
        ("raise \\q", ["unicode-escaped"]),
        ("raise \\", ["unicode-escaped"]),
        ('raise "\\ud800" if:\\n    True', ["surrogate"]),
        ("x" * 8000, ["1:"]),
    ],
)
async def test_header_policy_that_does_not_load(
    proxy: Proxy, upstream: ScriptedUpstream, policy: str, parts: list[str]
) -> None:
    """400 with the line and the reason; the request goes nowhere without the rules that it asked for."""
    answer = await exchange(proxy.url, post_bytes(PATH, b"Invariant-Guardrails: " + policy.encode(), body=GOOD))
    assert (answer.status, answer.error["status"]) == (400, "INVALID_ARGUMENT")
    for part in ("Invariant-Guardrails", *parts):
        assert part in answer.error["message"]
    assert not upstream.calls


async def test_header_policies_that_cannot_be_read(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    """Twice the header, or bytes that are no text."""
    for headers in ([b"Invariant-Guardrails: a"] * 2, [b"Invariant-Guardrails: \xff"]):
        assert (await exchange(proxy.url, post_bytes(PATH, *headers, body=GOOD))).error["code"] == 400
    assert not upstream.calls


async def test_header_policy_in_escapes_is_in_force(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    policy = b'raise "no \\u00e9" if:\\n    (m: Message)\\n    \\"h\\x69\\" in m.content'
    answer = await exchange(proxy.url, post_bytes(PATH, b"Invariant-Guardrails: " + policy, body=GOOD))
    assert "no \u00e9" in answer.error["message"]
    assert not upstream.calls


BROKEN = [
    b"GET\r\n\r\n",
    b"\r\n\r\n\x00\r\n\r\n",
    b"SECRET / HTTP/1.1\r\nSECRET\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nSECRET : x\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\n folded: SECRET\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx: SECRET\x00\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx: SECRET" + b"x" * 9000 + b"\r\n\r\n",
    b"GET /" + b"SECRET" * 2000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"SECRET: x\r\n" * 200 + b"\r\n",
    b"GET /SECRET HTTP/7.7\r\nhost: localhost\r\n\r\n",
    b"GET /SECRET\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: SECRET\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nSECRET",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\nSECRET",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nSECRET\r\n",
    b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: SECRET\r\n\r\nx",
    b"\x16\x03\x01\x02\x00SECRET\r\n\r\n",
]


@pytest.mark.parametrize("data", BROKEN, ids=lambda data: repr(data[:40]))
async def test_what_is_not_http_gets_a_fixed_text(proxy: Proxy, data: bytes) -> None:
    """Nothing of what came is repeated, and the connection, whose state is unknown, closes."""
    connection = await RawConnection.open(proxy.url)
    await connection.send(data)
    answer = await connection.answer()
    assert answer.error == {"code": 400, "message": "The HTTP request cannot be read", "status": "INVALID_ARGUMENT"}
    assert b"SECRET" not in answer.head
    assert answer.closing and await connection.ended()
    await connection.close()


async def test_unknown_expectation_is_not_repeated(proxy: Proxy) -> None:
    for path in (PATH, "/healthz", "/nowhere"):
        answer = await exchange(proxy.url, post_bytes(path, b"expect: SECRET", body=GOOD))
        assert answer.error["code"] == 400 and b"SECRET" not in answer.body


async def test_expected_continue_is_given(proxy: Proxy) -> None:
    """curl asks before it sends a large body."""
    connection = await RawConnection.open(proxy.url)
    await connection.send(post_bytes(PATH, b"expect: 100-continue", b"content-length: %d" % len(GOOD)))
    await connection.send(GOOD)
    with pytest.raises(IndexError):
        await connection.answer()  # "100 Continue" has no length
    assert (await connection.answer()).status == 200
    await connection.close()


async def test_innocent_neighbour_is_unharmed(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    """A connection kept alive goes on answering while others send everything that is refused."""
    hostile = [
        *BROKEN,
        post_bytes(PATH, GZIP, body=b"garbage"),
        post_bytes(PATH, b"content-encoding: br", body=b"garbage"),
        post_bytes(PATH, b"content-length: 999999999999"),
        post_bytes(PATH, body=b"[" * 100_000),
        post_bytes("/%2e%2e/x", body=GOOD),
    ]
    async with neighbour(proxy.url) as other:
        answers = await asyncio.gather(*(exchange(proxy.url, data) for data in hostile * 3))
        assert all(answer.error["code"] in (400, 404, 413, 415) for answer in answers)
    assert other.answered > 1 and other.longest < 1


async def test_small_body_of_many_values_does_not_stall(proxy: Proxy) -> None:
    """Half a megabyte of empty parts takes long to read; it is read beside the loop, and the neighbor goes on."""
    body = b'{"contents":[{"parts":[' + b",".join([b'{"x":0}'] * 60_000) + b"]}]}"
    async with neighbour(proxy.url) as other:
        assert (await exchange(proxy.url, post_bytes(PATH, body=body))).status == 200
    assert other.longest < 0.5
