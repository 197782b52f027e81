"""Several proxies with one database: behind nginx, and through a restart of the database."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.deploy.nginx import NGINX, running_nginx
from tests.support.postgres import PostgresServer
from tests.support.proxy import MODEL, Proxy, asked, prompt
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream

NO_SECRET = """
raise "secret in the prompt" if:
    (m: Message)
    m.role == "user"
    "hunter2" in m.content
"""
SITE = """\
    upstream machines {{ {servers} }}
    server {{
        listen unix:{folder}/nginx.sock;
        location / {{
            proxy_pass http://machines;
            proxy_http_version 1.1;
            add_header x-machine $upstream_addr;
        }}
    }}
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a name short enough for the paths of unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="gp-nginx-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def machines(start_proxy: StartProxy, postgres_url: str) -> list[Proxy]:
    """Two proxies, each as it would be on a machine of its own."""
    sections = {"traces": {"database": postgres_url}, "access": {"trusted_proxies": ["127.0.0.1"]}}
    return [await start_proxy(policy=NO_SECRET, **sections) for _ in range(2)]


async def ask(client: aiohttp.ClientSession, url: str, text: str) -> aiohttp.ClientResponse:
    async with client.post(url, json=prompt(text)) as response:
        await response.read()
        return response


def answers(upstream: ScriptedUpstream, count: int) -> None:
    upstream.reply(*(stream(*sse(candidate("hello", "STOP"))) for _ in range(count)))


async def test_each_machine_sees_what_went_through_any(
    machines: list[Proxy], upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    answers(upstream, 4)
    for text in ("one", "hunter2"):
        for machine in machines:
            await ask(client, machine.stream, text)
    seen = [await machine.store.recent(10) for machine in machines]
    assert seen[0] == seen[1]
    assert [found.outcome for found in seen[0]] == [Outcome.REFUSED_REQUEST] * 2 + [Outcome.COMPLETED] * 2


async def test_a_database_that_restarts_costs_no_exchange_after_it(
    machines: list[Proxy], upstream: ScriptedUpstream, client: aiohttp.ClientSession, postgres_server: PostgresServer
) -> None:
    """Answers go on while it is gone, traced or not; with its return each machine's next exchange is recorded."""
    answers(upstream, 6)
    for machine in machines:
        await ask(client, machine.stream, "before")
    postgres_server.stop()
    try:
        for machine in machines:
            assert (await ask(client, machine.stream, "while it is gone")).status == 200
    finally:
        postgres_server.start()
    for machine in machines:
        await ask(client, machine.stream, "after")
    recorded = [asked(trace) async for trace in machines[0].store.export()]
    # What came while it was gone is tried again, for as long as its caller waits.
    assert [text for text in recorded if text != "while it is gone"] == ["before", "before", "after", "after"]


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
async def test_machines_behind_nginx_share_their_traces(
    machines: list[Proxy], upstream: ScriptedUpstream, folder: Path
) -> None:
    """Whichever machine nginx chooses, every exchange is in the one list."""
    answers(upstream, 6)
    servers = " ".join(f"server {machine.url.removeprefix('http://')};" for machine in machines)
    async with running_nginx(folder, SITE.format(servers=servers, folder=folder)) as nginx:
        connector = aiohttp.UnixConnector(str(nginx.socket))
        headers = {"x-goog-api-key": "AIzaTestKey"}
        async with aiohttp.ClientSession("http://localhost", connector=connector, headers=headers) as client:
            path = f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
            responses = [await ask(client, path, str(number)) for number in range(6)]
    assert {response.headers["x-machine"] for response in responses} == {
        machine.url.removeprefix("http://") for machine in machines
    }
    for machine in machines:
        recorded = [asked(trace) async for trace in machine.store.export()]
        assert recorded == [str(number) for number in range(6)]
