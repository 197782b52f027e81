"""Classify tools by their labels, declarations and names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Final

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.provenance.shapes import reads_by_name

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


def acts_by_hint(tool: Mapping[str, Any]) -> bool | None:
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
