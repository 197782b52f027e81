"""Texts that were refused, by keyed digests: what lets a chat go on whose history holds one."""

import time
from collections.abc import Collection
from functools import cache
from typing import Final

from sqlalchemy import Connection, Insert, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.schema import refused_texts

_MOST_TEXTS: Final = 100
"""Texts of one exchange that are remembered."""
_KEPT: Final = 90 * 86_400.0
"""Seconds for which a text is remembered, longer than chats go on."""
_DELETED: Final = 200
"""Rows past that time that are deleted when others are written: twice as many as come."""


class RefusedTexts:
    """The digests in a database. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remember(self, digests: Collection[str]) -> None:
        """Note a bounded number of texts as refused now."""
        now = time.time()
        rows = [{"digest": digest, "at": now} for digest in sorted(digests)[:_MOST_TEXTS]]

        def work(connection: Connection) -> None:
            connection.execute(_upsert(connection.dialect.name), rows)
            connection.execute(_DELETE_OLD, {"before": now - _KEPT})

        if rows:
            await self._database.write(work)

    async def known(self, digests: Collection[str]) -> frozenset[str]:
        """Return those that are of texts which were refused."""
        query = select(refused_texts.c.digest).where(refused_texts.c.digest.in_(sorted(digests)))
        return await self._database.read(lambda connection: frozenset(connection.scalars(query)))


# Statements are made once: each that is made leaves cycles of objects to the garbage collector.
_DELETE_OLD: Final = delete(refused_texts).where(
    refused_texts.c.digest.in_(
        select(refused_texts.c.digest).where(refused_texts.c.at < bindparam("before")).limit(_DELETED)
    )
)


@cache
def _upsert(dialect: str) -> Insert:
    insert = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(refused_texts)
    return insert.on_conflict_do_update(index_elements=["digest"], set_={"at": insert.excluded.at})
