"""SIGHUP to a running server: what changes, what does not, and that nobody's exchange notices."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import BaseModel

from gemini_proxy.config import IN_PLACE, Config
from gemini_proxy.config import reloaded as merged
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.server.app_keys import RELOADS, SETUPS
from gemini_proxy.server.reload import Reloader
from gemini_proxy.server.sources import Sources
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Outcome, Trace
from tests.cli.process import Serving, serving, start, write_config
from tests.conftest import StartProxy
from tests.support.proxy import MODEL, prompt
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

EVENTS = sse(candidate("Hel"), candidate("lo "), candidate("Dublin", "STOP"))
STREAM = f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
UNARY = f"/v1beta/models/{MODEL}:generateContent"
COVERAGE = "x-gemini-proxy-guardrails"


def rule(word: str) -> str:
    return f'raise "no {word}" if:\n    (m: Message)\n    "{word}" in m.content\n'


def configure(folder: Path, scripted: ScriptedUpstream, /, **sections: Mapping[str, object]) -> Path:
    """A configuration whose policies are all files of the folder."""
    values: dict[str, Any] = {"server": {"listen": ["127.0.0.1:0"]}, "upstream": {"base_url": scripted.url}, **sections}
    values["guardrails"] = {"policies": ["*.gr"], **values.get("guardrails", {})}
    return write_config(folder, **values)


async def hang_up(client: aiohttp.ClientSession, server: Serving, result: str = "succeeded", count: int = 1) -> None:
    """Send SIGHUP and return when the server has counted that many reloads with this result."""
    server.process.send_signal(signal.SIGHUP)
    await reloaded(client, server, result, count)


async def reloaded(client: aiohttp.ClientSession, server: Serving, result: str, count: int) -> None:
    line = f'gemini_proxy_reloads_total{{result="{result}"}} {count}.0\n'
    async with asyncio.timeout(20):
        while line not in await text(client, server.url + "/metrics"):
            pass


async def text(client: aiohttp.ClientSession, url: str) -> str:
    async with client.get(url) as response:
        assert response.status == 200
        return await response.text()


async def ask(client: aiohttp.ClientSession, server: Serving, says: str) -> tuple[int, str]:
    """Status, and the refusal's text or the whole answer."""
    async with client.post(server.url + UNARY, json=prompt(says)) as response:
        body = await response.json()
        return response.status, body["error"]["message"] if response.status != 200 else str(body)


