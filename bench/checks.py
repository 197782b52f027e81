"""``python -m bench.checks``: what the checks of an exchange cost with two and with ten rules, of which none fires.

Beside the engine's check, which begins with the prefilter, stands the same check with every rule. Each check is one of
an exchange of its own: in the proxy the response's check does not look at the request again.
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from bench.peers import TEN_RULES, TWO_RULES
from gemini_proxy.gemini.call_links import answered_calls
from gemini_proxy.guardrails.engine import Check
from gemini_proxy.guardrails.native import NativeEngine
from gemini_proxy.guardrails.rules import Guardrail
from gemini_proxy.guardrails.verdict import Verdict
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.policy import Conversation, compile_policy

Messages = Sequence[Mapping[str, Any]]
_TEXT: Final = "sales went up in the north and down in the south while costs stayed where they were, on 12 of 30 days. "
_REQUEST: Final[Messages] = (
    {"role": "system", "content": "You are a helpful clerk. " + _TEXT},
    {"role": "user", "content": "Summarise this:\n" + _TEXT * 3},
)
_TOOLS: Final = (
    {"name": "send_email", "description": _TEXT, "inputSchema": {"properties": {"to": {"type": "string"}}}},
    {"name": "search", "description": _TEXT, "inputSchema": {"properties": {"query": {"type": "string"}}}},
)
_CALL: Final = {"type": "function", "function": {"name": "search", "arguments": {"query": "sales, north"}}}
CONVERSATIONS: Final[Mapping[str, Messages]] = {
    "request": _REQUEST,
    "response": (*_REQUEST, {"role": "assistant", "content": _TEXT * 8}),
    "20 messages": tuple({"role": ("user", "assistant")[at % 2], "content": _TEXT * 2} for at in range(20)),
    "with tools": (
        {"tools": list(_TOOLS)},
        *_REQUEST,
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "content": {"result": _TEXT * 2}},
        {"role": "assistant", "content": _TEXT},
    ),
}


@click.command()
@click.option("--checks", default=2000, show_default=True, help="Checks of each kind.")
def main(checks: int) -> None:
    """Print the median of each check in microseconds of processor time."""
    click.echo(f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}")
    click.echo("rules  conversation  every rule  as checked")
    for rules, file in (("two", TWO_RULES), ("ten", TEN_RULES)):
        for name, messages in CONVERSATIONS.items():
            every, checked = measure(file, messages, checks)
            click.echo(f"{rules:5}  {name:12}  {every:10.1f}  {checked:10.1f}")


def measure(file: Path, messages: Messages, checks: int) -> tuple[float, float]:
    """Return microseconds of a check with every rule of a policy, and of a check by the engine."""
    policy = compile_policy(file.read_text(), file.name)
    engine = NativeEngine(Workers(1), 5.0)
    guardrails = (Guardrail("policy", file.name, "block", policy),)

    def every() -> None:
        assert not policy.check(Conversation.of(messages, answered_calls(messages)))

    def checked() -> None:
        verdict = engine.check(Check(guardrails, messages))
        assert isinstance(verdict, Verdict) and not verdict.violations

    return _median(every, checks), _median(checked, checks)


def _median(action: Callable[[], None], times: int) -> float:
    action()
    samples = []
    for _ in range(times):
        started = time.thread_time_ns()
        action()
        samples.append(time.thread_time_ns() - started)
    return statistics.median(samples) / 1000


if __name__ == "__main__":
    main()
