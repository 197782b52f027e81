"""Policies checked for others: what Invariant's Guardrails service did, by this server's own engine."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gemini_proxy.errors import BadRequest, EngineUnavailable
from gemini_proxy.explorer.api.endpoints import Call
from gemini_proxy.explorer.api.models import MAX_DATASET_NAME, mapping, member, objects, plain_text
from gemini_proxy.explorer.api.policy_api import MAX_POLICY, compiled, why
from gemini_proxy.explorer.app_keys import CHECKING, ENGINE
from gemini_proxy.guardrails.engine import Check
from gemini_proxy.guardrails.rules import Guardrail
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.policy import Conversation, ConversationError, Fault, PolicyError

MAX_POLICIES_CHECKED: Final = 100
"""Policies of one call."""
MAX_BATCH_SECONDS: Final = 10.0
"""What the policies of one call may take together: clients wait five seconds for the answer."""
_LATE: Final = "Error during analysis: the policies of the call took longer than their time"
_NAME: Final = "policy"

# What Invariant's clients look for in the reason of a 400, to tell their own exceptions apart.
_MISSING_PARAMETER: Final = "Missing Policy Parameter: "
_EXCESSIVE: Final = "Excessive Policy: "
_ATTRIBUTE: Final = "Invariant Attribute Error: "
_INVALID: Final = "Input Validation Error: "
_ANALYSIS: Final = "Error during analysis: "
_PHRASES: Final[Mapping[Fault, str]] = {"form": _INVALID, "unknown": _ATTRIBUTE, "excess": _EXCESSIVE}


class Failed(Exception):
    """No verdict on a policy. ``phrase`` begins the words for it; ``asked_wrongly`` where the caller is to blame."""

    def __init__(self, phrase: str, reason: str) -> None:
        super().__init__(phrase + reason)
        self.message = phrase + reason
        self.asked_wrongly = phrase != _ANALYSIS


@dataclass(frozen=True, slots=True)
class Question:
    """Messages, and what policies read as ``input``."""

    messages: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Any]


async def load(call: Call) -> object:
    """``POST /api/v1/policy/load``: 400 with line and reason for a policy that does not load."""
    try:
        await compiled(call, _NAME, _policy(await call.json()))
    except PolicyError as error:
        raise BadRequest(why(error)) from None
    return {"loaded": True}


async def check(call: Call) -> object:
    """``POST /api/v1/policy/check``: the violations of one policy.

    400, with the phrases that clients know, for a policy that does not load, a parameter it reads and is not given, and
    messages that cannot be read; 503 beginning with ``Error during analysis: `` where there is no verdict.
    """
    given = await call.json()
    policy = _policy(given)
    question = _question(given)
    try:
        await _require_readable(question)
        return {"errors": await _errors(call, policy, question)}
    except Failed as failed:
        raise (BadRequest if failed.asked_wrongly else EngineUnavailable)(failed.message) from None


async def check_batch(call: Call) -> object:
    """``POST /api/v1/policy/check/batch``: the violations of each policy, in the order of the policies.

    A policy without a verdict has an ``error_message`` and no errors; the others have theirs all the same. At most 100
    policies; they share ten seconds.
    """
    given = await call.json()
    policies = _policies(given.get("policies"))
    plain_text(given, "dataset_name", "dataset_name must be a string", MAX_DATASET_NAME, "")
    question = _question(given)
    try:
        await _require_readable(question)
    except Failed as failed:
        raise BadRequest(failed.message) from None
    ends = asyncio.get_running_loop().time() + MAX_BATCH_SECONDS
    return {"result": [await _result(call, policy, question, ends) for policy in policies]}


async def _result(call: Call, policy: str, question: Question, ends: float) -> dict[str, Any]:
    try:
        async with asyncio.timeout_at(ends):
            # A hundred quick checks in a row would hold up the loop, and outlast their time.
            await asyncio.sleep(0)
            return {"errors": await _errors(call, policy, question)}
    except Failed as failed:
        return {"errors": [], "error_message": failed.message}
    except TimeoutError:
        return {"errors": [], "error_message": _LATE}


async def _errors(call: Call, policy: str, question: Question) -> list[dict[str, Any]]:
    """Raises Failed."""
    rule = await _compiled(call, policy)
    missing = sorted(rule.policy.parameters - set(question.parameters))
    if missing:
        raise Failed(_MISSING_PARAMETER, ", ".join(missing))
    try:
        verdict = await _verdict(call, Check((rule,), question.messages, question.parameters))
    except EngineUnavailable as error:
        raise Failed(_ANALYSIS, error.message) from None
    if verdict.unchecked is not None:
        raise Failed(_ANALYSIS, verdict.unchecked)
    return [
        {"args": list(one.args), "kwargs": dict(one.kwargs), "ranges": list(one.ranges)} for one in verdict.violations
    ]


async def _verdict(call: Call, asked: Check) -> Verdict:
    """At once for what is quick; what goes to another process has to wait for its turn there. Raises Unavailable."""
    judged = call.app[ENGINE].judge(asked)
    if isinstance(judged, Verdict):
        return judged
    try:
        async with call.app[CHECKING].hold(call.user):
            return await judged
    finally:
        if asyncio.iscoroutine(judged):
            judged.close()


async def _compiled(call: Call, policy: str) -> Guardrail:
    try:
        return await compiled(call, _NAME, policy)
    except PolicyError as error:
        raise Failed(_PHRASES[error.fault], why(error)) from None


async def _require_readable(question: Question) -> None:
    """Find out before any policy is compiled. A thread gives the loop its turn while many messages are read."""
    try:
        await asyncio.to_thread(Conversation.of, question.messages)
    except ConversationError as error:
        raise Failed(_INVALID, str(error)) from None


def _policy(given: Mapping[str, Any]) -> str:
    text = member(given, "policy", str, "policy must be a string")
    return _bounded(text)


def _policies(given: object) -> list[str]:
    if not isinstance(given, list) or any(type(policy) is not str for policy in given):
        raise BadRequest("policies must be a list of strings")
    if len(given) > MAX_POLICIES_CHECKED:
        raise BadRequest(f"{_EXCESSIVE}more than {MAX_POLICIES_CHECKED} policies in one call")
    return [_bounded(policy) for policy in given]


def _bounded(policy: str) -> str:
    if len(policy) > MAX_POLICY:
        raise BadRequest(f"{_EXCESSIVE}a policy must not be longer than {MAX_POLICY} characters")
    return policy


def _question(given: Mapping[str, Any]) -> Question:
    messages = objects(given.get("messages"), f"{_INVALID}messages must be a list of messages")
    return Question(messages, mapping(given, "parameters", f"{_INVALID}parameters must be a dictionary"))
