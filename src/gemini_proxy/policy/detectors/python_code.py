"""Tell what a piece of Python imports and calls, from its syntax tree: ``python_code``. It is never run."""

import ast
import builtins
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemini_proxy.policy.detectors import Parsed
from gemini_proxy.policy.errors import BudgetExceeded
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.values import Record

# The parser takes about 2 microseconds a character of dense code and cannot be interrupted.
_LONGEST_CODE = 200_000
_STEPS_PER_CHARACTER = 3
_LONGEST_NAME = 20
_BUILTINS = frozenset(name for name in dir(builtins) if not name.startswith("_") or name == "__import__")


@dataclass(frozen=True, slots=True)
class PythonCode:
    """A record: ``imports``, ``builtins``, ``function_calls``, ``names`` (lists of names), ``syntax_error`` (true when
    a text is not Python) and ``syntax_error_exception``. A module counts under its own and its first name: ``os.path``,
    ``os``; ``names`` are all that the code reads: variables and attributes, as Python normalizes them.
    """

    name: str = "python_code"
    options: frozenset[str] = frozenset(("ipython_mode",))
    positional: tuple[str, ...] = ("ipython_mode",)

    def parse(self, texts: Sequence[str], args: Sequence[Any], options: Mapping[str, Any], meter: Meter) -> Parsed:
        """Raise BudgetExceeded for code of more than 200,000 characters."""
        found: dict[str, dict[str, None]] = {"imports": {}, "builtins": {}, "function_calls": {}, "names": {}}
        failure: str | None = None
        for text in texts:
            if len(text) > _LONGEST_CODE:
                raise BudgetExceeded(f"the code has more than {_LONGEST_CODE} characters")
            meter.charge(20 + len(text) * _STEPS_PER_CHARACTER)
            failure = _read(text, found, meter) or failure
        lists = {name: list(values) for name, values in found.items()}
        return Parsed(Record(**lists, syntax_error=failure is not None, syntax_error_exception=failure))


def _read(text: str, found: dict[str, dict[str, None]], meter: Meter) -> str | None:
    """Add what the code uses to ``found``; what keeps it from being Python, if anything."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    for node in ast.walk(tree):
        meter.charge(1)
        _note(node, found)
    return None


def _note(node: ast.AST, found: dict[str, dict[str, None]]) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            _note_module(alias.name, found["imports"])
    elif isinstance(node, ast.ImportFrom):
        _note_module("." * node.level + (node.module or ""), found["imports"])
        found["names"].update((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.Call):
        found["function_calls"][_name_of(node.func)] = None
    elif isinstance(node, ast.Name):
        found["names"][node.id] = None
        if node.id in _BUILTINS:
            found["builtins"][node.id] = None
    elif isinstance(node, ast.Attribute):
        found["names"][node.attr] = None


def _note_module(name: str, imports: dict[str, None]) -> None:
    imports[name] = None
    imports[name.partition(".")[0] or name] = None


def _name_of(function: ast.expr) -> str:
    """Return ``os.path.join`` of such a call; only the attributes if what is called has no name."""
    names: list[str] = []
    while isinstance(function, ast.Attribute) and len(names) < _LONGEST_NAME:
        names.append(function.attr)
        function = function.value
    names.append(function.id if isinstance(function, ast.Name) else "")
    return ".".join(reversed(names)).lstrip(".")
