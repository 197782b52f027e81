"""Classify tools by their labels, declarations and names; ``acts(call)`` in the language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Final

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.events import Event
from gemini_proxy.policy.run.provenance.shapes import reads_by_name
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.values import word_for

LABELS_PARAMETER: Final = "tool_labels"
"""The parameter of a policy that has the labels."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Names of tools, in which ``*`` stands for anything.

    ``trusted``: nobody else can write their outputs. ``reads`` and ``acts``: the effect of their calls, if their names
    do not tell it. ``free``: arguments, as ``tool.argument``, that may come from anywhere. ``private``: their outputs
    are not for strangers.
    """

    trusted: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    acts: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    private: tuple[str, ...] = ()

    @classmethod
    def of(cls, parameters: Mapping[str, Any], trusted: Sequence[str] = (), private: Sequence[str] = ()) -> "Labels":
        """Read the labels among a policy's parameters, and add names. Raises EvaluationError for another form."""
        labels = parameters.get(LABELS_PARAMETER) or {}
        kinds = [kind.name for kind in fields(cls)]
        if not isinstance(labels, Mapping) or not labels.keys() <= set(kinds):
            raise EvaluationError(f"{LABELS_PARAMETER} can only have the lists {', '.join(kinds)}")
        known = {kind: _names(kind, labels.get(kind) or ()) for kind in kinds}
        known["trusted"] += _names("trusted", trusted)
        known["private"] += _names("private", private)
        return cls(**known)

    def is_trusted(self, tool: str) -> bool:
        return _is_one(tool, self.trusted)

    def is_private(self, tool: str) -> bool:
        return _is_one(tool, self.private)

    def acts_by(self, tool: str, hint: bool | None = None) -> bool:
        """Return whether a call of the tool has an effect. ``hint`` is what its declaration says, None if nothing.

        Labels take precedence over hints, hints over names, and ``acts`` over ``reads``.
        """
        if _is_one(tool, self.acts):
            return True
        if _is_one(tool, self.reads):
            return False
        return not reads_by_name(tool) if hint is None else hint

    def is_free(self, tool: str, path: str) -> bool:
        return bool(self.free) and _is_one(f"{tool}.{path}", [*self.free, *(f"{name}.*" for name in self.free)])


def acts(run: Run, call: Any) -> bool:
    """Return whether a call has an effect: by labels, else hints, else the tool's name. Unknown tools have one."""
    if not isinstance(call, Event) or call.kind != "ToolCall":
        raise EvaluationError(f"acts(...) needs a tool call, not a {word_for(call)}")
    run.charge(1)
    name = call.data["function"]["name"]
    key = ("acts", name)
    known: bool | None = run.scans.get(key)
    if known is None:
        known = run.scans[key] = labels_of(run, ()).acts_by(name, _hints(run).get(name))
    return known


def _hints(run: Run) -> dict[str, bool]:
    """Return what declarations say of their tools' calls; if two of one tool differ, that they have an effect."""
    key = ("hints",)
    if key not in run.scans:
        tools = run.events("Tool")
        run.charge(1 + len(tools))
        hints = [(tool.data["name"], _acts_by_hint(tool.data)) for tool in tools]
        acting = {name for name, hint in hints if hint}
        run.scans[key] = {name: name in acting for name, hint in hints if hint is not None}
    found: dict[str, bool] = run.scans[key]
    return found


def labels_of(run: Run, trusted: tuple[Any, ...]) -> Labels:
    """Return the labels of this check, read once."""
    key = ("labels", trusted)
    if key not in run.scans:
        run.scans[key] = Labels.of(run.parameters, trusted)
    found: Labels = run.scans[key]
    return found


def _acts_by_hint(tool: Mapping[str, Any]) -> bool | None:
    """Return whether MCP's ``annotations`` of a tool say that a call has an effect; None if they say nothing."""
    hints = tool.get("annotations")
    if not isinstance(hints, Mapping):
        return None
    if hints.get("destructiveHint") is True or hints.get("readOnlyHint") is False:
        return True
    return False if hints.get("readOnlyHint") is True else None


def joined_labels(*sets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the names of all labels together, each kind in the order given."""
    return {kind.name: [name for labels in sets for name in labels.get(kind.name) or ()] for kind in fields(Labels)}


def readable_parameters(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters if their labels can be read. Raises ValueError saying what is expected."""
    try:
        Labels.of(parameters)
    except EvaluationError as error:
        raise ValueError(error.reason) from None
    return parameters


def _is_one(name: str, patterns: Sequence[str]) -> bool:
    return bool(name) and any(fnmatchcase(name, pattern) for pattern in patterns)


def _names(label: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise EvaluationError(f"{LABELS_PARAMETER}.{label} must be a list of names")
    return tuple(value)
