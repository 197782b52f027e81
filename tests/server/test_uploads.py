"""Uploads over plain HTTP: what hostile clients, broken connections and an odd upstream may do."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from gemini_proxy.server.app_keys import UPLOADS
from tests.conftest import StartProxy
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import Reply, ScriptedUpstream, candidate, unary

POLICY = 'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m.content\n'
BEGUN = Reply(headers={"x-goog-upload-url": "http://169.254.169.254/upload/v1beta/files?upload_id=u"}, chunked=False)
KEPT = unary(
    {"file": {"name": "files/f", "uri": "https://generativelanguage.googleapis.com/v1beta/files/f"}},
    headers={"x-goog-upload-status": "final"},
)
SECRET = "AIzaCanaryOfAnUpload"


@pytest.fixture
async def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream, tmp_path: Path) -> Proxy:
    upstream.reply(BEGUN, KEPT)
    files = {"folder": str(tmp_path / "spool"), "max_bytes": 4096, "max_text_bytes": 2048, "max_spooled_bytes": 8192}
    (tmp_path / "spool").mkdir()
    return await start_proxy(policy=POLICY, files=files)


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def begin(client: aiohttp.ClientSession, proxy: Proxy, size: int, **headers: str) -> tuple[int, str, str]:
    """Begin an upload. Return the status, where to send the bytes, and the text of the answer."""
    given = {
        "x-goog-api-key": SECRET,
        "x-goog-upload-protocol": "resumable",
        "x-goog-upload-command": "start",
        "x-goog-upload-header-content-length": str(size),
        "x-goog-upload-header-content-type": "text/plain",
    }
    async with client.post(f"{proxy.url}/upload/v1beta/files", headers=given | headers) as response:
        return response.status, response.headers.get("x-goog-upload-url", ""), await response.text()


async def send(
    client: aiohttp.ClientSession, url: str, data: Any, command: str = "upload, finalize", offset: int = 0
) -> tuple[int, str, str]:
    """Send a chunk. Return the status, that of the upload, and the text of the answer."""
    headers = {"x-goog-upload-command": command, "x-goog-upload-offset": str(offset)}
    async with client.post(url, data=data, headers=headers) as response:
        return response.status, response.headers.get("x-goog-upload-status", ""), await response.text()


async def test_bytes_go_to_the_upstream_alone_and_leave_nothing_here(
    proxy: Proxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Whatever host the upstream names; no key is in an address, in the spool's folder or in what is kept."""
    status, url, _ = await begin(client, proxy, 11)
    assert (status, urlsplit(url).netloc, SECRET in url) == (200, urlsplit(proxy.url).netloc, False)
    assert upstream.calls == []
    assert (await send(client, url, b"all ", "upload"))[:2] == (200, "active")
    assert (await send(client, url, b"", "query"))[:2] == (200, "active")
    # What came twice is taken once.
    assert (await send(client, url, b"of Corkx", "upload", 3))[:2] == (200, "active")
    assert list((tmp_path / "spool").iterdir()) == []
    assert (await send(client, url, b" Cork!!", offset=4))[:2] == (200, "final")
    start, chunk = upstream.calls
    assert (start.headers["x-goog-api-key"], start.headers["x-goog-upload-command"]) == (SECRET, "start")
    assert (chunk.target, chunk.body) == ("/upload/v1beta/files?upload_id=u", b"allo Cork!!")
    assert "x-goog-api-key" not in chunk.headers
    assert (await send(client, url, b"", "query"))[:2] == (404, "cancelled")
    trace = await proxy.trace()
    assert SECRET not in str(trace)
    assert trace.metadata["coverage"]["verdict"] == "passed"


@pytest.mark.parametrize(
    ("size", "chunk", "said"),
    [
        (11, {"data": b"too few"}, "Only 7 of the 11 bytes"),
        (3, {"data": b"too many"}, "larger than the 3 bytes"),
        (5, {"data": b"abc", "offset": 2}, "continues at byte 0"),
        (3, {"data": b"abc", "command": "start"}, "X-Goog-Upload-Command"),
        (13, {"data": b"all of Dublin"}, "no Dublin"),
        (2049, {"data": b"a" * 2049}, "over the limit of 2048 bytes"),
        (3, {"data": b"\xff\xfe\x00"}, "not text in UTF-8"),
        (4, {"data": b"\xff\xfea\x00"}, "text in UTF-16; send it in UTF-8"),
    ],
)
async def test_an_error_ends_the_upload_and_says_so(
    proxy: Proxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    size: int,
    chunk: dict[str, Any],
    said: str,
) -> None:
    _, url, _ = await begin(client, proxy, size)
    status, state, text = await send(client, url, **chunk)
    assert (status in (400, 413), state, said in text) == (True, "cancelled", True), text
    assert (await send(client, url, b"", "query"))[:2] == (404, "cancelled")
    assert upstream.calls == []


