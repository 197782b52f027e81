"""``server.processes``: several processes on one address, each of which does what the only one would do."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Outcome
from tests.cli.process import Serving, run, serving, write_config
from tests.cli.test_serve import EVENTS, STREAM, UNARY, refused
from tests.explorer.api import SECRETIVE, Api
from tests.support.feed_server import listening
from tests.support.proxy import prompt
from tests.support.upstream import Reply, ScriptedUpstream, candidate, stream, unary

SOON = 60.0
FINAL = {"x-goog-upload-status": "final"}
TWO = {"listen": ["127.0.0.1:0"], "processes": 2}


def children(server: Serving) -> list[int]:
    """The processes that serve, the oldest first."""
    found: list[int] = []
    for listed in Path(f"/proc/{server.process.pid}/task").glob("*/children"):
        found += map(int, listed.read_text().split())
    return sorted(found)


@contextlib.asynccontextmanager
async def calling(server: Serving, child: int) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with one connection, which ``child`` has accepted: the others stand still for that moment."""
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector, headers={"x-goog-api-key": "AIzaTestKey"}) as session:
        others = [pid for pid in children(server) if pid != child]
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        try:
            async with session.get(f"{server.url}/healthz") as response:
                assert response.status == 200
        finally:
            for pid in others:
                os.kill(pid, signal.SIGCONT)
        yield session


async def ask(session: aiohttp.ClientSession, server: Serving, says: str = "hi", dataset: str = "") -> int:
    prefix = f"/api/v1/gateway/{dataset}/gemini" if dataset else ""
    headers = {"x-goog-api-key": "K;invariant-auth=inv-1"} if dataset else {}
    async with session.post(f"{server.url}{prefix}{UNARY}", json=prompt(says), headers=headers) as response:
        await response.read()
        return response.status


class Scraper:
    """Reads metrics, and sees to it that no counter ever falls."""

    def __init__(self, server: Serving) -> None:
        self._server = server
        self._counters: dict[str, float] = {}

    async def read(self, session: aiohttp.ClientSession) -> Mapping[str, float]:
        """Every sample, as ``name{label=value,...}``."""
        async with session.get(f"{self._server.url}/metrics") as response:
            assert response.status == 200
            families = list(text_string_to_metric_families(await response.text()))
        samples: dict[str, float] = {}
        for family in families:
            for sample in family.samples:
                labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
                name = f"{sample.name}{{{labels}}}"
                samples[name] = sample.value
                if family.type in ("counter", "histogram"):
                    assert sample.value >= self._counters.get(name, 0.0), name
                    self._counters[name] = sample.value
        missing = set(self._counters) - set(samples)
        assert missing == set()
        return samples

    async def until(
        self, session: aiohttp.ClientSession, reached: Callable[[Mapping[str, float]], bool]
    ) -> Mapping[str, float]:
        """Read until samples are as they should be."""
        async with asyncio.timeout(SOON):
            while True:
                samples = await self.read(session)
                if reached(samples):
                    return samples
                # What is waited for takes a second, and the processor.
                await asyncio.sleep(0.2)


def replaced(samples: Mapping[str, float]) -> bool:
    return (samples["gemini_proxy_processes{}"], samples["gemini_proxy_process_restarts_total{}"]) == (2, 1)


def completed(samples: Mapping[str, float]) -> float:
    prefix = "gemini_proxy_exchanges_total{"
    return sum(value for name, value in samples.items() if name.startswith(prefix) and "=completed" in name)


