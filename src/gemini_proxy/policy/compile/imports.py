"""List the allowed imports. Nothing is imported: a name on the list stands for something built in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gemini_proxy.policy.run.builtins import FUNCTIONS
from gemini_proxy.policy.run.events import FIELDS

Role = Literal["function", "detector", "quantifier", "kind", "violation", "module"]


@dataclass(frozen=True, slots=True)
class Imported:
    """The target of an imported name: its role, and its own name if the policy renames it."""

    role: Role
    name: str


_ASKED = "only the policy files of a server can ask one"

# Names of the stock language that need a model, a network or a program, and what they need.
UNAVAILABLE: Mapping[str, str] = {
    "moderated": f"a moderation model; {_ASKED}",
    "llm": f"a language model; {_ASKED}",
    "llm_confirm": "a language model; decision(question, x) asks one",
    "model_armor": f"Google's Model Armor; {_ASKED}",
    "injection_model": f"a classifier of injections; {_ASKED}",
    "decision": f"a language model; {_ASKED}",
    "presidio": f"Presidio and a language model; {_ASKED}",
    "semgrep": "the semgrep program, which only the policy files of a server can run",
    "ocr": "the tesseract program, which only the policy files of a server can run",
    "ipython_code": "IPython; python_code reads cells without magics",
    "is_dangerous_code": "the semgrep program; semgrep(code, lang) runs it",
}

# Modules of the stock library that reach files or users, and why they are refused.
REFUSED_MODULES: Mapping[str, str] = {
    "invariant.files": "policies cannot read files",
}

# The modules of Python that a policy may name, with the names of their functions here.
PYTHON_MODULES: Mapping[str, Mapping[str, str]] = {"json": {"loads": "json_loads"}}

_DETECTOR_MODULES = (
    "code", "copyright", "fuzzy_matching", "moderation", "pii", "prompt_injection", "secrets", "sentence_similarity",
)  # fmt: skip
_PARSERS = frozenset(("html_code", "images", "links", "ocr"))
_QUANTIFIERS = frozenset(("count", "forall"))

MODULES = frozenset(
    (
        "invariant", "invariant.builtins", "invariant.nodes", "invariant.message", "invariant.errors",
        "invariant.quantifiers", "invariant.llm", "invariant.access_control", "invariant.detectors",
        "invariant.parsers", "invariant.parsers.html", "invariant.parsers.ocr",
        *(f"invariant.detectors.{module}" for module in _DETECTOR_MODULES), *PYTHON_MODULES,
    )
)  # fmt: skip


def resolve(module: str, name: str, detectors: frozenset[str]) -> Imported | None:
    """Return what ``from module import name`` means, None if the module has no such name."""
    if module in PYTHON_MODULES:
        function = PYTHON_MODULES[module].get(name)
        return None if function is None else Imported("function", function)
    if module.startswith("invariant.detectors"):
        return Imported("detector", name) if name in detectors and name not in _PARSERS else None
    if module.startswith("invariant.parsers"):
        return Imported("detector", name) if name in detectors and name in _PARSERS else None
    if name in _QUANTIFIERS:
        return Imported("quantifier", name)
    if name in FUNCTIONS or name in ("find", "match"):
        return Imported("function", name)
    if name in FIELDS:
        return Imported("kind", name)
    if name in ("PolicyViolation", "Violation"):
        return Imported("violation", name)
    return Imported("detector", name) if module in ("invariant", "invariant.llm") and name in detectors else None


def names_of(module: str, detectors: frozenset[str]) -> frozenset[str]:
    """Return the names that a module offers, for suggestions."""
    if module in PYTHON_MODULES:
        return frozenset(PYTHON_MODULES[module])
    every = {*detectors, *FUNCTIONS, *FIELDS, *_QUANTIFIERS, "find", "match", "PolicyViolation"}
    return frozenset(name for name in every if resolve(module, name, detectors) is not None)
