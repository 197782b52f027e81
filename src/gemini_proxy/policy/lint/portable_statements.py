"""What whole statements mean in Invariant's engine: imports, and rules that only bind variables."""

from collections.abc import Iterator
from typing import Final

from gemini_proxy.policy.errors import Warning
from gemini_proxy.policy.lint.portable_grouping import note
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.events import FIELDS

STOCK_DETECTORS: Final = frozenset(
    (
        "secrets", "pii", "moderated", "prompt_injection", "unicode", "python_code", "ipython_code", "semgrep",
        "copyright", "fuzzy_contains", "is_similar", "llm", "llm_confirm", "html_code", "links", "ocr",
    )
)  # fmt: skip
_MODEL = "a classifier model"
_ACCOUNT = "an account of a hosted model"
_NEEDS: Final = {
    "pii": "presidio and a language model", "prompt_injection": _MODEL, "moderated": _MODEL, "ocr": "tesseract",
    "semgrep": "the semgrep program", "is_similar": _ACCOUNT, "llm": _ACCOUNT, "llm_confirm": _ACCOUNT,
}  # fmt: skip


def kinds(statement: syntax.Statement) -> dict[str, str]:
    """The event kind of each variable of a rule or a predicate."""
    if not isinstance(statement, syntax.Raise | syntax.Predicate):
        return {}
    found = dict(statement.parameters) if isinstance(statement, syntax.Predicate) else {}
    found.update({each.name: each.kind for each in syntax.walk(statement) if isinstance(each, syntax.Declaration)})
    return {name: kind for name, kind in found.items() if kind in FIELDS}


def assigned(statement: syntax.Statement) -> dict[str, syntax.Expr]:
    """What each assigned variable of a rule or a predicate stands for."""
    if not isinstance(statement, syntax.Raise | syntax.Predicate):
        return {}
    return {each.name: each.value for each in syntax.walk(statement) if isinstance(each, syntax.Assignment)}


def imported(statement: syntax.Import) -> Iterator[Warning]:
    """Notes on detectors that are not there, or that need what is not part of the engine."""
    for name, _ in statement.names:
        if name.name in _NEEDS:
            yield note(name, f"{name.name} needs {_NEEDS[name.name]}, and the check ends in an error without")
        elif statement.module.split(".")[-1] in ("detectors", "parsers") and name.name not in STOCK_DETECTORS:
            yield note(name, f"it has no detector {name.name}; use find with a pattern")


def binds_only(statement: syntax.Raise) -> Iterator[Warning]:
    """Notes on variables that nothing asks for: there the rule fires as well where there is no such value."""
    declared = [line for line in statement.body if isinstance(line, syntax.Declaration)]
    raised = syntax.names_in(statement.error)
    if declared and all(isinstance(line, syntax.Declaration | syntax.Assignment) for line in statement.body):
        if not raised & {line.name for line in declared}:
            yield _unasked(declared[0], "this fires on every trace, an empty one too")
        return
    mentioned = raised.union(*(syntax.names_in(line) for line in statement.body))
    for line in declared:
        if line.source is not None and line.name not in mentioned:
            yield _unasked(line, f"this fires where there is no {line.name}")


def _unasked(line: syntax.Declaration, message: str) -> Warning:
    return note(
        line, f'{message}; ask something of {line.name}, or raise PolicyViolation("...", {line.name}={line.name})'
    )


def counts_only(node: syntax.Quantifier) -> Iterator[Warning]:
    """A note on a count of all events of a kind: there it is always one."""
    if node.name == "count" and all(isinstance(line, syntax.Declaration) for line in node.body):
        yield note(node, "without a condition this counts one, whatever there is; ask something of what is counted")
