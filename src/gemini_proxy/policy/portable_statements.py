"""What whole statements mean in Invariant's engine: imports, and rules that only bind variables."""

from collections.abc import Iterator
from typing import Final

from gemini_proxy.policy import syntax
from gemini_proxy.policy.errors import Warning
from gemini_proxy.policy.events import FIELDS
from gemini_proxy.policy.portable_grouping import note

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
    """A note on a rule without any condition whose message does not depend on what it binds."""
    declared = [line for line in statement.body if isinstance(line, syntax.Declaration)]
    if not declared or any(not isinstance(line, syntax.Declaration | syntax.Assignment) for line in statement.body):
        return
    if not syntax.names_in(statement.error) & {line.name for line in declared}:
        name = declared[0].name
        yield note(
            declared[0], f'this fires on every trace, an empty one too; raise PolicyViolation("...", {name}={name})'
        )