async def test_chunks_need_a_length_and_an_upload(proxy: Proxy, client: aiohttp.ClientSession) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"abc"

    _, url, _ = await begin(client, proxy, 3)
    status, state, text = await send(client, url, pieces())
    assert (status, state, "Content-Length" in text) == (400, "cancelled", True)
    for token in ("x", "x" * 43, f"{'x' * 43}:download"):
        status, state, text = await send(client, f"{proxy.url}/upload/v1beta/files/{token}", b"abc")
        assert status == 404, text
    assert "another machine" in (await send(client, f"{proxy.url}/upload/v1beta/files/{'x' * 43}", b"abc"))[2]


async def test_the_key_of_a_large_file_is_tried_first(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """More than a key may bring that Google has not taken yet; one that it does not take is told at once."""
    upstream.reply(unary({"error": {"code": 400, "message": "API_KEY_INVALID"}}, status=400), unary({"models": []}))
    proxy = await start_proxy(policy=POLICY, limits={"unproven_bytes_per_minute": 1000})
    status, url, text = await begin(client, proxy, 9_000_000)
    assert (status, url, "API_KEY_INVALID" in text) == (400, "", True)
    _, url, _ = await begin(client, proxy, 9_000_000)
    assert [call.target for call in upstream.calls] == ["/v1beta/models?pageSize=1"] * 2
    _, unproven, _ = await begin(client, proxy, 4000, **{"x-goog-api-key": "AIzaAnother"})
    for to, statuses in ((url, [200, 200]), (unproven, [200, 429])):
        answers = [await send(client, to, b"a" * 2000, "upload") for _ in statuses]
        assert [status for status, _, _ in answers] == statuses


async def test_chunks_count_however_large(start_proxy: StartProxy, client: aiohttp.ClientSession) -> None:
    """Also above what another body may have: a file may be larger."""
    limits = {"unproven_bytes_per_minute": 2000}
    proxy = await start_proxy(policy=POLICY, limits=limits, server={"max_request_bytes": 1024})
    _, url, _ = await begin(client, proxy, 6000)
    answers = [await send(client, url, b"a" * 3000, "upload") for _ in range(2)]
    assert [status for status, _, _ in answers] == [200, 429]


async def test_keys_that_are_made_up_take_no_room_from_others(
    proxy: Proxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    upstream.reply(unary({"error": {"code": 400, "message": "API_KEY_INVALID"}}, status=400))
    answers = [await begin(client, proxy, 1, **{"x-goog-api-key": f"AIzaMadeUp{number}"}) for number in range(18)]
    assert [status for status, _, _ in answers] == [200] * 16 + [400] * 2
    assert len(upstream.calls) == 2


async def test_headers_of_uploads_begin_none_elsewhere(
    proxy: Proxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    upstream.reply(unary(candidate("fine", "STOP"), headers={"x-goog-upload-url": "https://x/upload/y?upload_id=u"}))
    given = {"x-goog-api-key": SECRET, "x-goog-upload-protocol": "resumable", "x-goog-upload-command": "start"}
    async with client.post(proxy.method(), json=prompt("hi"), headers=given) as response:
        assert (response.status, "x-goog-upload-url" in response.headers) == (200, False)
    assert not [name for name in upstream.calls[0].headers if name.startswith("x-goog-upload-")]


async def test_a_file_goes_masked_however_its_bytes_came(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """In pieces, some of them twice; the client is told how far it is in bytes of its own."""
    proxy = await start_proxy(mask_policy=POLICY)
    upstream.reply(BEGUN, KEPT)
    data = "\ufeffin Dublin\r\nand Cork\r\né Dublin".encode()
    _, url, _ = await begin(client, proxy, len(data), **{"x-goog-upload-file-name": "Dublin.txt"})
    for start, end in ((0, 8), (4, 9), (9, 9), (9, 32)):
        assert (await send(client, url, data[start:end], "upload", start))[:2] == (200, "active")
    headers = {"x-goog-upload-command": "query"}
    async with client.post(url, headers=headers) as response:
        assert response.headers["x-goog-upload-size-received"] == "32"
    assert (await send(client, url, data[30:], offset=30))[:2] == (200, "final")
    start_call, chunk = upstream.calls
    [placeholder] = set(re.findall(b"<MASKED_[0-9a-f]{10}>", chunk.body))
    assert chunk.body == data.replace(b"Dublin", placeholder)
    assert start_call.headers["x-goog-upload-header-content-length"] == str(len(chunk.body))
    assert start_call.headers["x-goog-upload-file-name"] == f"{placeholder.decode()}.txt"
    assert "Dublin" not in str((await proxy.trace()).messages)


async def test_room_is_bounded_and_comes_back(proxy: Proxy, client: aiohttp.ClientSession) -> None:
    """One client has a fourth of it, or one file: what others need to begin."""
    other = {"x-goog-api-key": "AIzaAnother"}
    assert (await begin(client, proxy, 4097))[0] == 413
    _, url, _ = await begin(client, proxy, 4096)
    status, _, text = await begin(client, proxy, 1)
    assert (status, "one client may have 2048" in text) == (503, True)
    assert (await begin(client, proxy, 4096, **other))[0] == 200
    assert (await begin(client, proxy, 1, **{"x-goog-api-key": "AIzaThird"}))[0] == 503
    assert (await send(client, url, b"", "cancel"))[:2] == (200, "cancelled")
    assert [(await begin(client, proxy, 1024))[0] for _ in range(3)] == [200, 200, 503]


async def test_uploads_that_begin_at_once_have_no_more_room(proxy: Proxy, client: aiohttp.ClientSession) -> None:
    begun = await asyncio.gather(*(begin(client, proxy, 1024) for _ in range(8)))
    assert sorted(status for status, _, _ in begun) == [200] * 2 + [503] * 6


@pytest.mark.parametrize(
    ("query", "headers"),
    [("?uploadType=multipart", {}), ("?upload_protocol=raw", {}), ("", {"x-goog-upload-protocol": "raw"})],
)
async def test_other_protocols_are_refused(
    proxy: Proxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, query: str, headers: dict[str, str]
) -> None:
    given = {"x-goog-api-key": SECRET, "content-type": "application/json", **headers}
    async with client.post(f"{proxy.url}/upload/v1beta/files{query}", headers=given, data=b"{}") as response:
        assert response.status == 400
    assert upstream.calls == []


async def test_one_request_at_a_time_goes_on_with_an_upload(proxy: Proxy, client: aiohttp.ClientSession) -> None:
    _, url, _ = await begin(client, proxy, 3)
    upload = proxy.app[UPLOADS].find(url.rpartition("/")[2])
    assert upload is not None
    with proxy.app[UPLOADS].at_work(upload):
        assert (await send(client, url, b"", "query"))[0] == 409


async def test_a_stalled_chunk_and_a_forgotten_upload_end(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=POLICY, server={"request_timeout": 0.05}, files={"upload_timeout": 0.01})
    _, url, _ = await begin(client, proxy, 3)
    reader, writer = await asyncio.open_connection(*urlsplit(url).netloc.split(":"))
    head = (
        f"POST {urlsplit(url).path} HTTP/1.1\r\nhost: x\r\nx-goog-upload-command: upload\r\ncontent-length: 3\r\n\r\na"
    )
    writer.write(head.replace("host: x", f"host: {urlsplit(url).netloc}").encode())
    assert b"400" in await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    _, url, _ = await begin(client, proxy, 3)
    token = url.rpartition("/")[2]
    await asyncio.sleep(0.02)
    proxy.app[UPLOADS].end_idle()
    assert proxy.app[UPLOADS].find(token) is None


@pytest.mark.parametrize(
    ("replies", "status", "said"),
    [
        ([unary({"error": {"code": 400, "message": "API key not valid"}}, status=400)], 400, "not valid"),
        ([Reply(chunked=False)], 502, "did not say where"),
        ([Reply(headers={"x-goog-upload-url": "ftp://x/upload/y"}, chunked=False)], 502, "did not say where"),
        ([Reply(headers={"x-goog-upload-url": "https://x/v1beta/files"}, chunked=False)], 502, "did not say where"),
        (
            [
                BEGUN,
                unary(
                    {"error": {"code": 503, "message": "later"}},
                    status=503,
                    headers={"x-guploader-uploadid": "u", "x-goog-upload-url": "https://x/upload/y?upload_id=u"},
                ),
            ],
            503,
            "later",
        ),
    ],
)
async def test_what_the_upstream_says_of_a_file_is_told(
    proxy: Proxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    replies: list[Reply],
    status: int,
    said: str,
) -> None:
    upstream.reply(*replies)
    _, url, _ = await begin(client, proxy, 3)
    chunk = {"x-goog-upload-command": "upload, finalize", "x-goog-upload-offset": "0"}
    async with client.post(url, data=b"abc", headers=chunk) as response:
        state = response.headers["x-goog-upload-status"]
        assert (response.status, state, said in await response.text()) == (status, "cancelled", True)
        # With either of them the file could be sent once more, by whoever has no key, around the proxy.
        assert not {"x-guploader-uploadid", "x-goog-upload-url"} & response.headers.keys()


async def test_a_folder_that_cannot_be_used_is_named(
    start_proxy: StartProxy, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    proxy = await start_proxy(policy=POLICY, files={"folder": str(tmp_path / "missing")})
    status, _, text = await begin(client, proxy, 3)
    assert (status, "files.folder" in text) == (503, True)
