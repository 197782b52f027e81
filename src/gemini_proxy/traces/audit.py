"""Keep the audit log: who changed what judges exchanges, in an append-only table of entries chained by digests."""

import hashlib
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, Select, func, insert, select, update

from gemini_proxy.traces.database import Database
from gemini_proxy.traces.redact import redact
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import audit_head, audit_log

SETTINGS_LOADED: Final = "settings.loaded"
"""The action of a server that has begun, or has loaded its settings again; ``after`` has its ``policies``."""
UNKNOWN: Final = "unknown"
"""The actor if a caller names none."""
FIRST: Final = "0" * 64
"""The digest before the first entry."""
BEFORE_ALL: Final = -(2**62)
"""Less than the number of any entry, those included that nobody here has written."""
_LONGEST: Final = 20_000
"""Characters of a text that are kept; of a longer one its beginning and its digest are."""
_LOCK: Final = 0x67_70_03
"""The number of the lock of those who append, beside that of writers."""
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Change:
    """An action of a person. ``owner`` is the user whom it concerns, None for the server.

    ``action`` names what was done to ``subject``, such as ``rule.changed``; ``before`` and ``after`` are JSON, None if
    there was nothing.
    """

    action: str
    subject: str
    by: str
    owner: str | None = None
    before: Any = None
    after: Any = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A change as it is kept: the ``seq``-th, at a Unix time. ``digest`` covers it and ``previous``, that of the entry
    before. ``details`` is the JSON of before and after."""

    seq: int
    at: float
    by: str
    action: str
    subject: str
    owner: str | None
    details: bytes
    previous: str
    digest: str

    @property
    def described(self) -> dict[str, Any]:
        """Return it as JSON, for an export and the API."""
        names = ("seq", "at", "by", "action", "subject", "owner")
        chain = {"previous": self.previous, "digest": self.digest}
        return {**{name: getattr(self, name) for name in names}, **load(self.details), **chain}


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain: the number of entries, and the digest of the last one."""

    seq: int = 0
    digest: str = FIRST

    def __str__(self) -> str:
        return f"{self.seq}:{self.digest}"


