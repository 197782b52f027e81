"""Keep the values of placeholders after the exchange that masked them: encrypted, and for a bounded time.

A value belongs to one owner, dataset and conversation, and is found only by these: a placeholder that another user
writes, or in another conversation, has no value here.
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Update,
    bindparam,
    delete,
    func,
    select,
    tuple_,
    update,
)

from gemini_proxy.traces.audit import AuditLog, Change
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.schema import masked_values
from gemini_proxy.traces.trace import Trace
from gemini_proxy.traces.value_keys import SealedValue, ValueKeys, ValueUnreadable

log = logging.getLogger(__name__)

SENT: Final = "sent"
"""The kind of a value that the client has sent, and may have back."""
SAID: Final = "said"
"""The kind of a value that was masked in what the model said: the client has never had it."""
READ: Final = "value.read"
"""The audit log's action for a value that was shown."""
MAX_VALUE: Final = 262_144
"""Characters of a value that is kept: a rule that says no place masks whole texts."""
MOST_ASKED: Final = 1_000
"""Placeholders that are looked up at once, as many as an exchange may mask; and conversations that they may be of."""
_MOST_ROWS: Final = 4 * MOST_ASKED
_MANY: Final = 500
"""Values that are decrypted in about a millisecond; more are in a thread."""
_LASTING: Final = 0.9
"""The part of its time that a value has before it, up to which it is written again where it is masked again."""
_DAY: Final = 86_400.0
_DELETED: Final = 1_000
_SEALED_AGAIN: Final = 200
"""Rows that are deleted, and that are encrypted with the first key again, in one transaction."""


@dataclass(frozen=True, slots=True)
class ValueScope:
    """The scope of a lookup: values masked for one owner and dataset in any of the conversations.

    An object without a conversation, such as a cache, uses the id of its trace instead.
    """

    owner: str
    dataset: str | None
    conversations: Sequence[str]

    @property
    def holder(self) -> str:
        """Return a digest of owner and dataset."""
        return _digest(f"{self.owner}\0{self.dataset or ''}")


@dataclass(frozen=True, slots=True)
class KeptValues:
    """The found values. ``sent`` has them by placeholder; ``spellings`` has the model's spellings of placeholders.

    Spellings are keyed by the placeholder and the number of its occurrence. ``lasting`` has placeholders whose values
    were written recently, and need not be written again.
    """

    sent: Mapping[str, str] = field(default_factory=dict)
    spellings: Mapping[tuple[str, str], str] = field(default_factory=dict)
    lasting: frozenset[str] = frozenset()


State = Literal["read", "not_kept", "unreadable"]


@dataclass(frozen=True, slots=True)
class Revealed:
    """The value of a placeholder. ``value`` is "" if it could not be read."""

    placeholder: str
    state: State
    value: str = field(default="", repr=False)


