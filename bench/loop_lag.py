"""``python -m bench.loop_lag``: how long hostile policies and texts hold up the event loop of the proxy.

A neighbor asks ``/healthz`` every 5 ms meanwhile. Late by the clock is also what the machine does to the process;
the CPU time of the longest callback is what the proxy does to itself.
"""

import asyncio
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import click
from aiohttp import web

from bench.hostile import Attack, attacks

_PATH: Final = "/v1beta/models/gemini-2.5-flash:generateContent"
_PING: Final = 0.005
_GOAL: Final = 0.020
_ATTACKERS: Final = 2


@dataclass(frozen=True, slots=True)
class Lag:
    """Times in seconds. ``statuses`` are those of the attacker's answers."""

    name: str
    statuses: str
    ping: float
    typical: float
    lag: float
    cpu: float
    collector: float
    worst: str
    seen: Sequence[Any]

    @property
    def reached(self) -> bool:
        return max(self.lag, self.cpu) <= _GOAL


class Server:
    """The measured proxy in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.port = 0

    async def measured(self) -> dict[str, Any]:
        """What was measured since the last call."""
        assert self._process.stdin
        self._process.stdin.write(b"\n")
        return await self.read()

    async def read(self) -> dict[str, Any]:
        assert self._process.stdout
        answer: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return answer


@asynccontextmanager
async def serving(stream_check: str) -> AsyncIterator[Server]:
    """The proxy before an upstream that answers with as many characters as the request's header asks for."""
    app = web.Application(client_max_size=2**30)
    app.router.add_post("/{path:.*}", _answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    command = (sys.executable, "-m", "bench.loop_server", f"http://127.0.0.1:{runner.addresses[0][1]}", stream_check)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
    server = Server(process)
    try:
        server.port = (await server.read())["port"]
        yield server
    finally:
        process.kill()
        await process.wait()
        await runner.cleanup()


_answer_chars = 0


async def _answer(request: web.Request) -> web.Response:
    await request.read()
    text = "mail a@b.co <b> " * (_answer_chars // 16) or "ok"
    part = {"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": "STOP", "index": 0}
    return web.json_response({"candidates": [part]})


async def measure(server: Server, attack: Attack, seconds: float) -> Lag:
    """Attack for a while, ping meanwhile."""
    global _answer_chars
    _answer_chars = attack.answer
    url = f"http://127.0.0.1:{server.port}"
    async with aiohttp.ClientSession(headers={"x-goog-api-key": "AIzaTestKey"}) as session:
        await asyncio.sleep(0.02)
        await server.measured()
        ends = time.perf_counter() + seconds
        pinging = asyncio.create_task(_ping(session, url, ends))
        answers = await asyncio.gather(*(_attack(session, url, attack, ends) for _ in range(_ATTACKERS)))
        pings = await pinging
    found = await server.measured()
    counted = Counter(status for statuses in answers for status in statuses)
    told = " ".join(f"{count}x{status}" for status, count in sorted(counted.items()))
    median = statistics.median(pings)
    watched = (found[key] for key in ("lag", "cpu", "collector", "worst", "seen"))
    return Lag(attack.name, told, max(pings), median, *watched)


async def _attack(session: aiohttp.ClientSession, url: str, attack: Attack, ends: float) -> list[int]:
    statuses: list[int] = []
    while not statuses or time.perf_counter() < ends:
        headers = {"Invariant-Guardrails": attack.policy(), "content-type": "application/json"}
        async with session.post(url + _PATH, data=attack.body, headers=headers) as answer:
            await answer.read()
            statuses.append(answer.status)
    return statuses


async def _ping(session: aiohttp.ClientSession, url: str, ends: float) -> list[float]:
    pings = []
    while time.perf_counter() < ends:
        started = time.perf_counter()
        async with session.get(f"{url}/healthz") as answer:
            await answer.read()
        pings.append(time.perf_counter() - started)
        await asyncio.sleep(_PING)
    return pings


async def run(names: Sequence[str], seconds: float, stream_check: str) -> list[Lag]:
    """Every attack with one of ``names`` in its name, in turn, on one server."""
    found = []
    async with serving(stream_check) as server:
        quiet = Attack("quiet", lambda: "", b'{"contents": [{"parts": [{"text": "x"}]}]}')
        warm = Attack("warm", lambda: "", b'{"contents": [{"parts": [{"text": "%s"}]}]}' % (b"x" * 2_000_000))
        await measure(server, warm, 2.0)
        for attack in (quiet, *attacks()):
            if attack is quiet or not names or any(name in attack.name for name in names):
                found.append(await measure(server, attack, seconds))
                click.echo(_line(found[-1]), err=True)
    return found


@click.command()
@click.option("--only", "names", multiple=True, help="Only attacks with this in their name.")
@click.option("--seconds", default=0.4, show_default=True, help="Of each attack; one of each attacker at least.")
@click.option("--stream-check", default="final", type=click.Choice(("final", "window", "hold")))
def main(names: Sequence[str], seconds: float, stream_check: str) -> None:
    """Attack the proxy, and print what held its loop up for longest. Exit code 1 where it was late by over 20 ms."""
    found = asyncio.run(run(names, seconds, stream_check))
    missed = [lag for lag in found if not lag.reached]
    click.echo(
        f"{len(found)} attacks; late by over {_GOAL * 1000:g} ms: {len(missed)}, by the clock of a shared machine"
    )
    for lag in sorted(found, key=lambda each: -each.cpu)[:15]:
        click.echo(f"{_line(lag)}\n    {lag.worst}")
        for where, times in lag.seen:
            click.echo(f"    {times:4} {where}")
    sys.exit(1 if missed else 0)


def _line(lag: Lag) -> str:
    own = f"own {lag.cpu * 1000:6.1f} ms (collector {lag.collector * 1000:.1f})"
    times = f"{own}, late {lag.lag * 1000:6.1f} ms, ping {lag.ping * 1000:6.1f} ms"
    return f"{times} (median {lag.typical * 1000:.1f})  {lag.name}: {lag.statuses}"


if __name__ == "__main__":
    main()
