"""``python -m bench``: measures gemini-proxy beside a bare pass-through, and prints one table."""

import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import click

from bench.peers import Setting, staged
from bench.processes import ProcessError, allow_many_sockets
from bench.report import Measured, as_json, table
from bench.scenarios import FULL, QUICK, SCENARIOS, Scale, Scenario, joined, measure


@click.command()
@click.option("--quick", is_flag=True, help="One short repeat of each: does it run, not what is it.")
@click.option(
    "--only",
    "names",
    multiple=True,
    type=click.Choice([scenario.name for scenario in SCENARIOS]),
    help="Only this scenario; may be repeated.",
)
@click.option(
    "--stream-check",
    type=click.Choice(["final", "window", "hold"]),
    default="final",
    show_default=True,
    help="How gemini-proxy checks streams; window runs with ten rules.",
)
@click.option("--watched", is_flag=True, help="Also a gemini-proxy with its rules in a dataset and ten watchers.")
@click.option(
    "--before",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Also the gemini-proxy of the checkout in this folder.",
)
@click.option(
    "--litellm",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Also LiteLLM's proxy with a guard that looks for a pattern, from the virtual environment in this folder.",
)
@click.option(
    "--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Also write every value measured."
)
def main(
    quick: bool,
    names: Sequence[str],
    stream_check: str,
    watched: bool,
    before: Path | None,
    litellm: Path | None,
    file: Path | None,
) -> None:
    """Measure direct calls, a bare aiohttp pass-through and gemini-proxy in turn, all on this machine.

    gemini-proxy runs with a two-rule policy (ten rules with windows) and traces on. Exit code 1 if a request or a
    stream failed, or a watcher was not told of every exchange once.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    allow_many_sockets()
    machine = _machine()
    chosen = [scenario for scenario in SCENARIOS if not names or scenario.name in names]
    try:
        measured = run(chosen, QUICK if quick else FULL, Setting(stream_check, watched, before, litellm))
    except ProcessError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{machine}; median (smallest..largest)\n\n{table(measured)}")
    if file:
        file.write_text(json.dumps({"machine": machine, "scenarios": as_json(measured)}, indent=2) + "\n")
    sys.exit(1 if any(one.failures for one in measured) else 0)


def run(scenarios: Sequence[Scenario], scale: Scale, setting: Setting) -> list[Measured]:
    """Measure ``scenarios``, one after the other. Raises ProcessError where a process does not start."""
    measured = [Measured(joined(scenario, setting.extra)) for scenario in scenarios]
    with (
        tempfile.TemporaryDirectory(prefix="gemini-proxy-bench-") as folder,
        staged(Path(folder), setting) as stage,
    ):
        for one in measured:
            for peer, values in measure(one.scenario, stage, scale):
                one.runs[peer].append(values)
                click.echo(f"{one.scenario.name}: {peer}", err=True)
    return measured


def _machine() -> str:
    """What the figures hold for, and whether anything else was running: then they are too high."""
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}, "
        f"aiohttp {version('aiohttp')}, load average before the run {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
