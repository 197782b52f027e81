"""Every case for a client, one after the other, and the results as a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.clients.matrix.cases import CASES, Case, Cell, Outcome, Turn
from tests.clients.matrix.clients import Client
from tests.clients.matrix.driven import Driven, DriverFailed
from tests.clients.matrix.setting import Setting

_NOT_OFFERED: Final = "–"


@dataclass(frozen=True, slots=True)
class Row:
    """What one client showed, by column. ``notes`` say more of what did not hold; ``missing`` why there is nothing."""

    client: Client
    version: str
    cells: Mapping[str, Cell] = field(default_factory=dict)
    notes: Sequence[str] = ()
    failed: Sequence[str] = ()
    missing: str = ""


async def row(client: Client, version: str, setting: Setting, log: Path) -> Row:
    """Run all cases that the client has an operation for."""
    cells: dict[str, Cell] = {}
    notes: list[str] = []
    failed: list[str] = []
    async with Driven(client, log) as driven:
        for case in CASES:
            if case.do not in client.operations:
                continue
            cell, shown = await _cell(case, driven, setting)
            cells[case.column] = cell
            if cell.holds:
                continue
            known = cell.hidden and case.column in client.hides
            if case.must and not known:
                failed.append(case.column)
            if case.must:
                notes.append(f"{client.name}, {case.column}{' (known)' if known else ''}: {shown}")
    return Row(client, version, cells, notes, failed)


async def _cell(case: Case, driven: Driven, setting: Setting) -> tuple[Cell, str]:
    """What the table says, and what was to be seen."""
    sent, reached = setting.sent(case.before), setting.reached
    try:
        task = {"base_url": setting.url(case.before), "do": case.do, "prompts": case.prompts}
        turns = [Turn.of(found) for found in await driven.do(task)]
    except DriverFailed as error:
        return Cell("**no**", False), str(error)
    outcome = Outcome(turns, setting.sent(case.before) - sent, setting.reached - reached)
    cell = case.judge(outcome)
    counts = f"{outcome.sent} sent, {outcome.reached} reached the model"
    return cell, f"{'; '.join(turn.shown for turn in turns)} ({counts}; ran {list(outcome.last.ran)})"[:600]


def table(rows: Sequence[Row]) -> str:
    """One line for each client; a column has the cases of a kind, divided by slashes in the order of its heading."""
    kinds = _kinds()
    headings = ["client", *(f"{kind}: {' / '.join(ways)}" for kind, ways in kinds.items())]
    lines = [headings, ["---"] * len(headings), *(_line(row, kinds) for row in rows)]
    notes = [f"- {note}" for row in rows for note in row.notes]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *(["", *notes] if notes else [])])


def _kinds() -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for case in CASES:
        kind, _, way = case.column.partition(": ")
        kinds.setdefault(kind, []).append(way)
    return kinds


def _line(row: Row, kinds: Mapping[str, Sequence[str]]) -> Iterator[str]:
    yield f"{row.client.name} {row.version}"
    for kind, ways in kinds.items():
        if row.missing:
            yield f"not installed: {row.missing}" if kind == next(iter(kinds)) else ""
            continue
        yield " / ".join(_word(row, f"{kind}: {way}") for way in ways)


def _word(row: Row, column: str) -> str:
    cell = row.cells.get(column)
    return _NOT_OFFERED if cell is None else cell.word
