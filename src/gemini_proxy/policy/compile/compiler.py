"""A policy's text to a Policy: statements in order, names resolved, everything checked that can be."""

from collections.abc import Mapping
from typing import Any

from gemini_proxy.policy.compile.cost import Cost, declarations
from gemini_proxy.policy.compile.imports import (
    MODULES,
    PYTHON_MODULES,
    REFUSED_MODULES,
    UNAVAILABLE,
    Imported,
    names_of,
    resolve,
)
from gemini_proxy.policy.compile.predicates import Body, CompiledPredicate
from gemini_proxy.policy.compile.quantifiers import QuantifierCompiler
from gemini_proxy.policy.compile.scope import VALUE_KINDS, Context, Known, Scope, nearest
from gemini_proxy.policy.compile.window import window_of
from gemini_proxy.policy.detectors import DetectorRegistry
from gemini_proxy.policy.detectors.builtin import BUILTIN
from gemini_proxy.policy.errors import PolicyError
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.parser import parse
from gemini_proxy.policy.policy import CompiledRule, Policy
from gemini_proxy.policy.run.events import FIELDS
from gemini_proxy.policy.run.regex import MAX_PROGRAM
from gemini_proxy.policy.run.rules import Rule
from gemini_proxy.policy.run.run import Code, Frame, Run

# A megabyte of policy is a mistake; who takes policies from strangers sets a lower bound.
MAX_CHARS = 1_000_000
_MAX_RULES = 1000
_RESERVED = frozenset(("input", "find", "match", "PolicyViolation", "Violation"))


def compile_policy(
    text: str,
    source: str = "<policy>",
    *,
    detectors: DetectorRegistry | None = None,
    max_chars: int = MAX_CHARS,
    max_program: int = MAX_PROGRAM,
) -> Policy:
    """Compile a policy. Raises PolicyError and nothing else, whatever the text.

    ``source`` names the text in errors; ``detectors`` are those a policy may import, by default the built-in ones.
    ``max_program`` is how many instructions a regular expression may have, one that a rule computes included.
    """
    if len(text) > max_chars:
        raise PolicyError(source, 1, 1, f"the policy is longer than {max_chars} characters", fault="excess")
    try:
        return _PolicyCompiler(text, source, detectors if detectors is not None else BUILTIN, max_program).policy()
    except RecursionError as error:
        raise PolicyError(source, 1, 1, "the policy is nested too deeply", fault="excess", text=text) from error


