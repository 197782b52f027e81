"""``python -m tests.differential``: the large comparison, and what differs, grouped by reason."""

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import click

from tests.differential.compare import UNEXPLAINED, Differing, Report, chosen, compare_portion
from tests.differential.oracle import OracleError

_PORTION = 1250


@click.command()
@click.option("--conversations", default=5000, show_default=True)
@click.option("--seed", default=1, show_default=True, help="Of the first conversation; the next ones follow.")
@click.option("--policy", "names", multiple=True, help="Only policies with this in their name.")
@click.option("--processes", default=2, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write what differs.")
def main(conversations: int, seed: int, names: tuple[str, ...], processes: int, file: Path | None) -> None:
    """Compare with the stock engine. Exit code 1 if a difference has no documented reason."""
    started = time.perf_counter()
    portions = [(at, min(_PORTION, seed + conversations - at)) for at in range(seed, seed + conversations, _PORTION)]
    report, done = Report(), 0
    try:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            jobs = {pool.submit(compare_portion, names, *each): each[1] for each in portions}
            for job in as_completed(jobs):
                report.merge(job.result())
                done += jobs[job]
                click.echo(f"{done}/{conversations}, {len(report.unexplained)} unexplained", err=True)
    except OracleError as error:
        raise click.ClickException(str(error)) from None
    policies = len(chosen(names))
    click.echo(f"{conversations} conversations, {policies} policies, {time.perf_counter() - started:.0f} s")
    show(report)
    if file:
        file.write_text(json.dumps([_plain(found) for found in report.kept], indent=1, ensure_ascii=False) + "\n")
    sys.exit(1 if report.unexplained else 0)


def show(report: Report) -> None:
    """Print what agrees, what differs by reason, and each policy that differs without one."""
    differing = sum(report.why.values())
    agreed = ", ".join(f"{count} {word}" for word, count in sorted(report.agreed.items()))
    click.echo(f"not loaded by the stock engine as written: {', '.join(sorted(report.refused_there)) or 'none'}")
    click.echo(f"{report.checks} checks: {report.checks - differing} agree ({agreed}), {differing} differ\n")
    for why, count in report.why.most_common():
        click.echo(f"{count:7}  {why}")
    for (why, name, ours, stock), count in report.kinds.most_common():
        if why == UNEXPLAINED:
            click.echo(f"{UNEXPLAINED} {count}: {name}: ours {ours}, stock {stock}")


def _plain(found: Differing) -> dict[str, object]:
    return {
        "why": found.why, "policy": found.case.name, "seed": found.number, "ours": str(found.ours),
        "stock": str(found.stock), "messages": found.messages,
    }  # fmt: skip


if __name__ == "__main__":
    main()
