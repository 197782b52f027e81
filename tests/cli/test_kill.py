"""``kill -9`` under load: what a client saw the end of has its trace. $TEST_KILLS asks for more kills."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import orjson
import pytest
from aiohttp import web

from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Outcome
from tests.cli.process import Serving, serving, write_config
from tests.support.proxy import MODEL, asked, prompt
from tests.support.upstream import candidate, sse

KILLS = int(os.environ.get("TEST_KILLS", "5"))
CLIENTS = 24
POLICY = """
raise "no Dublin" if:
    (m: Message)
    m.role == "assistant"
    "Dublin" in m.content

raise "no secret" if:
    (m: Message)
    m.role == "user"
    "hunter2" in m.content
"""
KINDS = {
    "ordinary": Outcome.COMPLETED,
    "hunter2": Outcome.REFUSED_REQUEST,
    "Dublin": Outcome.REFUSED_RESPONSE,
}
"""A word in the prompt and how its exchange ends."""


@pytest.fixture
async def model() -> AsyncIterator[str]:
    """A model that says what it was asked, in one piece or in three."""
    app = web.Application()
    app.router.add_post("/{target:.*}", _echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


async def _echo(request: web.Request) -> web.StreamResponse:
    asked = orjson.loads(await request.read())["contents"][0]["parts"][0]["text"]
    if "stream" not in request.path:
        return web.Response(body=orjson.dumps(candidate(asked, "STOP")), content_type="application/json")
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for event in sse(candidate("You said "), candidate(asked), candidate(".", "STOP")):
        await response.write(event)
    return response


class Load:
    """Clients that ask without end, mixed calls and mixed outcomes, and remember what they saw the end of."""

    def __init__(self) -> None:
        self.ended: dict[str, Outcome] = {}
        self._numbers = itertools.count()
        self._goal = 0
        self._reached = asyncio.Event()

    async def more(self, count: int) -> None:
        """Return when that many more exchanges have ended."""
        self._goal = len(self.ended) + count
        self._reached.clear()
        await self._reached.wait()

    async def client(self, session: aiohttp.ClientSession, url: str) -> None:
        """Ask until the server is gone."""
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            for kind, method in itertools.cycle(_mixed()):
                text = f"{kind} {next(self._numbers)}."
                async with session.post(f"{url}/v1beta/models/{MODEL}:{method}", json=prompt(text)) as response:
                    await response.read()
                self.ended[text] = KINDS[kind]
                if len(self.ended) >= self._goal:
                    self._reached.set()


def _mixed() -> Iterator[tuple[str, str]]:
    for kind in ("ordinary", "hunter2", "ordinary", "Dublin"):
        for method in ("generateContent", "streamGenerateContent?alt=sse", "streamGenerateContent"):
            yield kind, method


async def _kill_under_load(server: Serving, load: Load, count: int) -> None:
    """Kill the server when ``count`` more exchanges have ended, with all clients in the middle of the next."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers={"x-goog-api-key": "AIzaTestKey"}) as session:
        async with asyncio.timeout(60), asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(load.client(session, server.url))
            await load.more(count)
            server.process.kill()
            await server.process.wait()


async def test_what_a_client_saw_the_end_of_has_its_trace(tmp_path: Path, model: str) -> None:
    """Each kill comes at another moment; the same database is opened again by the next server."""
    (tmp_path / "policy.gr").write_text(POLICY)
    config = write_config(
        tmp_path,
        server={"listen": ["127.0.0.1:0"]},
        upstream={"base_url": model},
        guardrails={"policies": ["policy.gr"]},
    )
    load = Load()
    for number in range(KILLS):
        async with serving(config) as server:
            await _kill_under_load(server, load, 60 + 23 * (number % 7))
    recorded = await _recorded(tmp_path / "traces.db")
    assert len(load.ended) >= 60 * KILLS
    missing = load.ended.keys() - recorded.keys()
    assert not missing
    assert {text: recorded[text] for text in load.ended} == load.ended
    print(f"{KILLS} kills, {len(load.ended)} exchanges seen to their end, {len(recorded)} traces")


async def _recorded(database: Path) -> dict[str, Outcome]:
    """The outcome of every trace by its prompt."""
    store = await TraceStore.open(f"sqlite:///{database}")
    try:
        return {asked(trace): trace.outcome async for trace in store.export()}
    finally:
        await store.close()