class _PolicyCompiler:
    def __init__(self, text: str, source: str, detectors: DetectorRegistry, max_program: int) -> None:
        self._text = text
        self._source = source
        self._module = parse(text, source)
        self._context = Context(text, source, detectors, max_program)
        self._compiler = QuantifierCompiler(self._context)

    def policy(self) -> Policy:
        rules = [statement for statement in self._module.statements if isinstance(statement, syntax.Raise)]
        if len(rules) > _MAX_RULES:
            self._context.fail(rules[_MAX_RULES], f"more than {_MAX_RULES} rules", fault="excess")
        self._define_names()
        for predicate in self._context.predicates.values():
            predicate.compile(self._context, predicate.node)
        compiled = tuple(self._rule(rule) for rule in rules)
        if not compiled:
            self._context.warn(syntax.Node(1, 1), "this policy has no rule")
        context = self._context
        parameters, called, asks = frozenset(context.parameters), frozenset(context.called), frozenset(context.asks)
        return Policy(self._source, self._text, compiled, parameters, called, asks, tuple(context.warnings))

    def _define_names(self) -> None:
        for statement in self._module.statements:
            if isinstance(statement, syntax.Import):
                self._import(statement)
            elif isinstance(statement, syntax.Define):
                self._constant(statement)
            elif isinstance(statement, syntax.Predicate):
                self._check_new(statement, statement.name)
                self._check_parameters(statement)
                self._context.predicates[statement.name] = CompiledPredicate(statement, self._predicate)

    def _check_new(self, node: syntax.Node, name: str) -> None:
        context = self._context
        if name in _RESERVED or name in context.constants or name in context.predicates or name in context.imported:
            context.fail(node, f'"{name}" is defined already')

    # Statements

    def _import(self, statement: syntax.Import) -> None:
        module = statement.module.replace("invariant.analyzer", "invariant", 1)
        if module in REFUSED_MODULES:
            self._context.fail(statement, f'"{statement.module}" is not available: {REFUSED_MODULES[module]}')
        if module not in MODULES:
            hint = nearest(module, MODULES) or "invariant, invariant.detectors and invariant.parsers are available"
            self._context.fail(statement, f'"{statement.module}" cannot be imported', hint)
        if module in PYTHON_MODULES and statement.alias:
            self._bind_import(statement, statement.alias, Imported("module", module))
        for name, alias in statement.names:
            self._import_name(module, name, alias)

    def _import_name(self, module: str, name: syntax.Name, alias: str) -> None:
        context = self._context
        imported = resolve(module, name.name, context.detectors.names)
        if imported is None and name.name in UNAVAILABLE and name.name not in context.detectors.names:
            context.fail(name, f"{name.name} is not available: it needs {UNAVAILABLE[name.name]}")
        if imported is None:
            hint = nearest(name.name, names_of(module, context.detectors.names))
            context.fail(name, f'"{module}" has nothing named "{name.name}" to import', hint)
        self._bind_import(name, alias, imported, renamed=alias != name.name)

    def _bind_import(self, node: syntax.Node, alias: str, imported: Imported, *, renamed: bool = True) -> None:
        if renamed and alias in _RESERVED:
            self._context.fail(node, f'"{alias}" is defined already')
        self._context.imported[alias] = imported

    def _constant(self, statement: syntax.Define) -> None:
        context = self._context
        self._check_new(statement, statement.name)
        context.allow_input = False
        scope = Scope()
        term = self._compiler.compile(statement.value, scope)
        context.allow_input = True
        known = term.known
        if known is None:
            slots = [None] * scope.size

            def evaluate(frame: Frame) -> Any:
                return term.code([*frame, *slots])

            known = Known(context.evaluate(statement, evaluate), None)
        context.constants[statement.name] = known

    def _check_parameters(self, statement: syntax.Predicate) -> None:
        kinds = (*FIELDS, *VALUE_KINDS)
        for name, kind in statement.parameters:
            if kind and kind not in kinds:
                self._context.fail(
                    statement, f'unknown type "{kind}" of "{name}"', nearest(kind, kinds), fault="unknown"
                )

    def _predicate(self, statement: syntax.Predicate) -> Body:
        scope = Scope()
        for name, _ in statement.parameters:
            scope.bind(name)
        if all(isinstance(line, syntax.Condition) for line in statement.body):
            code = self._all_of(statement, scope)
        else:
            code = self._compiler.block(statement.body, scope, lambda frame: True)

        def apply(run: Run, args: list[Any]) -> Any:
            return code([run, *args, *[None] * (scope.size - len(args) - 1)])

        return apply

    def _all_of(self, statement: syntax.Predicate, scope: Scope) -> Code:
        """Conditions alone are one expression, so a predicate can also compute a value."""
        codes = [
            self._compiler.code(line.value, scope) for line in statement.body if isinstance(line, syntax.Condition)
        ]

        def conjoin(frame: Frame) -> Any:
            value: Any = True
            for code in codes:
                value = code(frame)
                if not value:
                    break
            return value

        return conjoin

    def _rule(self, statement: syntax.Raise) -> CompiledRule:
        scope = Scope()
        holder: list[Code] = []
        body = self._compiler.block(statement.body, scope, lambda frame: holder[0](frame))
        args, kwargs = self._error(statement.error, scope)
        events = [slot for name, slot in scope.slots.items() if scope.kinds.get(name) in FIELDS]
        predicates = [predicate.node for predicate in self._context.predicates.values()]
        binding = frozenset(predicate.name for predicate in predicates if declarations(predicate.body))
        window = window_of(statement, self._context, binding)
        rule = Rule(statement.line, statement.text, window, self._constant_message(statement.error, scope))
        compiled = CompiledRule(
            rule, body, tuple(sorted(events)), args, kwargs, scope.size, Cost(statement, predicates)
        )
        holder.append(compiled.fire)
        return compiled

    def _constant_message(self, error: syntax.Expr, scope: Scope) -> str | None:
        """What a rule says whatever it found; None where that depends on what it found."""
        if isinstance(error, syntax.Name) and error.name in ("PolicyViolation", "Violation"):
            return None
        called = isinstance(error, syntax.Call) and isinstance(error.function, syntax.Name)
        first = (error.args[0] if error.args else None) if isinstance(error, syntax.Call) and called else error
        known = self._compiler.compile(first, scope).known if first is not None else None
        return known.value if known is not None and isinstance(known.value, str) else None

    def _error(self, error: syntax.Expr, scope: Scope) -> tuple[list[Code], Mapping[str, Code]]:
        """The arguments of what a rule raises: of PolicyViolation(...), or the one text."""
        if isinstance(error, syntax.Call) and isinstance(error.function, syntax.Name):
            imported = self._context.imported.get(error.function.name)
            name = imported.name if imported is not None else error.function.name
            if name in ("PolicyViolation", "Violation"):
                args = [self._compiler.code(arg, scope) for arg in error.args]
                return args, {key: self._compiler.code(value, scope) for key, value in error.kwargs}
        if isinstance(error, syntax.Name) and error.name in ("PolicyViolation", "Violation"):
            return [], {}
        term = self._compiler.compile(error, scope)
        if term.known is not None and not isinstance(term.known.value, str):
            self._context.fail(error, "a rule raises a text or PolicyViolation(...)")
        return [term.code], {}
