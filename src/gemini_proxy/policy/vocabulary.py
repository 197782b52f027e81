"""List the words of the language for highlighting and completion, in the Explorer's editor and in other editors.

Names come from the compiler's tables. This module has their meanings in one line each; ``docs/policies.md`` has the
details.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from gemini_proxy.policy.compile.imports import MODULES, Role, names_of, resolve
from gemini_proxy.policy.compile.scope import VALUE_KINDS
from gemini_proxy.policy.detectors import DetectorRegistry, positional
from gemini_proxy.policy.detectors.pii import ENTITIES
from gemini_proxy.policy.parse.lexer import NAME, NUMBER, OPERATOR, TOOL
from gemini_proxy.policy.parse.parser import CONSTANTS, KEYWORDS
from gemini_proxy.policy.run.builtins import FUNCTIONS
from gemini_proxy.policy.run.events import FIELDS
from gemini_proxy.policy.run.methods import ARITY

_ABOUT: Final[Mapping[str, tuple[str, str]]] = {
    "PolicyViolation": ('("message", key=value, scope="new")', "what a rule raises: a message and named values"),
    "acts": ("(call)", "whether a call has an effect"),
    "all": ("(list)", "whether all items are true"),
    "any": ("(list)", "whether an item is true"),
    "copyright": ("(x)", "copyright notices and license texts"),
    "count": ("(min=, max=):", "whether the number of bindings for which the block below holds is within bounds"),
    "decision": ("(question, x)", "whether a model answers the question about the text with yes"),
    "empty": ("(x)", "whether it is empty"),
    "find": ("(pattern, x)", "every match in every text of x, with its range"),
    "forall": (":", "whether the conditions of the block below hold for each binding"),
    "fuzzy_contains": ("(x, query)", "whether the text contains the query, apart from a few letters"),
    "html_code": ("(x)", "a record: alt_texts, links, comments"),
    "image": ("(x, ...)", "the URLs of the images in the values"),
    "images": ("(x)", "the addresses on other hosts that a client fetches to show the text"),
    "injection_model": ("(x)", "whether a classifier rates the text as an injection"),
    "is_similar": ("(x, target)", "whether it is worded like the target"),
    "json_loads": ("(text)", "the value of a JSON text, or None if it is not JSON"),
    "len": ("(x)", "its length; 0 for None"),
    "links": ("(x)", "every http and https link"),
    "llm": ("(prompt)", "the text of a model's response"),
    "match": ("(pattern, x)", "whether the pattern matches from the beginning of the text"),
    "max": ("(...)", "the largest number"),
    "min": ("(...)", "the smallest number"),
    "model_armor": ("(x)", "the filters of a Model Armor template that match"),
    "moderated": ("(x)", "whether a model finds content that is to be moderated"),
    "normalized": ("(x)", "the text as a reader sees it"),
    "ocr": ("(x)", "the texts in the images of x"),
    "pii": ("(x, entities=[...])", "personal data, as a list of kinds"),
    "presidio": ("(x, entities=[...])", "personal data that Presidio finds, as a list of kinds"),
    "print": ("(...)", "true; writes nothing"),
    "private": ("(call)", "the values of a call that contain something from a private output"),
    "prompt_injection": ("(x)", "whether a text tries to take over the assistant: a heuristic"),
    "python_code": ("(x)", "a record: imports, builtins, function_calls, names, syntax_error"),
    "secrets": ("(x)", "keys, tokens and passwords, as a list of kinds"),
    "semgrep": ("(x, lang)", "the rules of semgrep that the code breaks"),
    "server": ("(event)", "the server named in its metadata"),
    "should_allow_rbac": ("(x, scope, user, user_roles, role_grants)", "whether a role of the user grants the scope"),
    "sum": ("(list)", "the sum of numbers"),
    "text": ("(x, ...)", "the texts of the values, as a list"),
    "tool_call": ("(output)", "the call that an output answers"),
    "tool_changed": ("(tool)", "a record if a tool is declared differently from its pin"),
    "tuple": ("(list)", "the items as a tuple"),
    "unicode": ("(x, categories=[...])", "characters that are invisible or of a Unicode category"),
    "untrusted": ("(call)", "the values of a call that come from no trusted source"),
}  # fmt: skip
_VIOLATION: Final = "PolicyViolation"
_QUANTIFIERS: Final = ("count", "forall")
_PATTERN_FUNCTIONS: Final = ("find", "match")
_NEVER_USED: Final = frozenset(("def",))
"""Keywords that the parser knows only to say that they are not part of the language."""


@dataclass(frozen=True, slots=True)
class CallableWord:
    """A name that can be called or raised. ``module`` is where it is imported from, "" where it needs no import."""

    name: str
    role: Role
    signature: str
    about: str
    module: str


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of the language by what they are. ``patterns`` are regular expressions of tokens."""

    keywords: tuple[str, ...]
    constants: tuple[str, ...]
    kinds: Mapping[str, tuple[str, ...]]
    types: tuple[str, ...]
    callables: tuple[CallableWord, ...]
    methods: tuple[str, ...]
    entities: tuple[str, ...]
    modules: Mapping[str, tuple[str, ...]]
    patterns: Mapping[str, str]

    @property
    def json(self) -> dict[str, Any]:
        return asdict(self)


def vocabulary(detectors: DetectorRegistry) -> Vocabulary:
    """Return the words of a policy that may use ``detectors``."""
    return Vocabulary(
        keywords=tuple(sorted(KEYWORDS - CONSTANTS.keys() - _NEVER_USED)),
        constants=tuple(CONSTANTS),
        kinds=FIELDS,
        types=tuple(VALUE_KINDS),
        callables=(
            *(_callable(name, "function") for name in (*_PATTERN_FUNCTIONS, *FUNCTIONS)),
            *(_callable(name, "quantifier", "invariant") for name in _QUANTIFIERS),
            _callable(_VIOLATION, "violation"),
            *(_detector(name, detectors) for name in sorted(detectors.names)),
        ),
        methods=tuple(ARITY),
        entities=tuple(sorted(ENTITIES)),
        modules={module: tuple(sorted(names_of(module, detectors.names))) for module in sorted(MODULES)},
        patterns={"name": NAME.pattern, "number": NUMBER.pattern, "operator": OPERATOR.pattern, "tool": TOOL.pattern},
    )


def _callable(name: str, role: Role, module: str = "") -> CallableWord:
    return CallableWord(name, role, *_ABOUT[name], module)


def _detector(name: str, detectors: DetectorRegistry) -> CallableWord:
    """Return a detector's word. What a plug-in finds is not known here."""
    module = next(
        module
        for module in ("invariant.detectors", "invariant.parsers", "invariant")
        if resolve(module, name, detectors.names) is not None
    )
    if name in _ABOUT:
        return _callable(name, "detector", module)
    options = positional(detectors.detectors[name])
    return CallableWord(
        name, "detector", f"({', '.join(('x', *options))})", "a detector that is installed here", module
    )
