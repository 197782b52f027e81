"""What no client should send, to every route of the API: the contract's error, never a 500 and never a hang."""

import asyncio
import gzip
import threading
from collections.abc import AsyncIterator, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemini_proxy.explorer.api import endpoints
from tests.conftest import StartProxy
from tests.explorer.api import KEY, SAMPLE, SECRETIVE, Api
from tests.support.proxy import proxy_before
from tests.support.raw import exchange

UNKNOWN = "00000000-0000-0000-0000-000000000000"
READING = (
    "/user/identity",
    "/dataset/list",
    "/dataset/byid/{dataset}",
    "/dataset/byid/{dataset}/traces",
    "/dataset/byuser/developer/there",
    "/dataset/byuser/developer/there/traces",
    "/dataset/byuser/developer/there/policy",
    "/dataset/metadata/there",
    "/trace/{trace}",
    "/trace/{trace}/messages",
    "/trace/{trace}/annotations",
)
WRITING = (
    ("POST", "/dataset/create"),
    ("PUT", "/dataset/metadata/there"),
    ("POST", "/dataset/{dataset}/policy"),
    ("PUT", "/dataset/{dataset}/policy/{policy}"),
    ("POST", "/push/trace"),
    ("POST", "/trace/{trace}/messages"),
    ("POST", "/trace/{trace}/annotate"),
    ("POST", "/trace/{trace}/annotations/update"),
    ("POST", "/policy/load"),
    ("POST", "/policy/check"),
    ("POST", "/policy/check/batch"),
)
NO_OBJECT = (
    b"",
    b" \n",
    b"{",
    b"[]",
    b"null",
    b'"messages"',
    b"7",
    b"{} {}",
    b"{'a': 1}",
    b'{"a": 1, "a": 2}',
    b'{"messages": [[{"role": "user", "role": "model"}]]}',
    b'{"a": NaN}',
    b'{"a": 1e400}',
    b'{"a": "\\ud800"}',
    b'{"a": "\xff"}',
    b'\xef\xbb\xbf{"a": 1}',
    '{"a": 1}'.encode("utf-16"),
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
)


async def there(api: Api) -> dict[str, str]:
    """A dataset with a trace and a policy; their ids for the paths above."""
    [trace] = await api.push(SAMPLE, dataset="there")
    dataset = (await api.get(api.at("there")))["id"]
    whole = await api.post(f"/dataset/{dataset}/policy", {"name": "p", "policy": SECRETIVE})
    return {"trace": trace, "dataset": dataset, "policy": whole["extra_metadata"]["policies"][0]["id"]}


@pytest.fixture
async def ids(checker: Api) -> dict[str, str]:
    return await there(checker)


async def test_a_body_that_is_no_object_is_400(checker: Api, ids: dict[str, str]) -> None:
    """Malformed, of another kind, ambiguous, in another encoding, too deep."""
    for method, path in WRITING:
        for body in NO_OBJECT:
            status, _ = await checker.refused(method, path.format(**ids), data=body)
            assert status == 400, (method, path, body[:60])


async def test_the_content_type_does_not_matter(checker: Api) -> None:
    """Scripts send JSON as what their tool calls it."""
    for kind in ("application/x-www-form-urlencoded", "text/plain; charset=latin-1", "x", "application/json"):
        body = orjson.dumps({"policy": SECRETIVE})
        answer = await checker.call("POST", "/policy/load", data=body, headers={"content-type": kind})
        assert answer[0] == 200


async def test_a_compressed_body_is_415(checker: Api, ids: dict[str, str]) -> None:
    """Whatever is in it, nothing is inflated."""
    bomb = gzip.compress(b" " * 10_000_000)
    for method, path in WRITING:
        for encoding in ("gzip", "br", "gzip, gzip", "x"):
            headers = {"content-encoding": encoding}
            status, _ = await checker.refused(method, path.format(**ids), data=bomb, headers=headers)
            assert status == 415


async def test_a_body_over_the_limit_is_413(start_proxy: StartProxy, session: aiohttp.ClientSession) -> None:
    """Announced or in pieces, before it is read to its end."""
    api = Api(session, (await start_proxy(server={"max_request_bytes": 2048})).url)
    ids = await there(api)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 1024

    for method, path in WRITING:
        for body in (b" " * 2049, pieces()):
            assert (await api.refused(method, path.format(**ids), data=body))[0] == 413
    assert (await api.call("POST", "/policy/load", {"policy": SECRETIVE}))[0] == 200


