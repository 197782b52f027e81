"""``serve`` as a process, ``check-config`` and ``healthcheck``: addresses, signals, exit codes."""

import asyncio
import contextlib
import resource
import socket
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from click.testing import CliRunner

from gemini_proxy.cli import main
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Outcome
from tests.cli.process import run, serving, start, write_config
from tests.support.proxy import MODEL, prompt
from tests.support.upstream import Hang, ScriptedUpstream, candidate, sse, stream, unary

EVENTS = sse(candidate("Hel"), candidate("lo "), candidate("there", "STOP"))
ANYWHERE = {"listen": ["127.0.0.1:0"]}
STREAM = f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
UNARY = f"/v1beta/models/{MODEL}:generateContent"


async def refused(url: str) -> None:
    """Return when nobody takes connections at ``url`` any more."""
    parts = urlsplit(url)
    async with asyncio.timeout(10):
        while True:
            # A connection taken as the server closed its door is reset.
            with contextlib.suppress(ConnectionResetError):
                try:
                    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
                except ConnectionRefusedError:
                    return
                writer.close()
                await writer.wait_closed()


async def outcomes(folder: Path) -> list[Outcome]:
    store = await TraceStore.open_read_only(f"sqlite:///{folder / 'traces.db'}")
    try:
        return [summary.outcome for summary in await store.recent(10)]
    finally:
        await store.close()


async def test_serves_over_tcp_and_unix_socket(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession, loop: str
) -> None:
    """The addresses are printed, both serve, health is told on both, and SIGTERM ends it with exit code 0."""
    path = tmp_path / "proxy.sock"
    server = {"listen": [f"unix:{path}", "127.0.0.1:0"], "loop": loop}
    config = write_config(tmp_path, server=server, upstream={"base_url": upstream.url})
    reply = unary(candidate("Cork", "STOP"))
    upstream.reply(reply)
    async with serving(config, addresses=2) as server_process:
        assert server_process.addresses[0] == f"unix:{path}"
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), headers=client.headers) as unix:
            for session, base in ((unix, "http://localhost"), (client, server_process.url)):
                async with session.post(base + UNARY, json=prompt("hi")) as response:
                    assert (response.status, await response.read()) == (200, reply.steps[0])
                for where in ("/healthz", "/readyz", "/api/v1/gateway/health"):
                    async with session.get(base + where) as response:
                        assert response.status == 200
        server_process.process.terminate()
        assert await asyncio.wait_for(server_process.process.wait(), 15) == 0
    assert await outcomes(tmp_path) == [Outcome.COMPLETED] * 2


async def test_healthcheck(tmp_path: Path) -> None:
    """Exit code 0 while the configured server is ready, over either kind of address, and 1 once it is gone."""
    path = tmp_path / "proxy.sock"
    unix = write_config(tmp_path, server={"listen": [f"unix:{path}", "127.0.0.1:0"]})
    async with serving(unix, addresses=2) as server:
        tcp = write_config(tmp_path, "tcp.toml", server={"listen": [urlsplit(server.url).netloc]})
        for config in (unix, tcp):
            assert await healthcheck(config) == (0, '{"status":"ready"}\n', "")
        server.process.kill()
        await server.process.wait()
        for config, address in ((unix, str(path)), (tcp, urlsplit(server.url).netloc)):
            code, out, err = await healthcheck(config)
            assert (code, out) == (1, "") and address in err


def test_check_config_lists_what_holds(tmp_path: Path) -> None:
    """Each policy with its action and file, and what clients' own are worth."""
    for name in ("first", "second"):
        (tmp_path / f"{name}.gr").write_text('raise "no" if:\n    (m: Message)\n    "x" in m.content\n')
    settings = {"policies": ["first.gr"], "log_policies": ["second.gr"], "header_policies": "replace"}
    config = write_config(tmp_path, guardrails=settings)
    result = CliRunner().invoke(main, ["--config", str(config), "check-config"])
    assert result.exit_code == 0 and result.stdout.splitlines()[1:5] == [
        "block  first.gr",
        "log    second.gr",
        'access.mode = "open": everyone on this machine may use it; requests through a proxy are refused',
        "Invariant-Guardrails of clients: replace",
    ]


async def healthcheck(config: Path) -> tuple[int, str, str]:
    """What ``healthcheck`` ends with: exit code, standard output, standard error."""
    result = await asyncio.to_thread(CliRunner().invoke, main, ["--config", str(config), "healthcheck"])
    return result.exit_code, result.stdout, result.stderr


