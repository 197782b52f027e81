"""Traces to write, and the ways to look at a database from beside the store."""

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

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


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def query(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock of a database, as a backup that never ends would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
