"""Read the cases of a policy from JSON or YAML, and run them: conversations, and the rules that must fire on each.

``fires`` is true (some rule), false (none), or the messages of exactly those rules that must fire.

Conversations are written as ``user: text``, ``system: text``, ``assistant: text``, ``thought: text``, ``call: {name:
{argument: value}}``, ``output: text or data`` (of the earliest call without one; ``of: name`` says which tool's),
``tools: [name]``; a mapping with ``role`` is a message as it is.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson
import yaml

from gemini_proxy.cli.policy_files import Unusable, read_text
from gemini_proxy.gemini.call_links import answered_calls
from gemini_proxy.policy import (
    Answer,
    Conversation,
    ConversationError,
    EvaluationError,
    Policy,
    Question,
    RuleViolation,
    Unanswered,
)

Message = dict[str, Any]

_SPEAKERS = ("system", "user", "assistant", "thought")
_KEYS = (*_SPEAKERS, "call", "output", "of", "tools")


class CasesError(ValueError):
    """Cases that cannot be read; the text names the case and what was expected."""


def messages_of(items: object, where: str) -> list[Message]:
    """Return the messages of a conversation. Raise CasesError, whose text begins with ``where``."""
    if not isinstance(items, list):
        raise CasesError(f"{where}: messages must be a list")
    conversation = _ShorthandReader()
    for index, item in enumerate(items):
        conversation.add(item, f"{where}, message {index + 1}")
    return conversation.messages


class _ShorthandReader:
    """Make the messages that the proxy makes of the same exchange, and name the tool that each output is of."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._unanswered: list[str] = []

    def add(self, item: object, where: str) -> None:
        if not isinstance(item, dict) or not item:
            raise CasesError(f"{where}: expected a mapping such as {{user: text}}")
        if "role" in item or "function" in item:
            self.messages.append(item)
            return
        _check_keys(item, where)
        if "output" in item:
            self.messages.append(self._output(item, where))
        elif "tools" in item:
            self.messages.append({"tools": _tools(item["tools"], where)})
        elif "call" in item:
            if "assistant" in item:
                self.messages.append({"role": "assistant", "content": _content(item["assistant"], where)})
            calls = [self._call(name, arguments) for name, arguments in _calls(item["call"], where)]
            self.messages.append({"role": "assistant", "tool_calls": calls})
        else:
            self.messages.append(_spoken(item, where))

    def _call(self, name: str, arguments: object) -> Message:
        self._unanswered.append(name)
        function = {"name": name, "arguments": {} if arguments is None else arguments}
        return {"type": "function", "function": function}

    def _output(self, item: Mapping[str, Any], where: str) -> Message:
        named = item.get("of")
        name = named if named is not None else next(iter(self._unanswered), None)
        if name is None:
            return {"role": "tool", "content": item["output"]}
        if name not in self._unanswered:
            raise CasesError(f'{where}: no call of "{name}" waits for an output')
        self._unanswered.remove(name)
        return {"role": "tool", "tool_name": name, "content": item["output"]}


