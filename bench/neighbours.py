"""``python -m bench.neighbours``: what clients notice of others whose header policies run as long as they may.

Honest clients of three kinds ask one after the other, first by themselves, then beside attackers who do nothing but
send policies that are never done. ``--source`` measures the proxy of another checkout.
"""

import asyncio
import base64
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiohttp
import click

from bench.processes import module, serving

_PATH: Final = "/v1beta/models/bench-unary:generateContent"
_POLICY: Final = """
raise "no" if:
    (a: Message)
    (b: Message)
    a -> b
    a.role == "nobody"
    find("[a-z]+@[a-z]+[.]invalid", b.content)
"""
_ENDLESS: Final = (
    'raise "x" if:\n    (a: Message)\n    (b: Message)\n    (c: Message)\n    (d: Message)\n'
    "    a.content == b.content + c.content + d.content\n"
)
_UNBREAKABLE: Final = 'raise "x" if:\n    (m: Message)\n    match("(?:a?){400}(?:a){400}b", m.content)\n'


@dataclass(frozen=True, slots=True)
class Kind:
    """Clients of a kind all send ``body``, with ``policy`` in its header if there is one."""

    name: str
    clients: int
    body: bytes
    policy: str = ""


@dataclass(slots=True)
class Answers:
    """What clients of a kind got: the ``statuses`` of their answers, and the ``seconds`` that each took."""

    statuses: Counter[int]
    seconds: list[float]

    @property
    def refused(self) -> int:
        return self.statuses.total() - self.statuses[200]


def honest() -> list[Kind]:
    """Forty clients: short chats, chats of 1,200 messages, and images of 800 kB."""
    image = base64.b64encode(bytes(600_000)).decode()
    return [
        Kind("short", 14, _body(["What time does the ferry leave?"])),
        Kind("long", 13, _body([f"message {number} of a long chat" for number in range(1_200)])),
        Kind("large", 13, _body(["What is this?"], {"inlineData": {"mimeType": "image/png", "data": image}})),
    ]


def attackers() -> list[Kind]:
    """Twenty: policies that go on for ever, and searches that nothing interrupts."""
    return [
        Kind("endless", 10, _body([str(number) for number in range(300)]), _ENDLESS),
        Kind("unbreakable", 10, _body(["a" * 800_000]), _UNBREAKABLE),
    ]


def _body(texts: list[str], *parts: Mapping[str, Any]) -> bytes:
    turns: list[list[Mapping[str, Any]]] = [[{"text": text}] for text in texts]
    turns[0].extend(parts)
    contents = [{"role": ("user", "model")[at % 2], "parts": turn} for at, turn in enumerate(turns)]
    return json.dumps({"contents": contents}).encode()


class Crowd:
    """Clients that ask over and over until ``ends``, each with a key of its own."""

    def __init__(self, session: aiohttp.ClientSession, url: str, ends: float) -> None:
        self._session = session
        self._url = url
        self._ends = ends
        self._numbers = count()

    async def ask(self, kinds: list[Kind]) -> dict[str, Answers]:
        """Everyone's answers, by kind."""
        found = {kind.name: Answers(Counter(), []) for kind in kinds}
        await asyncio.gather(
            *(self._client(kind, number, found[kind.name]) for kind in kinds for number in range(kind.clients))
        )
        return found

    async def _client(self, kind: Kind, number: int, answers: Answers) -> None:
        headers = {"x-goog-api-key": f"key-of-{kind.name}-{number}", "content-type": "application/json"}
        while time.perf_counter() < self._ends:
            if kind.policy:
                policy = f"{kind.policy}# {next(self._numbers)}\n"
                headers["Invariant-Guardrails"] = policy.encode("unicode_escape").decode()
            started = time.perf_counter()
            async with self._session.post(self._url, data=kind.body, headers=headers) as answer:
                await answer.read()
                answers.statuses[answer.status] += 1
            answers.seconds.append(time.perf_counter() - started)
            # A client looks at its answer before it asks again; an attacker does not.
            await asyncio.sleep(0 if kind.policy else 1.0)


async def measure(port: int, seconds: float) -> None:
    """Print what the honest get by themselves, and what beside the attackers."""
    url = f"http://127.0.0.1:{port}{_PATH}"
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await Crowd(session, url, time.perf_counter()).ask(honest())
        await Crowd(session, url, time.perf_counter() + 2).ask(honest())
        for title, others in (("by themselves", []), ("beside attackers", attackers())):
            crowd = Crowd(session, url, time.perf_counter() + seconds)
            hostile = asyncio.create_task(crowd.ask(others))
            await asyncio.sleep(seconds / 5 if others else 0)
            _show(title, await crowd.ask(honest()))
            for name, answers in (await hostile).items():
                click.echo(f"    attackers, {name}: {dict(answers.statuses)}")


def _show(title: str, found: Mapping[str, Answers]) -> None:
    click.echo(f"{title}:")
    for name, answers in found.items():
        median = statistics.median(answers.seconds)
        told = f"median {median * 1000:7.1f} ms, slowest {max(answers.seconds) * 1000:7.1f} ms"
        click.echo(f"    {name:6} {answers.statuses.total():5} asked, {answers.refused:4} refused, {told}")


@click.command()
@click.option("--seconds", default=15.0, show_default=True, help="Of each of the two measurements.")
@click.option("--source", type=click.Path(exists=True, path_type=Path), help="The src folder of another checkout.")
def main(seconds: float, source: Path | None) -> None:
    """Forty honest clients, and twenty attackers beside them."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(serving(module("bench.upstream"), folder / "upstream.log"))
        (folder / "policy.gr").write_text(_POLICY)
        (folder / "config.toml").write_text(
            '[server]\nlisten = ["127.0.0.1:0"]\n'
            f'[upstream]\nbase_url = "http://127.0.0.1:{upstream.port}"\n'
            f'[guardrails]\npolicies = ["{folder}/policy.gr"]\n'
            f'[traces]\ndatabase = "sqlite:///{folder}/traces.db"\n'
        )
        command = [sys.executable, "-m", "gemini_proxy", "--config", str(folder / "config.toml"), "serve"]
        proxy = stack.enter_context(serving(command, folder / "proxy.log", source=source))
        asyncio.run(measure(proxy.port, seconds))


if __name__ == "__main__":
    main()
