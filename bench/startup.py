"""What starting the program costs: CPU seconds of commands, and of ``serve`` until it listens.

Median of several runs; the first, which may compile modules, is not counted.

    python -m bench.startup [--runs 5] [--source OTHER_CHECKOUT/src]
"""

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.processes import module, serving

_COMMANDS = (("--version",), ("--help",), ("check-config",), ("healthcheck",))


def main() -> None:
    """Print one line a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="how often each is run (default: 5)")
    parser.add_argument("--source", type=Path, help="import gemini_proxy from this folder")
    options = parser.parse_args()
    for name, seconds in measured(options.runs, options.source):
        print(f"{name:14} {statistics.median(seconds):.2f} s of CPU ({min(seconds):.2f}-{max(seconds):.2f})")


def measured(runs: int, source: Path | None) -> Iterator[tuple[str, list[float]]]:
    """Each command with the CPU seconds of its ``runs`` runs."""
    with tempfile.TemporaryDirectory(prefix="gemini-proxy-startup-") as name:
        folder = Path(name)
        config = folder / "config.toml"
        database = f'[traces]\ndatabase = "sqlite:///{folder}/traces.db"\n'
        config.write_text(f'[server]\nlisten = ["127.0.0.1:0"]\n{database}')
        # The first makes the database, which check-config reads.
        yield "serve", _repeated(runs, partial(_serve, config, folder, source))
        for words in _COMMANDS:
            argv = module("gemini_proxy", "--config", str(config), *words)
            yield " ".join(words), _repeated(runs, partial(_run, argv, source))


def _repeated(runs: int, once: Callable[[], float]) -> list[float]:
    once()
    return [once() for _ in range(runs)]


def _serve(config: Path, folder: Path, source: Path | None) -> float:
    argv = module("gemini_proxy", "--config", str(config), "serve")
    with serving(argv, folder / "serve.log", source=source) as server:
        return server.cpu_seconds


def _run(argv: list[str], source: Path | None) -> float:
    """CPU seconds of a command, whatever its exit code."""
    before = _children()
    added = {} if source is None else {"PYTHONPATH": str(source)}
    subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **added})
    return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
