"""``python -m bench.live``: what gemini-proxy adds to a frame of a live session, and what many sessions at once take.

A client sends a frame of sound, to which the scripted server says a piece of text, and a turn of text, to which it says
that the turn is complete: the one is passed and read, the other checked and recorded. Direct sessions and sessions
through the proxy take turns, one frame at a time.
"""

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
import orjson

from bench.processes import ProcessError, ServerProcess, allow_many_sockets, module, serving

_PATH: Final = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent?key=bench"
_SETUP: Final = orjson.dumps({"setup": {"model": "models/bench-live"}})
_SOUND: Final = orjson.dumps({"realtimeInput": {"audio": {"mimeType": "audio/pcm;rate=16000", "data": "A" * 4268}}})
"""A tenth of a second of speech."""
_TURN: Final = orjson.dumps(
    {"clientContent": {"turns": [{"role": "user", "parts": [{"text": "When does it leave?"}]}], "turnComplete": True}}
)
_TURNS_A_SESSION: Final = 20
_CONFIG: Final = """
server.listen = ["127.0.0.1:0"]
upstream.base_url = "http://127.0.0.1:{port}"
guardrails.policies = ["{policy}"]
traces.database = "sqlite:///{folder}/traces.db"
limits.requests_per_minute = 0
limits.unproven_requests_per_minute = 0
"""
_POLICY: Final = Path(__file__).with_name("policy.gr")


@dataclass(slots=True)
class Times:
    """Milliseconds from a frame's sending to its answer."""

    sound: list[float] = field(default_factory=list)
    turn: list[float] = field(default_factory=list)


class LiveSocket:
    """One session, past its setup."""

    def __init__(self, socket: "aiohttp.ClientWebSocketResponse[Any]") -> None:
        self._socket = socket

    async def ask(self, frame: bytes) -> float:
        """Return the milliseconds that the answer to a frame takes. Raises ProcessError where there is none."""
        started = time.perf_counter()
        await self._socket.send_bytes(frame)
        answer = await self._socket.receive(timeout=60)
        if answer.type is not aiohttp.WSMsgType.BINARY or b"setupComplete" in answer.data:
            raise ProcessError(f"a session ended: {answer!r}, {self._socket.close_code}")
        return (time.perf_counter() - started) * 1000


@asynccontextmanager
async def opened(http: aiohttp.ClientSession, port: int) -> AsyncIterator[LiveSocket]:
    """Open a session of the server on ``port``."""
    async with http.ws_connect(f"http://127.0.0.1:{port}{_PATH}", compress=0) as socket:
        await socket.send_bytes(_SETUP)
        answer = await socket.receive(timeout=60)
        if answer.type is not aiohttp.WSMsgType.BINARY:
            raise ProcessError(f"a setup was refused: {answer!r}, {socket.close_code}")
        yield LiveSocket(socket)


async def alone(ports: Sequence[int], sessions: int) -> list[Times]:
    """Measure one session of each server at a time."""
    times = [Times() for _ in ports]
    async with aiohttp.ClientSession() as http:
        for _ in range(sessions):
            async with opened(http, ports[0]) as first, opened(http, ports[1]) as second:
                for _ in range(_TURNS_A_SESSION):
                    for socket, measured in ((first, times[0]), (second, times[1])):
                        measured.sound.append(await socket.ask(_SOUND))
                        measured.turn.append(await socket.ask(_TURN))
    return times


async def crowd(port: int, sessions: int, seconds: float) -> Times:
    """Hold many sessions at once, each with a frame of sound a second and a turn every ten."""
    times = Times()
    ready = asyncio.Barrier(sessions)

    async def hold(number: int, http: aiohttp.ClientSession) -> None:
        async with opened(http, port) as socket:
            await ready.wait()
            await asyncio.sleep(number / sessions)
            ends = time.perf_counter() + seconds
            count = number
            while time.perf_counter() < ends:
                started = time.perf_counter()
                times.sound.append(await socket.ask(_SOUND))
                count += 1
                if count % 10 == 0:
                    times.turn.append(await socket.ask(_TURN))
                await asyncio.sleep(max(0.0, started + 1 - time.perf_counter()))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http:
        await asyncio.gather(*(hold(number, http) for number in range(sessions)))
    return times


@click.command()
@click.option("--sessions", default=500, show_default=True, help="Sessions at once.")
@click.option("--seconds", default=10.0, show_default=True, help="How long they last.")
@click.option("--lone", default=10, show_default=True, help="Sessions one after the other, of twenty turns each.")
def main(sessions: int, seconds: float, lone: int) -> None:
    """Measure direct sessions beside those through gemini-proxy, with two rules and traces on."""
    allow_many_sockets()
    click.echo(f"load before: {', '.join(f'{value:.1f}' for value in os.getloadavg())} on {os.cpu_count()} processors")
    with tempfile.TemporaryDirectory(prefix="gemini-proxy-bench-") as name:
        folder = Path(name)
        try:
            with serving(module("bench.live_server"), folder / "upstream.log") as upstream:
                config = folder / "config.toml"
                config.write_text(_CONFIG.format(port=upstream.port, policy=_POLICY, folder=folder))
                with serving(module("gemini_proxy", "--config", str(config), "serve"), folder / "proxy.log") as proxy:
                    measure(upstream, proxy, sessions, seconds, lone)
        except ProcessError as error:
            raise click.ClickException(str(error)) from None


def measure(upstream: ServerProcess, proxy: ServerProcess, sessions: int, seconds: float, lone: int) -> None:
    """Print the figures."""
    direct, through = asyncio.run(alone([upstream.port, proxy.port], lone))
    for kind in ("sound", "turn"):
        without, with_proxy = getattr(direct, kind), getattr(through, kind)
        added = statistics.median(with_proxy) - statistics.median(without)
        click.echo(
            f"one session, {kind}: direct {_summed(without)}, through {_summed(with_proxy)}; added {added:.2f} ms"
        )
    for peer, server in (("direct", upstream), ("through", proxy)):
        before = server.cpu_seconds
        times = asyncio.run(crowd(server.port, sessions, seconds))
        used = (server.cpu_seconds - before) / seconds
        click.echo(
            f"{sessions} sessions {peer}: sound {_summed(times.sound)}, turn {_summed(times.turn)}; "
            f"{used:.2f} processors, {server.rss_kib / 1024:.0f} MiB"
        )
    click.echo(json.dumps({"load": os.getloadavg()}))


def _summed(values: Sequence[float]) -> str:
    ordered = sorted(values)
    if not ordered:
        return "none"
    return f"{statistics.median(ordered):.2f} ms (p99 {ordered[int(len(ordered) * 0.99)]:.1f}, n {len(ordered)})"


if __name__ == "__main__":
    main()
