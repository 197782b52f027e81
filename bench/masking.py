"""``python -m bench.masking``: what a masked exchange costs beside the same one passed, in CPU time.

The prompt has an e-mail address and a card. One gemini-proxy masks them by mask-pii.gr; the other has the same rules
with a line more, so that they look for the same and never fire.
"""

import contextlib
import json
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from bench.load import QUESTION
from bench.peers import load
from bench.processes import ProcessError, ServerProcess, module, serving
from bench.workload import Kind, Workload

_POLICY: Final = Path(__file__).parents[1] / "policies" / "mask-pii.gr"
_CONFIG: Final = """\
[server]
listen = ["127.0.0.1:0"]

[upstream]
base_url = "http://127.0.0.1:{upstream}"

[guardrails]
mask_policies = [{policy}]

[traces]
database = "sqlite:///{folder}/traces.db"
"""
_NEVER: Final = "    False\n"
_SAID: Final = "Write to harbour@castlebay.example and pay with 4111 1111 1111 1111."
_EVENTS: Final = 50
_SETTLE: Final = 0.3
"""Seconds for the work after the last answer, which is part of its CPU time."""


@click.command()
@click.option(
    "--requests", default=3000, show_default=True, help="Unary requests a measurement; a tenth as many streams."
)
@click.option("--times", default=3, show_default=True, help="How often each figure is measured.")
def main(requests: int, times: int) -> None:
    """Print microseconds of CPU for a unary exchange and for an event of a stream, and their ratio."""
    try:
        with tempfile.TemporaryDirectory(prefix="gemini-proxy-bench-") as name:
            _measure(Path(name), requests, times)
    except ProcessError as error:
        raise click.ClickException(str(error)) from None


def _measure(folder: Path, requests: int, times: int) -> None:
    rules = _POLICY.read_text()
    passing = folder / "passing.gr"
    passing.write_text(re.sub(r"(?m)^(    any\(pii.*)$", rf"\1\n{_NEVER.rstrip()}", rules))
    with serving(module("bench.upstream"), folder / "upstream.log") as upstream, contextlib.ExitStack() as stack:
        proxies = [
            stack.enter_context(_proxy(folder / name, upstream.port, policy))
            for name, policy in (("passed", passing), ("masked", _POLICY))
        ]
        loads: tuple[tuple[Kind, int, int], ...] = (("unary", requests, 32), ("stream", requests // 10, 40))
        for kind, total, connections in loads:
            costs: list[list[float]] = [[], []]
            for _ in range(times):
                for found, proxy in zip(costs, proxies, strict=True):
                    found.append(_cost(proxy, kind, total, connections))
            passed, masked = map(statistics.median, costs)
            unit = "exchange" if kind == "unary" else "event"
            click.echo(f"{kind:7} passed {passed:7.1f}  masked {masked:7.1f} us an {unit}  {masked / passed:.2f}x")


@contextlib.contextmanager
def _proxy(folder: Path, upstream: int, policy: Path) -> Iterator[ServerProcess]:
    folder.mkdir()
    config = folder / "config.toml"
    config.write_text(_CONFIG.format(upstream=upstream, policy=json.dumps(str(policy)), folder=folder))
    with serving(module("gemini_proxy", "--config", str(config), "serve"), folder / "proxy.log") as proxy:
        yield proxy


def _cost(proxy: ServerProcess, kind: Kind, total: int, connections: int) -> float:
    """Return microseconds of the proxy's CPU for an exchange or an event. Raises ProcessError where one failed."""
    question = {**QUESTION, "contents": [*QUESTION["contents"][:-1], {"role": "user", "parts": [{"text": _SAID}]}]}
    workload = Workload(
        kind,
        proxy.port,
        connections,
        total,
        events=_EVENTS,
        interval_ms=10,
        timeout=120.0,
        question=json.dumps(question),
    )
    before = proxy.cpu_seconds
    result = load(workload)
    time.sleep(_SETTLE)
    if result.failed:
        raise ProcessError(f"{result.failed} of {total} failed")
    return (proxy.cpu_seconds - before) * 1e6 / (result.done if kind == "unary" else result.events)


if __name__ == "__main__":
    main()
