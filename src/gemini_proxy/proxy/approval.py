"""Has a person decide over what guardrails ask for, while the exchange waits."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from gemini_proxy.gemini.messages import Message
from gemini_proxy.guardrails.masking import CannotMask, message_of, texts_at
from gemini_proxy.guardrails.verdict import Violation
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.traces.approvals import Approval, ApprovalRequest, Approvals

_LOOK: Final = 0.5
"""Seconds between two looks at whether it has been decided: what a person needs is not noticed beside it."""
_MOST_SHOWN: Final = 4_000
"""Characters of a text that are kept for the person to see."""


class NotAllowed(Exception):
    """Nobody allows what was asked for: ``approval`` was denied, or nobody has decided in time."""

    def __init__(self, approval: Approval) -> None:
        super().__init__(approval.state)
        self.approval = approval


class ApprovalDesk:
    """Asks for approvals that wait ``seconds`` at most."""

    def __init__(self, approvals: Approvals, seconds: float) -> None:
        self._approvals = approvals
        self._seconds = seconds

    async def ask(
        self,
        exchange: Exchange,
        violation: Violation,
        messages: Sequence[Message],
        show_life: Callable[[], Awaitable[None]],
        *,
        is_history: bool,
    ) -> Approval:
        """Return the approval that allows what ``violation`` points at in ``messages``, and is used up by the exchange.

        What is history was allowed if it ever was: then it has happened. ``show_life`` is called while it waits. Raises
        NotAllowed, and StoreError.
        """
        request = _request(exchange, violation, messages)
        if is_history and (allowed := await self._approvals.allowed(request.subject)) is not None:
            return allowed
        while True:
            approval = await self._approvals.open(request, self._seconds)
            if approval.state == "allowed":
                return approval
            decided = await self._decided(approval, show_life)
            if decided.state != "allowed":
                raise NotAllowed(decided)
            if await self._approvals.take(decided):
                return decided

    def has_allowed(self, exchange: Exchange, violation: Violation, messages: Sequence[Message]) -> bool:
        """Return whether this exchange was allowed what ``violation`` points at in ``messages``."""
        if not exchange.approvals:
            return False
        subject = _request(exchange, violation, messages).subject
        return any(approval.request.subject == subject for approval in exchange.approvals)

    async def _decided(self, approval: Approval, show_life: Callable[[], Awaitable[None]]) -> Approval:
        """Return the approval once it no longer waits."""
        while approval.state == "waiting":
            await asyncio.sleep(_LOOK)
            await show_life()
            approval = await self._approvals.get(approval.id) or replace(approval, state="expired")
        return approval


def _request(exchange: Exchange, violation: Violation, messages: Sequence[Message]) -> ApprovalRequest:
    """Return what is asked for: each call that the violation points into, whole, and each text that it points at."""
    asked: list[Any] = []
    for address in violation.ranges:
        if (found := _call_at(messages, address) or _text_at(messages, address)) and found not in asked:
            asked.append(found)
    dataset = exchange.call.dataset
    exact = [exchange.owner, dataset, violation.guardrail.id, violation.message, asked or list(messages)]
    return ApprovalRequest(
        exchange.owner,
        dataset,
        exchange.id,
        violation.guardrail.name,
        violation.message,
        hashlib.sha256(orjson.dumps(exact, option=orjson.OPT_SORT_KEYS)).hexdigest(),
        {"asked": [_cut(one) for one in asked]},
    )


def _call_at(messages: Sequence[Message], address: str) -> Mapping[str, Any] | None:
    """Return the call that an address points into, by name and arguments; None where it points into none."""
    steps = address.partition(":")[0].split(".")
    index = message_of(address)
    if index is None or index >= len(messages) or steps[2:3] != ["tool_calls"] or not steps[3:4][0].isdecimal():
        return None
    function = messages[index]["tool_calls"][int(steps[3])]["function"]
    return {"tool": function["name"], "arguments": function["arguments"]}


def _text_at(messages: Sequence[Message], address: str) -> Mapping[str, Any] | None:
    index = message_of(address)
    try:
        texts = texts_at(messages, address)
    except CannotMask:
        return None
    role = messages[index].get("role", "") if index is not None and index < len(messages) else ""
    return {"role": role, "texts": texts}


def _cut(asked: Any) -> Any:
    """Return what is asked with long texts cut."""
    if isinstance(asked, str):
        return asked if len(asked) <= _MOST_SHOWN else f"{asked[:_MOST_SHOWN]}…"
    if isinstance(asked, Mapping):
        return {name: _cut(inner) for name, inner in asked.items()}
    return [_cut(item) for item in asked] if isinstance(asked, list) else asked
