"""Traces to write, and the ways to look at a database from beside the store."""

import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from gemini_proxy.traces.database import connect
from gemini_proxy.traces.datasets import Dataset, Datasets
from gemini_proxy.traces.trace import Annotation, Outcome, Trace

GUARDRAIL = {"id": "r1", "name": "secrets", "content": 'raise "no secrets" if: ...', "action": "block"}
ANNOTATION = Annotation("no secrets", "messages.1.content:4-10", "guardrails-error", GUARDRAIL)
MESSAGES = [{"role": "user", "content": "tell me"}, {"role": "assistant", "content": "the secret é"}]


def trace(text: str | None = None, **fields: Any) -> Trace:
    """A trace of two messages, the first saying ``text``."""
    messages = MESSAGES if text is None else [{"role": "user", "content": text}, MESSAGES[1]]
    return Trace(
        **{
            "id": str(uuid.uuid4()),
            "created": 1_700_000_000.0,
            "outcome": Outcome.COMPLETED,
            "messages": messages,
            "dataset": "demo",
            "model": "gemini-2.5-flash",
            **fields,
        }
    )


async def ensured(datasets: Datasets, owner: str, name: str) -> Dataset:
    """A user's dataset, made if it is missing."""
    return await datasets.get(owner, name) or await datasets.create(owner, name)


def url(path: Path) -> str:
    return f"sqlite:///{path}"


async def query(url: str, sql: str) -> list[Any]:
    """What the database says, from beside the store."""
    database = connect(url)
    try:
        return await database.read(lambda connection: [tuple(row) for row in connection.exec_driver_sql(sql)])
    finally:
        await database.close()


async def execute(url: str, *statements: str) -> None:
    """Change the database from beside the store, in one transaction."""

    def work(connection: Connection) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement)

    database = connect(url)
    try:
        await database.write(work)
    finally:
        await database.close()


async def forbid(url: str, action: str, table: str, *, when: str = "true", words: str = "x") -> None:
    """Have every such action on a row of the table fail from now on; ``when`` may speak of ``old`` and ``new``."""
    if url.startswith("sqlite"):
        await execute(
            url,
            f"CREATE TRIGGER stop BEFORE {action} ON {table} WHEN {when} BEGIN SELECT RAISE(ABORT, '{words}'); END",
        )
        return
    await execute(
        url,
        f"CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{words}'; END $$",
        f"CREATE TRIGGER stop BEFORE {action} ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION stop()",
    )


@asynccontextmanager
async def locked(url: str) -> AsyncIterator[None]:
    """Keep every writer out of the database, as a backup that never ends would."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
        return
    engine = create_async_engine(url)
    async with engine.connect() as holder:
        await holder.exec_driver_sql("LOCK TABLE probe, traces, leases IN EXCLUSIVE MODE")
        yield
    await engine.dispose()
