"""Keep the state of a compilation: names, slots, constants, predicates, warnings, and how to fail."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from gemini_proxy.policy.compile.imports import Imported
from gemini_proxy.policy.detectors import DetectorRegistry
from gemini_proxy.policy.errors import Fault, PolicyError, PolicyWarning
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.budget import Budget
from gemini_proxy.policy.run.events import Conversation
from gemini_proxy.policy.run.regex import Mode, Regex, RegexError
from gemini_proxy.policy.run.run import Code, Run

VALUE_KINDS = {"str": str, "int": int, "float": float, "bool": bool, "list": list, "dict": dict, "tuple": tuple}
# For all regular expressions of a policy together: compiling an instruction takes about a microsecond.
_MAX_REGEX_SIZE = 100_000
_MAX_REGEXES = 500
_MAX_SLOTS = 200
# The budget for evaluating a policy's constants.
_LOAD_BUDGET = Budget(steps=100_000, max_chars=100_000, max_total_chars=2_000_000, max_items=10_000)
# The depth of predicates that call predicates: each level costs a few Python frames at run time.
_MAX_CHAIN = 12

Body = Callable[[Run, list[Any]], Any]


@dataclass(frozen=True, slots=True)
class Known:
    """A constant: its value, and how it was written if it is a string literal."""

    value: object
    raw: str | None


@dataclass(slots=True)
class Scope:
    """The variables of one rule or predicate, each a slot of its frame; slot 0 is the Run.

    ``kinds`` says which event kind a variable is declared with.
    """

    slots: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    size: int = 1

    def bind(self, name: str, kind: str | None = None) -> int:
        """Return a new slot for a name, which hides an outer one."""
        slot = self.slots[name] = self.size
        self.size += 1
        self.kinds.pop(name, None)
        if kind is not None:
            self.kinds[name] = kind
        return slot

    def inner(self) -> "Scope":
        """Copy the names for a nested block; slots stay unique in the frame."""
        return Scope(dict(self.slots), dict(self.kinds), self.size)


class Context:
    """One compilation. ``fail`` raises PolicyError at a node."""

    def __init__(self, text: str, source: str, detectors: DetectorRegistry, max_program: int) -> None:
        self.max_program = max_program
        self.text = text
        self.source = source
        self.detectors = detectors
        self.constants: dict[str, Known] = {}
        self.predicates: dict[str, CompiledPredicate] = {}
        self.imported: dict[str, Imported] = {}
        self.parameters: set[str] = set()
        self.called: set[str] = set()
        self.asks: set[str] = set()
        self.warnings: list[PolicyWarning] = []
        self.allow_input = True
        self.predicate_depth = 0
        self._regexes: dict[tuple[str, Mode], Regex] = {}
        self._regex_size = 0
        self._load_run = Run(Conversation.of(()), {}, _LOAD_BUDGET)

    def fail(self, node: syntax.Node, reason: str, suggestion: str | None = None, *, fault: Fault = "form") -> NoReturn:
        raise PolicyError(self.source, node.line, node.column, reason, suggestion, fault=fault, text=self.text)

    def warn(self, node: syntax.Node, message: str, suggestion: str | None = None) -> None:
        warning = PolicyWarning(node.line, node.column, message, suggestion)
        if warning not in self.warnings:
            self.warnings.append(warning)

    def regex(self, node: syntax.Node, pattern: str, mode: Mode) -> Regex:
        """Compile a pattern that is known at load, once a policy."""
        regex = self._regexes.get((pattern, mode))
        if regex is None:
            try:
                regex = Regex(pattern, mode, self.max_program)
            except RegexError as error:
                self.fail(node, error.reason, error.suggestion, fault="excess" if error.excess else "form")
            self._regexes[pattern, mode] = regex
            self._regex_size += regex.size
            if self._regex_size > _MAX_REGEX_SIZE or len(self._regexes) > _MAX_REGEXES:
                self.fail(node, "the regular expressions of this policy are too large together", fault="excess")
            self._warn_about(node, regex)
        return regex

    def _warn_about(self, node: syntax.Node, regex: Regex) -> None:
        for caveat in regex.caveats:
            self.warn(node, caveat)
        if "\\\\" in regex.pattern:
            self.warn(node, r'"\\" in a pattern is a backslash in the text; write "[.]" or "\." for a dot')

    def evaluate(self, node: syntax.Node, code: Code) -> Any:
        """Evaluate an expression without variables under a small budget."""
        try:
            return code([self._load_run])
        except Exception as error:
            self.fail(node, f"this constant cannot be evaluated: {error}")

    def check_slots(self, node: syntax.Node, scope: Scope) -> None:
        if scope.size > _MAX_SLOTS:
            self.fail(node, f"a rule has more than {_MAX_SLOTS} variables", fault="excess")


class CompiledPredicate:
    """A predicate. Every call site calls ``compile`` at load; ``apply`` comes only after it."""

    def __init__(self, node: syntax.Predicate, build: "Callable[[syntax.Predicate], Body]") -> None:
        self.name = node.name
        self.parameters = node.parameters
        self.node = node
        self._build = build
        self._body: Body | None = None
        self._open = False
        self.chain = 0

    def compile(self, context: Context, caller: syntax.Node) -> None:
        if self._open:
            context.fail(caller, f'"{self.name}" calls itself; predicates cannot be recursive')
        if self._body is None:
            self._open = True
            context.predicate_depth += 1
            if context.predicate_depth > _MAX_CHAIN:
                context.fail(caller, f"predicates call each other more than {_MAX_CHAIN} deep", fault="excess")
            self._body = self._build(self.node)
            context.predicate_depth -= 1
            self._open = False

    def apply(self, run: Run, args: list[Any]) -> Any:
        assert self._body is not None
        return self._body(run, args)
