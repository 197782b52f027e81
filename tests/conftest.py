"""The fixtures that stand for the world around the proxy."""

import asyncio
import contextlib
import gc
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis
import pytest

from gemini_proxy.traces.store import TraceStore
from tests.support.postgres import TEMPLATE, PostgresServer, find_programs, running_server
from tests.support.proxy import Proxy, proxy_before
from tests.support.sqlite import make_database
from tests.support.upstream import ScriptedUpstream

# Time tells of the machine, which may be busy with something else for as long as a deadline allows.
hypothesis.settings.register_profile("any machine", deadline=None, max_examples=35)
hypothesis.settings.load_profile("any machine")

LONGEST = (
    "tests/cli/test_processes.py",
    "tests/explorer/test_browser_pages.py",
    "tests/traces/test_listing.py",
    "tests/cli/test_serve.py",
    "tests/test_bench.py",
    "tests/cli/test_reload.py",
    "tests/test_bench_agentdojo.py",
    "tests/traces/test_retention.py",
    "tests/test_wheel.py",
    "tests/explorer/test_stored_messages.py",
    "tests/cli/test_tail.py",
    "tests/traces/test_push_outages.py",
    "tests/server/test_readings.py",
    "tests/server/test_lifecycle.py",
    "tests/server/test_response_fields.py",
    "tests/explorer/test_conversation.py",
    "tests/explorer/test_api_bad_input.py",
    "tests/explorer/test_pages.py",
    "tests/explorer/test_api_traces.py",
    "tests/traces/test_indexer.py",
    "tests/cli/test_kill.py",
    "tests/cli/test_demo.py",
    "tests/policy/test_policy_hostile.py",
    "tests/policy/test_policy_provenance.py",
    "tests/explorer/test_api_policies.py",
    "tests/test_bench_million.py",
    "tests/traces/test_kill.py",
    "tests/proxy/test_masking.py",
    "tests/explorer/test_api_push.py",
    "tests/test_bench_fuzz.py",
)
"""Files that take more than five seconds of the processor, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: one that began last would go on alone, with the other cores idle."""
    order = {file: number for number, file in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


def pytest_collection_finish() -> None:
    """Leave thousands of tests and their modules out of every collection of garbage from here on, and collect less."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


StartProxy = Callable[..., Awaitable[Proxy]]

DATABASES = ("sqlite", "postgres")
"""The parameters of ``database_url``; a test for one of them only is parametrised with it, ``indirect``."""


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    server = ScriptedUpstream()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def start_proxy(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[StartProxy]:
    """Start a proxy before the scripted upstream; it is stopped after the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**options: Any) -> Proxy:
            return await stack.enter_async_context(proxy_before(upstream.url, tmp_path, **options))

        yield start


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client with a Gemini key."""
    async with aiohttp.ClientSession(headers={"x-goog-api-key": "AIzaTestKey"}) as session:
        yield session


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server with a template of a migrated, empty trace database. A test that stops it starts it again."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with running_server(programs) as server:
        _finish(_make_template(server))
        yield server


async def _make_template(server: PostgresServer) -> None:
    await server.execute(f"CREATE DATABASE {TEMPLATE}")
    await (await TraceStore.open(server.url(TEMPLATE))).close()


def _finish(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` outside of the test's own loop, so that tests without one can ask for a database too."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(work)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A trace database of this test's own, migrated and empty."""
    name = f"test_{uuid.uuid4().hex}"
    _finish(postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    yield postgres_server.url(name)
    _finish(postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty trace database, the test run once for each kind: ``start_proxy(traces={"database": database_url})``."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return make_database(tmp_path / "traces.db")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine that its own key has signed, and the key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=upstream"
    extra = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key"), "-out", str(folder / "cert")]
    subprocess.run(["openssl", *words.split(), *extra], check=True, capture_output=True)
    return folder / "cert", folder / "key"
