"""``python -m bench.policies``: the policy engine beside the stock one, in one run, as one table.

All times are of the CPU, not of the clock: what else the machine does is no matter of an engine's.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import click
from tests.differential.oracle import Messages, Oracle, OracleError, running_oracle

from bench.policy_rules import RULES, TEN_REGEX_RULES, TEN_WINDOW_RULES, conversation, prose
from gemini_proxy.policy import Budget, Conversation, OpenTurn, Place, Policy, Session, compile_policy

_ROOT: Final = Path(__file__).parents[1]
_SHARED: Final = _ROOT.parent / "shared" / "policies" / "examples.json"
_UNBOUNDED: Final = Budget(steps=10**12)
_COUNTS: Final = (2, 20, 200, 2000)
_SIZES: Final = (("1 kB", 1_000), ("100 kB", 100_000), ("1 MB", 1_000_000))
_WINDOW: Final = 1_000
_OVERLAP: Final = 256
_WINDOWS: Final = 50
_LOADS: Final = 20
_LEAST_GAIN: Final = {200: 20.0, 2000: 70.0}


@dataclass(frozen=True, slots=True)
class Row:
    """Medians in seconds; ``stock`` is None where the stock engine has nothing to compare with, or failed.

    ``gain`` is the goal for stock / ours, ``most`` for ours, in seconds.
    """

    group: str
    name: str
    ours: float
    stock: float | None
    gain: float | None = 1.0
    most: float | None = None

    @property
    def ratio(self) -> float | None:
        return None if self.stock is None else self.stock / self.ours

    @property
    def reached(self) -> bool:
        fast = self.gain is None or self.ratio is None or self.ratio >= self.gain
        return fast and (self.most is None or self.ours <= self.most)


@click.command()
@click.option("--seconds", default=0.5, show_default=True, help="How long each figure of each engine is measured.")
@click.option("--most", default=2000, show_default=True, help="The longest conversation.")
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False), help="Also write every median.")
def main(seconds: float, most: int, file: Path | None) -> None:
    """Measure both engines in turn, each row on the same policy and messages. Exit code 1 if a goal is missed."""
    rows: list[Row] = []
    try:
        with running_oracle() as oracle:
            for row in measure(oracle, seconds, most):
                click.echo(f"{row.group}: {row.name}", err=True)
                rows.append(row)
    except OracleError as error:
        raise click.ClickException(str(error)) from None
    click.echo(table(rows))
    if file:
        file.write_text(json.dumps([[row.group, row.name, row.ours, row.stock] for row in rows], indent=1) + "\n")
    sys.exit(0 if all(row.reached for row in rows) else 1)


def measure(oracle: Oracle, seconds: float, most: int) -> Iterator[Row]:
    """Every row, as it is measured."""
    yield from _loads(oracle)
    for name, text in RULES.items():
        oracle.load(name, text)
        for count in (count for count in _COUNTS if count <= most):
            gain = _LEAST_GAIN.get(count, 1.0)
            yield _check(oracle, f"check: {name}", f"{count} messages", name, text, conversation(count), seconds, gain)
    for name, text in {**RULES, "10 regex rules": TEN_REGEX_RULES}.items():
        oracle.load(name, text)
        for label, size in _SIZES:
            yield _check(oracle, f"text: {name}", f"2 messages, {label}", name, text, _long(size), seconds, 1.0)
    yield from _streams(oracle, seconds)


def _loads(oracle: Oracle) -> Iterator[Row]:
    for name, text in policies().items():
        stock = oracle.load(name, text)
        stock = statistics.median([stock, oracle.load(name, text)])
        ours = statistics.median(_timed(partial(compile_policy, text), _LOADS))
        yield Row("load", name, ours, stock, 100.0)


def policies() -> Mapping[str, str]:
    """The verified policies where they are beside the repository, else those of its library."""
    if _SHARED.exists():
        return {f"{each['id']} {each['title'][:40]}": each["policy"] for each in json.loads(_SHARED.read_text())}
    return {path.stem: path.read_text() for path in sorted((_ROOT / "policies").glob("*.gr"))}


def _check(
    oracle: Oracle, group: str, label: str, name: str, text: str, messages: Messages, seconds: float, gain: float
) -> Row:
    """A whole check from the messages on; nothing is kept from one to the next."""
    policy = compile_policy(text)
    if policy.check(Conversation.of(messages), budget=_UNBOUNDED):
        raise OracleError(f"{name} must not fire")
    ours = _for(partial(_whole, policy, messages), seconds)
    return Row(group, label, ours, statistics.median(oracle.time(name, messages, {}, seconds)), gain)


def _streams(oracle: Oracle, seconds: float) -> Iterator[Row]:
    """A kilobyte more, judged by ten rules: ours by a session, the stock engine's by a check of all there is."""
    policy = compile_policy(TEN_WINDOW_RULES)
    oracle.load("window", TEN_WINDOW_RULES)
    for kilobytes in (0, 100, 1000):
        messages: Messages = [*conversation(20), {"role": "assistant", "content": prose((kilobytes + 1) * _WINDOW)}]
        stock = statistics.median(oracle.time("window", messages, {}, seconds))
        before = f"a window of 1 kB after {kilobytes} kB"
        yield Row("stream: 10 rules", before, _window(*_session(policy, kilobytes)), stock, 1.0, 0.0001)
        whole = _for(partial(_whole, policy, messages), seconds)
        yield Row("stream: 10 rules", f"{before}, checked whole", whole, stock)


