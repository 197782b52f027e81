"""``python -m bench.provenance``: a check by ``provenance.gr`` beside one by a flow rule, in milliseconds of CPU.

Nothing fires. A *first* check knows nothing of the conversation; a *next* one comes in the same thread after a check of
all but the last message. A *flow* check is the same both times: nothing is kept of it.
"""

import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from bench.policy_rules import RULES, prose
from gemini_proxy.policy import Budget, Conversation, Policy, compile_policy

_FILE: Final = Path(__file__).parents[1] / "policies" / "provenance.gr"
_UNBOUNDED: Final = Budget(steps=10**12)
_COUNTS: Final = (20, 200, 2000)

Messages = list[dict[str, Any]]


@click.command()
@click.option("--times", default=15, show_default=True, help="How often each figure is measured.")
def main(times: int) -> None:
    """Print a row for each length of a conversation: medians, and how often the flow rule's time that is."""
    flow, provenance = compile_policy(RULES["flow"]), compile_policy(_FILE.read_text(), str(_FILE))
    click.echo(f"{'messages':>8}  {'flow':>8}  {'first':>8}  {'':>6}  {'next':>8}")
    for count in _COUNTS:
        messages = conversation(count)
        flows = statistics.median(in_new_thread(partial(_checked, flow, messages)) for _ in range(times))
        first = statistics.median(in_new_thread(partial(_checked, provenance, messages)) for _ in range(times))
        following = statistics.median(in_new_thread(partial(_next, provenance, messages)) for _ in range(times))
        row = (
            f"{count:8}  {flows:8.3f}  {first:8.3f}  {first / flows:5.1f}x  {following:8.3f}  {following / flows:5.1f}x"
        )
        click.echo(row)


def conversation(count: int) -> Messages:
    """``count`` messages: the user names an address, a call uses it, an output, an answer, and again."""
    return [_message(number) for number in range(count)]


def _message(number: int) -> dict[str, Any]:
    turn, kind = divmod(number, 4)
    if kind == 0:
        return {"role": "user", "content": f"Write to colleague{turn}@corp.com: {prose(30, turn)}"}
    if kind == 1:
        arguments = {"to": f"colleague{turn}@corp.com", "body": prose(30, turn)}
        name = "send_email" if turn % 2 else "get_inbox"
        call = {"id": f"c{turn}", "type": "function", "function": {"name": name, "arguments": arguments}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == 2:
        return {"role": "tool", "tool_call_id": f"c{turn}", "content": prose(60, turn + 3)}
    return {"role": "assistant", "content": prose(60, turn + 3)}


def _checked(policy: Policy, messages: Messages) -> float:
    """The milliseconds of a check. Raises ClickException where it finds something: then it did not do all its work."""
    started = time.thread_time()
    violations = policy.check(Conversation.of(messages), budget=_UNBOUNDED)
    taken = (time.thread_time() - started) * 1000
    if violations:
        raise click.ClickException("no rule may fire here")
    return taken


def _next(policy: Policy, messages: Messages) -> float:
    _checked(policy, messages[:-1])
    return _checked(policy, messages)


def in_new_thread(measure: Callable[[], float]) -> float:
    """What ``measure`` gives in a thread that has checked nothing before."""
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(measure()))
    thread.start()
    thread.join()
    return found[0]


if __name__ == "__main__":
    main()
