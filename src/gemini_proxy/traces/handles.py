"""Remember objects that Gemini keeps under a name (a cache, a file, a live session): their owners and contents.

A request that names such a handle brings its content into the model's context. That content is in the trace of the
exchange that made the object: ``Handles.recall`` reads it from there, without secrets and with masked values hidden, as
Gemini got it. If the trace is gone, the content of the handle is unread again.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, bindparam, delete, func, select, tuple_, update

from gemini_proxy.traces.database import Database, upsert
from gemini_proxy.traces.queries import whole_traces
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import datasets, handles, traces

MAX_NAME: Final = 512
"""Characters of a handle's name, several times what Google's are long. A longer one is not remembered."""
MOST_AT_ONCE: Final = 1_000
"""Names that are looked up at once: the longest page of a listing."""
MAX_RECALLED: Final = 33_554_432
"""Bytes of messages that one request may bring back by its handles, which are held in memory while it is checked."""
_DELETED: Final = 1_000
"""Rows past their time that are deleted in one transaction."""
_GRACE: Final = 86_400.0
"""Seconds for which a handle stays after its time: clocks differ, and Google may keep it for longer than it said."""


class Kind(StrEnum):
    """The kind of a named object; objects of two kinds may have the same name."""

    CACHE = "cache"
    FILE = "file"
    INTERACTION = "interaction"
    BATCH = "batch"
    OPERATION = "operation"
    SESSION = "session"


@dataclass(frozen=True, slots=True)
class Holder:
    """The owner of a handle: the user ``owner`` who made it, with the Gemini key whose digest is ``account``.

    ``account`` is "" for the operator's key, which several users share. Names are unique per account: two projects at
    Google may have the same name.
    """

    account: str
    owner: str


@dataclass(frozen=True, slots=True)
class Handle:
    """A name and its object. Times are Unix seconds.

    ``trace`` is the id of the trace with its messages, "" if there is none. ``guardrails`` is the digest of the
    guardrails that it passed, "" if it passed none; ``unchecked`` says why no rule could read it, "" if rules could.
    ``refused`` says that it holds refused content, so that nobody may use it. ``digest`` is the SHA-256 of the bytes,
    "" if they were not here. ``details`` is a small JSON object for the code of its kind.
    """

    kind: Kind
    name: str
    holder: Holder
    expires: float
    dataset: str | None = None
    trace: str = ""
    guardrails: str = ""
    unchecked: str = ""
    refused: bool = False
    digest: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    created: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Recalled:
    """The messages of a handle, and their parts that no rule could read: addresses and reasons.

    ``conversation`` is that of the exchange that made it, "" if it is not known.
    """

    messages: tuple[dict[str, Any], ...]
    unread: tuple[tuple[str, str], ...]
    conversation: str = ""


class ForeignHandle(Exception):
    """Say that a handle is another user's. The caller is told that there is none."""


