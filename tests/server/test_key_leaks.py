"""Keys planted in every input of the proxy are nowhere to be found afterwards."""

import gzip
import logging
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from gemini_proxy.sections import Logs
from gemini_proxy.server.logs import configure_logs, formatter
from tests.conftest import StartProxy
from tests.support.proxy import MODEL, Proxy
from tests.support.raw import exchange, post_bytes
from tests.support.upstream import ScriptedUpstream, candidate, unary


class Everything(logging.Handler):
    """Keeps all that a record holds, as the log's own formatter writes it and as it is."""

    def __init__(self, formatter: logging.Formatter | None) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{self.format(record)} {record.getMessage()} {record.__dict__!r}")


CHAT = "/v1beta/openai/chat/completions"
CANARIES = ("AIzaCANARY0123456789", "AQ.CANARY0123456789")
"""Of no key's full form, so that nothing takes them out afterwards: they must not get there."""
INVARIANT_CANARY = "inv-CANARY0123456789"


def channels(canary: str) -> list[bytes]:
    """Requests with a key in every place where one can come in, well-formed and not."""
    path, key = f"/v1beta/models/{MODEL}:generateContent", canary.encode()
    auth = f"invariant-authorization: Bearer {INVARIANT_CANARY}".encode()
    good = b'{"contents":[{"parts":[{"text":"hi"}]}]}'
    pair = key + b";invariant-auth=" + INVARIANT_CANARY.encode()
    return [
        post_bytes(path, auth, body=good, key=key),
        post_bytes(path, body=good, key=pair),
        post_bytes(f"{path}?key={canary}", body=good, key=None),
        post_bytes(f"{path}?key={canary}%3Binvariant-auth%3D{INVARIANT_CANARY}", body=good, key=None),
        post_bytes(path, b"authorization: Bearer " + pair, body=good, key=None),
        post_bytes(path, auth, b"cookie: k=" + key, b"x-other: " + key, b"referer: http://x/?key=" + key, body=good),
        # in OpenAI's words, and as a batch
        post_bytes(CHAT, b"authorization: Bearer " + pair, body=b'{"messages":[]}', key=None),
        post_bytes(CHAT, b"authorization: Bearer " + key, body=b'{"messages":"' + key + b'"}', key=None),
        post_bytes(CHAT, b"authorization: Bearer " + key, body=b'{"stream":"' + key + b'"}', key=None),
        post_bytes(f"{CHAT}?alt={canary}", b"authorization: Bearer " + key, body=b"{}", key=None),
        post_bytes(f"/v1beta/models/m:batchGenerateContent?key={canary}", body=b'{"batch":{}}', key=None),
        # refused for what they are
        post_bytes(f"{path}?key={canary}&key={canary}", body=good),
        post_bytes(f"{path}?access_token={canary}", body=good),
        post_bytes(f"{path}?{canary}=%ff", body=good),
        post_bytes(path, b"authorization: Basic " + key, body=good, key=None),
        post_bytes(path, b"authorization: Bearer " + key, body=good, key=b"other"),
        post_bytes(path, body=good, key=pair + b";invariant-auth=x"),
        post_bytes(path, b"x-goog-api-key: " + key, body=good, key=key),
        post_bytes(path, b"x-goog-fieldmask: " + key, body=good, key=key),
        post_bytes(path, b"content-type: " + key, body=good, key=key),
        post_bytes(path, b"content-type: application/json; charset=" + key, body=good, key=key),
        post_bytes(path, b"content-encoding: " + key, body=good, key=key),
        post_bytes(path, b"expect: " + key, body=good, key=key),
        post_bytes(path, b"expect: " + key + b"\xff", body=good, key=key),
        post_bytes(f"/v1beta/models/{canary}%2f:generateContent", body=good, key=key),
        post_bytes(f"/{canary}/x", body=good, key=key),
        post_bytes(f"/v1beta/models/m:{canary}", body=good, key=key),
        post_bytes(f"/api/v1/gateway/{canary}:x/gemini/v1beta/models/m:generateContent", body=good, key=key),
        post_bytes(f"/v1beta/models/{canary}", body=good, key=key),
        # bodies
        post_bytes(path, body=b'{"contents": ' + key, key=key),
        post_bytes(path, body=b'{"' + key + b'":1,"' + key + b'":2}', key=key),
        post_bytes(path, body=b'{"contents":"' + key + b'"}', key=key),
        post_bytes(path, b"content-encoding: gzip", body=key, key=key),
        post_bytes(path, b"content-encoding: gzip", body=gzip.compress(key)[:-3], key=key),
        post_bytes(path, b"content-encoding: gzip", body=gzip.compress(key), key=key),
        post_bytes(path, b"transfer-encoding: chunked", body=key + b"\r\n" + key, key=key),
        # not HTTP
        post_bytes(path, b"x-goog-api-key : " + key, body=good),
        post_bytes(path, b" x-goog-api-key: " + key, body=good),
        post_bytes(path, b"x-goog-api-key: " + key + b"\x00", body=good, key=None),
        post_bytes(path, b"x-goog-api-key\t: " + key, body=good),
        post_bytes(path, b"authorization Bearer " + key, body=good),
        post_bytes(path, b"content-length: " + key, body=good, key=key),
        post_bytes(f"{path}?key={canary} x", body=good, key=None),
        post_bytes(path, b"x-long: " + key * 600, body=good, key=key),
        b"GET /?key=" + key + b"\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /?key=" + key + b" HTTP/9.9\r\nhost: localhost\r\n\r\n",
        b"\x16\x03\x01" + key + b"\r\n\r\n",
        key + b"\r\n\r\n",
    ]