async def test_a_process_that_dies_is_replaced_and_the_others_serve_on(
    tmp_path: Path, upstream: ScriptedUpstream, database_url: str
) -> None:
    """A stream in the other one goes on; no figure falls; what one did the other shows; SIGTERM ends all at once."""
    path = tmp_path / "proxy.sock"
    server_section = {**TWO, "listen": ["127.0.0.1:0", f"unix:{path}"]}
    upstream_section = {"base_url": upstream.url}
    config = write_config(tmp_path, server=server_section, upstream=upstream_section, traces={"database": database_url})
    async with serving(config, addresses=2) as server, contextlib.AsyncExitStack() as stack:
        assert server.addresses == (server.url, f"unix:{path}")
        first, second = children(server)
        scraper = Scraper(server)
        # One connection for each thing that goes on in the second process.
        streaming, watching, asking = [await stack.enter_async_context(calling(server, second)) for _ in range(3)]
        doomed = await stack.enter_async_context(calling(server, first))

        # A dataset's rule that one makes holds in the other.
        upstream.reply(unary(candidate("Cork", "STOP")))
        api = Api(doomed, server.url, key="inv-1")
        dataset = (await api.dataset("set"))["id"]
        await api.post(f"/dataset/{dataset}/policy", {"name": "own", "policy": SECRETIVE, "action": "block"})
        early = 0
        # A change that is told, as PostgreSQL does, holds within a second.
        while await ask(asking, server, "a secret", "set") != 400:
            early += 1

        # What one records the other tells and shows.
        async with listening(watching, server.url, key=None) as feed:
            await feed.joined()
            assert await ask(doomed, server) == 200
            told = await feed.next()
        assert told is not None and told.data["outcome"] == "completed", told
        shown = await Api(asking, server.url, key="inv-1").get(f"/trace/{told.data['id']}")
        assert "Cork" in str(shown)
        await scraper.until(asking, lambda samples: completed(samples) == early + 1)

        stopping = asyncio.Event()
        upstream.reply(stream(EVENTS[0], stopping, *EVENTS[1:]))
        async with streaming.post(server.url + STREAM, json=prompt("hi")) as response:
            assert await response.content.readany() == EVENTS[0]
            os.kill(first, signal.SIGKILL)
            samples = await scraper.until(asking, replaced)
            assert (completed(samples), samples["gemini_proxy_in_flight_requests{}"]) == (early + 1, 2)
            stopping.set()
            assert await response.read() == b"".join(EVENTS[1:])

        upstream.reply(unary(candidate("Cork", "STOP")))
        (successor,) = set(children(server)) - {second}
        renewed = await stack.enter_async_context(calling(server, successor))
        assert await ask(renewed, server) == 200
        # The stream is counted by the other one, which writes each second.
        await scraper.until(renewed, lambda samples: completed(samples) == early + 3)
        server.process.terminate()
        assert await asyncio.wait_for(server.process.wait(), SOON) == 0
        assert not path.exists()
    assert "Traceback" not in server.stderr.read_text()
    store = await TraceStore.open_read_only(database_url)
    try:
        found = [summary.outcome for summary in await store.recent(10_000)]
    finally:
        await store.close()
    assert found == [Outcome.COMPLETED] * 3 + [Outcome.REFUSED_REQUEST] + [Outcome.COMPLETED] * early


def rule(word: str) -> str:
    return f'raise "no {word}" if:\n    (m: Message)\n    "{word}" in m.content\n'


async def readiness(session: aiohttp.ClientSession, server: Serving) -> Any:
    async with session.get(f"{server.url}/readyz") as response:
        assert response.status == 200
        return await response.json()


async def test_a_reload_holds_in_all_processes_or_in_none(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Also in one that starts later, whatever is in the files by then. The parent's end is the end of all."""
    policy = tmp_path / "a.gr"
    policy.write_text(rule("Cork"))
    sections: dict[str, Any] = {"upstream": {"base_url": upstream.url}, "guardrails": {"policies": ["*.gr"]}}
    config = write_config(tmp_path, server=TWO, **sections)
    upstream.reply(unary(candidate("Hi", "STOP")))
    async with serving(config) as server, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(calling(server, child)) for child in children(server)]
        scraper = Scraper(server)

        async def statuses(*words: str) -> list[list[int]]:
            return [[await ask(session, server, word) for word in words] for session in clients]

        async def reloaded(result: str) -> None:
            server.process.send_signal(signal.SIGHUP)
            counted = f"gemini_proxy_reloads_total{{result={result}}}"
            await scraper.until(clients[0], lambda samples: samples[counted] == 1)

        assert await statuses("Cork", "Galway") == [[400, 200]] * 2
        policy.write_text(rule("Galway"))
        write_config(tmp_path, server={**TWO, "max_exchanges": 7}, **sections)
        await reloaded("succeeded")
        async with asyncio.timeout(SOON):
            while await statuses("Cork", "Galway") != [[200, 400]] * 2:
                pass
        samples = await scraper.read(clients[1])
        assert samples["gemini_proxy_last_reload_failed{}"] == 0
        policy.write_text("nonsense")
        await reloaded("failed")
        async with asyncio.timeout(SOON):
            while [await readiness(one, server) for one in clients] != [
                {"status": "ready", "last_reload": "failed"}
            ] * 2:
                pass
        assert await statuses("Cork", "Galway") == [[200, 400]] * 2
        log = server.stderr.read_text()
        assert [log.count(words) for words in ('"reloaded"', "reload failed", "after a restart")] == [1, 1, 1]

        doomed, kept = children(server)
        os.kill(doomed, signal.SIGKILL)
        await scraper.until(clients[1], replaced)
        (successor,) = set(children(server)) - {kept}
        clients[0] = await stack.enter_async_context(calling(server, successor))
        assert await statuses("Cork", "Galway") == [[200, 400]] * 2
        assert await readiness(clients[0], server) == {"status": "ready", "last_reload": "failed"}

        server.process.kill()
        await server.process.wait()
        async with asyncio.timeout(SOON):
            await refused(server.url)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Where a service manager is told how its service does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.setblocking(False)
        bound.bind(str(tmp_path / "notify"))
        yield bound


