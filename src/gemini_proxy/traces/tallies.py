"""The figures of datasets in the database: a row for a dataset, a width and a time, added up as the digest goes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, delete, insert, select, update

from gemini_proxy.traces.figures import Figures, as_json, from_json, with_fewer_names
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import usage

# Seconds. Each exchange is counted once in each width, lest a month be read in steps of five minutes.
WIDTHS: Final = (300, 3_600, 21_600)
# How long they are kept: two months of five minutes are as many rows as twelve years of six hours.
_KEPT: Final = {300: 62 * 86_400, 3_600: 400 * 86_400}
# Of rules and of models in one row: clients choose them.
MAX_NAMES: Final = 100


@dataclass(frozen=True, slots=True)
class Counted:
    """The figures of one trace, and where they belong."""

    dataset: int
    position: int
    created: float
    figures: Figures


@dataclass(frozen=True, slots=True)
class _Tally:
    first: int
    last: int
    figures: Figures

    def __add__(self, other: "_Tally") -> "_Tally":
        return _Tally(min(self.first, other.first), max(self.last, other.last), self.figures + other.figures)


_Key = tuple[int, int, int]


def add_figures(connection: Connection, counted: Sequence[Counted]) -> None:
    """Add traces to the figures of their datasets, in every width."""
    for (dataset, seconds, start), tally in _added_up(counted).items():
        place = (usage.c.dataset == dataset, usage.c.seconds == seconds, usage.c.start == start)
        row = connection.execute(select(usage.c.first, usage.c.last, usage.c.figures).where(*place)).first()
        if row is not None:
            tally += _Tally(row[0], row[1], from_json(load(row[2])))
        values = {
            "first": tally.first,
            "last": tally.last,
            "figures": dump(as_json(with_fewer_names(tally.figures, MAX_NAMES))),
        }
        if row is None:
            connection.execute(insert(usage).values(dataset=dataset, seconds=seconds, start=start, **values))
        else:
            connection.execute(update(usage).where(*place).values(**values))


def delete_old(connection: Connection, now: float) -> None:
    """Remove the finer figures after their time; the widest stay."""
    for seconds, kept in _KEPT.items():
        connection.execute(delete(usage).where(usage.c.seconds == seconds, usage.c.start < now - kept))


def _added_up(counted: Iterable[Counted]) -> dict[_Key, _Tally]:
    tallies: dict[_Key, _Tally] = {}
    for one in counted:
        tally = _Tally(one.position, one.position, one.figures)
        for seconds in WIDTHS:
            key = (one.dataset, seconds, int(one.created // seconds) * seconds)
            tallies[key] = tallies[key] + tally if key in tallies else tally
    return tallies