async def everything_answered(proxy: Proxy, canary: str) -> bytes:
    answers = [await exchange(proxy.url, data) for data in channels(canary)]
    assert [answer.status for answer in answers[:7]] == [200] * 7
    assert all(answer.status in (400, 404, 405, 415) for answer in answers[7:])
    assert all(orjson.loads(answer.body)["error"]["message"] for answer in answers[7:])
    return b"".join(answer.head + answer.body for answer in answers)


def stored_bytes(folder: Path) -> bytes:
    """The trace store as it lies on the disk, its write-ahead log included."""
    return b"".join(file.read_bytes() for file in sorted(folder.glob("traces.db*")))


@pytest.fixture
def quiet_root() -> Iterator[None]:
    """The root logger as it was, whatever a test makes of it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    named = [logging.getLogger(name) for name in ("aiohttp.server", "aiohttp.access", "alembic", "gemini_proxy")]
    levels = [logger.level for logger in named]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for logger, before in zip(named, levels, strict=True):
        logger.setLevel(before)


@pytest.mark.usefixtures("quiet_root")
@pytest.mark.parametrize("canary", CANARIES)
async def test_keys_are_nowhere(
    canary: str,
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """A key planted in every input shows in no log record at any level, no answer, and no byte of the trace store."""
    proxy = await start_proxy()
    upstream.reply(unary(candidate("ok", "STOP")))
    raw = Everything(None)
    logging.getLogger().addHandler(raw)
    caplog.set_level(logging.DEBUG)
    answers = await everything_answered(proxy, canary)
    configure_logs(Logs(level="debug"))
    written = Everything(formatter(as_text=False))
    logging.getLogger().addHandler(written)
    answers += await everything_answered(proxy, canary)
    assert len(await proxy.store.recent(100)) == 14
    rows = stored_bytes(tmp_path)
    assert b"via_gateway" in rows and raw.lines and written.lines
    logs = "\n".join([*raw.lines, *written.lines, caplog.text, *capsys.readouterr()])
    for key in ("CANARY", canary, INVARIANT_CANARY):
        assert key not in logs
        assert key.encode() not in answers
        assert key.encode() not in rows
    assert all("invariant" not in call.raw_head.decode().lower() for call in upstream.calls)