def _session(policy: Policy, kilobytes: int) -> tuple[Session, OpenTurn]:
    session = Session([policy], {}, _OVERLAP, filtered=True)
    turn = session.turn()
    session.begin(turn, Place(20))
    for at in range(kilobytes):
        session.check(turn, prose(_WINDOW, at), _UNBOUNDED)
    return session, turn


def _window(session: Session, turn: OpenTurn) -> float:
    """The median second of a window, over the windows that come next."""
    samples = []
    for at in range(_WINDOWS):
        piece = prose(_WINDOW, at)
        started = time.thread_time()
        session.check(turn, piece, _UNBOUNDED)
        samples.append(time.thread_time() - started)
        if not session.clear:
            raise OracleError("the stream must stay clear")
    return statistics.median(samples)


def _whole(policy: Policy, messages: Messages) -> object:
    return policy.check(Conversation.of(messages), budget=_UNBOUNDED)


def _long(size: int) -> Messages:
    return [{"role": "user", "content": prose(size)}, {"role": "assistant", "content": "done"}]


def _timed(action: Callable[[], object], times: int) -> list[float]:
    samples = []
    for _ in range(times):
        started = time.thread_time()
        action()
        samples.append(time.thread_time() - started)
    return samples


def _for(action: Callable[[], object], seconds: float) -> float:
    """The median second of ``action``, over as many runs as begin within ``seconds``; a first one goes unmeasured."""
    action()
    samples: list[float] = []
    begun = time.perf_counter()
    while not samples or (time.perf_counter() - begun < seconds and len(samples) < 2000):
        samples.extend(_timed(action, 1))
    return statistics.median(samples)


def table(rows: Sequence[Row]) -> str:
    """One Markdown table, in milliseconds of CPU."""
    lines = [("", "", "stock, ms", "ours, ms", "ratio", "goal")]
    lines.extend(
        (row.group, row.name, _milliseconds(row.stock), _milliseconds(row.ours), _ratio(row), _goal(row))
        for row in rows
    )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    shown = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join((shown[0], rule, *shown[1:]))


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.4g}"


def _ratio(row: Row) -> str:
    return "" if row.ratio is None else f"{row.ratio:.3g}"


def _goal(row: Row) -> str:
    goals = [f"{row.gain:g}x"] if row.gain is not None else []
    if row.most is not None:
        goals.append(f"{row.most * 1000:g} ms at most")
    return f"{', '.join(goals)}: {'met' if row.reached else 'missed'}"


if __name__ == "__main__":
    main()
