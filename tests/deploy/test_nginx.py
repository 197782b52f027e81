"""What clients get of a stream when nginx stands between them and the proxy."""

import asyncio
import contextlib
import io
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from gemini_proxy.config import Config, load_config
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.http.listen_addresses import ListenAddress
from gemini_proxy.sections import Access, Server, Traces, Upstream
from gemini_proxy.server.app import create_app
from gemini_proxy.server.runner import running
from tests.deploy.nginx import NGINX, SHIPPED, Nginx, running_nginx, several, shipped_site, stock_site, write_config
from tests.support.live import GEMINI_PATH, SETUP, SETUP_COMPLETE, LiveClient, LiveServer, asks, running_live, says
from tests.support.proxy import prompt
from tests.support.upstream import Abort, Hang, ScriptedUpstream, candidate, sse, stream, unary

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

PATH = "/v1beta/models/gemini-2.5-flash:streamGenerateContent"
STREAM = f"{PATH}?alt=sse&key=AIza-test"
UNARY = "/v1beta/models/gemini-2.5-flash:generateContent"
CANARY = "AIza" + "Canary" * 6
PATIENCE = 10.0

Site = Callable[[Path], str]


@dataclass(frozen=True, slots=True)
class Chain:
    """A client before an nginx that has the proxy behind it."""

    client: aiohttp.ClientSession
    nginx: Nginx


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a name short enough for the paths of unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="gp-nginx-"))
    yield path
    shutil.rmtree(path)


@contextlib.asynccontextmanager
async def chain(
    folder: Path, site: Site, upstream: ScriptedUpstream | LiveServer, proxies: tuple[str, ...] = ("unix",)
) -> AsyncIterator[Chain]:
    """A client, nginx with ``site``, the proxy on a unix socket, ``upstream``: each connected to the next."""
    config = Config(
        access=Access(trusted_proxies=proxies),
        server=Server(max_request_bytes=2_000_000),
        upstream=Upstream(base_url=upstream.url),
        traces=Traces(database=f"sqlite:///{folder}/traces.db"),
    )
    address = ListenAddress(path=f"{folder}/gemini-proxy.sock")
    async with running(create_app(config, GuardrailSet()), [address], 1.0):
        async with running_nginx(folder, site(folder)) as nginx, nginx_client(nginx) as client:
            yield Chain(client, nginx)


@contextlib.asynccontextmanager
async def nginx_client(nginx: Nginx) -> AsyncIterator[aiohttp.ClientSession]:
    """A client whose every wait ends, so that a test fails rather than hangs."""
    async with aiohttp.ClientSession(
        "http://localhost",
        connector=aiohttp.UnixConnector(str(nginx.socket)),
        timeout=aiohttp.ClientTimeout(total=PATIENCE),
    ) as client:
        yield client


@pytest.mark.parametrize("site", [shipped_site, stock_site])
async def test_events_arrive_one_by_one(folder: Path, site: Site, upstream: ScriptedUpstream) -> None:
    """Each event reaches the client before the upstream sends the next, with our nginx.conf and with a stock one."""
    *events, last = sse(*(candidate(f"part {number}") for number in range(6)), candidate("the end", "STOP"))
    received = [asyncio.Event() for _ in events]
    upstream.reply(stream(*(step for pair in zip(events, received, strict=True) for step in pair), last))
    async with chain(folder, site, upstream) as link:
        async with link.client.post(STREAM, json=prompt("hello")) as response:
            for event, arrived in zip(events, received, strict=True):
                assert await response.content.readexactly(len(event)) == event
                arrived.set()
            assert await response.read() == last


async def test_live_sessions_pass(folder: Path) -> None:
    """With our nginx.conf."""
    async with running_live(script=lambda frame: [says("Cork", complete=True)]) as live:
        async with chain(folder, shipped_site, live) as link:
            async with link.client.ws_connect(f"{GEMINI_PATH}?key=AIza-test") as socket:
                client = LiveClient(socket)
                await client.send(SETUP, asks("Where?"))
                assert [await client.receive(), await client.receive()] == [SETUP_COMPLETE, says("Cork", complete=True)]


