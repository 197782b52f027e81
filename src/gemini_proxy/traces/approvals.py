"""Keep approvals that guardrails ask for, and their decisions, in the database, so that they outlive a process."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    and_,
    delete,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)

from gemini_proxy.traces.audit import Change, append
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.rows import dump, load
from gemini_proxy.traces.schema import approvals

State = Literal["waiting", "allowed", "denied", "expired"]

_KEPT: Final = 90 * 86_400.0
"""Seconds for which an approval stays in the list."""
_DELETED: Final = 20
"""Rows past that time that are deleted when another is written."""


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """A request for approval. ``subject`` is a digest of exactly what a decision applies to.

    ``shown`` is the part for a person to see, ``trace`` the id of the exchange that waits, ``conversation`` that of
    the conversation, empty if unknown.
    """

    owner: str
    dataset: str | None
    trace: str
    guardrail: str
    message: str
    subject: str
    shown: Mapping[str, Any]
    conversation: str = ""


@dataclass(frozen=True, slots=True)
class Approval:
    """``until`` is the end of an allowance for the same subject, 0 for one exchange. Times are Unix seconds.

    With ``for_conversation`` it is valid as long as the conversation that asked for it continues.
    """

    id: str
    request: ApprovalRequest
    created: float
    expires: float
    state: State
    decided_at: float | None
    decided_by: str
    reason: str
    until: float
    for_conversation: bool = False

    @property
    def described(self) -> dict[str, Any]:
        """Return it as JSON, for traces."""
        return {
            "id": self.id,
            "state": self.state,
            "created": self.created,
            "expires": self.expires,
            "dataset": self.request.dataset,
            "trace": self.request.trace,
            "guardrail": self.request.guardrail,
            "message": self.request.message,
            "shown": dict(self.request.shown),
            "decided_at": self.decided_at,
            "decided_by": self.decided_by,
            "reason": self.reason,
            "until": self.until,
            "for_conversation": self.for_conversation,
        }


class Approvals:
    """The approvals of a database. Every method raises StoreError."""

    def __init__(self, database: Database, opened: Callable[[Connection, Approval], None] | None = None) -> None:
        """``opened`` is called with each new approval, in the transaction that writes it."""
        self._database = database
        self._opened = opened

    async def open(self, request: ApprovalRequest, seconds: float) -> Approval:
        """Return the approval for a request: one that already allows it and is used up by this call, one that waits, or
        a new one that waits for ``seconds``."""
        now = time.time()

        def work(connection: Connection) -> Approval:
            for row in connection.execute(_of_subject(request)).mappings():
                found = _approval(row, now)
                if found.state == "allowed" and _take(connection, found, now):
                    return found
                if found.state == "waiting":
                    return found
            added = _add(connection, request, now, now + seconds)
            if self._opened is not None:
                self._opened(connection, added)
            return added

        return await self._database.write(work)

    async def get(self, approval_id: str) -> Approval | None:
        """Return the approval of that id as it is now."""
        query = select(approvals).where(approvals.c.id == approval_id)

        def work(connection: Connection) -> Approval | None:
            row = connection.execute(query).mappings().first()
            return None if row is None else _approval(row, time.time())

        return await self._database.read(work)

    async def allowed(self, subject: str) -> Approval | None:
        """Return the newest approval that allowed a subject, used up or not."""
        query = (
            select(approvals)
            .where(approvals.c.subject == subject, approvals.c.state == "allowed")
            .order_by(approvals.c.created.desc())
            .limit(1)
        )

        def work(connection: Connection) -> Approval | None:
            row = connection.execute(query).mappings().first()
            return None if row is None else _approval(row, time.time())

        return await self._database.read(work)

    async def take(self, approval: Approval) -> bool:
        """Use an allowance for an exchange. False if another exchange has used it up."""
        return await self._database.write(lambda connection: _take(connection, approval, time.time()))

    async def decide(
        self,
        approval_id: str,
        *,
        allow: bool,
        by: str,
        reason: str = "",
        seconds: float = 0.0,
        for_conversation: bool = False,
    ) -> Approval | None:
        """Decide a waiting approval: ``allow`` it for one exchange, for ``seconds``, or for the conversation.

        Return None if none waits. If the conversation is not known, the approval is for one exchange.
        """
        now = time.time()
        decided = {
            "state": "allowed" if allow else "denied",
            "decided_at": now,
            "decided_by": by,
            "reason": reason,
            "until": now + seconds if allow and seconds else 0.0,
            "for_conversation": approvals.c.conversation != "" if allow and for_conversation else False,
        }

        def work(connection: Connection) -> Approval | None:
            if not connection.execute(
                update(approvals).where(approvals.c.id == approval_id, waits(now)).values(**decided)
            ).rowcount:
                return None
            query = select(approvals).where(approvals.c.id == approval_id)
            approval = _approval(connection.execute(query).mappings().one(), now)
            append(connection, _decision(approval))
            return approval

        return await self._database.write(work)

    async def latest(self, limit: int, owner: str | None = None, *, waiting: bool | None = None) -> list[Approval]:
        """Return approvals, the newest first: of one owner if one is given, and only those that wait or do not wait."""
        now = time.time()
        query = select(approvals).order_by(approvals.c.created.desc()).limit(limit)
        if owner is not None:
            query = query.where(approvals.c.owner == owner)
        if waiting is not None:
            query = query.where(waits(now) if waiting else not_(waits(now)))
        return await self._database.read(
            lambda connection: [_approval(row, now) for row in connection.execute(query).mappings()]
        )

    async def waiting(self, owner: str | None = None) -> int:
        """Return how many approvals wait: of one owner if one is given."""
        query = select(func.count()).where(waits(time.time()))
        if owner is not None:
            query = query.where(approvals.c.owner == owner)
        return await self._database.read(lambda connection: connection.scalars(query).one())


def _decision(approval: Approval) -> Change:
    """Return what the audit log keeps of a decision: what was asked for by its digest alone."""
    request = approval.request
    asked = {name: getattr(request, name) for name in ("guardrail", "dataset", "trace", "subject")}
    decided = {"state": approval.state, "reason": approval.reason, "until": approval.until}
    if approval.for_conversation:
        decided["conversation"] = request.conversation
    subject = f"approval {approval.id}"
    return Change("approval.decided", subject, approval.decided_by, request.owner, asked, decided)


def waits(now: float) -> ColumnElement[bool]:
    """Return the condition of approvals that wait at a Unix time."""
    return and_(approvals.c.state == "waiting", approvals.c.expires > now)


def _of_subject(request: ApprovalRequest) -> "Select[Any]":
    return (
        select(approvals)
        .where(
            approvals.c.subject == request.subject,
            approvals.c.used.is_(False),
            or_(not_(approvals.c.for_conversation), approvals.c.conversation == request.conversation),
        )
        .order_by(approvals.c.created.desc())
        .limit(10)
    )


def _take(connection: Connection, approval: Approval, now: float) -> bool:
    if approval.until or approval.for_conversation:
        return not approval.until or approval.until > now
    mine = update(approvals).where(approvals.c.id == approval.id, approvals.c.used.is_(False)).values(used=True)
    return connection.execute(mine).rowcount > 0


def _add(connection: Connection, request: ApprovalRequest, now: float, expires: float) -> Approval:
    old = select(approvals.c.id).where(approvals.c.created < now - _KEPT).limit(_DELETED)
    connection.execute(delete(approvals).where(approvals.c.id.in_(old)))
    values = {
        "id": secrets.token_hex(8),
        "created": now,
        "expires": expires,
        "owner": request.owner,
        "dataset": request.dataset,
        "trace": request.trace,
        "guardrail": request.guardrail,
        "message": request.message,
        "subject": request.subject,
        "shown": dump(dict(request.shown)),
        "state": "waiting",
        "decided_at": None,
        "decided_by": "",
        "reason": "",
        "until": 0.0,
        "used": False,
        "conversation": request.conversation,
        "for_conversation": False,
    }
    connection.execute(insert(approvals).values(**values))
    return Approval(str(values["id"]), request, now, expires, "waiting", None, "", "", 0.0)


def _approval(row: RowMapping, now: float) -> Approval:
    request = ApprovalRequest(
        row["owner"],
        row["dataset"],
        row["trace"],
        row["guardrail"],
        row["message"],
        row["subject"],
        load(row["shown"]),
        row["conversation"],
    )
    state: State = "expired" if row["state"] == "waiting" and row["expires"] <= now else row["state"]
    return Approval(
        row["id"],
        request,
        row["created"],
        row["expires"],
        state,
        row["decided_at"],
        row["decided_by"],
        row["reason"],
        row["until"],
        row["for_conversation"],
    )
