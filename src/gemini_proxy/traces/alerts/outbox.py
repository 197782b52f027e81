"""Store notices of every process and the messages made of them, until one process has sent these."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, and_, delete, func, insert, select, update

from gemini_proxy.traces.alerts.rules import AlertMessage, AlertRule, Gathered, Notice
from gemini_proxy.traces.approvals import Approval, waits
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import alert_messages, alert_notices, alert_states, approvals

KEPT: Final = 86_400.0
"""Seconds for which a message is tried."""
_TOOLS: Final = 5
_LONGEST_TOOL: Final = 100
"""Tools that a message about an approval names, and characters of each: the model calls as many as it likes."""
_GATHERING: Final = 0x67_70_02
"""The number of a lock, beside that of writers."""
_STEP: Final = 500
"""Notices that are gathered in one transaction: writers wait for it some ten milliseconds."""


class AlertOutbox:
    """Notices and messages of a database. Every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note(self, notices: Sequence[Notice]) -> None:
        """Take down what happened, for whichever process gathers."""
        await self._database.write(lambda connection: _note(connection, notices))

    async def gather(self, rules: Sequence[AlertRule], now: float) -> int:
        """Gather notices into messages where these are due, and return how many notices there were: there may be more
        beyond a step. Notices that no rule wants are dropped."""

        def work(connection: Connection) -> int:
            _serialise(connection)
            taken = (
                connection.execute(select(alert_notices).order_by(alert_notices.c.seq).limit(_STEP)).mappings().all()
            )
            if taken:
                connection.execute(delete(alert_notices).where(alert_notices.c.seq.in_([row["seq"] for row in taken])))
            states = _States(connection, {rule.name: rule for rule in rules}, now)
            for row in taken:
                states.add(_notice(row))
            states.settle()
            return len(taken)

        waits_here = await self._database.read(lambda connection: _has_work(connection, now))
        return await self._database.write(work) if waits_here else 0

    async def take(self, limit: int, now: float, lease: float) -> list[AlertMessage]:
        """Take the oldest messages that are due; nobody else is given them until ``lease`` seconds have passed."""
        due = (
            select(alert_messages.c.seq)
            .where(alert_messages.c.due <= now)
            .order_by(alert_messages.c.due, alert_messages.c.seq)
            .limit(limit)
        )
        mine = due.with_for_update(skip_locked=True)
        claim = (
            update(alert_messages)
            .where(alert_messages.c.seq.in_(mine.scalar_subquery()))
            .values(attempts=alert_messages.c.attempts + 1, due=now + lease)
            .returning(alert_messages)
        )
        if await self._database.read(lambda connection: connection.scalar(due)) is None:
            return []
        found = await self._database.write(lambda connection: connection.execute(claim).mappings().all())
        return sorted(map(_message, found), key=lambda message: message.seq)

    async def finish(self, message: AlertMessage) -> None:
        """Remove a message that was sent or given up. What was added to it meanwhile waits as a message of its own."""

        def work(connection: Connection) -> None:
            mine = alert_messages.c.seq == message.seq
            if not connection.execute(
                delete(alert_messages).where(mine, alert_messages.c.count == message.count)
            ).rowcount:
                rest = {"id": _new_id(), "count": alert_messages.c.count - message.count, "attempts": 0, "due": 0.0}
                connection.execute(update(alert_messages).where(mine).values(rest))

        await self._database.write(work)

    async def postpone(self, message: AlertMessage, due: float, *, tried: bool = True) -> None:
        """Let nobody take a message before ``due``, in Unix seconds; ``tried`` says that this was an attempt."""
        mine = update(alert_messages).where(alert_messages.c.seq == message.seq)
        attempts = message.attempts if tried else message.attempts - 1
        await self._database.write(lambda connection: connection.execute(mine.values(due=due, attempts=attempts)))

    async def waiting(self) -> int:
        """Return how many messages wait, those under way included."""
        count = select(func.count()).select_from(alert_messages)
        return await self._database.read(lambda connection: connection.execute(count).scalar_one())


def note_approval(connection: Connection, approval: Approval) -> None:
    """Take down, in the transaction that opens it, that an approval waits: which tools, and none of the arguments."""
    request = approval.request
    asked = request.shown.get("asked", ())
    named = [str(item["tool"])[:_LONGEST_TOOL] for item in asked if isinstance(item, Mapping) and "tool" in item]
    example = {
        "approval": approval.id,
        "dataset": request.dataset,
        "trace": request.trace,
        "tools": list(dict.fromkeys(named))[:_TOOLS],
        "expires": approval.expires,
    }
    _note(connection, [Notice("approval_waiting", request.guardrail, 1, approval.created, example)])


