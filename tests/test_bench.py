"""The benchmark runs, counts failures as failures, and prints what it measured."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from bench.__main__ import run
from bench.audience import Told, watching
from bench.http_read import AnswerError, AnswerReader
from bench.load import drive
from bench.peers import Peer, Server, Setting, Stage
from bench.processes import ProcessError, cpu_seconds, module, piped, serving
from bench.report import Measured, as_json, table
from bench.scenarios import SCENARIOS, Figure, Scale, Scenario, Values, joined
from bench.workload import DATASET, Workload, dump, load_result, load_workload, spread
from hypothesis import given
from hypothesis import strategies as st

TINY = Scale(
    repeats=1,
    settle=0.0,
    unary_requests=64,
    unary_warmup=32,
    lone_requests=16,
    paced_streams=5,
    paced_rounds=2,
    paced_events=5,
    calm_streams=3,
    calm_rounds=1,
    calm_events=3,
    calm_spread_ms=50,
    held_streams=10,
    crowd_streams=20,
    crowd_events=3,
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FEED = b"retry: 1000\n\nid: 7\nevent: position\ndata: {}\n\n"
EXCHANGE = b'id: 8\nevent: exchange\ndata: {"seq":8}\n\n'
EVENT = b"data: @%020d@\r\n\r\n" % 1
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)

Respond = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def test_every_scenario_gives_every_figure_of_every_peer_without_a_failure() -> None:
    measured = run(SCENARIOS, TINY, Setting(watched=True))
    for one in measured:
        assert one.failures == 0, one.scenario.name
    for name, figures in as_json(measured).items():
        assert figures["told"][Peer.WATCHED][0] > 0, name
        for key, peers in figures.items():
            assert peers.keys() >= {Peer.PASS_THROUGH, Peer.PROXY, Peer.WATCHED}, (name, key)
            assert peers[Peer.WATCHED], (name, key)
    lines = table(measured).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + len(SCENARIOS) + sum(len(scenario.figures) + 1 for scenario in SCENARIOS)


def test_the_processors_time_of_children_that_have_ended_counts() -> None:
    spin = "import time\nwhile time.process_time() < 0.2: pass"
    script = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {spin!r}])\nprint(flush=True)\nsys.stdin.read()"
    )
    with piped([sys.executable, "-c", script]) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert cpu_seconds(process.pid) >= 0.2
        assert process.stdin is not None
        process.stdin.close()


def test_the_one_before_is_run_from_its_own_checkout(tmp_path: Path) -> None:
    package = tmp_path / "src" / "gemini_proxy"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("print('listening on 127.0.0.1:7', flush=True)\nimport time\ntime.sleep(60)")
    with serving(module("bench.upstream"), tmp_path / "log") as upstream:
        with Stage(tmp_path, upstream, Setting(before=tmp_path)).fresh(Peer.BEFORE) as server:
            assert server.process.port == 7
        (package / "__main__.py").unlink()
        with pytest.raises(ProcessError), Stage(tmp_path, upstream, Setting(before=tmp_path)).fresh(Peer.BEFORE):
            pass
        empty = Setting(before=tmp_path / "src")
        with pytest.raises(ProcessError, match="no gemini_proxy"), Stage(tmp_path, upstream, empty).fresh(Peer.BEFORE):
            pass


def test_litellm_is_run_from_its_own_environment_and_measured_where_the_load_fits(tmp_path: Path) -> None:
    command = tmp_path / "bin" / "litellm"
    command.parent.mkdir()
    command.write_text(
        "#!/bin/sh\ncp $2 $(dirname $0)/config.yaml\necho Uvicorn running on http://$4:$6\nexec sleep 60\n"
    )
    command.chmod(0o755)
    with serving(module("bench.upstream"), tmp_path / "log") as upstream:
        with Stage(tmp_path, upstream, Setting(litellm=tmp_path)).fresh(Peer.LITELLM) as server:
            assert server.process.port > 0
        assert f"http://127.0.0.1:{upstream.port}" in (command.parent / "config.yaml").read_text()
    assert [one.name for one in SCENARIOS if Peer.LITELLM in joined(one, [Peer.LITELLM]).peers] == ["unary", "lone"]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(0, Told(0, 2), id="nothing"),
        pytest.param(2, Told(2, 2), id="not all"),
        pytest.param(3, Told(3, 0), id="all"),
        pytest.param(4, Told(4, 2), id="more than there were"),
    ],
)
async def test_watchers_that_are_not_told_of_every_exchange_once_fail(events: int, expected: Told) -> None:
    async with _server(_feed(FEED + EXCHANGE * events)) as port:
        assert await asyncio.to_thread(_told, port) == expected


async def test_watchers_that_are_not_let_in_end_the_run() -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}")

    async with _server(respond) as port:
        with pytest.raises(ProcessError, match="watchers"):
            await asyncio.to_thread(_told, port)


async def test_a_watcher_that_is_told_nothing_is_a_failure_of_the_run(tmp_path: Path) -> None:
    def measured(port: int) -> Values:
        upstream = serving(module("bench.upstream"), tmp_path / "log")
        with upstream as process, watching(port, 1, patience=0.1) as audience:
            stage = Stage(tmp_path, process, Setting())
            stage.servers[Peer.WATCHED] = Server(process, DATASET, audience)
            return SCENARIOS[0].measure(stage, Peer.WATCHED, TINY)

    async with _server(_feed(FEED)) as port:
        values = await asyncio.to_thread(measured, port)
    assert (values["failed"], values["told"]) == (1, 0)
    assert values["rate"] > 0


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(0, 600), max_size=12))
def test_chunked_answers_are_read_alike_at_any_split(chunks: list[bytes], cuts: list[int]) -> None:
    answer = HEAD + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    edges = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    reader = AnswerReader()
    body = b"".join(reader.feed(answer[start:end]) for start, end in zip(edges, edges[1:], strict=False))
    assert (reader.status, body, reader.ended) == (200, b"".join(chunks), True)


def test_answers_with_a_length_end_with_it() -> None:
    reader = AnswerReader()
    pieces = (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nab", b"cd")
    assert [(reader.feed(piece), reader.ended) for piece in pieces] == [(b"ab", False), (b"cd", True)]
    assert reader.status == 400
    with pytest.raises(AnswerError):
        reader.feed(b"e")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(HEAD + CHUNK, id="cut before its end"),
        pytest.param(HEAD + CHUNK + b"0\r\n\r\n", id="ended with an event missing"),
        pytest.param((HEAD + CHUNK * 2 + b"0\r\n\r\n").replace(b"200", b"503"), id="status"),
        pytest.param(b"SSH-2.0-nonsense\r\n\r\n", id="not HTTP"),
    ],
)
async def test_a_stream_that_is_not_whole_is_an_error(answer: bytes) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with _server(respond) as port:
        result = await drive(Workload("stream", port, 1, 1, events=2))
    assert (result.done, result.errors, result.unfinished) == (0, 1, 0)


async def test_a_stream_that_hangs_is_counted_as_unfinished() -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + CHUNK)
        await reader.read()

    async with _server(respond) as port:
        result = await drive(Workload("stream", port, 2, 2, events=2, timeout=0.2))
    assert (result.done, result.errors, result.unfinished) == (0, 0, 2)


async def test_workloads_and_results_survive_the_way_between_processes() -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + CHUNK * 2 + b"0\r\n\r\n")
        await writer.drain()

    async with _server(respond) as port:
        workload = Workload("stream", port, 1, 1, events=2)
        result = await drive(workload)
    assert result.done == 1
    assert load_workload(dump(workload)) == workload
    assert load_result(dump(result)) == result


def test_percentiles_are_in_milliseconds() -> None:
    found = spread([number * 1_000_000 for number in range(1, 101)])
    assert found is not None
    assert (found.p50, found.p95, found.p99, found.most) == (51.0, 96.0, 100.0, 100.0)
    assert spread([]) is None


def test_the_report_compares_with_the_pass_through_and_with_direct_calls() -> None:
    figures = (
        Figure("cpu", "CPU", "s", 1, proxies=True, ratio=True, most=1.5),
        Figure("first", "first", "ms", 1, added=Peer.DIRECT, most=2),
    )
    measured = Measured(Scenario("one", "One", tuple(Peer), lambda stage, peer, scale: {}, figures))
    for peer, value in ((Peer.DIRECT, 1.0), (Peer.PASS_THROUGH, 2.0), (Peer.PROXY, 4.0)):
        measured.runs[peer].extend({"cpu": value * factor, "first": value} for factor in (1, 2, 1))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table([measured]).splitlines()]
    assert cells[3] == ["CPU, s", "", "2.0 (2.0..4.0)", "4.0 (4.0..8.0)", "2.00", "1.5 at most: missed"]
    assert cells[4] == ["first, ms", "1.0", "+1.0", "+3.0", "", "2 at most: missed"]


def test_the_report_compares_the_watched_with_the_one_before_where_both_are() -> None:
    figures = (Figure("cpu", "CPU", "s", 1), Figure("told", "told", digits=0))
    measured = Measured(Scenario("one", "One", tuple(Peer), lambda stage, peer, scale: {}, figures))
    for peer, value in ((Peer.BEFORE, 2.0), (Peer.PROXY, 4.0), (Peer.WATCHED, 5.0)):
        measured.runs[peer].append({"cpu": value} | ({"told": 7} if peer is Peer.WATCHED else {}))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table([measured]).splitlines()]
    assert cells[0] == ["", "before", "gemini-proxy", "watched", "ratio", "goal", "watched/before"]
    assert cells[3] == ["CPU, s", "2.0", "4.0", "5.0", "", "", "2.50"]
    assert cells[4] == ["told", "", "", "7", "", "", ""]


def _feed(text: bytes) -> Respond:
    """A server whose feed says that much and then nothing."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"%x\r\n%b\r\n" % (len(text), text))
        await reader.read()

    return respond


def _told(port: int) -> Told:
    """What two watchers are told where there were three exchanges."""
    with watching(port, 2, patience=0.1) as audience:
        return audience.told(3, 3)


@asynccontextmanager
async def _server(respond: Respond) -> AsyncIterator[int]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await respond(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
