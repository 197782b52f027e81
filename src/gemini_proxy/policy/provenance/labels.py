"""What is known of tools: by configuration, and by what their names say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.provenance.shapes import reads_by_name

PARAMETER: Final = "tools"
"""The parameter of a policy that has the labels."""


@dataclass(frozen=True, slots=True)
class Labels:
    """Names of tools, in which ``*`` stands for anything.

    ``trusted``: nobody else can write their outputs. ``reads`` and ``acts``: what their calls do, where their names do
    not say so. ``free``: arguments, as ``tool.argument``, that may come from anywhere.
    """

    trusted: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    acts: tuple[str, ...] = ()
    free: tuple[str, ...] = ()

    @classmethod
    def of(cls, parameters: Mapping[str, Any], trusted: Sequence[str] = ()) -> "Labels":
        """The labels among a policy's parameters, with more ``trusted``. Raises EvaluationError for another shape."""
        given = parameters.get(PARAMETER) or {}
        if not isinstance(given, Mapping) or not given.keys() <= set(cls.__slots__):
            raise EvaluationError(f"input.{PARAMETER} has {', '.join(cls.__slots__)}, and nothing else")
        known = {name: _names(name, given.get(name) or ()) for name in cls.__slots__}
        known["trusted"] += _names("trusted", trusted)
        return cls(**known)

    def is_trusted(self, tool: str) -> bool:
        return _is_one(tool, self.trusted)

    def acts_by(self, tool: str) -> bool:
        """Whether a call of the tool has an effect. Labels go before names, and ``acts`` before ``reads``."""
        if _is_one(tool, self.acts):
            return True
        return not _is_one(tool, self.reads) and not reads_by_name(tool)

    def is_free(self, tool: str, path: str) -> bool:
        return bool(self.free) and _is_one(f"{tool}.{path}", [*self.free, *(f"{name}.*" for name in self.free)])


def _is_one(name: str, patterns: Sequence[str]) -> bool:
    return bool(name) and any(fnmatchcase(name, pattern) for pattern in patterns)


def _names(label: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise EvaluationError(f"{label} is a list of names of tools")
    return tuple(value)