async def told(manager: socket.socket) -> str:
    return (await asyncio.get_running_loop().sock_recv(manager, 4096)).decode()


async def test_the_service_manager_sees_one_service(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession, manager: socket.socket
) -> None:
    """With the socket that it passes. A process that stands still is replaced, and SIGTERM lets streams finish."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        address = f"127.0.0.1:{passed.getsockname()[1]}"
        config = write_config(tmp_path, server={**TWO, "listen": [address]}, upstream={"base_url": upstream.url})
        said = {"WATCHDOG_USEC": "5000000", "LISTEN_FDNAMES": "proxy.socket"}
        notified = str(tmp_path / "notify")
        async with (
            serving(config, 1, (), passed, NOTIFY_SOCKET=notified, **said) as server,
            asyncio.timeout(SOON),
        ):
            assert await told(manager) == f"READY=1\nSTATUS=listening on {address} (proxy.socket)"
            assert await told(manager) == "WATCHDOG=1"
            stuck, other = children(server)
            async with calling(server, other) as session:
                os.kill(stuck, signal.SIGSTOP)
                await Scraper(server).until(session, replaced)
                assert "its event loop is blocked" in server.stderr.read_text()
                stopping = asyncio.Event()
                upstream.reply(stream(EVENTS[0], stopping, *EVENTS[1:]))
                async with session.post(server.url + STREAM, json=prompt("hi")) as response:
                    assert await response.content.readany() == EVENTS[0]
                    server.process.terminate()
                    while (message := await told(manager)) == "WATCHDOG=1":
                        pass
                    assert message == "STOPPING=1"
                    stopping.set()
                    assert await response.read() == b"".join(EVENTS[1:])
            assert await server.process.wait() == 0


def test_a_parent_takes_little_memory() -> None:
    """It loads neither the server nor the store, nor the language of policies."""
    script = "import sys, gemini_proxy.cli.serve, gemini_proxy.server.parent; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "gemini_proxy.server.parent" in loaded
    assert {"aiohttp", "sqlalchemy", "re2", "gemini_proxy.policy"} & set(loaded) == set()


async def test_what_is_wrong_with_the_configuration_is_said_once(tmp_path: Path) -> None:
    """The exit code is 78, and nothing is tried again."""
    (tmp_path / "broken.gr").write_text('raise "no" if:\n    (m: Message)\n    m.content = 1\n')
    config = write_config(tmp_path, server=TWO, guardrails={"policies": ["broken.gr"]})
    code, out, err = await run("--config", str(config), "serve")
    assert (code, out) == (78, "")
    assert err.count("broken.gr:3:") == 1 and "Traceback" not in err and "started again" not in err


async def test_an_upload_goes_on_in_whichever_process_its_bytes_come_to(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    """The one that began it checks and sends it; once that has ended, the other says that there is no such upload."""
    address = {"x-goog-upload-url": "https://example.com/upload/v1beta/files?upload_id=u"}
    upstream.reply(Reply(headers=address, chunked=False), unary({"file": {"name": "files/f"}}, headers=FINAL))
    config = write_config(tmp_path, server=TWO, upstream={"base_url": upstream.url})
    start = {
        "x-goog-upload-protocol": "resumable",
        "x-goog-upload-command": "start",
        "x-goog-upload-header-content-length": "300000",
        "x-goog-upload-header-content-type": "text/plain",
    }
    async with serving(config) as server:
        first, second = children(server)
        urls = []
        async with calling(server, first) as session:
            for _ in range(2):
                async with session.post(f"{server.url}/upload/v1beta/files", headers=start) as response:
                    urls.append(response.headers["x-goog-upload-url"])
        async with calling(server, second) as session:
            for command, offset, said in (("upload", 0, "active"), ("upload, finalize", 150_000, "final")):
                chunk = {"x-goog-upload-command": command, "x-goog-upload-offset": str(offset)}
                async with session.post(urls[0], data=b"a" * 150_000, headers=chunk) as response:
                    assert (response.status, response.headers["x-goog-upload-status"]) == (200, said)
            assert upstream.calls[-1].body == b"a" * 300_000
            os.kill(first, signal.SIGKILL)
            async with session.post(urls[1], data=b"a", headers={"x-goog-upload-command": "upload"}) as response:
                assert (response.status, response.headers["x-goog-upload-status"]) == (404, "cancelled")
