"""``tail`` as a process: its lines, its filters, what it does when the server goes away, and how it ends."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from click.testing import CliRunner

from gemini_proxy.cli import main
from gemini_proxy.traces.access import DEVELOPER
from gemini_proxy.traces.feed import MAX_REPLAYED
from gemini_proxy.traces.keys import Keys
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Annotation, Outcome, Trace
from tests.cli.process import serving, start, write_config
from tests.support.feed import SOON
from tests.support.feed_server import feed_server
from tests.support.proxy import MODEL, prompt
from tests.support.sqlite import make_database
from tests.support.upstream import ScriptedUpstream, candidate, unary
from tests.traces.samples import ANNOTATION, trace

HOSTILE = "[red]no markup[/red] \x1b[31mno colour\x9b1m\r\n\u202eflip"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TraceStore]:
    opened = await TraceStore.open(make_database(tmp_path / "traces.db"))
    yield opened
    await opened.close()


class Tail:
    """A running ``gemini-proxy tail``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """The next line of its output."""
        return await self._line(self.process.stdout)

    async def word(self) -> str:
        """The next line of what it says beside."""
        return await self._line(self.process.stderr)

    async def _line(self, stream: asyncio.StreamReader | None) -> str:
        assert stream is not None
        return (await asyncio.wait_for(stream.readline(), SOON)).decode().rstrip("\n")

    async def end(self, number: int) -> tuple[int, str, str]:
        """Stop it: exit code, and what it had still to say."""
        self.process.send_signal(number)
        out, err = await asyncio.wait_for(self.process.communicate(), SOON)
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