@pytest.mark.parametrize("site", [shipped_site, stock_site])
async def test_open_access_is_not_for_who_comes_through_nginx(
    folder: Path, site: Site, upstream: ScriptedUpstream
) -> None:
    """Without a word of the operator nobody spends a key or reads traces, with our nginx.conf and with a stock one."""
    upstream.reply(unary(candidate("hello", "STOP")))
    async with chain(folder, site, upstream, proxies=()) as link:
        async with link.client.post(STREAM, json=prompt("hello")) as response:
            assert response.status == 403
            assert 'access.mode = "keys"' in (await response.json())["error"]["message"]
        for path, status in (("/explorer", 403), ("/api/v1/dataset/list", 403), ("/readyz", 200), ("/healthz", 200)):
            async with link.client.get(path) as response:
                assert (path, response.status) == (path, status)
    assert upstream.calls == []


def test_the_shipped_configurations_go_together() -> None:
    """Behind the shipped nginx each client needs a key, and is known by the address from which it reached nginx."""
    shipped = load_config(SHIPPED.with_name("config.toml")).access
    assert (shipped.mode, shipped.trusted_proxies) == ("keys", ("unix",))


async def test_a_stream_that_breaks_off_upstream_breaks_off_at_the_client(
    folder: Path, upstream: ScriptedUpstream
) -> None:
    """A truncated answer is an error for the client, never a short success."""
    (event,) = sse(candidate("part 0"))
    upstream.reply(stream(event, Abort()))
    async with chain(folder, shipped_site, upstream) as link:
        async with link.client.post(STREAM, json=prompt("hello")) as response:
            assert await response.content.readexactly(len(event)) == event
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()


async def test_a_client_that_leaves_ends_the_upstream_call(folder: Path, upstream: ScriptedUpstream) -> None:
    """Nobody pays for an answer that nobody reads, with nginx between as without."""
    (event,) = sse(candidate("part 0"))
    upstream.reply(stream(event, Hang()))
    async with chain(folder, shipped_site, upstream) as link:
        response = await link.client.post(STREAM, json=prompt("hello"))
        await response.content.readexactly(len(event))
        assert not upstream.closed_by_caller.is_set()
        response.close()
        await asyncio.wait_for(upstream.closed_by_caller.wait(), PATIENCE)


async def test_a_request_over_the_limit_is_refused_by_the_proxy(folder: Path, upstream: ScriptedUpstream) -> None:
    """nginx lets through what it could refuse only with a page that no client reads."""
    headers = {"content-type": "application/json"}
    async with chain(folder, shipped_site, upstream) as link:
        async with link.client.post(STREAM, data=io.BytesIO(b" " * 2_100_000), headers=headers) as response:
            assert response.status == 413
            assert (await response.json())["error"]["status"] == "INVALID_ARGUMENT"


async def test_figures_stay_on_the_machine(folder: Path, upstream: ScriptedUpstream) -> None:
    """nginx lets through who comes from a loopback address, by a name that the proxy knows, and nobody else."""

    def from_loopback(folder: Path) -> str:
        # The client of this test comes by a unix socket, which is no address.
        return shipped_site(folder).replace("allow ::1;", "allow unix:;")

    for site, status in ((shipped_site, 403), (from_loopback, 200)):
        async with chain(folder, site, upstream) as link:
            async with link.client.get("/metrics") as response:
                assert response.status == status
            async with link.client.get("/readyz") as response:
                assert response.status == 200