class Handles:
    """The handles in a database. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def remember(self, handle: Handle) -> None:
        """Keep a handle in the place of one of the same name, which Google has given away again."""
        if len(handle.name) <= MAX_NAME:
            row = _row(handle)
            await self._database.write(
                lambda connection: connection.execute(upsert(handles, connection.dialect.name), row)
            )

    async def find(self, holder: Holder, kind: Kind, name: str) -> Handle | None:
        """Return the holder's handle of that name, None for a name that is not known. Raises ForeignHandle."""
        return (await self.find_all(holder, [(kind, name)])).get((kind, name))

    async def find_all(self, holder: Holder, names: Collection[tuple[Kind, str]]) -> Mapping[tuple[Kind, str], Handle]:
        """Return those that are known of at most MOST_AT_ONCE names. Raises ForeignHandle if one is another user's."""
        found = await self._find(holder.account, names)
        if any(handle.holder != holder for handle in found.values()):
            raise ForeignHandle
        return found

    async def whose(self, holder: Holder, kind: Kind, names: Collection[str]) -> Mapping[str, bool]:
        """Say of each name that is known whether the holder may have it. Names that are not known are left out."""
        found = await self._find(holder.account, [(kind, name) for name in names])
        return {name: handle.holder == holder and not handle.refused for (_, name), handle in found.items()}

    async def refuse(self, holder: Holder, kind: Kind, name: str) -> None:
        """Mark a handle as one that nobody may have."""
        await self._database.write(
            lambda connection: connection.execute(update(handles).where(*_is(holder, kind, name)).values(refused=True))
        )

    async def forget(self, holder: Holder, kind: Kind, name: str) -> None:
        """Remove a handle that was deleted at Google."""
        await self._database.write(
            lambda connection: connection.execute(delete(handles).where(*_is(holder, kind, name)))
        )

    async def recall(self, wanted: Sequence[Handle]) -> Mapping[str, Recalled]:
        """Return the content of handles of one holder, by the ids of their traces.

        Handles whose trace is gone are left out, and so are the last ones if all together exceed MAX_RECALLED bytes.
        """
        ids = list(dict.fromkeys(handle.trace for handle in wanted if handle.trace))
        if not ids:
            return {}
        owner = wanted[0].holder.owner
        return await self._database.read(lambda connection: _recall(connection, owner, ids), owner=owner)

    async def forget_old(self, now: float) -> None:
        """Delete a bounded number of handles whose time is over."""
        await self._database.write(lambda connection: connection.execute(_DELETE_OLD, {"before": now - _GRACE}))

    async def _find(self, account: str, names: Collection[tuple[Kind, str]]) -> dict[tuple[Kind, str], Handle]:
        asked = sorted({(kind.value, name) for kind, name in names if len(name) <= MAX_NAME})[:MOST_AT_ONCE]
        if not asked:
            return {}
        query = select(handles).where(handles.c.account == account, tuple_(handles.c.kind, handles.c.name).in_(asked))

        def work(connection: Connection) -> list[Handle]:
            return [_handle(row) for row in connection.execute(query).mappings()]

        return {(handle.kind, handle.name): handle for handle in await self._database.read(work)}


# Statements are made once: each new one leaves cycles of objects to the garbage collector.
_KEY: Final = ("account", "kind", "name")
_DELETE_OLD: Final = delete(handles).where(
    tuple_(*(handles.c[name] for name in _KEY)).in_(
        select(*(handles.c[name] for name in _KEY)).where(handles.c.expires < bindparam("before")).limit(_DELETED)
    )
)


def _is(holder: Holder, kind: Kind, name: str) -> "tuple[Any, ...]":
    columns = handles.c
    return (
        columns.account == holder.account,
        columns.kind == kind.value,
        columns.name == name,
        columns.owner == holder.owner,
    )


def _recall(connection: Connection, owner: str, ids: Sequence[str]) -> dict[str, Recalled]:
    lengths = select(traces.c.id, func.length(traces.c.messages)).where(traces.c.id.in_(ids))
    sizes: dict[str, int] = {row[0]: row[1] for row in connection.execute(lengths)}
    kept, left = [], MAX_RECALLED
    for trace_id in ids:
        size = sizes.get(trace_id, MAX_RECALLED + 1)
        if size <= left:
            kept.append(trace_id)
            left -= size
    query = whole_traces().where(traces.c.id.in_(kept), datasets.c.owner == owner)
    found = connection.execute(query).mappings() if kept else ()
    return {row["id"]: _recalled(load(row["messages"]), load(row["metadata"])) for row in found}


def _recalled(messages: Sequence[dict[str, Any]], metadata: Mapping[str, Any]) -> Recalled:
    return Recalled(tuple(messages), _unread(metadata), metadata.get("conversation") or "")


def _unread(metadata: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what the coverage of a trace names as not read, and as one more what it only counts."""
    coverage = metadata.get("coverage") or {}
    named = [(part["address"], part["reason"]) for part in coverage.get("not_checked") or ()]
    if coverage.get("not_checked_in_all"):
        named.append(("messages", "more than the trace of it names"))
    return tuple(named)


def _row(handle: Handle) -> dict[str, Any]:
    return {
        "account": handle.holder.account,
        "kind": handle.kind.value,
        "name": handle.name,
        "owner": handle.holder.owner,
        "dataset": handle.dataset,
        "trace": handle.trace,
        "guardrails": handle.guardrails,
        "unchecked": handle.unchecked,
        "refused": handle.refused,
        "digest": handle.digest,
        "details": dump(dict(handle.details)),
        "created": handle.created,
        "expires": handle.expires,
    }


def _handle(row: RowMapping) -> Handle:
    return Handle(
        Kind(row["kind"]),
        row["name"],
        Holder(row["account"], row["owner"]),
        row["expires"],
        row["dataset"],
        row["trace"],
        row["guardrails"],
        row["unchecked"],
        row["refused"],
        row["digest"],
        load(row["details"]),
        row["created"],
    )