class AuditLog:
    """The audit log of a database. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def append(self, change: Change) -> None:
        """Keep a change that is not part of a transaction of its own."""
        await self._database.write(lambda connection: append(connection, change))

    async def append_new(self, change: Change) -> None:
        """Keep a change if the last one of the same action and subject says something else."""

        def work(connection: Connection) -> None:
            _serialise(connection)
            same = (audit_log.c.action == change.action, audit_log.c.subject == change.subject)
            query = select(audit_log.c.details).where(*same).order_by(audit_log.c.seq.desc()).limit(1)
            last = connection.scalar(query)
            if last is None or load(last)["after"] != load(_details(change))["after"]:
                append(connection, change)

        await self._database.write(work)

    async def latest(self, limit: int, before: int | None = None, owner: str | None = None) -> list[AuditEntry]:
        """Return entries, the newest first: those before a number, and those of one user, if these are given."""
        query = select(audit_log).order_by(audit_log.c.seq.desc()).limit(limit)
        if before is not None:
            query = query.where(audit_log.c.seq < before)
        if owner is not None:
            query = query.where(audit_log.c.owner == owner)
        return await self._read(query)

    async def newest(self, action: str, subject: str, limit: int) -> list[AuditEntry]:
        """Return entries of one action and subject, the newest first."""
        wanted = (audit_log.c.action == action, audit_log.c.subject == subject)
        return await self._read(select(audit_log).where(*wanted).order_by(audit_log.c.seq.desc()).limit(limit))

    async def page(self, after: int) -> list[AuditEntry]:
        """Return the next entries after a number, in their order; none if there are no more."""
        return await self._read(select(audit_log).where(audit_log.c.seq > after).order_by(audit_log.c.seq).limit(_PAGE))

    async def head(self) -> Head:
        """Return where the log says that it ends."""
        return await self._database.read(_head)

    async def of_action(self, action: str, after: int = 0) -> list[AuditEntry]:
        """Return the next entries of one action after a number, in their order."""
        wanted = (audit_log.c.action == action, audit_log.c.seq > after)
        return await self._read(select(audit_log).where(*wanted).order_by(audit_log.c.seq).limit(_PAGE))

    async def _read(self, query: Select[Any]) -> list[AuditEntry]:
        return await self._database.read(lambda connection: list(map(_entry, connection.execute(query).mappings())))


class Verifier:
    """Follow a chain from its beginning; ``faults`` describes the entries that do not fit."""

    def __init__(self) -> None:
        self.head = Head()
        self.faults: list[str] = []
        self._passed: dict[int, str] = {}

    def follow(self, entries: Iterable[AuditEntry]) -> None:
        """Take the next entries."""
        for entry in entries:
            self.faults += self._faults_of(entry)
            self.head = Head(entry.seq, entry.digest)
            self._passed[entry.seq] = entry.digest

    def end(self, stated: Iterable[Head], last: Head | None = None) -> None:
        """Compare the chain with stated heads: those of the log itself, or one that somebody kept since earlier.

        ``last`` is the end that the log itself states, after all entries were taken.
        """
        for head in stated:
            if head.seq > self.head.seq:
                self.faults.append(f"{_numbers(self.head.seq + 1, head.seq)} missing at the end")
            elif self._passed.get(head.seq, FIRST if not head.seq else "") != head.digest:
                self.faults.append(f"entry {head.seq} is not the one with the digest {head.digest}")
        if last is not None and last.seq < self.head.seq:
            self.faults.append(f"{_numbers(last.seq + 1, self.head.seq)} beyond the end that the log states")

    def _faults_of(self, entry: AuditEntry) -> Iterator[str]:
        expected = self.head.seq + 1
        if entry.seq > expected:
            yield f"{_numbers(expected, entry.seq - 1)} missing"
        elif entry.seq < expected:
            yield f"entry {entry.seq} is out of order"
        if entry.previous != self.head.digest:
            yield f"entry {entry.seq} does not follow the one before it"
        if entry.digest != digest_of(entry):
            yield f"entry {entry.seq} was changed"


def append(connection: Connection, change: Change) -> None:
    """Keep a change, in the transaction that makes it: as the last thing in it, for others wait for its end."""
    _serialise(connection)
    last = _head(connection)
    details, by = _details(change), change.by or UNKNOWN
    entry = AuditEntry(
        last.seq + 1, time.time(), by, change.action, change.subject, change.owner, details, last.digest, ""
    )
    digest = digest_of(entry)
    names = ("seq", "at", "by", "action", "subject", "owner", "details", "previous")
    connection.execute(insert(audit_log).values(**{name: getattr(entry, name) for name in names}, digest=digest))
    head = {"seq": entry.seq, "digest": digest}
    if not connection.execute(update(audit_head).values(head)).rowcount:
        connection.execute(insert(audit_head).values(id=1, **head))


def this_server() -> str:
    """Name this machine's server as the subject of an entry."""
    return f"server {socket.gethostname()}"


def _serialise(connection: Connection) -> None:
    """Let nobody else append until the transaction ends. SQLite has one writer at a time as it is."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def digest_of(entry: AuditEntry) -> str:
    """Return the SHA-256 of an entry with the digest before it, in hexadecimal."""
    details = hashlib.sha256(entry.details).hexdigest()
    fields = [entry.seq, entry.at, entry.by, entry.action, entry.subject, entry.owner, details, entry.previous]
    return hashlib.sha256(dump(fields)).hexdigest()


def _details(change: Change) -> bytes:
    return dump({"before": _kept(change.before), "after": _kept(change.after)})


def _kept(value: Any) -> Any:
    """Return JSON without keys, long texts cut."""
    if isinstance(value, str):
        text = str(redact(value))
        if len(text) <= _LONGEST:
            return text
        whole = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        return f"{text[:_LONGEST]}… ({len(text):,} characters, SHA-256 {whole})"
    if isinstance(value, Mapping):
        return {name: _kept(item) for name, item in redact(dict(value)).items()}
    return [_kept(item) for item in value] if isinstance(value, list | tuple) else value


def _head(connection: Connection) -> Head:
    row = connection.execute(select(audit_head.c.seq, audit_head.c.digest)).first()
    return Head() if row is None else Head(*row)


def _entry(row: RowMapping) -> AuditEntry:
    return AuditEntry(**row)


def _numbers(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
