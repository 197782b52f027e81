"""Store the clients' use of limits that all processes on a database share, and the leases on the rest.

A row is of one limit, one client and one minute or day. It names the client by a digest, never by a key or an address.
"""

import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, bindparam, delete, func, select, update

from gemini_proxy.traces.database import Database, insert_into
from gemini_proxy.traces.schema import budgets

MOST_ASKS: Final = 500
"""Budgets that one transaction asks for."""
SMALLEST: Final = 200
"""A lease is at least this part of a limit, unless less is left, so a few dozen leases use up a budget."""
_PROCESS: Final = "process"
"""The kind of the rows by which processes know of each other."""
_DELETED: Final = 5_000
"""Rows that one transaction deletes."""
_GRACE: Final = 120
"""Seconds for which a row outlives its time: clocks of machines differ."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One process's request on a client's budget ``kind`` that runs until ``ends`` (Unix seconds).

    ``settle`` is added to the use, whatever is left: use without a lease, or, if negative, a lease given back. Then a
    lease is taken from the rest of ``limit``; 0 means no lease.
    """

    kind: str
    client: str
    ends: int
    settle: float
    limit: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """``granted`` is the lease, 0 where nothing is left; ``taken`` is what all processes have of the budget with it."""

    granted: float
    taken: float


def fair(limit: float, taken: float, processes: int) -> float:
    """Return the lease that one of ``processes`` gets: much of what is left while much is, little at the end."""
    left = limit - taken
    return max(0.0, min(left, max(1.0, math.ceil(limit / SMALLEST), math.ceil(left / (2 * processes)))))


def answer(ask: Ask, taken: float, processes: int) -> Answer:
    """Answer what is asked of a budget of which ``taken`` is used or leased."""
    settled = max(0.0, taken + ask.settle)
    granted = fair(ask.limit, settled, processes)
    return Answer(granted, settled + granted)


class SharedBudgets:
    """The budgets in a database. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def settle(self, asks: Sequence[Ask], process: str, until: int, now: float) -> tuple[int, list[Answer]]:
        """Answer ``asks``, at most MOST_ASKS of different budgets, in one transaction.

        ``process`` counts among those that share the limits until ``until``; the first value is the number of these.
        """
        return await self._database.write(lambda connection: _settle(connection, asks, process, until, now))

    async def forget(self, now: float) -> None:
        """Delete a bounded number of rows whose time is over."""
        old = select(budgets.c.client, budgets.c.kind, budgets.c.ends).where(budgets.c.ends < now - _GRACE)

        def work(connection: Connection) -> None:
            rows = [_named(row.client, row.kind, row.ends) for row in connection.execute(old.limit(_DELETED))]
            if rows:
                connection.execute(delete(budgets).where(*_IS_NAMED), rows)

        await self._database.write(work)


_IS_NAMED: Final = tuple(budgets.c[name] == bindparam(f"of_{name}") for name in ("client", "kind", "ends"))


def _named(client: str, kind: str, ends: int) -> dict[str, object]:
    return {"of_client": client, "of_kind": kind, "of_ends": ends}


def _settle(
    connection: Connection, asks: Sequence[Ask], process: str, until: int, now: float
) -> tuple[int, list[Answer]]:
    keys = [(client_digest(ask.client), ask.kind, ask.ends) for ask in asks]
    # Every transaction takes its rows in the same order, so that no two wait for each other.
    rows = sorted({*keys, (process, _PROCESS, until)})
    new = [{"client": client, "kind": kind, "ends": ends, "taken": 0.0} for client, kind, ends in rows]
    connection.execute(insert_into(budgets, connection.dialect.name).on_conflict_do_nothing(), new)
    count = select(func.count(budgets.c.client.distinct())).where(budgets.c.kind == _PROCESS, budgets.c.ends > now)
    processes = max(1, connection.execute(count).scalar_one())
    if not asks:
        return processes, []
    held = (
        select(budgets)
        .where(budgets.c.client.in_({key[0] for key in keys}), budgets.c.ends.in_({key[2] for key in keys}))
        .order_by(budgets.c.client, budgets.c.kind, budgets.c.ends)
        .with_for_update()
    )
    taken = {(row.client, row.kind, row.ends): row.taken for row in connection.execute(held)}
    answers = [answer(ask, taken[key], processes) for ask, key in zip(asks, keys, strict=True)]
    changed = [{**_named(*key), "now_taken": given.taken} for key, given in zip(keys, answers, strict=True)]
    connection.execute(update(budgets).where(*_IS_NAMED).values(taken=bindparam("now_taken")), changed)
    return processes, answers


def client_digest(client: str) -> str:
    """Return the name of a client in the database: the same on every machine, and neither a key nor an address."""
    return hmac.digest(b"gemini-proxy budgets", client.encode(errors="surrogatepass"), "sha256").hex()
