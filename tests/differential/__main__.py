"""``python -m tests.differential``: the large comparison, and what differs, grouped by reason."""

import json
import sys
import time
from pathlib import Path

import click

from tests.differential.compare import UNEXPLAINED, Comparison, Differing, Report
from tests.differential.oracle import OracleError, running_oracle
from tests.differential.policies import CASES


@click.command()
@click.option("--conversations", default=5000, show_default=True)
@click.option("--seed", default=1, show_default=True, help="Of the first conversation; the next ones follow.")
@click.option("--policy", "names", multiple=True, help="Only policies with this in their name.")
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write what differs.")
def main(conversations: int, seed: int, names: tuple[str, ...], file: Path | None) -> None:
    """Compare with the stock engine. Exit code 1 if a difference has no documented reason."""
    cases = [case for case in CASES if not names or any(name in case.name for name in names)]
    started = time.perf_counter()
    try:
        with running_oracle() as oracle:
            comparison = Comparison(oracle, cases)
            report = comparison.run(seed, conversations, _progress(conversations))
    except OracleError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"\r{conversations} conversations, {len(cases)} policies, {time.perf_counter() - started:.0f} s")
    click.echo(f"not loaded by the stock engine: {', '.join(comparison.refused_there) or 'none'}")
    _show(report)
    if file:
        file.write_text(json.dumps([_plain(found) for found in report.kept], indent=1, ensure_ascii=False) + "\n")
    sys.exit(1 if report.unexplained else 0)


def _progress(conversations: int):  # noqa
    def show(done: int) -> None:
        if done % 100 == 0:
            click.echo(f"\r{done}/{conversations}", nl=False, err=True)

    return show


def _show(report: Report) -> None:
    differing = sum(report.why.values())
    agreed = ", ".join(f"{count} {word}" for word, count in sorted(report.agreed.items()))
    click.echo(f"{report.checks} checks: {report.checks - differing} agree ({agreed}), {differing} differ\n")
    for why, count in report.why.most_common():
        click.echo(f"{count:7}  {why}")
    click.echo("")
    for (why, name, ours, stock), count in report.kinds.most_common():
        if why == UNEXPLAINED:
            click.echo(f"UNEXPLAINED {count}: {name}: ours {ours}, stock {stock}")


def _plain(found: Differing) -> dict[str, object]:
    return {
        "why": found.why, "policy": found.case.name, "seed": found.number, "ours": str(found.ours),
        "stock": str(found.stock), "messages": found.messages,
    }  # fmt: skip


if __name__ == "__main__":
    main()