async def test_a_stream_that_outlasts_the_grace_is_broken(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """When the grace is over, once, the stream breaks off for the client and is recorded, and the exit is clean."""
    grace = 2.5
    config = write_config(tmp_path, server={**ANYWHERE, "shutdown_grace": grace}, upstream={"base_url": upstream.url})
    upstream.reply(stream(EVENTS[0], Hang()))
    async with serving(config) as server:
        async with client.post(server.url + STREAM, json=prompt("hi")) as response:
            assert await response.content.readany() == EVENTS[0]
            server.process.terminate()
            async with asyncio.timeout(2 * grace - 0.2):
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
        assert await asyncio.wait_for(server.process.wait(), 15) == 0
        assert "Traceback" not in server.stderr.read_text()
    assert upstream.closed_by_caller.is_set()
    assert await outcomes(tmp_path) == [Outcome.FAILED]


async def test_sigterm_lets_what_is_under_way_finish(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession, loop: str
) -> None:
    """After SIGTERM nobody new comes in, and the stream under way goes on to its end, also after a second SIGTERM.

    What comes over an idle connection is answered, and told that it was the last; the other idle one is closed.
    """
    config = write_config(tmp_path, server={**ANYWHERE, "loop": loop}, upstream={"base_url": upstream.url})
    stopping = asyncio.Event()
    upstream.reply(stream(EVENTS[0], stopping, *EVENTS[1:]), unary(candidate("Cork", "STOP")))
    async with serving(config) as server:
        address = urlsplit(server.url)
        silent, writer = await asyncio.open_connection(address.hostname, address.port)
        async with client.post(server.url + STREAM, json=prompt("hi")) as under_way:
            assert await under_way.content.readany() == EVENTS[0]
            async with client.get(server.url + "/healthz") as response:
                assert "connection" not in response.headers
            server.process.terminate()
            await refused(server.url)
            async with client.post(server.url + UNARY, json=prompt("hi")) as response:
                assert (response.status, response.headers["connection"]) == (200, "close")
            async with asyncio.timeout(15):
                assert await silent.read() == b""
            server.process.terminate()
            stopping.set()
            assert await under_way.read() == b"".join(EVENTS[1:])
        assert await asyncio.wait_for(server.process.wait(), 15) == 0
        writer.close()
    assert await outcomes(tmp_path) == [Outcome.COMPLETED] * 2


async def test_a_socket_that_was_passed_outlives_the_process(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Who connects between two servers waits for the second and is refused by neither."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        address = f"127.0.0.1:{passed.getsockname()[1]}"
        config = write_config(tmp_path, server={"listen": [address]})
        async with serving(config, passed=passed) as first:
            assert first.url == f"http://{address}"
            async with client.get(f"{first.url}/healthz", headers={"connection": "close"}) as response:
                assert response.status == 200
            first.process.terminate()
            assert await asyncio.wait_for(first.process.wait(), 15) == 0
        waiting = asyncio.create_task(client.get(f"http://{address}/healthz"))
        async with serving(config, passed=passed):
            async with await waiting as response:
                assert response.status == 200


async def test_a_socket_that_no_setting_names(tmp_path: Path) -> None:
    """Where the server may listen is checked in the configuration, so nothing else is listened on."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        config = write_config(tmp_path, server={"listen": ["127.0.0.1:1"]})
        process = await start(["--config", str(config), "serve"], {}, passed=passed)
        out, err = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, out) == (78, b"")
        port = passed.getsockname()[1]
    assert f"server.listen: 127.0.0.1:1: the socket 127.0.0.1:{port} that was passed" in err.decode()


async def test_the_service_manager_is_told(tmp_path: Path) -> None:
    """Type=notify: READY=1 once it listens, WATCHDOG=1 again and again, STOPPING=1 at the end."""
    config = write_config(tmp_path, server=ANYWHERE)
    path = tmp_path / "notify.sock"
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        manager.bind(str(path))
        async with serving(config, NOTIFY_SOCKET=str(path), WATCHDOG_USEC="100000") as server, asyncio.timeout(20):
            ready = await loop.sock_recv(manager, 4096)
            assert ready.startswith(b"READY=1\n") and server.url.removeprefix("http://").encode() in ready
            assert [await loop.sock_recv(manager, 4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            server.process.terminate()
            while (told := await loop.sock_recv(manager, 4096)) == b"WATCHDOG=1":
                pass
            assert told == b"STOPPING=1"
            assert await server.process.wait() == 0


async def test_an_address_in_use(tmp_path: Path) -> None:
    """A server that cannot listen says where and why, and ends with 78."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = write_config(tmp_path, server={"listen": [address]})
        code, out, err = await run("--config", str(config), "serve")
    assert (code, out) == (78, "")
    assert f"server.listen: {address}: " in err and "in use" in err
    assert "Traceback" not in err


async def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    """A trace store that cannot be used stops the server with its name and the reason."""
    database = f"sqlite:///{tmp_path / 'nowhere' / 'traces.db'}"
    config = write_config(tmp_path, server=ANYWHERE, traces={"database": database})
    code, _, err = await run("--config", str(config), "serve")
    assert code == 78
    assert f"traces.database: {database}: " in err and "Traceback" not in err


async def test_a_policy_that_does_not_load_stops_the_server(tmp_path: Path) -> None:
    """The process that cannot use its policy ends with 78 and says file, line, column and reason."""
    (tmp_path / "broken.gr").write_text('raise "no" if:\n    (m: Message)\n    m.content = 1\n')
    config = write_config(tmp_path, server=ANYWHERE, guardrails={"policies": ["broken.gr"]})
    code, out, err = await run("--config", str(config), "serve")
    assert (code, out) == (78, "")
    assert err.startswith("broken.gr:3:")
    assert "m.content = 1" in err and "Traceback" not in err


async def test_descriptors_are_as_many_as_the_system_allows(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """A shell's soft limit of a few hundred would end at as many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    config = write_config(tmp_path, server=ANYWHERE, upstream={"base_url": upstream.url})
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        async with serving(config) as server:
            assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
