"""Builders of small conversations and one-rule policies."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from gemini_proxy.policy import Budget, Conversation, Policy, Prefilter, RuleViolation, compile_policy

Message = dict[str, Any]


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any, *calls: Message) -> Message:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def call(name: str, arguments: Any = None, call_id: str | None = None) -> Message:
    made: Message = {
        "type": "function",
        "function": {"name": name, "arguments": {} if arguments is None else arguments},
    }
    return made if call_id is None else {"id": call_id, **made}


def calling(name: str, arguments: Any = None, call_id: str | None = None) -> Message:
    return assistant("", call(name, arguments, call_id))


def output(content: Any, call_id: str | None = None) -> Message:
    message: Message = {"role": "tool", "content": content}
    return message if call_id is None else {**message, "tool_call_id": call_id}


def rule(*lines: str, head: str = "") -> str:
    body = "\n".join(f"    {line}" for line in lines)
    return f'{head}\nraise "found" if:\n{body}\n'


def check(
    policy: str,
    *messages: Message,
    parameters: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
) -> tuple[RuleViolation, ...]:
    """Check messages against a policy. Where no budget is given, the prefilter must not change what is found."""
    (compiled, prefilter), conversation = _compiled(policy), Conversation.of(messages)
    violations = compiled.check(conversation, parameters or {}, budget)
    if budget is None:
        rules = prefilter.rules(messages)[0]
        assert compiled.check(conversation, parameters or {}, rules=rules) == violations
    return violations


@lru_cache(maxsize=64)
def _compiled(policy: str) -> tuple[Policy, Prefilter]:
    # They do not change, and many tests check hundreds of texts against one.
    compiled = compile_policy(policy)
    return compiled, Prefilter([compiled])


def fires(policy: str, *messages: Message, parameters: Mapping[str, Any] | None = None) -> bool:
    return bool(check(policy, *messages, parameters=parameters))


def ranges(policy: str, *messages: Message) -> list[str]:
    return [address for violation in check(policy, *messages) for address in violation.ranges]


def at(messages: Sequence[Message], address: str) -> Any:
    """What an address points at."""
    path, _, span = address.partition(":")
    value: Any = list(messages)
    for segment in path.split(".")[1:]:
        value = value[int(segment)] if isinstance(value, list) else value[segment]
    if not span:
        return value
    start, end = map(int, span.split("-"))
    return value[start:end]
