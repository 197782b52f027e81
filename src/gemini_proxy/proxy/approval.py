"""Have a person decide about the approvals that guardrails ask for, while the exchange waits."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from gemini_proxy.gemini.messages import Message
from gemini_proxy.guardrails.addresses import message_of
from gemini_proxy.guardrails.masking import CannotMask, texts_at
from gemini_proxy.guardrails.verdict import Violation
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.traces.approvals import Approval, ApprovalRequest, Approvals
from gemini_proxy.traces.headline import conversation_of

_LOOK: Final = 0.5
"""Seconds between two looks at whether it has been decided: what a person needs is not noticed beside it."""
_MOST_SHOWN: Final = 4_000
"""Characters of a text that are kept for the person to see."""


class NotAllowed(Exception):
    """The request was not allowed: ``approval`` was denied, or nobody has decided in time."""

    def __init__(self, approval: Approval) -> None:
        super().__init__(approval.state)
        self.approval = approval


class ApprovalDesk:
    """Ask for approvals that wait ``seconds`` at most."""

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
        """Return the approval that allows the ranges of ``violation`` in ``messages``; the exchange uses it up.

        History needs no approval if it was ever allowed: it has already happened. ``show_life`` is called during the
        wait. Raises NotAllowed, and StoreError.
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
    """Return the request: each call that the violation points into, whole, and each text that it points at.

    Anything else, such as an image, cannot be shown; an allowance then applies to exactly the messages with it.
    """
    asked: list[Any] = []
    unshown: list[Message] = []
    for address in violation.ranges:
        found, complete = _asked_at(messages, address)
        asked += [item for item in found if item not in asked]
        if not complete:
            unshown += [message for message in _message_at(messages, address) if message not in unshown]
    dataset = exchange.call.dataset
    what = [*asked, *unshown] or list(messages)
    exact = [exchange.owner, dataset, violation.guardrail.id, violation.message, what]
    return ApprovalRequest(
        exchange.owner,
        dataset,
        exchange.id,
        violation.guardrail.name,
        violation.message,
        hashlib.sha256(orjson.dumps(exact, option=orjson.OPT_SORT_KEYS)).hexdigest(),
        {"asked": [_cut(item) for item in asked], **({"unshown": True} if unshown else {})},
        exchange.conversation or (conversation_of(messages) if exchange.call.generates else ""),
    )


def _asked_at(messages: Sequence[Message], address: str) -> tuple[list[Mapping[str, Any]], bool]:
    """Return the calls, by name and arguments, and the texts that an address points at; and whether that is all."""
    message = next(iter(_message_at(messages, address)), {})
    steps = address.partition(":")[0].split(".")[2:]
    calls = [_named_call(call) for call in message.get("tool_calls") or ()]
    if steps[:1] == ["tool_calls"]:
        number = steps[1] if len(steps) > 1 else ""
        one = calls[int(number) : int(number) + 1] if number.isdecimal() else []
        return one or calls, True
    if calls and not steps:
        # Include a call's numbers and its name: its texts alone would also match other calls.
        messages, address = [{name: value for name, value in message.items() if name != "tool_calls"}], "messages.0"
        if not message.get("content"):
            return calls, True
    else:
        calls = []
    try:
        return [*calls, {"role": message.get("role", ""), "texts": texts_at(messages, address)}], True
    except CannotMask:
        return calls, False


def _message_at(messages: Sequence[Message], address: str) -> Sequence[Message]:
    """Return the message that an address points into; none if it points into none."""
    index = message_of(address)
    return [] if index is None else messages[index : index + 1]


def _named_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call["function"]
    return {"tool": function["name"], "arguments": function["arguments"]}


def _cut(asked: Any) -> Any:
    """Return what is asked with long texts cut, and by how much."""
    if isinstance(asked, str):
        more = len(asked) - _MOST_SHOWN
        return asked if more <= 0 else f"{asked[:_MOST_SHOWN]}… ({more:,} more characters)"
    if isinstance(asked, Mapping):
        return {name: _cut(inner) for name, inner in asked.items()}
    return [_cut(item) for item in asked] if isinstance(asked, list) else asked