def _check_keys(item: Mapping[str, Any], where: str) -> None:
    for key in item:
        if key not in _KEYS:
            close = get_close_matches(str(key), _KEYS, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"one of {', '.join(_KEYS)}, or a message with a role"
            raise CasesError(f'{where}: unknown key "{key}" ({hint})')
    if len(item) > 1 and set(item) not in ({"assistant", "call"}, {"output", "of"}):
        raise CasesError(f"{where}: {' and '.join(item)} cannot be combined; write a separate message for each")


def _spoken(item: Mapping[str, Any], where: str) -> Message:
    ((speaker, text),) = item.items()
    if speaker not in _SPEAKERS:
        raise CasesError(f'{where}: "{speaker}" needs an output')
    if speaker == "thought":
        return {"role": "assistant", "content": _content(text, where), "thought": True}
    content = _content(text, where)
    if speaker == "user" and isinstance(content, str):
        content = [{"type": "text", "text": content}]
    return {"role": speaker, "content": content}


def _content(text: object, where: str) -> Any:
    if isinstance(text, str | list):
        return text
    raise CasesError(f"{where}: expected a text, found {text!r}; put it in quotes")


def _calls(calls: object, where: str) -> list[tuple[str, object]]:
    if isinstance(calls, str):
        return [(calls, None)]
    if isinstance(calls, dict) and calls and all(isinstance(name, str) for name in calls):
        return list(calls.items())
    if isinstance(calls, list) and calls:
        return [pair for call in calls for pair in _calls(call, where)]
    raise CasesError(f"{where}: a call is written {{call: {{name: {{argument: value}}}}}}")


def _tools(tools: object, where: str) -> list[Message]:
    if not isinstance(tools, list):
        raise CasesError(f"{where}: tools must be a list of names or declarations")
    return [{"name": tool} if isinstance(tool, str) else tool for tool in tools]


# Cases are written by hand, so a longer file is a mistake; YAML takes a minute for 20 MB.
_LONGEST = 5_000_000
_NO_ANSWERS: Mapping[Question, Answer] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Case:
    """``fires``: whether a rule must fire, or the messages of those that must, each once."""

    id: str
    name: str
    fires: bool | frozenset[str]
    parameters: Mapping[str, Any]
    conversation: Conversation

    @property
    def expected(self) -> str:
        if isinstance(self.fires, bool):
            return "fires" if self.fires else "nothing"
        return "; ".join(sorted(self.fires))


@dataclass(frozen=True, slots=True)
class Result:
    """The rules that fired on a case. ``failure`` says why there was no verdict; such a case is never ok."""

    case: Case
    violations: tuple[RuleViolation, ...] = ()
    failure: str | None = None

    @property
    def messages(self) -> tuple[str, ...]:
        """Return the messages of the rules that fired, each once."""
        return tuple(dict.fromkeys(violation.message for violation in self.violations))

    @property
    def got(self) -> str:
        if self.failure is not None:
            return f"no verdict: {self.failure}"
        return "; ".join(self.messages) or "nothing"

    @property
    def ok(self) -> bool:
        if self.failure is not None:
            return False
        if isinstance(self.case.fires, bool):
            return self.case.fires == bool(self.violations)
        return self.case.fires == set(self.messages)

    @property
    def missing(self) -> tuple[str, ...]:
        """Return what should have fired and did not."""
        if self.failure is not None or self.ok:
            return ()
        if isinstance(self.case.fires, bool):
            return ("any rule",) if self.case.fires else ()
        return tuple(sorted(self.case.fires - set(self.messages)))

    @property
    def surplus(self) -> tuple[RuleViolation, ...]:
        """Return what fired and should not have."""
        if self.ok or self.case.fires is True:
            return ()
        expected = self.case.fires or frozenset()
        return tuple(violation for violation in self.violations if violation.message not in expected)


def run_case(policy: Policy, case: Case, answers: Mapping[Question, Answer] = _NO_ANSWERS) -> Result:
    """Check one case; a check that fails is a result without a verdict. Raise Unanswered if ``answers`` lack one."""
    missing = sorted(policy.parameters - set(case.parameters))
    if missing:
        return Result(case, failure=f"parameters.{missing[0]} is not given")
    try:
        return Result(case, policy.check(case.conversation, case.parameters, answers=answers))
    except Unanswered:
        raise
    except EvaluationError as error:
        return Result(case, failure=str(error))


def read_cases(file: Path) -> tuple[Case, ...]:
    """Read the cases of a ``.json`` or YAML file. Raise Unusable."""
    text = read_text(file)
    if len(text) > _LONGEST:
        raise Unusable(f"{file}: more than {_LONGEST} characters")
    try:
        document = orjson.loads(text) if file.suffix == ".json" else yaml.load(text, _Loader)
        cases = _by_hand(document) if isinstance(document, dict) else _examples(document)
    except (orjson.JSONDecodeError, yaml.YAMLError, CasesError) as error:
        raise Unusable(f"{file}: {error}") from None
    except RecursionError:
        raise Unusable(f"{file}: nested too deeply") from None
    if not cases:
        raise Unusable(f"{file}: it has no cases")
    return cases


class _Loader(yaml.SafeLoader):
    """YAML without what surprises: no aliases (a page of them is gigabytes), no dates, no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.current_event.start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not available; write the value out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                mark = node.value[place][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f'"{key}" is given twice', mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _by_hand(document: Mapping[str, Any]) -> tuple[Case, ...]:
    """Read ``parameters`` for all cases, and ``cases``, each with name, fires, messages and parameters of its own."""
    _known(document, ("parameters", "cases"), "the file")
    shared = _parameters(document, "the file")
    entries = document.get("cases")
    if not isinstance(entries, list):
        raise CasesError("cases must be a list")
    cases = []
    for number, entry in enumerate(entries, start=1):
        where = f"case {number}"
        if not isinstance(entry, dict):
            raise CasesError(f"{where}: expected name, fires and messages")
        _known(entry, ("name", "fires", "parameters", "messages"), where)
        name = str(entry.get("name") or where)
        cases.append(_case(str(number), name, entry, {**shared, **_parameters(entry, where)}, where))
    return tuple(cases)


def _examples(document: object) -> tuple[Case, ...]:
    """Read a list of ``{id, title, parameters, conversations}``; a ``policy`` in it is ignored."""
    if not isinstance(document, list):
        raise CasesError("expected a mapping with cases, or a list of examples")
    cases = []
    for number, entry in enumerate(document, start=1):
        where = f"example {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
            raise CasesError(f"{where}: conversations must be a list")
        identity, title = str(entry.get("id", number)), str(entry.get("title", where))
        parameters = _parameters(entry, where)
        for place, conversation in enumerate(entry["conversations"], start=1):
            here = f"{where}, conversation {place}"
            if not isinstance(conversation, dict):
                raise CasesError(f"{here}: expected fires and messages")
            cases.append(_case(identity, f"{title} #{place}", conversation, parameters, here))
    return tuple(cases)


def _case(identity: str, name: str, entry: Mapping[str, Any], parameters: Mapping[str, Any], where: str) -> Case:
    messages = messages_of(entry.get("messages"), where)
    try:
        conversation = Conversation.of(messages, answered_calls(messages))
    except ConversationError as error:
        raise CasesError(f"{where}: {error}") from None
    return Case(identity, name, _fires(entry.get("fires"), where), parameters, conversation)


def _fires(fires: object, where: str) -> bool | frozenset[str]:
    if isinstance(fires, bool):
        return fires
    if isinstance(fires, str):
        return frozenset((fires,))
    if isinstance(fires, list) and all(isinstance(message, str) for message in fires):
        return frozenset(fires) or False
    raise CasesError(f"{where}: fires must be true, false, or the messages of the rules that fire")


def _parameters(entry: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise CasesError(f"{where}: parameters must be a mapping")
    return parameters


def _known(entry: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in entry:
        if key not in keys:
            raise CasesError(f'{where}: unknown key "{key}"; there are {", ".join(keys)}')
