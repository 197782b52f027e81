"""``python -m bench.detectors``: false alarms of ``secrets`` in the standard library's sources, and what a look costs.

Every false alarm is printed. The sources are those of the running Python, without its tests and IDLE.
"""

import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from gemini_proxy.policy import Budget
from gemini_proxy.policy.detectors import Finding
from gemini_proxy.policy.detectors.secrets import SecretsDetector
from gemini_proxy.policy.run.budget import Meter

_LEFT_OUT: Final = frozenset(("test", "tests", "idlelib", "site-packages"))
_SHOWN: Final = 80
_TIMES: Final = 3
_ENDLESS: Final = 10**12


def sources() -> Iterator[tuple[str, str]]:
    """Each file's path within the library, and its text."""
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if not _LEFT_OUT & set(path.parts):
            yield str(path), file.read_text(encoding="utf-8", errors="replace")


def find(text: str) -> tuple[list[Finding], float]:
    """What is found, and the seconds of processor time that it took, the best of three times."""
    found: list[Finding] = []
    seconds = []
    for _ in range(_TIMES):
        meter = Meter(Budget(steps=_ENDLESS))
        started = time.process_time()
        found = list(SecretsDetector().detect([text], {}, meter))
        seconds.append(time.process_time() - started)
    return found, min(seconds)


@click.command()
def main() -> None:
    """Print the table."""
    size, spent, alarms = 0, 0.0, 0
    for path, text in sources():
        found, seconds = find(text)
        size, spent, alarms = size + len(text), spent + seconds, alarms + len(found)
        for one in found:
            click.echo(f"{path}: {one.label}: {text[one.start : one.end][:_SHOWN]!r}")
    click.echo(
        f"secrets: {len(SecretsDetector().labels)} labels; {size / 1e6:.1f} MB of sources: {alarms} false alarms"
    )
    click.echo(f"{spent / size * 1e9:.1f} microseconds of processor time a kB")


if __name__ == "__main__":
    main()
