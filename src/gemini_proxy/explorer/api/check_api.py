"""Serve the API's routes that check messages with policies of the caller, as Invariant's Guardrails service did."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gemini_proxy.errors import BadRequest, EngineUnavailable
from gemini_proxy.explorer.api.endpoints import ApiCall
from gemini_proxy.explorer.api.policy_api import compiled, why
from gemini_proxy.explorer.api.request_bodies import EXCESSIVE, INVALID, BatchCheck, MessageCheck, PolicyLoad
from gemini_proxy.explorer.api.response_bodies import BatchEntryView, BatchView, CheckView, LoadView, ViolationView
from gemini_proxy.explorer.checks import verdict_of
from gemini_proxy.guardrails.engine import Check
from gemini_proxy.guardrails.rules import Guardrail
from gemini_proxy.policy import Conversation, ConversationError, Fault, PolicyError

MAX_BATCH_SECONDS: Final = 10.0
"""Seconds that the policies of one call may take together: clients wait five seconds for the response."""
_LATE: Final = "Error during analysis: the policies of the call timed out"
_NAME: Final = "policy"

# Phrases that Invariant's clients look for in the reason of a 400, to choose their own exceptions.
_MISSING_PARAMETER: Final = "Missing Policy Parameter: "
_ATTRIBUTE: Final = "Invariant Attribute Error: "
_ANALYSIS: Final = "Error during analysis: "
_PHRASES: Final[Mapping[Fault, str]] = {"form": INVALID, "unknown": _ATTRIBUTE, "excess": EXCESSIVE}


class NoVerdict(Exception):
    """There is no verdict on a policy. ``by_caller`` says that the request is wrong, not the server unable."""

    def __init__(self, phrase: str, reason: str) -> None:
        super().__init__(phrase + reason)
        self.message = phrase + reason
        self.by_caller = phrase != _ANALYSIS


@dataclass(frozen=True, slots=True)
class _CheckInput:
    """Messages, and what policies read as ``input``."""

    messages: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Any]


async def load_policy(call: ApiCall) -> LoadView:
    """Compile a policy.

    400 with line and reason for a policy that does not load.
    """
    load = await call.body(PolicyLoad)
    try:
        await compiled(call, _NAME, load.policy)
    except PolicyError as error:
        raise BadRequest(why(error)) from None
    return {"loaded": True}


async def check_messages(call: ApiCall) -> CheckView:
    """Check messages with one policy.

    400, with the phrases that clients know, for a policy that does not load, a parameter that it reads and that is not
    given, and messages that cannot be read. 503 beginning with ``Error during analysis: `` if there is no verdict.
    """
    check = await call.body(MessageCheck)
    checked = _CheckInput(check.messages, check.parameters or {})
    try:
        await _require_readable(checked)
        return {"errors": await _violations(call, check.policy, checked)}
    except NoVerdict as error:
        raise (BadRequest if error.by_caller else EngineUnavailable)(error.message) from None


async def check_batch(call: ApiCall) -> BatchView:
    """Check messages with several policies. The results have the order of the policies.

    A policy without a verdict has an ``error_message`` and no errors; the other results are not affected. At most 100
    policies, which share ten seconds.
    """
    check = await call.body(BatchCheck)
    checked = _CheckInput(check.messages, check.parameters or {})
    try:
        await _require_readable(checked)
    except NoVerdict as error:
        raise BadRequest(error.message) from None
    deadline = asyncio.get_running_loop().time() + MAX_BATCH_SECONDS
    return {"result": [await _entry(call, policy, checked, deadline) for policy in check.policies]}


async def _entry(call: ApiCall, policy: str, checked: _CheckInput, deadline: float) -> BatchEntryView:
    try:
        async with asyncio.timeout_at(deadline):
            # A hundred quick checks in a row would block the loop, and exceed their time limit.
            await asyncio.sleep(0)
            return {"errors": await _violations(call, policy, checked)}
    except NoVerdict as error:
        return {"errors": [], "error_message": error.message}
    except TimeoutError:
        return {"errors": [], "error_message": _LATE}


async def _violations(call: ApiCall, policy: str, checked: _CheckInput) -> list[ViolationView]:
    """Return the violations of a policy in the messages. Raise NoVerdict."""
    guardrail = await _compiled(call, policy)
    missing = sorted(guardrail.policy.parameters - set(checked.parameters))
    if missing:
        raise NoVerdict(_MISSING_PARAMETER, ", ".join(missing))
    try:
        verdict = await verdict_of(call.app, call.user, Check((guardrail,), checked.messages, checked.parameters))
    except EngineUnavailable as error:
        raise NoVerdict(_ANALYSIS, error.message) from None
    if verdict.unchecked is not None:
        raise NoVerdict(_ANALYSIS, verdict.unchecked)
    return [
        {"args": list(violation.args), "kwargs": dict(violation.kwargs), "ranges": list(violation.ranges)}
        for violation in verdict.violations
    ]


async def _compiled(call: ApiCall, policy: str) -> Guardrail:
    try:
        return await compiled(call, _NAME, policy)
    except PolicyError as error:
        raise NoVerdict(_PHRASES[error.fault], why(error)) from None


async def _require_readable(checked: _CheckInput) -> None:
    """Raise NoVerdict for messages that no policy can read. It is called before any policy is compiled."""
    # A thread gives the loop its turn while many messages are read.
    try:
        await asyncio.to_thread(Conversation.of, checked.messages)
    except ConversationError as error:
        raise NoVerdict(INVALID, str(error)) from None