class MaskedValues:
    """The values in a database, encrypted with ``keys`` and kept for ``days``. Methods that wait raise StoreError.

    ``counts`` counts values that were ``read``, and those that were ``unreadable`` or ``unavailable``.
    """

    def __init__(self, database: Database, keys: ValueKeys, days: int, counts: Counter[str]) -> None:
        self._database = database
        self._keys = keys
        self._days = days
        self._counts = counts

    def sealed(self, scope: ValueScope, texts: Iterable[tuple[str, str, str]]) -> tuple[SealedValue, ...]:
        """Return rows that keep ``texts`` (placeholder, kind, text), for the transaction that writes their trace.

        A text of more than MAX_VALUE is not kept.
        """
        expires = time.time() + self._days * _DAY
        holder, conversations = scope.holder, [_digest(name) for name in dict.fromkeys(scope.conversations) if name]
        return tuple(
            self._keys.seal(text, SealedValue(holder, conversation, placeholder, kind, "", b"", expires))
            for placeholder, kind, text in texts
            if len(text) <= MAX_VALUE
            for conversation in conversations
        )

    async def find(self, scope: ValueScope, digits: Collection[str] | None = None) -> KeptValues:
        """Return the values of at most MOST_ASKED placeholders by their digits, or of all.

        Unreadable values are left out.
        """
        if digits is not None and not digits:
            return KeptValues()
        asked = () if digits is None else (_DIGITS_OF.in_(sorted(digits)[:MOST_ASKED]),)
        rows = await self._rows(scope, *asked, masked_values.c.kind != SAID)
        return await asyncio.to_thread(self._read, rows) if len(rows) > _MANY else self._read(rows)

    def _read(self, rows: Iterable[SealedValue]) -> KeptValues:
        sent: dict[str, str] = {}
        spellings: dict[tuple[str, str], str] = {}
        unreadable = Counter[str]()
        lasting: set[str] = set()
        lasts = time.time() + self._days * _DAY * _LASTING
        for row in rows:
            try:
                text = self._open(row)
            except ValueUnreadable as error:
                unreadable[str(error)] += 1
                continue
            if row.kind != SENT:
                spellings[row.placeholder, row.kind] = text
                continue
            sent[row.placeholder] = text
            if row.expires > lasts and row.key == self._keys.first:
                lasting.add(row.placeholder)
        for why, count in unreadable.items():
            log.warning("%d masked values are not restored: %s", count, why)
        return KeptValues(sent, spellings, frozenset(lasting))

    async def kept(self, trace: Trace, placeholders: Collection[str]) -> frozenset[str]:
        """Return those of a trace's placeholders whose values are kept."""
        asked = masked_values.c.placeholder.in_(sorted(placeholders)[:MOST_ASKED])
        return frozenset(row.placeholder for row in await self._rows(scope_of(trace), asked) if _is_value(row))

    async def reveal(self, trace: Trace, placeholder: str, by: str) -> Revealed:
        """Return the value behind a placeholder of a trace, even one that the client never received.

        ``by`` is the reader: the audit log records every value that is returned.
        """
        state: State = "not_kept"
        for row in await self._rows(scope_of(trace), masked_values.c.placeholder == placeholder):
            if not _is_value(row):
                continue
            try:
                value = self._open(row)
            except ValueUnreadable:
                state = "unreadable"
                continue
            change = Change(READ, f"trace {trace.id}", by, trace.owner, after={"placeholder": placeholder})
            await AuditLog(self._database).append(change)
            return Revealed(placeholder, "read", value)
        return Revealed(placeholder, state)

    async def seal_again(self) -> int:
        """Encrypt with the first key a bounded number of values that an older one encrypted. Return how many."""
        if not self._keys.older:
            return 0
        query = select(masked_values).where(masked_values.c.key.in_(self._keys.older)).limit(_SEALED_AGAIN)

        def work(connection: Connection) -> int:
            rows = [SealedValue(*row) for row in connection.execute(query)]
            for row in rows:
                connection.execute(_RESEAL, self._again(row))
            return len(rows)

        return await self._database.write(work)

    def _again(self, row: SealedValue) -> dict[str, object]:
        """Return the parameters that put the same text, encrypted with the first key, in the place of a row."""
        try:
            new = self._keys.seal(self._keys.open(row), row)
        except ValueUnreadable:
            # Unreadable values stay unreadable. They count as the first key's, so that they are not tried forever.
            new = row._replace(key=self._keys.first)
        where = {f"of_{name}": getattr(row, name) for name in (*_KEY, "key")}
        return {**where, "key": new.key, "sealed": new.sealed}

    def _open(self, row: SealedValue) -> str:
        try:
            text = self._keys.open(row)
        except ValueUnreadable:
            self._counts["unreadable"] += 1
            raise
        self._counts["read"] += 1
        return text

    async def _rows(self, scope: ValueScope, *wanted: ColumnElement[bool]) -> list[SealedValue]:
        conversations = [_digest(name) for name in scope.conversations if name][:MOST_ASKED]
        if not conversations:
            return []
        query = select(masked_values).where(
            masked_values.c.holder == scope.holder,
            masked_values.c.conversation.in_(conversations),
            masked_values.c.expires > time.time(),
            *wanted,
        )
        # The latest values are requested most.
        query = query.order_by(masked_values.c.expires.desc()).limit(_MOST_ROWS)
        try:
            return await self._database.read(
                lambda connection: [SealedValue(*row) for row in connection.execute(query)]
            )
        except StoreError:
            self._counts["unavailable"] += 1
            raise


def scope_of(trace: Trace) -> ValueScope:
    """Return where the values behind the placeholders of a trace are kept."""
    return ValueScope(trace.owner, trace.dataset, [str(trace.metadata.get("conversation") or ""), trace.id])


def _is_value(row: SealedValue) -> bool:
    return row.kind in (SENT, SAID)


async def forget_old_values(database: Database, now: float) -> None:
    """Delete a bounded number of values whose time is over."""
    await database.write(lambda connection: connection.execute(_DELETE_OLD, {"before": now}))


def forget_values_of(connection: Connection, owner: str, dataset: str) -> None:
    """Delete all values of a dataset."""
    holder = ValueScope(owner, dataset, ()).holder
    connection.execute(delete(masked_values).where(masked_values.c.holder == holder))


# Before the bracket that ends a placeholder: how a model spells the rest does not matter.
_DIGITS_OF: Final = func.substr(masked_values.c.placeholder, func.length(masked_values.c.placeholder) - 10, 10)
_KEY: Final = ("holder", "conversation", "placeholder", "kind")
# Statements are made once: each new one leaves cycles of objects to the garbage collector.
_DELETE_OLD: Final[Delete] = delete(masked_values).where(
    tuple_(*(masked_values.c[name] for name in _KEY)).in_(
        select(*(masked_values.c[name] for name in _KEY))
        .where(masked_values.c.expires < bindparam("before"))
        .limit(_DELETED)
    )
)
_RESEAL: Final[Update] = update(masked_values).where(
    *(masked_values.c[name] == bindparam(f"of_{name}") for name in (*_KEY, "key"))
)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