async def recorded(folder: Path) -> list[Trace]:
    """All traces, the oldest first."""
    store = await TraceStore.open_read_only(f"sqlite:///{folder / 'traces.db'}")
    try:
        found = [await store.get(summary.id) for summary in reversed(await store.recent(10))]
        return [trace for trace in found if trace is not None]
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def started(folder: Path, *arguments: str, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run ``gemini-proxy ARGUMENTS``, which may not serve yet; it is killed in the end."""
    with (folder / "stderr.txt").open("wb") as errors:
        process = await start(arguments, variables, errors)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def listening(process: asyncio.subprocess.Process, folder: Path) -> Serving:
    """The server that ``process`` is once it says where."""
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
    return Serving(process, (line.removeprefix("gemini-proxy listens on ").strip(),), folder / "stderr.txt")


def logged(server: Serving, word: str) -> list[str]:
    """The events of the log lines that hold ``word``."""
    lines = [json.loads(line) for line in server.stderr.read_text().splitlines()]
    return [line["event"] for line in lines if word in line["event"]]


def values(section: BaseModel, prefix: str = "") -> dict[str, object]:
    """Every key with its value."""
    found: dict[str, object] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        found |= values(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {prefix + name: value}
    return found


def changed(section: BaseModel, path: list[str], value: object) -> BaseModel:
    """A copy with one key changed."""
    first, *rest = path
    return section.model_copy(update={first: changed(getattr(section, first), rest, value) if rest else value})


@pytest.mark.parametrize("key", values(Config.model_construct()))
def test_each_key_changes_in_place_or_is_named(key: str) -> None:
    running = Config.model_construct()
    loaded = changed(running, key.split("."), "another value")
    assert isinstance(loaded, Config)
    found, waiting = merged(running, loaded)
    assert waiting == (() if key in IN_PLACE else (key,))
    assert found == (loaded if key in IN_PLACE else running)


def test_the_readme_says_what_changes_in_place() -> None:
    text = (
        (Path(__file__).parents[2] / "README.md").read_text().partition("### Changing rules")[2].partition("\n- Ex")[0]
    )
    whole, single = (
        ("guardrails.", "doors.", "refusals.", "limits.", "live.", "logs.", "files."),
        ("traces.retention_days", "traces.max_size", "traces.required", "traces.durability", "alerts", "prices"),
    )
    fixed = (
        "guardrails.engine",
        "guardrails.timeout",
        "guardrails.remote.",
        "guardrails.judge.",
        "guardrails.model_armor.",
        "guardrails.classifier.",
        "guardrails.presidio.",
        "guardrails.semgrep.",
    )
    for name in (*whole, *single, *fixed):
        assert f"`{name}{'*' if name.endswith('.') else ''}`" in text
    keys = values(Config.model_construct())
    assert {key for key in keys if key in single or (key.startswith(whole) and not key.startswith(fixed))} == IN_PLACE


async def test_streams_keep_the_rules_they_began_with(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession, loop: str
) -> None:
    """A stream under way ends as it would have, and is recorded; the next request has the new rules."""
    config = configure(tmp_path, upstream, server={"listen": ["127.0.0.1:0"], "loop": loop})
    (tmp_path / "a.gr").write_text(rule("Cork"))
    going_on = asyncio.Event()
    upstream.reply(stream(EVENTS[0], going_on, *EVENTS[1:]), unary(candidate("In Dublin", "STOP")))
    async with serving(config) as server:
        async with client.post(server.url + STREAM, json=prompt("hi")) as response:
            assert await response.content.readany() == EVENTS[0]
            (tmp_path / "a.gr").write_text(rule("Dublin"))
            (tmp_path / "b.gr").write_text(rule("Galway"))
            await hang_up(client, server)
            refused = await ask(client, server, "Where?")
            assert refused == (400, "[Invariant] The response did not pass the guardrails: no Dublin")
            assert (await ask(client, server, "Galway?"))[0] == 400
            assert "no Galway" in await text(client, server.url + "/explorer/traces/rules")
            going_on.set()
            assert await response.read() == b"".join(EVENTS[1:])
        traces = await recorded(tmp_path)
        server.process.terminate()
        assert await asyncio.wait_for(server.process.wait(), 15) == 0
    assert sorted(trace.outcome for trace in traces) == sorted(
        [Outcome.REFUSED_RESPONSE, Outcome.REFUSED_REQUEST, Outcome.COMPLETED]
    )
    (passed,) = [trace for trace in traces if trace.outcome is Outcome.COMPLETED]
    assert passed.metadata["coverage"]["rules"] == ["a.gr"]
    assert logged(server, "reloaded") == ["reloaded"]


async def test_a_stream_is_refused_by_the_rule_it_began_with(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Also where the new configuration would let it pass."""
    config = configure(tmp_path, upstream)
    (tmp_path / "a.gr").write_text(rule("Dublin"))
    going_on = asyncio.Event()
    upstream.reply(stream(EVENTS[0], going_on, *EVENTS[1:]), unary(candidate("In Dublin", "STOP")))
    async with serving(config) as server:
        async with client.post(server.url + STREAM, json=prompt("hi")) as response:
            assert await response.content.readany() == EVENTS[0]
            configure(tmp_path, upstream, guardrails={"policies": []}, refusals={"prefix": "[Wall]"})
            await hang_up(client, server)
            assert (await ask(client, server, "Where?"))[0] == 200
            going_on.set()
            assert b"[Invariant] The response did not pass the guardrails: no Dublin" in await response.read()


UNUSABLE = (
    ("b.gr", 'raise "no" if:\n    (m: Message)\n    m.content = 1\n', "b.gr:3:"),
    ("b.gr", 'raise "no" if:\n    (m: Message)\n    input.word in m.content\n', "input.word is not set"),
    ("config.toml", "[guardrails]\npolicys = []\n", 'guardrails.policys: unknown key (did you mean "policies"?)'),
    ("config.toml", "[guardrails\n", "line 1"),
    ("config.toml", '[guardrails]\npolicies = ["gone/*.gr"]\n', "no file matches"),
)


async def test_what_cannot_be_loaded_changes_nothing(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Not even that part of it which could; one log line says why, and the next reload that can be used holds."""
    config = configure(tmp_path, upstream)
    (tmp_path / "a.gr").write_text(rule("Cork"))
    (tmp_path / "b.gr").write_text(rule("Sligo"))
    upstream.reply(unary(candidate("Hi", "STOP")))
    async with serving(config) as server:
        assert "last_reload" not in await text(client, server.url + "/readyz")
        (tmp_path / "a.gr").write_text(rule("Galway"))
        for count, (name, content, words) in enumerate(UNUSABLE, start=1):
            usable = (tmp_path / name).read_text()
            (tmp_path / name).write_text(content)
            await hang_up(client, server, "failed", count)
            (tmp_path / name).write_text(usable)
            assert (await ask(client, server, "Cork?"))[1].endswith("no Cork")
            assert (await ask(client, server, "Galway?"))[0] == 200
            assert '"last_reload":"failed"' in await text(client, server.url + "/readyz")
            *_, line = logged(server, "reload failed")
            assert (
                line.startswith("reload failed, the previous configuration stays in force: ")
                and words in line
                and "\n" not in line
            )
        await hang_up(client, server)
        assert (await ask(client, server, "Cork?"))[0] == 200
        assert (await ask(client, server, "Galway?"))[1].endswith("no Galway")
        assert await text(client, server.url + "/readyz") == '{"status":"ready"}'


async def test_a_fault_that_nobody_foresaw_changes_nothing(
    start_proxy: StartProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Its text is not logged, for it may be anything; the next reload is heard."""
    proxy = await start_proxy(policy=rule("Cork"))
    before = proxy.app[SETUPS].current
    outcomes: list[Exception | None] = [RuntimeError("CANARY"), None]

    def load() -> tuple[Sources, GuardrailSet]:
        if (error := outcomes.pop(0)) is not None:
            raise error
        return Sources(before.config, (), ()), GuardrailSet()

    reloader = Reloader(proxy.app[SETUPS], proxy.app[RELOADS], load)
    assert not await reloader.reload()
    assert proxy.app[SETUPS].current is before
    assert "RuntimeError" in caplog.text and "CANARY" not in caplog.text
    assert await reloader.reload()
    assert proxy.app[SETUPS].current.rules == GuardrailSet()


async def test_keys_that_need_a_restart_are_named(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """They stay as they are and no value is logged; what can change in place does."""
    config = configure(tmp_path, upstream)
    (tmp_path / "a.gr").write_text(rule("Cork"))
    upstream.reply(unary(candidate("Hi", "STOP")))
    new: dict[str, Mapping[str, object]] = {
        "server": {"listen": ["127.0.0.1:1"], "max_exchanges": 7},
        "upstream": {"base_url": "https://elsewhere.example", "api_key": "AIzaCANARY"},
        "guardrails": {"stream_check": "hold", "timeout": 1.5, "header_policies": "off"},
        "refusals": {"prefix": "[Wall]"},
    }
    async with serving(config) as server:
        configure(tmp_path, upstream, **new)
        await hang_up(client, server)
        assert (await ask(client, server, "Cork?"))[1] == "[Wall] The request did not pass the guardrails: no Cork"
        headers = {"Invariant-Guardrails": "this would not load"}
        async with client.post(server.url + UNARY, json=prompt("hi"), headers=headers) as response:
            assert response.status == 200
            assert "mode=hold" in response.headers[COVERAGE]
        # Named again, for they still wait.
        await hang_up(client, server, count=2)
        names = "server.listen, server.max_exchanges, upstream.base_url, upstream.api_key, guardrails.timeout"
        assert logged(server, "restart") == [f"changed settings that take effect only after a restart: {names}"] * 2
        assert "CANARY" not in server.stderr.read_text()


async def test_the_service_manager_is_told_of_reloads(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """RELOADING=1 with the time of a monotonic clock, then READY=1, also where the reload failed."""
    config = configure(tmp_path, upstream, guardrails={"policies": []})
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        manager.bind(str(tmp_path / "notify.sock"))
        async with serving(config, NOTIFY_SOCKET=str(tmp_path / "notify.sock")) as server, asyncio.timeout(20):
            ready = await loop.sock_recv(manager, 4096)
            for content, added in ((None, b""), ("[broken", b"; the last reload failed")):
                if content is not None:
                    config.write_text(content)
                server.process.send_signal(signal.SIGHUP)
                first, second = (await loop.sock_recv(manager, 4096)).decode().split("\n")
                name, _, microseconds = second.partition("=")
                assert (first, name) == ("RELOADING=1", "MONOTONIC_USEC") and int(microseconds) > 0
                assert await loop.sock_recv(manager, 4096) == ready + added


async def test_without_a_file_a_reload_changes_nothing(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The environment is the one of the start."""
    variables = {
        "GEMINI_PROXY_SERVER__LISTEN": '["127.0.0.1:0"]',
        "GEMINI_PROXY_UPSTREAM__BASE_URL": upstream.url,
        "GEMINI_PROXY_TRACES__DATABASE": f"sqlite:///{tmp_path / 'traces.db'}",
        "GEMINI_PROXY_REFUSALS__PREFIX": "[Wall]",
    }
    upstream.reply(unary(candidate("Hi", "STOP")))
    async with started(tmp_path, "serve", **variables) as process:
        server = await listening(process, tmp_path)
        await hang_up(client, server)
        assert (await ask(client, server, "hi"))[0] == 200
        assert logged(server, "restart") == []
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 15) == 0


async def test_a_hangup_while_starting_reloads_once_it_serves(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """It may have come after the files were read. The policy is a pipe here, so that the test knows where it waits."""
    config = configure(tmp_path, upstream)
    policy = tmp_path / "a.gr"
    os.mkfifo(policy)
    upstream.reply(unary(candidate("Hi", "STOP")))

    def feed(word: str, process: asyncio.subprocess.Process | None = None) -> None:
        # Opens when the other side does.
        with policy.open("w") as pipe:
            if process is not None:
                process.send_signal(signal.SIGHUP)
            pipe.write(rule(word))

    async with started(tmp_path, "serve", "--config", str(config)) as process:
        await asyncio.wait_for(asyncio.to_thread(feed, "Cork", process), 30)
        server = await listening(process, tmp_path)
        assert (await ask(client, server, "Cork?"))[0] == 400
        await asyncio.wait_for(asyncio.to_thread(feed, "Galway"), 30)
        await reloaded(client, server, "succeeded", 1)
        assert (await ask(client, server, "Cork?"))[0] == 200
        assert (await ask(client, server, "Galway?"))[0] == 400


async def test_a_hangup_while_stopping_changes_nothing(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The stream under way ends, and so does the server, with exit code 0."""
    config = configure(tmp_path, upstream, guardrails={"policies": []})
    going_on = asyncio.Event()
    upstream.reply(stream(EVENTS[0], going_on, *EVENTS[1:]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        manager.bind(str(tmp_path / "notify.sock"))
        async with serving(config, NOTIFY_SOCKET=str(tmp_path / "notify.sock")) as server, asyncio.timeout(20):
            async with client.post(server.url + STREAM, json=prompt("hi")) as response:
                assert await response.content.readany() == EVENTS[0]
                server.process.terminate()
                while b"STOPPING=1" not in await asyncio.get_running_loop().sock_recv(manager, 4096):
                    pass
                server.process.send_signal(signal.SIGHUP)
                going_on.set()
                assert await response.read() == b"".join(EVENTS[1:])
            assert await server.process.wait() == 0
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
    assert [trace.outcome for trace in await recorded(tmp_path)] == [Outcome.COMPLETED]


async def test_the_form_of_log_lines_changes(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """From the reload on lines have the new form, and those below the new level are missing."""
    config = configure(tmp_path, upstream, logs={"format": "text"}, guardrails={"policies": []})
    async with serving(config) as server:
        before = server.stderr.read_text()
        assert before and not before.startswith("{")
        configure(tmp_path, upstream, logs={"format": "json", "level": "error"}, guardrails={"policies": []})
        await hang_up(client, server)
        config.write_text("[nonsense")
        await hang_up(client, server, "failed")
        [line] = server.stderr.read_text().removeprefix(before).splitlines()
        assert json.loads(line)["level"] == "error"


async def test_lines_on_a_terminal_are_for_people(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Without a word in the configuration; where nobody looks they are JSON, as all other tests here read them."""
    config = configure(tmp_path, upstream, guardrails={"policies": []})
    ours, its = os.openpty()
    with os.fdopen(its, "wb") as terminal:
        process = await start(["serve", "--config", str(config)], {}, terminal)
    try:
        line = await asyncio.wait_for(asyncio.to_thread(os.read, ours, 1000), 30)
    finally:
        process.kill()
        await process.communicate()
        os.close(ours)
    assert b"info" in line and not line.startswith(b"{")
