"""``python -m bench.tool_declarations SUITE...``: what ``pinned-tools.gr`` says of AgentDojo's declarations, and costs.

The declarations are benign: whatever is found in them is a false alarm, and printed. The texts of AgentDojo's attacks
are then put behind the description of a tool, one at a time; nothing in it is random.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from gemini_proxy.policy import PINS_PARAMETER as PARAMETER
from gemini_proxy.policy import Conversation, Policy, compile_policy, tool_digest

_ROOT: Final = Path(__file__).parents[1]
_REPEATS: Final = 50
_CHANGED: Final = 'raise "changed" if:\n    (t: Tool)\n    any(tool_changed(t))\n'

Tools = list[dict[str, Any]]


@click.command()
@click.option("--python", default=sys.executable, help="An interpreter that has agentdojo.")
@click.argument("suites", nargs=-1, required=True)
def main(python: str, suites: Sequence[str]) -> None:
    """Print what is found in declarations, then what a check of 50 tools costs."""
    policy = compile_policy((_ROOT / "policies" / "pinned-tools.gr").read_text(), "pinned-tools.gr")
    command = [python, "-m", "bench.agentdojo_conversations", "--tools", *suites]
    lines = subprocess.run(command, cwd=_ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    known: Tools = []
    for suite in map(json.loads, lines):
        known += suite["tools"]
        _report(policy, suite)
    declared = [{**tool, "name": f"{tool['name']}_{turn}"} for turn in range(50) for tool in known][:50]
    conversation = Conversation.of([{"tools": declared}, {"role": "user", "content": "hello"}])
    pins = {PARAMETER: {tool["name"]: tool_digest(tool) for tool in declared}}
    for words, checks in (("tool_changed", compile_policy(_CHANGED)), ("pinned-tools.gr", policy)):
        spent = _milliseconds(partial(checks.check, conversation, pins))
        click.echo(f"{words}: {spent:.2f} ms of processor time a check of 50 tools")
    click.echo(f"digests: {_milliseconds(lambda: [tool_digest(tool) for tool in declared]):.2f} ms for 50 tools")


def _report(policy: Policy, suite: dict[str, Any]) -> None:
    tools: Tools = suite["tools"]
    alarms = policy.check(Conversation.of([{"tools": tools}]))
    click.echo(f"{suite['suite']}: {len(tools)} declarations, {len(alarms)} false alarms")
    for alarm in alarms:
        click.echo(f"  {alarm.message}: {dict(alarm.kwargs)}")
    for attack, texts in suite["attacks"].items():
        found = sum(bool(policy.check(Conversation.of([{"tools": _poisoned(tools, text)}]))) for text in texts)
        click.echo(f"  {attack}: found {found} of {len(texts)} texts behind a description")


def _poisoned(tools: Tools, text: str) -> Tools:
    first, *rest = tools
    return [{**first, "description": f"{first['description']} {text}"}, *rest]


def _milliseconds(work: Callable[[], object]) -> float:
    work()
    started = time.process_time()
    for _ in range(_REPEATS):
        work()
    return (time.process_time() - started) / _REPEATS * 1000


if __name__ == "__main__":
    main()