@contextlib.asynccontextmanager
async def tailing(*arguments: str, **added: str) -> AsyncIterator[Tail]:
    process = await start(["tail", *arguments], {"COLUMNS": "80", **added})
    try:
        yield Tail(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(*arguments: str, **added: str) -> tuple[int | None, str, str]:
    """A tail that ends by itself: exit code, output, and what it said."""
    async with tailing(*arguments, **added) as tail:
        out, err = await asyncio.wait_for(tail.process.communicate(), SOON)
        return tail.process.returncode, out.decode(), err.decode()


def mine(**fields: Any) -> Trace:
    return trace(owner=DEVELOPER, **fields)


async def test_one_line_an_exchange(store: TraceStore) -> None:
    """Each as it happens, texts made visible and never wrapped; Ctrl-C is a good end."""
    refused = mine(
        outcome=Outcome.REFUSED_RESPONSE, annotations=(Annotation(HOSTILE, ""),), duration_ms=41.6, model="m" * 90
    )
    async with feed_server(store) as server, tailing("--url", server.url, "--last", "5") as tail:
        await store.add([first := mine()])
        at = datetime.fromtimestamp(first.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        assert (
            await tail.line()
            == f"{at}  {first.id[:8]}  {'demo':16}  {'gemini-2.5-flash':22}  {'completed':16}       0 ms  -"
        )
        await store.add([trace(owner="another"), refused, last := mine(dataset=None, model=None)])
        visible = "[red]no markup[/red] ␛[31mno colour\ufffd1m␍␊\ufffdflip"
        assert (
            await tail.line()
            == f"{at}  {refused.id[:8]}  {'demo':16}  {'m' * 90}  refused_response      42 ms  {visible}"
        )
        assert await tail.line() == f"{at}  {last.id[:8]}  {'-':16}  {'-':22}  {'completed':16}       0 ms  -"
        assert await tail.end(signal.SIGINT) == (0, "", "")


async def test_a_user_sees_their_own_and_of_that_what_they_ask_for(store: TraceStore, tmp_path: Path) -> None:
    """By dataset and outcome, as JSON, the last ones first; SIGTERM is a good end, a wrong key is none.

    The key comes from a file or from the environment, and the file counts more.
    """
    _, key = await Keys(store.database).add("alice")
    wanted = [
        trace(owner="alice", dataset="a", outcome=Outcome.REFUSED_REQUEST, annotations=(ANNOTATION,)),
        trace(owner="alice", dataset="a", outcome=Outcome.REFUSED_RESPONSE),
    ]
    others = [
        trace(owner="alice", dataset="a"),
        trace(owner="alice", dataset="b", outcome=Outcome.REFUSED_REQUEST),
        trace(owner="bob", dataset="a", outcome=Outcome.REFUSED_REQUEST),
    ]
    await store.add([wanted[0], *others])
    file = tmp_path / "key"
    file.write_text("inv-unknown\n")
    async with feed_server(store, mode="keys") as server:
        options = ("--url", server.url, "--dataset", "a", "--refused", "--json", "--last", "10")
        async with tailing(*options, INVARIANT_API_KEY=key) as tail:
            first = orjson.loads(await tail.line())
            assert (first["id"], first["rule"], first["outcome"]) == (wanted[0].id, "no secrets", "refused_request")
            await store.add([wanted[1]])
            assert orjson.loads(await tail.line())["id"] == wanted[1].id
            assert await tail.end(signal.SIGTERM) == (0, "", "")
        code, out, err = await ended(*options, "--key-file", str(file), INVARIANT_API_KEY=key)
    assert (code, out) == (1, "")
    assert err == f"Error: {server.url}: the server does not accept this key: You must provide a valid API key.\n"


async def test_a_restart_of_the_server_loses_and_repeats_nothing(
    tmp_path: Path, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Of the real server, at its configured unix socket: it says once that it is gone, and when it is back."""
    path = tmp_path / "proxy.sock"
    config = write_config(
        tmp_path, server={"listen": [f"unix:{path}", "127.0.0.1:0"]}, upstream={"base_url": upstream.url}
    )
    upstream.reply(unary(candidate("Cork", "STOP")))
    store = await TraceStore.open(make_database(tmp_path / "traces.db"))
    ids = []
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        first = await stack.enter_async_context(serving(config, addresses=2))
        # As main's option: tail has no address but the configured one.
        tail = await stack.enter_async_context(tailing("--json", "--last", "1", GEMINI_PROXY_CONFIG=str(config)))
        await ask(client, first.url)
        ids.append(orjson.loads(await tail.line())["id"])
        first.process.terminate()
        assert await asyncio.wait_for(first.process.wait(), SOON) == 0
        told = await tail.word()
        assert told.startswith(f"unix:{path}: ") and told.endswith("; connecting again")
        # By a third process, while there is no server.
        meanwhile = [mine(created=time.time()), mine(created=time.time())]
        await store.add(meanwhile)
        second = await stack.enter_async_context(serving(config, addresses=2))
        ids += [orjson.loads(await tail.line())["id"] for _ in meanwhile]
        assert await tail.word() == f"unix:{path}: connected again"
        await ask(client, second.url)
        ids.append(orjson.loads(await tail.line())["id"])
        recorded = [summary.id for summary in await store.recent(10)]
    assert recorded == ids[::-1]


async def ask(client: aiohttp.ClientSession, url: str) -> None:
    """Have one exchange recorded, as the user of an open server."""
    headers = {"invariant-authorization": "Bearer inv-any"}
    async with client.post(
        f"{url}/v1beta/models/{MODEL}:generateContent", json=prompt("hi"), headers=headers
    ) as answer:
        assert answer.status == 200


async def test_it_says_what_it_missed(store: TraceStore) -> None:
    """After an absence in which more happened than is told again."""
    async with contextlib.AsyncExitStack() as stack:
        async with feed_server(store) as server:
            tail = await stack.enter_async_context(tailing("--url", server.url, "--json", "--last", "1"))
            await store.add([mine()])
            assert await tail.line()
        await tail.word()
        await store.add([mine(messages=[]) for _ in range(MAX_REPLAYED + 7)])
        async with feed_server(store, port=server.port) as server:
            numbers = [orjson.loads(await tail.line())["seq"] for _ in range(MAX_REPLAYED)]
            code, out, err = await tail.end(signal.SIGTERM)
    assert numbers == list(range(9, 9 + MAX_REPLAYED))
    assert (code, out) == (0, "")
    assert f"{server.url}: missed 7 exchanges" in err.splitlines()


def test_what_cannot_be_meant_is_a_usage_error(tmp_path: Path) -> None:
    """Exit code 2, and nothing is asked of any server; a key on the command line is one of those."""
    empty = tmp_path / "empty"
    empty.write_text("")
    config = write_config(tmp_path, server={"listen": ["127.0.0.1:0"]})
    for arguments, words in {
        ("--key", "inv-secret"): "everybody on this machine can read a command line",
        ("--url", "ftp://x"): "expected a URL",
        ("--url", "unix:x"): "unix:/path",
        ("--url", "http://proxy.example.com"): "expected https",
        ("--key-file", str(empty)): "the key is not one line of ASCII",
        ("--key-file", str(tmp_path / "none")): "No such file",
        ("--last", "1001"): "1001 is not in the range",
        (): "on any free port: give its address with --url",
    }.items():
        runner = CliRunner(env={"INVARIANT_API_KEY": "", "COLUMNS": "200"})
        result = runner.invoke(main, ["--config", str(config), "tail", *arguments])
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
        assert "inv-secret" not in result.stderr


async def test_a_reader_that_has_enough_ends_it(store: TraceStore) -> None:
    """``tail | head -1`` ends with the next exchange, without a traceback."""
    async with feed_server(store) as server:
        reading, writing = os.pipe()
        os.close(reading)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gemini_proxy", "tail", "--url", server.url, "--last", "1", "--json"),
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(writing)
        await store.add([mine()])
        _, err = await asyncio.wait_for(process.communicate(), SOON)
        assert (process.returncode, err) == (1, b"")