async def test_no_key_in_the_logs_of_nginx(folder: Path, upstream: ScriptedUpstream) -> None:
    """A key in the query or in a malformed header is in no log, whether the call succeeds, fails or finds no proxy."""
    (event,) = sse(candidate("done", "STOP"))
    upstream.reply(stream(event), stream(*sse(candidate("part 0")), Abort()))
    async with chain(folder, shipped_site, upstream) as link:
        assert await _status(link.client, f"{PATH}?alt=sse&key={CANARY}") == 200
        assert await _status(link.client, f"/nowhere?key={CANARY}") == 404
        with pytest.raises(aiohttp.ClientPayloadError):
            await _status(link.client, f"{PATH}?alt=sse&key={CANARY}")
        await _send_malformed_header(link.nginx)
    async with running_nginx(folder, shipped_site(folder)) as alone, nginx_client(alone) as client:
        assert await _status(client, f"{PATH}?alt=sse&key={CANARY}") == 502
        # A request is logged after its answer has left, and before the next one is read.
        assert await _status(client, "/") == 502
    access = (folder / "gemini-proxy.access.log").read_text()
    assert access.count(f'"POST {PATH} HTTP/1.1"') == 3
    logged = access.encode() + (folder / "gemini-proxy.error.log").read_bytes() + link.nginx.log + alone.log
    assert CANARY.encode() not in logged


async def _status(client: aiohttp.ClientSession, target: str) -> int:
    async with client.post(target, json=prompt("hello")) as response:
        await response.read()
        return response.status


async def _send_malformed_header(nginx: Nginx) -> None:
    reader, writer = await asyncio.open_unix_connection(str(nginx.socket))
    writer.write(f"POST / HTTP/1.1\r\nHost: localhost\r\nx-goog-api-key : {CANARY}\r\n\r\n".encode())
    assert b" 400 " in await asyncio.wait_for(reader.readline(), PATIENCE)
    writer.close()
    await writer.wait_closed()


@contextlib.asynccontextmanager
async def server(folder: Path, upstream: ScriptedUpstream, name: str) -> AsyncIterator[None]:
    """One of several proxies on one machine, with a socket and a database of its own."""
    config = Config(
        access=Access(trusted_proxies=("unix",)),
        upstream=Upstream(base_url=upstream.url),
        traces=Traces(database=f"sqlite:///{folder}/{name}.db"),
    )
    async with running(create_app(config, GuardrailSet()), [ListenAddress(path=f"{folder}/{name}.sock")], PATIENCE):
        yield


async def test_a_rolling_restart_fails_nobody(folder: Path, upstream: ScriptedUpstream) -> None:
    """Two servers behind the shipped configuration, stopped and started one after the other, under load."""
    statuses: Counter[int] = Counter()
    rolled = asyncio.Event()
    upstream.reply(*[unary(candidate("Cork", "STOP"))] * 5_000)

    async def ask(client: aiohttp.ClientSession) -> None:
        while not rolled.is_set():
            statuses[await _status(client, f"{UNARY}?key=AIza-test")] += 1

    names = ("first", "second")
    async with contextlib.AsyncExitStack() as stack:
        servers = [contextlib.AsyncExitStack() for _ in names]
        for name, one in zip(names, servers, strict=True):
            await stack.enter_async_context(one)
            await one.enter_async_context(server(folder, upstream, name))
        nginx = await stack.enter_async_context(running_nginx(folder, several(folder, names)))
        async with nginx_client(nginx) as client, asyncio.TaskGroup() as clients:
            for _ in range(8):
                clients.create_task(ask(client))
            for name, one in zip(names, servers, strict=True):
                await one.aclose()
                await one.enter_async_context(server(folder, upstream, name))
            rolled.set()
    assert set(statuses) == {200}


def test_nginx_accepts_the_configuration(folder: Path) -> None:
    """deploy/nginx.conf, included at the http level, has no error and no warning."""
    assert NGINX is not None
    config = write_config(folder, shipped_site(folder))
    done = subprocess.run(
        [NGINX, "-t", "-q", "-p", str(folder), "-e", "stderr", "-c", str(config)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_nginx_accepts_larger_bodies_than_the_proxy() -> None:
    """The limit that clients meet is the proxy's."""
    assert "client_max_body_size 110m;" in SHIPPED.read_text()
    assert Config().server.max_request_bytes < 110 * 1024 * 1024