async def test_a_body_that_does_not_come_is_400(start_proxy: StartProxy) -> None:
    """After the time that it may take."""
    proxy = await start_proxy(server={"request_timeout": 0.2})
    head = f"POST /api/v1/policy/load HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
    answer = await exchange(proxy.url, f"{head}content-length: 10\r\n\r\n{{".encode())
    assert answer.status == 400 and b"did not arrive" in answer.body


async def test_a_body_in_broken_chunks_is_400(checker: Api) -> None:
    """Not a 500."""
    head = f"POST /api/v1/policy/load HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
    answer = await exchange(checker.url, f"{head}transfer-encoding: chunked\r\n\r\nxyz\r\n{{}}\r\n0\r\n\r\n".encode())
    assert answer.status == 400 and b"cannot be read" in answer.body


async def test_a_method_that_a_path_does_not_take_is_405(checker: Api, ids: dict[str, str]) -> None:
    """Whether or not there is a key."""
    for path in READING:
        for method in ("PATCH", "OPTIONS", "TRACE", "PROPFIND"):
            assert await checker.refused(method, path.format(**ids)) == (405, "Method Not Allowed")
    for method, path in WRITING:
        if path not in ("/trace/{trace}/messages", "/dataset/metadata/there"):
            for other in {"GET", "PUT", "POST", "PATCH"} - {method}:
                assert await checker.refused(other, path.format(**ids)) == (405, "Method Not Allowed")


async def test_what_a_path_takes_is_said(checker: Api, ids: dict[str, str]) -> None:
    """In the header that an answer 405 has to have (RFC 9110, section 15.5.6)."""
    for path, allowed in (
        ("/user/identity", "GET"),
        ("/dataset/byid/{dataset}", "GET, DELETE"),
        ("/trace/{trace}/messages", "GET, POST"),
        ("/push/trace", "POST"),
        ("/feed", "GET"),
    ):
        async with checker.session.request("PATCH", f"{checker.url}/api/v1{path.format(**ids)}") as answer:
            assert (answer.status, answer.headers["allow"]) == (405, allowed)


async def test_a_path_that_nothing_serves_is_404(checker: Api) -> None:
    """In the API's own form, below every one of its roots."""
    for path in ("/user", "/user/x", "/dataset", "/dataset/x/y/z/w", "/push/", "/trace/", "/policy/x", "/trace//x"):
        for method in ("GET", "POST", "DELETE"):
            status, _ = await checker.refused(method, path)
            assert status in (404, 405), path
    assert await checker.refused("GET", "/policy/nothing") == (404, "Not Found")


@pytest.mark.parametrize("part", ["%00", "%ff%fe", "a%2fb", "%F0%9F%98%80", "a b", "<script>", "x" * 4000, "'--"])
async def test_what_stands_in_a_path_is_only_looked_for(checker: Api, part: str) -> None:
    """Nothing has such a name or id, so it is not found."""
    for path in (
        f"/dataset/byid/{part}",
        f"/dataset/byuser/developer/{part}",
        f"/dataset/byuser/{part}/there",
        f"/dataset/byuser/developer/{part}/traces",
        f"/dataset/byuser/developer/{part}/policy",
        f"/dataset/metadata/{part}",
        f"/trace/{part}",
        f"/trace/{part}/messages",
        f"/trace/{part}/annotations",
    ):
        assert (await checker.refused("GET", path))[0] in (404, 405)
    for path in (f"/dataset/{part}/policy", f"/trace/{part}/messages", f"/trace/{part}/annotate"):
        assert (await checker.refused("POST", path, {"messages": [{}], "content": "", "address": ""}))[0] == 404


async def test_what_stands_in_a_query_is_never_a_500(checker: Api, ids: dict[str, str]) -> None:
    """400, or an answer that takes no notice."""
    values = ("", "%00", "%ff", "-1", "1e9", "9" * 400, "'", "<b>", "%F0%9F%98%80", "null", "1" * 4000)
    for path in READING:
        for name in ("limit", "offset", "indices", "kind", "q", "owner", "owner_username", "x"):
            for value in values:
                status, _ = await checker.call("GET", f"{path.format(**ids)}?{name}={value}")
                assert status in (200, 400, 404), (path, name, value)


