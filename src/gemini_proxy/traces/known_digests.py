"""Remember refused and allowed texts by keyed digests, to recognize a chat's history without storing it."""

import time
from collections.abc import Collection
from functools import cache
from typing import Final

from sqlalchemy import Connection, Delete, Table, bindparam, delete, select

from gemini_proxy.traces.database import Database, upsert

_MOST_DIGESTS: Final = 100
"""Digests of one exchange that are remembered."""
_KEPT: Final = 90 * 86_400.0
"""Seconds for which a digest is stored, longer than chats last."""
_DELETED: Final = 200
"""Rows past that time that are deleted when others are written: twice as many as come."""


class KnownDigests:
    """The digests in one table of a database. Every method raises StoreError."""

    def __init__(self, database: Database, table: Table) -> None:
        self._database = database
        self._table = table

    async def remember(self, digests: Collection[str]) -> None:
        """Note a bounded number of digests as seen now."""
        now = time.time()
        rows = [{"digest": digest, "at": now} for digest in sorted(digests)[:_MOST_DIGESTS]]

        def work(connection: Connection) -> None:
            connection.execute(upsert(self._table, connection.dialect.name), rows)
            connection.execute(_delete_old(self._table), {"before": now - _KEPT})

        if rows:
            await self._database.write(work)

    async def known(self, digests: Collection[str]) -> frozenset[str]:
        """Return those that were remembered."""
        query = select(self._table.c.digest).where(self._table.c.digest.in_(sorted(digests)))
        return await self._database.read(lambda connection: frozenset(connection.scalars(query)))


# Statements are made once: each new one leaves cycles of objects to the garbage collector.
@cache
def _delete_old(table: Table) -> Delete:
    old = select(table.c.digest).where(table.c.at < bindparam("before")).limit(_DELETED)
    return delete(table).where(table.c.digest.in_(old))
