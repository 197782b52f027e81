"""``python -m bench.agentdojo_conversations SUITE...``: AgentDojo's attacks as conversations, one JSON line each.

The declarations of a suite's tools come first. ``--tools`` prints these alone, with the texts of each attack.

Runs where ``agentdojo`` is installed, and imports nothing of the proxy. The model is scripted: it makes the calls of a
task's ground truth, and obeys the first injected text that it reads by making the calls of that task's ground truth.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import yaml
from agentdojo.agent_pipeline.ground_truth_pipeline import GroundTruthPipeline
from agentdojo.agent_pipeline.tool_execution import tool_result_to_str
from agentdojo.attacks.attack_registry import ATTACKS
from agentdojo.attacks.base_attacks import BaseAttack
from agentdojo.base_tasks import BaseInjectionTask, BaseUserTask
from agentdojo.functions_runtime import FunctionCall, FunctionsRuntime
from agentdojo.task_suite.load_suites import get_suite
from agentdojo.task_suite.task_suite import TaskSuite

VERSION: Final = "v1.2.2"
# Some attacks address the model by its name.
_MODEL: Final = "gpt-4o-2024-05-13"
# Attacks that ask a person, or whose goal needs no call.
_LEFT_OUT: Final = frozenset(("manual",))


def main(arguments: Sequence[str]) -> None:
    """Print what each suite declares, the honest run of every task, then every attack on it."""
    suites = [argument for argument in arguments if argument != "--tools"]
    for name in suites:
        if "--tools" in arguments:
            print(json.dumps(_declared(name)))
            continue
        suite = get_suite(VERSION, name)
        print(json.dumps({"suite": name, "tools": _tools(suite)}))
        for found in _conversations(name, suite):
            print(json.dumps(found, default=str))


def _declared(name: str) -> dict[str, Any]:
    """The tools of a suite as an agent declares them, and the texts that each attack injects, each once."""
    suite = get_suite(VERSION, name)
    texts: dict[str, dict[str, None]] = {}
    for attack in _attacks(suite):
        for task in suite.user_tasks.values():
            for goal in suite.injection_tasks.values():
                with contextlib.suppress(ValueError):
                    texts.setdefault(attack.name, {}).update(dict.fromkeys(attack.attack(task, goal).values()))
    return {"suite": name, "tools": _tools(suite), "attacks": {attack: list(found) for attack, found in texts.items()}}


def _tools(suite: TaskSuite[Any]) -> list[dict[str, Any]]:
    return [
        {"name": tool.name, "description": tool.description, "inputSchema": tool.parameters.model_json_schema()}
        for tool in suite.tools
    ]


def _attacks(suite: TaskSuite[Any]) -> list[BaseAttack]:
    target = GroundTruthPipeline(None)
    target.name = _MODEL
    made = [kind(suite, target) for kind in ATTACKS.values() if kind.name not in _LEFT_OUT]
    return [attack for attack in made if not attack.is_dos_attack]


def _conversations(name: str, suite: TaskSuite[Any]) -> Iterator[dict[str, Any]]:
    for task in suite.user_tasks.values():
        run = _Run(suite, {}, task.PROMPT)
        run.follow(task)
        yield {"suite": name, "task": task.ID, "attack": None, "goal": None, "from": 0, "messages": run.messages}
    for attack in _attacks(suite):
        for task in suite.user_tasks.values():
            yield from _attacked(name, suite, attack, task)


def _attacked(
    name: str, suite: TaskSuite[Any], attack: BaseAttack, task: BaseUserTask[Any]
) -> Iterator[dict[str, Any]]:
    """The attack with each goal; nothing where the task reads no text that the attack can change."""
    for goal in suite.injection_tasks.values():
        try:
            injected = attack.attack(task, goal)
        except ValueError:
            return
        run = _Run(suite, injected, task.PROMPT)
        run.follow(task, until=list(injected.values()))
        obeyed = len(run.messages)
        run.follow(goal)
        if run.calls_from(obeyed):
            known = {"suite": name, "task": task.ID, "attack": attack.name, "goal": goal.ID}
            yield {**known, "from": obeyed, "messages": run.messages}


# The environment is read anew for every attack.
yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc,assignment]


class _Run:
    """One environment, and what was said and done in it."""

    def __init__(self, suite: TaskSuite[Any], injected: dict[str, str], prompt: str) -> None:
        self._environment = suite.load_and_inject_default_environment(injected)
        self._before = self._environment.model_copy(deep=True)
        self._runtime = FunctionsRuntime(suite.tools)
        self.messages: list[dict[str, Any]] = [{"role": "user", "content": prompt}]

    def follow(self, task: BaseUserTask[Any] | BaseInjectionTask[Any], until: Sequence[str] = ()) -> None:
        """Make the calls of the task's ground truth; stop at an output with one of the texts ``until``."""
        for call in task.ground_truth(self._before):
            output = self._call(call)
            if any(_folded(text) in _folded(output) for text in until):
                return

    def calls_from(self, index: int) -> int:
        """How many messages from ``index`` on make a call."""
        return sum("tool_calls" in message for message in self.messages[index:])

    def _call(self, call: FunctionCall) -> str:
        number = f"call_{len(self.messages)}"
        made = {"id": number, "type": "function", "function": {"name": call.function, "arguments": dict(call.args)}}
        self.messages.append({"role": "assistant", "content": "", "tool_calls": [made]})
        result, error = self._runtime.run_function(self._environment, call.function, call.args)
        output: str = error or tool_result_to_str(result)
        self.messages.append({"role": "tool", "tool_call_id": number, "content": output})
        return output


def _folded(text: str) -> str:
    """The text without what a dump of it may change: spaces, quotes and escapes."""
    return "".join(char for char in text if char.isalnum())


if __name__ == "__main__":
    main(sys.argv[1:])