class _Server:
    """A server in a thread of its own, so that hypothesis can call it without a loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self.url = ""
        self.ids: dict[str, str] = {}

    def __enter__(self) -> "_Server":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with proxy_before("http://127.0.0.1:9", self._folder) as proxy:
                self.url = proxy.url
                async with aiohttp.ClientSession() as session:
                    self.ids = await there(Api(session, proxy.url))
                self._ready.set()
                await self._stop.wait()
        finally:
            self._ready.set()

    def ask(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=30)
        try:
            headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
            connection.request(method, f"/api/v1{path.format(**self.ids)}", body, headers)
            answer = connection.getresponse()
            return answer.status, orjson.loads(answer.read())
        finally:
            connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Server]:
    with _Server(tmp_path_factory.mktemp("server")) as running:
        yield running


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "tool_calls", "tool_call_id", "timestamp", "tools", "function"]), ANYTHING
)
NOTE = st.dictionaries(st.sampled_from(["content", "address", "extra_metadata", "source", "guardrail"]), ANYTHING)
METADATA = st.dictionaries(st.sampled_from(["name", "hierarchy_path", "gemini_proxy", "policies", "x"]), ANYTHING)
TEXT = st.sampled_from([SECRETIVE, "", "raise", "there", "new-name", "block"]) | st.text(max_size=20)
MEMBERS: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(MESSAGE, max_size=3) | st.lists(st.lists(MESSAGE, max_size=2), max_size=2),
    "annotations": st.lists(NOTE, max_size=2) | st.lists(st.lists(NOTE, max_size=2), max_size=2),
    "metadata": METADATA | st.lists(METADATA | st.none(), max_size=2),
    "policies": st.lists(TEXT, max_size=3),
    **{name: TEXT for name in ("name", "policy", "dataset", "dataset_name", "source", "content", "address", "action")},
    **{name: st.booleans() for name in ("enabled", "is_public", "replace_all")},
    **{name: METADATA for name in ("extra_metadata", "parameters")},
}
BODIES = st.fixed_dictionaries({}, optional={name: some | ANYTHING for name, some in MEMBERS.items()})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(route=st.sampled_from(WRITING), body=BODIES)
def test_whatever_members_hold_there_is_an_answer_of_the_contract(
    server: _Server, route: tuple[str, str], body: dict[str, Any]
) -> None:
    """Either it could be done, or 400 or 404 with the reason."""
    try:
        sent = orjson.dumps(body)
    except TypeError:
        return
    status, answer = server.ask(*route, sent)
    assert status in (200, 400, 404), (route, body, answer)
    if status != 200:
        assert list(answer) == ["detail"] and isinstance(answer["detail"], str)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversation=st.lists(MESSAGE, max_size=3), described=st.dictionaries(st.text(max_size=8), ANYTHING, max_size=3))
def test_whatever_was_pushed_can_be_read_again(
    server: _Server, conversation: list[Any], described: dict[str, Any]
) -> None:
    """The messages come back as they were, and so does the rest of the trace."""
    described = {
        key: value for key, value in described.items() if key not in ("name", "hierarchy_path", "gemini_proxy")
    }
    try:
        sent = orjson.dumps({"messages": [conversation], "metadata": [described], "dataset": "again"})
    except TypeError:
        return
    status, answer = server.ask("POST", "/push/trace", sent)
    assert status == 200, answer
    status, trace = server.ask("GET", f"/trace/{answer['id'][0]}", b"")
    as_sent = orjson.loads(sent)
    assert (status, trace["messages"]) == (200, as_sent["messages"][0])
    assert trace["extra_metadata"] == {**as_sent["metadata"][0], "uploader": trace["extra_metadata"]["uploader"]}
    status, check = server.ask("POST", "/policy/check", orjson.dumps({"messages": conversation, "policy": SECRETIVE}))
    assert status == 200 or (status == 400 and check["detail"].startswith("Input Validation Error: "))


@pytest.mark.parametrize(("values", "bound"), [("{}", "MAX_CONTAINERS"), ("[]", "MAX_CONTAINERS"), ("0", "MAX_VALUES")])
async def test_more_values_than_can_be_read_at_once_are_refused(
    checker: Api, values: str, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body of little else than brackets or commas is refused before it is read."""
    monkeypatch.setattr(endpoints, bound, 1_000)
    sent = '{"messages":[],"policies":[],"parameters":{"a":[' + ",".join([values] * 1_100) + "]}}"
    status, detail = await checker.refused("POST", "/policy/check/batch", data=sent.encode())
    assert (status, detail) == (400, "The request holds too many values")