def _note(connection: Connection, notices: Sequence[Notice]) -> None:
    rows = [{**asdict(notice), "example": dump(dict(notice.example))} for notice in notices]
    connection.execute(insert(alert_notices), rows)


def _serialise(connection: Connection) -> None:
    """Let nobody else gather until this transaction ends: a lease may have two holders for a moment."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_GATHERING)))


def _has_work(connection: Connection, now: float) -> bool:
    if connection.scalar(select(alert_notices.c.seq).limit(1)) is not None:
        return True
    return connection.scalar(select(alert_states.c.alert).where(alert_states.c.due <= now).limit(1)) is not None


class _States:
    """The events gathered so far, read on demand and written by ``settle``."""

    def __init__(self, connection: Connection, rules: Mapping[str, AlertRule], now: float) -> None:
        self._connection = connection
        self._rules = rules
        self._now = now
        self._changed: dict[tuple[str, str, str], Gathered] = {}

    def add(self, notice: Notice) -> None:
        for rule in self._rules.values():
            if rule.wants(notice.kind, notice.key):
                place = (rule.name, notice.kind, notice.key)
                found = self._changed.get(place) or self._read(place)
                self._changed[place] = found.add(notice, rule)

    def settle(self) -> None:
        due = select(alert_states).where(alert_states.c.due <= self._now)
        for row in self._connection.execute(due).mappings().all():
            place = (row["alert"], row["kind"], row["key"])
            self._changed.setdefault(place, _gathered(row))
        for place, gathered in self._changed.items():
            rule = self._rules.get(place[0])
            if rule is None:
                self._connection.execute(delete(alert_states).where(_at(place)))
                continue
            told = gathered.is_due(self._now, rule)
            if told:
                self._send(place, gathered)
                gathered = gathered.told(self._now, rule)
            self._write(place, gathered)

    def _send(self, place: tuple[str, str, str], gathered: Gathered) -> None:
        """Queue a message, or add to the one that still waits. None of approvals of which none waits any more."""
        alert, kind, key = place
        if kind == "approval_waiting":
            still = select(approvals.c.id).where(approvals.c.guardrail == key, waits(self._now)).limit(1)
            if self._connection.scalar(still) is None:
                return
        messages, expires = alert_messages.c, gathered.example.get("expires", self._now + KEPT)
        values = {"example": dump(dict(gathered.example)), "expires": expires}
        queued = and_(messages.alert == alert, messages.kind == kind, messages.key == key)
        if self._connection.execute(
            update(alert_messages).where(queued).values(count=messages.count + gathered.total, **values)
        ).rowcount:
            return
        self._connection.execute(
            insert(alert_messages).values(
                id=_new_id(),
                alert=alert,
                kind=kind,
                key=key,
                count=gathered.total,
                since=gathered.since,
                created=self._now,
                due=self._now,
                attempts=0,
                **values,
            )
        )

    def _read(self, place: tuple[str, str, str]) -> Gathered:
        row = self._connection.execute(select(alert_states).where(_at(place))).mappings().first()
        return Gathered() if row is None else _gathered(row)

    def _write(self, place: tuple[str, str, str], gathered: Gathered) -> None:
        alert, kind, key = place
        values = {"state": dump(asdict(gathered)), "due": gathered.silent_until if gathered.crossed else None}
        if not self._connection.execute(update(alert_states).where(_at(place)).values(**values)).rowcount:
            self._connection.execute(insert(alert_states).values(alert=alert, kind=kind, key=key, **values))


def _at(place: tuple[str, str, str]) -> Any:
    columns = alert_states.c
    return and_(columns.alert == place[0], columns.kind == place[1], columns.key == place[2])


def _gathered(row: RowMapping) -> Gathered:
    state = load(row["state"])
    return Gathered(**{**state, "buckets": tuple((at, count) for at, count in state["buckets"])})


def _notice(row: RowMapping) -> Notice:
    return Notice(row["kind"], row["key"], row["count"], row["at"], load(row["example"]))


def _message(row: RowMapping) -> AlertMessage:
    values = {name: value for name, value in row.items() if name != "due"}
    return AlertMessage(**{**values, "example": load(row["example"])})


def _new_id() -> str:
    return f"msg_{secrets.token_hex(12)}"
