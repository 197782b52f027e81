"""Compile a policy's text: resolve names, and check everything that can be checked at load.

Statements come in order. The lines of a rule become steps, and expressions become closures; patterns after ``is``
become tests of a value. Names, fields, arguments and options of calls, patterns and the values of constants are known
at load.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from gemini_proxy.policy.compile.code import (
    Count,
    bound,
    comparator,
    computed_pattern,
    conjunction,
    detector_call,
    disjunction,
    each_event,
    each_item,
    each_later,
    each_next,
    in_order,
    marked,
    method_call,
    negation,
    spread,
    tested,
    without_marks,
)
from gemini_proxy.policy.compile.cost import Cost
from gemini_proxy.policy.compile.hints import (
    FIELDS_ELSEWHERE,
    METHODS_ELSEWHERE,
    MODULES_ELSEWHERE,
    fail_unknown,
    knows,
    nearest,
    warn_of_comparison,
    warn_of_entities,
    warn_of_entity,
    warn_of_labels,
    warn_of_uncalled,
)
from gemini_proxy.policy.compile.imports import (
    MODULES,
    PYTHON_MODULES,
    REFUSED_MODULES,
    UNAVAILABLE,
    Imported,
    names_of,
    resolve,
)
from gemini_proxy.policy.compile.needs import needs_of
from gemini_proxy.policy.compile.schedule import Step, is_safe, schedule
from gemini_proxy.policy.compile.scope import VALUE_KINDS, Body, CompiledPredicate, Context, Known, Scope
from gemini_proxy.policy.compile.window import reads_all_messages, window_of
from gemini_proxy.policy.detectors import Detector, DetectorRegistry, positional
from gemini_proxy.policy.detectors.builtin import BUILTIN
from gemini_proxy.policy.detectors.outside import OutsideDetector, Question, whole_texts
from gemini_proxy.policy.errors import EvaluationError, PolicyError
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.parser import parse
from gemini_proxy.policy.policy import CompiledRule, Policy, Rule
from gemini_proxy.policy.run.builtins import FUNCTIONS, Function, as_text, find_all, matches
from gemini_proxy.policy.run.events import FIELDS, Event
from gemini_proxy.policy.run.methods import ARITY
from gemini_proxy.policy.run.operators import (
    arithmetic,
    attribute,
    contains,
    contains_known,
    index,
    items_of,
    negated,
    slice_of,
)
from gemini_proxy.policy.run.regex import MAX_PROGRAM, Mode, Regex, literal_finder
from gemini_proxy.policy.run.run import Code, Frame, Run
from gemini_proxy.policy.run.search import by_detector
from gemini_proxy.policy.run.texts import images_of, searched_texts, texts_of
from gemini_proxy.policy.run.values import Content, Joined, plain, word_for

# A megabyte of policy is a mistake. Callers that take policies from strangers set a lower limit.
MAX_CHARS = 1_000_000
_MAX_RULES = 1000
_MAX_BINDINGS = 12
_MAX_NESTED = 4
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

    ``source`` names the text in errors; ``detectors`` are those that a policy may import, by default the built-in ones.
    ``max_program`` limits the instructions of each regular expression, including those that a rule computes.
    """
    if len(text) > max_chars:
        raise PolicyError(source, 1, 1, f"the policy is longer than {max_chars} characters", fault="excess")
    try:
        return _Compiler(text, source, detectors if detectors is not None else BUILTIN, max_program).policy()
    except RecursionError as error:
        raise PolicyError(source, 1, 1, "the policy is nested too deeply", fault="excess", text=text) from error


@dataclass(frozen=True, slots=True)
class CompiledExpression:
    """A compiled expression.

    ``known`` is its value and ``kind`` its event kind, if they are known at load. ``kind`` is "function" for the
    function of a tool call.
    """

    code: Code
    known: Known | None = None
    kind: str | None = None


def constant(value: object, raw: str | None = None) -> CompiledExpression:
    """Return an expression that is always ``value``."""
    return CompiledExpression(lambda frame: value, Known(value, raw))


class _Compiler:
    """Compile one policy. The code of a block returns True if its ``final`` asked to stop."""

    def __init__(self, text: str, source: str, detectors: DetectorRegistry, max_program: int) -> None:
        self._text = text
        self._source = source
        self._tree = parse(text, source)
        self._context = Context(text, source, detectors, max_program)
        self._nested = 0
        self._by_type: dict[type, Callable[[Any, Scope], CompiledExpression]] = {
            syntax.Constant: self._constant, syntax.Template: self._template, syntax.Name: self._name,
            syntax.Attribute: self._attribute, syntax.Index: self._index, syntax.Slice: self._slice,
            syntax.Call: self._call, syntax.Unary: self._unary, syntax.Binary: self._binary,
            syntax.Logical: self._logical, syntax.Comparison: self._comparison, syntax.Is: self._is,
            syntax.Conditional: self._conditional, syntax.Sequence: self._sequence, syntax.Mapping: self._mapping,
            syntax.Comprehension: self._comprehension,
        }  # fmt: skip

    def policy(self) -> Policy:
        rules = [statement for statement in self._tree.statements if isinstance(statement, syntax.Raise)]
        if len(rules) > _MAX_RULES:
            self._context.fail(rules[_MAX_RULES], f"the policy has more than {_MAX_RULES} rules", fault="excess")
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
        for statement in self._tree.statements:
            if isinstance(statement, syntax.Import):
                self._import(statement)
            elif isinstance(statement, syntax.Define):
                self._define_constant(statement)
            elif isinstance(statement, syntax.Predicate):
                self._check_new(statement, statement.name)
                self._check_parameters(statement)
                self._context.predicates[statement.name] = CompiledPredicate(statement, self._predicate_body)

    def _check_new(self, node: syntax.Node, name: str) -> None:
        context = self._context
        if name in _RESERVED or name in context.constants or name in context.predicates or name in context.imported:
            context.fail(node, f'"{name}" is already defined')

    # Statements

    def _import(self, statement: syntax.Import) -> None:
        module = statement.module.replace("invariant.analyzer", "invariant", 1)
        if module in REFUSED_MODULES:
            self._context.fail(statement, f'"{statement.module}" is not available: {REFUSED_MODULES[module]}')
        if module not in MODULES:
            hint = MODULES_ELSEWHERE.get(module) or nearest(module, MODULES)
            hint = hint or "invariant, invariant.detectors and invariant.parsers are available"
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
            self._context.fail(node, f'"{alias}" is already defined')
        self._context.imported[alias] = imported

    def _define_constant(self, statement: syntax.Define) -> None:
        context = self._context
        self._check_new(statement, statement.name)
        context.allow_input = False
        scope = Scope()
        term = self._compile(statement.value, scope)
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

    def _predicate_body(self, statement: syntax.Predicate) -> Body:
        scope = Scope()
        for name, _ in statement.parameters:
            scope.bind(name)
        if all(isinstance(line, syntax.Condition) for line in statement.body):
            code = self._all_of(statement, scope)
        else:
            code = self._block(statement.body, scope, lambda frame: True)

        def apply(run: Run, args: list[Any]) -> Any:
            return code([run, *args, *[None] * (scope.size - len(args) - 1)])

        return apply

    def _all_of(self, statement: syntax.Predicate, scope: Scope) -> Code:
        """Conditions alone are one expression, so a predicate can also compute a value."""
        codes = [self._code(line.value, scope) for line in statement.body if isinstance(line, syntax.Condition)]

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
        body = self._block(statement.body, scope, lambda frame: holder[0](frame))
        args, kwargs = self._error(statement.error, scope)
        events = [slot for name, slot in scope.slots.items() if scope.kinds.get(name) in FIELDS]
        predicates = [predicate.node for predicate in self._context.predicates.values()]
        binding = frozenset(predicate.name for predicate in predicates if syntax.declarations(predicate.body))
        window = window_of(statement, self._context, binding)
        message, action = self._constant_message(statement.error, scope), self._named_text(statement, "action", scope)
        may_mask = action == "mask" or (action is None and _given(statement, "action") is not None)
        only_new = self._checks_only_new(statement, scope, binding, may_mask=may_mask)
        rule = Rule(statement.line, statement.text, window, message, action, only_new)
        compiled = CompiledRule(
            rule,
            body,
            tuple(sorted(events)),
            args,
            kwargs,
            scope.size,
            Cost(statement, predicates),
            needs_of(statement, self._context),
        )
        holder.append(compiled.fire)
        return compiled

    def _constant_message(self, error: syntax.Expr, scope: Scope) -> str | None:
        """Return what a rule says whatever it found; None if that depends on what it found."""
        if isinstance(error, syntax.Name) and error.name in ("PolicyViolation", "Violation"):
            return None
        called = isinstance(error, syntax.Call) and isinstance(error.function, syntax.Name)
        first = (error.args[0] if error.args else None) if isinstance(error, syntax.Call) and called else error
        known = self._compile(first, scope).known if first is not None else None
        return known.value if known is not None and isinstance(known.value, str) else None

    def _named_text(self, rule: syntax.Raise, name: str, scope: Scope) -> str | None:
        """Return the text that a rule gives as ``name``; None where it gives none, or not always the same."""
        given = _given(rule, name)
        known = self._compile(given, scope).known if given is not None else None
        return known.value if known is not None and isinstance(known.value, str) else None

    def _checks_only_new(self, rule: syntax.Raise, scope: Scope, binding: frozenset[str], *, may_mask: bool) -> bool:
        """Return whether a rule is about new content alone. Warn where its ``scope`` has no effect.

        It must ask only about its own events: a count or a search through all messages may depend on older content. A
        masking rule is never limited to new content, since clients send their history unmasked.
        """
        given = _given(rule, "scope")
        if given is None:
            return False
        warn = self._context.warn
        if self._named_text(rule, "scope", scope) != "new":
            warn(given, "this scope has no effect", 'write scope="new" for a rule that checks only what is new')
        elif reads_all_messages(rule, self._context, binding):
            warn(given, "this scope has no effect: count, forall and Input look at the whole conversation")
        elif may_mask:
            warn(given, "this scope has no effect: what is masked is masked in every request")
        else:
            return True
        return False

    def _error(self, error: syntax.Expr, scope: Scope) -> tuple[list[Code], Mapping[str, Code]]:
        """Compile the arguments of what a rule raises: those of PolicyViolation(...), or the one text."""
        if isinstance(error, syntax.Call) and isinstance(error.function, syntax.Name):
            imported = self._context.imported.get(error.function.name)
            name = imported.name if imported is not None else error.function.name
            if name in ("PolicyViolation", "Violation"):
                args = [self._code(arg, scope) for arg in error.args]
                return args, {key: self._code(value, scope) for key, value in error.kwargs}
        if isinstance(error, syntax.Name) and error.name in ("PolicyViolation", "Violation"):
            return [], {}
        term = self._compile(error, scope)
        if term.known is not None and not isinstance(term.known.value, str):
            self._context.fail(error, "a rule must raise a text or PolicyViolation(...)")
        return [term.code], {}

    # Lines: each step's code calls the code of the next step, once for every binding

    def _block(self, lines: Sequence[syntax.Line], scope: Scope, final: Code, *, universal: bool = False) -> Code:
        """Compile lines that must all hold: ``final`` runs for each binding for which they do, until it returns True.

        With ``universal``, a test that does not hold stops the block with True; steps then keep their order.
        """
        steps = [step for line in lines for step in self._steps(line, scope)]
        if sum(step.build is not None for step in steps) > _MAX_BINDINGS:
            self._context.fail(lines[0], f"one block declares more than {_MAX_BINDINGS} variables", fault="excess")
        self._context.check_slots(lines[0], scope)
        code = final
        for step in reversed(steps if universal else schedule(steps)):
            if step.build is not None:
                code = step.build(code)
            elif step.test is not None:
                code = tested(step.test, code, universal and step.gives is None)
        return code

    def _steps(self, line: syntax.Line, scope: Scope) -> list[Step]:
        if isinstance(line, syntax.Declaration):
            return [self._declare(line, scope)] if not self._is_again(line, scope) else []
        if isinstance(line, syntax.Flow):
            return self._flow(line, scope)
        if isinstance(line, syntax.Assignment):
            return [self._assign(line, scope)]
        if isinstance(line, syntax.Quantifier):
            needs = self._needs(line, scope)
            return [Step(needs, None, False, test=self._quantifier(line, scope))]
        needs = self._needs(line, scope)
        test = self._code(line.value, scope)
        return [Step(needs, None, self._safe(line.value, scope), test=test)]

    def _needs(self, node: syntax.Node, scope: Scope) -> frozenset[int]:
        return frozenset(scope.slots[name] for name in syntax.names_in(node) if name in scope.slots)

    def _safe(self, node: syntax.Expr, scope: Scope) -> bool:
        return is_safe(node, frozenset(self._context.constants), scope.kinds)

    def _is_again(self, line: syntax.Declaration, scope: Scope) -> bool:
        """Return whether the line declares a variable that is bound already, which means that variable."""
        if line.source is not None or line.name not in scope.slots:
            return False
        if scope.kinds.get(line.name) != line.kind:
            self._context.fail(line, f'"{line.name}" is already declared with another type')
        return True

    def _kind(self, line: syntax.Declaration) -> str:
        kind = line.kind
        imported = self._context.imported.get(kind)
        if imported is not None and imported.role == "kind":
            kind = imported.name
        if kind not in FIELDS and kind not in VALUE_KINDS:
            self._context.fail(line, f'unknown type "{kind}"', nearest(kind, (*FIELDS, *VALUE_KINDS)), fault="unknown")
        return kind

    def _declare(self, line: syntax.Declaration, scope: Scope) -> Step:
        kind = self._kind(line)
        if line.source is not None:
            needs = self._needs(line.source, scope)
            source, safe = self._code(line.source, scope), self._safe(line.source, scope)
            slot = scope.bind(line.name, kind if kind in FIELDS else None)
            return Step(needs, slot, safe, build=each_item(source, kind, slot))
        if kind not in FIELDS:
            self._context.fail(
                line, f"({line.name}: {kind}) needs a list to iterate over", f"({line.name}: {kind}) in ..."
            )
        slot = scope.bind(line.name, kind)
        return Step(frozenset(), slot, True, build=each_event(kind, slot), binds_event=True)

    def _assign(self, line: syntax.Assignment, scope: Scope) -> Step:
        needs = self._needs(line.value, scope)
        term = self._compile(line.value, scope)
        slot = scope.bind(line.name, term.kind)
        code = term.code

        def assign(frame: Frame) -> bool:
            frame[slot] = code(frame)
            return True

        return Step(needs, slot, False, test=assign)

    # Flows

    def _flow(self, line: syntax.Flow, scope: Scope) -> list[Step]:
        steps: list[Step] = []
        left = self._link(line.links[0], scope, steps)
        for arrow, link in zip(line.arrows, line.links[1:], strict=True):
            if isinstance(link, syntax.Declaration) and not self._is_again(link, scope):
                steps.append(self._follow(left, arrow, link, scope))
                left = scope.slots[link.name]
            else:
                right = self._link(link, scope, steps)
                steps.append(Step(frozenset((left, right)), None, True, test=in_order(left, arrow, right)))
                left = right
        return steps

    def _link(self, link: syntax.Declaration | syntax.Name, scope: Scope, steps: list[Step]) -> int:
        if isinstance(link, syntax.Declaration):
            if not self._is_again(link, scope):
                self._check_flow_kind(link)
                steps.append(self._declare(link, scope))
            return scope.slots[link.name]
        if link.name not in scope.slots:
            fail_unknown(self._context, link, link.name, scope.slots)
        if link.name not in scope.kinds or scope.kinds[link.name] not in FIELDS:
            self._context.fail(link, f'"{link.name}" is not an event, so a flow cannot connect it')
        return scope.slots[link.name]

    def _check_flow_kind(self, link: syntax.Declaration) -> None:
        if link.source is not None or self._kind(link) not in FIELDS or link.kind == "Input":
            self._context.fail(link, "a flow connects events", f"({link.name}: ToolCall) -> (other: ToolCall)")

    def _follow(self, left: int, arrow: str, link: syntax.Declaration, scope: Scope) -> Step:
        self._check_flow_kind(link)
        kind = self._kind(link)
        slot = scope.bind(link.name, kind)
        build = each_later(left, kind, slot) if arrow == "->" else each_next(left, kind, slot)
        return Step(frozenset((left,)), slot, True, build=build, binds_event=True)

    # Quantifiers

    def _quantifier(self, line: syntax.Quantifier, scope: Scope) -> Code:
        imported = self._context.imported.get(line.name)
        if imported is None or imported.role != "quantifier":
            fail_unknown(self._context, line, line.name, scope.slots)
        self._nested += 1
        if self._nested > _MAX_NESTED:
            self._context.fail(line, f"quantifiers are nested more than {_MAX_NESTED} deep", fault="excess")
        inner = scope.inner()
        if imported.name == "forall":
            code = self._forall(line, inner)
        else:
            code = self._count(line, scope, inner)
        scope.size = inner.size
        self._nested -= 1
        return without_marks(code, negated=True) if line.negated else code

    def _forall(self, line: syntax.Quantifier, inner: Scope) -> Code:
        if line.kwargs:
            self._context.fail(line, "forall takes no bounds")
        counterexample = self._block(line.body, inner, lambda frame: False, universal=True)
        return without_marks(counterexample, negated=True)

    def _count(self, line: syntax.Quantifier, scope: Scope, inner: Scope) -> Code:
        least, most = self._bounds(line, scope)
        state = inner.bind("count ")
        outer = set(scope.slots.values())

        def found(frame: Frame) -> bool:
            count: Count = frame[state]
            return count.add(frame, events)

        body = self._block(line.body, inner, found)
        events = [slot for name, slot in inner.slots.items() if name in inner.kinds and slot not in outer]

        def count(frame: Frame) -> bool:
            run: Run = frame[0]
            tally = frame[state] = Count(run, bound(least, frame), bound(most, frame))
            body(frame)
            return tally.settle()

        return count

    def _bounds(self, line: syntax.Quantifier, scope: Scope) -> tuple[Code | None, Code | None]:
        bounds = dict(line.kwargs)
        for name in bounds:
            if name not in ("min", "max"):
                self._context.fail(line, f'count has no bound "{name}"', "count(min=2, max=5):", fault="unknown")
        if not bounds:
            self._context.fail(line, "count needs min= or max=")
        codes = {name: self._code(value, scope) for name, value in bounds.items()}
        return codes.get("min"), codes.get("max")

    # Expressions

    def _compile(self, node: syntax.Expr, scope: Scope) -> CompiledExpression:
        """Raise PolicyError."""
        return self._by_type[type(node)](node, scope)

    def _code(self, node: syntax.Expr, scope: Scope) -> Code:
        return self._compile(node, scope).code

    def _constant(self, node: syntax.Constant, scope: Scope) -> CompiledExpression:
        return constant(node.value, node.raw)

    def _template(self, node: syntax.Template, scope: Scope) -> CompiledExpression:
        parts = [self._code(part, scope) for part in node.parts]

        def interpolate(frame: Frame) -> str:
            run = frame[0]
            shown = [as_text(run, part(frame)) for part in parts]
            run.room(sum(map(len, shown)))
            return "".join(shown)

        return CompiledExpression(interpolate)

    def _name(self, node: syntax.Name, scope: Scope) -> CompiledExpression:
        slot = scope.slots.get(node.name)
        if slot is not None:
            return CompiledExpression(lambda frame: frame[slot], kind=scope.kinds.get(node.name))
        known = self._context.constants.get(node.name)
        if known is not None:
            return constant(known.value, known.raw)
        if node.name == "input":
            self._context.fail(node, "input must be followed by the name of a parameter", "input.name")
        imported = self._context.imported.get(node.name)
        if imported is not None and imported.role == "module":
            self._context.fail(
                node, f'"{node.name}" is a module', f"call one of its functions, as in {node.name}.loads(...)"
            )
        if node.name in self._context.predicates or imported is not None:
            self._context.fail(node, f'"{node.name}" must be called', f"{node.name}(...)")
        fail_unknown(self._context, node, node.name, scope.slots)

    def _attribute(self, node: syntax.Attribute, scope: Scope) -> CompiledExpression:
        if isinstance(node.value, syntax.Name) and node.value.name == "input" and "input" not in scope.slots:
            return self._parameter(node)
        inner = self._compile(node.value, scope)
        name, code = node.name, inner.code
        warn_of_uncalled(self._context, node, scope)
        if inner.kind == "function":
            if name not in ("name", "arguments"):
                self._context.fail(
                    node, f'a function has no field "{name}"', "it has name and arguments", fault="unknown"
                )
            return CompiledExpression(lambda frame: code(frame)[name])
        if inner.kind is not None:
            return self._event_field(node, inner, scope)
        return CompiledExpression(lambda frame: attribute(code(frame), name))

    def _event_field(self, node: syntax.Attribute, inner: CompiledExpression, scope: Scope) -> CompiledExpression:
        kind, name, code = str(inner.kind), node.name, inner.code
        if name not in FIELDS[kind]:
            event = node.value.name if isinstance(node.value, syntax.Name) else "..."
            hint = FIELDS_ELSEWHERE.get((kind, name), "").format(event) or nearest(name, FIELDS[kind])
            hint = hint or f"it has {', '.join(FIELDS[kind])}"
            self._context.fail(node, f'{kind} has no field "{name}"', hint, fault="unknown")
        if name == "content":
            return CompiledExpression(lambda frame: code(frame).content)
        if kind == "ToolCall" and name == "function":
            return CompiledExpression(lambda frame: code(frame).data["function"], kind="function")
        if name in ("role", "tool_call_id", "id", "type", "text", "name"):
            return CompiledExpression(lambda frame: code(frame).data.get(name))
        return CompiledExpression(lambda frame: code(frame).field(name))

    def _parameter(self, node: syntax.Attribute) -> CompiledExpression:
        if not self._context.allow_input:
            self._context.fail(node, "a constant cannot read input, which is only known during a check")
        name = node.name
        self._context.parameters.add(name)

        def read(frame: Frame) -> Any:
            parameters = frame[0].parameters
            if name not in parameters:
                raise EvaluationError(f'missing policy parameter "{name}"')
            return parameters[name]

        return CompiledExpression(read)

    def _index(self, node: syntax.Index, scope: Scope) -> CompiledExpression:
        value, key = self._code(node.value, scope), self._code(node.key, scope)
        return CompiledExpression(lambda frame: index(value(frame), key(frame)))

    def _slice(self, node: syntax.Slice, scope: Scope) -> CompiledExpression:
        value = self._code(node.value, scope)
        start = constant(None).code if node.start is None else self._code(node.start, scope)
        stop = constant(None).code if node.stop is None else self._code(node.stop, scope)
        return CompiledExpression(lambda frame: slice_of(value(frame), start(frame), stop(frame), frame[0]))

    def _sequence(self, node: syntax.Sequence, scope: Scope) -> CompiledExpression:
        terms = [self._compile(item, scope) for item in node.items]
        if all(term.known is not None for term in terms):
            values = [term.known.value for term in terms if term.known is not None]
            return constant(values if node.mutable else tuple(values))
        codes = [term.code for term in terms]
        if node.mutable:
            return CompiledExpression(lambda frame: [code(frame) for code in codes])
        return CompiledExpression(lambda frame: tuple(code(frame) for code in codes))

    def _mapping(self, node: syntax.Mapping, scope: Scope) -> CompiledExpression:
        entries = [(self._compile(key, scope), self._code(value, scope)) for key, value in node.entries]
        for (key, _), (written, _) in zip(entries, node.entries, strict=True):
            if key.known is not None and not isinstance(key.known.value, str | int | float):
                self._context.fail(written, "a key must be a text or a number")

        def build(frame: Frame) -> dict[Any, Any]:
            built = {}
            for key, value in entries:
                name = key.code(frame)
                if not isinstance(name, str | int | float):
                    raise EvaluationError("a key must be a text or a number")
                built[name] = value(frame)
            return built

        return CompiledExpression(build)

    # Operators

    def _unary(self, node: syntax.Unary, scope: Scope) -> CompiledExpression:
        operand = self._compile(node.operand, scope)
        code = operand.code
        if node.operator == "not":
            return CompiledExpression(negation(code))
        if node.operator == "+":
            return CompiledExpression(lambda frame: arithmetic(frame[0], "+", 0, code(frame)))
        if operand.known is not None and isinstance(operand.known.value, int | float):
            return constant(-operand.known.value)
        return CompiledExpression(lambda frame: negated(code(frame)))

    def _binary(self, node: syntax.Binary, scope: Scope) -> CompiledExpression:
        left, right = self._compile(node.left, scope), self._compile(node.right, scope)
        operator, first, second = node.operator, left.code, right.code
        if operator == "%" and left.known is not None and isinstance(left.known.value, str):
            self._context.fail(node, "% cannot format a text", 'write f"... {value}"')

        def compute(frame: Frame) -> Any:
            return arithmetic(frame[0], operator, first(frame), second(frame))

        if left.known is None or right.known is None:
            return CompiledExpression(compute)
        value = self._context.evaluate(node, compute)
        return constant(value, _joined_raw(left.known, right.known) if operator == "+" else None)

    def _logical(self, node: syntax.Logical, scope: Scope) -> CompiledExpression:
        codes = [self._code(operand, scope) for operand in node.operands]
        return CompiledExpression(conjunction(codes) if node.operator == "and" else disjunction(codes))

    def _comparison(self, node: syntax.Comparison, scope: Scope) -> CompiledExpression:
        left = self._compile(node.first, scope)
        self._require_known(node, scope)
        warn_of_comparison(self._context, node, scope)
        if left.known is not None and node.rest[0][0] in ("in", "not in"):
            warn_of_labels(self._context, node, left.known.value, node.rest[0][1])
        if len(node.rest) == 1 and node.rest[0][0] == "in" and left.known is not None:
            return self._in(left.known.value, node.rest[0][1], scope)
        first = left.code
        rest = [(comparator(operator), self._code(operand, scope)) for operator, operand in node.rest]
        if len(rest) == 1:
            compare, second = rest[0]
            return CompiledExpression(lambda frame: compare(frame[0], first(frame), second(frame)))

        def chain(frame: Frame) -> bool:
            left = first(frame)
            for compare, code in rest:
                right = code(frame)
                if not compare(frame[0], left, right):
                    return False
                left = right
            return True

        return CompiledExpression(chain)

    def _require_known(self, node: syntax.Comparison, scope: Scope) -> None:
        """Complain of an unknown name on the right, which may be meant as a tool or as a text."""
        kind = scope.kinds.get(node.first.name) if isinstance(node.first, syntax.Name) else None
        for _, operand in node.rest:
            if isinstance(operand, syntax.Name) and not knows(self._context, operand.name, scope.slots):
                tool = f"write {node.first.name} is tool:{operand.name}" if isinstance(node.first, syntax.Name) else ""
                hint = tool if kind in ("ToolCall", "ToolOutput") else f'a text is written in quotes: "{operand.name}"'
                fail_unknown(self._context, operand, operand.name, scope.slots, hint)

    def _in(self, needle: object, hay_node: syntax.Expr, scope: Scope) -> CompiledExpression:
        """Compile ``in`` with a left side that is known at load."""
        hay = self._code(hay_node, scope)
        finder = literal_finder(needle) if isinstance(needle, str) else None
        if finder is None or not isinstance(needle, str):
            return CompiledExpression(lambda frame: contains(frame[0], needle, hay(frame)))
        text, regex = needle, finder
        return CompiledExpression(lambda frame: contains_known(frame[0], text, regex, hay(frame)))

    def _is(self, node: syntax.Is, scope: Scope) -> CompiledExpression:
        value = self._code(node.value, scope)
        matcher = _matcher(self._context, node.pattern)
        if node.negated:
            return CompiledExpression(negation(lambda frame: matcher(frame[0], value(frame))))
        return CompiledExpression(lambda frame: matcher(frame[0], value(frame)))

    def _conditional(self, node: syntax.Conditional, scope: Scope) -> CompiledExpression:
        condition, then = self._code(node.condition, scope), self._code(node.then, scope)
        otherwise = self._code(node.otherwise, scope)
        return CompiledExpression(lambda frame: then(frame) if condition(frame) else otherwise(frame))

    def _comprehension(self, node: syntax.Comprehension, scope: Scope) -> CompiledExpression:
        source = self._code(node.source, scope)
        inner = scope.inner()
        slots = [inner.bind(name) for name in node.names]
        conditions = [self._code(condition, inner) for condition in node.conditions]
        element = self._code(node.element, inner)
        scope.size = inner.size
        self._context.check_slots(node, scope)

        def collect(frame: Frame) -> list[Any]:
            run = frame[0]
            found: list[Any] = []
            for item in items_of(source(frame), run):
                run.left -= 1
                if run.left < 0:
                    run.refill()
                spread(frame, slots, item)
                if all(condition(frame) for condition in conditions):
                    found.append(element(frame))
            run.items(len(found))
            return found

        return CompiledExpression(collect)

    # Calls

    def _call(self, node: syntax.Call, scope: Scope) -> CompiledExpression:
        if isinstance(node.function, syntax.Attribute):
            module = self._module_of(node.function.value, scope)
            if module is not None:
                return self._module_call(node, node.function, module, scope)
            return self._method_call(node, node.function, scope)
        if not isinstance(node.function, syntax.Name):
            self._context.fail(node, "only functions and methods can be called")
        name = node.function.name
        if name in scope.slots or name in self._context.constants:
            self._context.fail(node, f'"{name}" is not a function')
        predicate = self._context.predicates.get(name)
        if predicate is not None:
            return self._predicate_call(node, predicate, scope)
        return self._named(node, name, scope)

    def _named(self, node: syntax.Call, name: str, scope: Scope) -> CompiledExpression:
        imported = self._context.imported.get(name)
        role, name = (imported.role, imported.name) if imported is not None else ("function", name)
        if role == "detector":
            return self._detector_call(node, name, scope)
        if role == "function" and name in ("find", "match"):
            return self._regex_call(node, name, scope)
        if role == "function" and name in FUNCTIONS:
            return self._function_call(node, name, FUNCTIONS[name], scope)
        if role == "quantifier":
            self._context.fail(node, f"{name} must begin a block", f"{name}(...): and an indented block")
        if name in ("PolicyViolation", "Violation"):
            self._context.fail(node, "a violation can only be raised")
        if name in UNAVAILABLE:
            self._context.fail(node, f"{name} is not available: it needs {UNAVAILABLE[name]}")
        fail_unknown(self._context, node, name, scope.slots)

    def _module_of(self, node: syntax.Expr, scope: Scope) -> str | None:
        """Return the Python module that a name stands for."""
        if not isinstance(node, syntax.Name) or node.name in scope.slots:
            return None
        imported = self._context.imported.get(node.name)
        return imported.name if imported is not None and imported.role == "module" else None

    def _module_call(
        self, node: syntax.Call, function: syntax.Attribute, module: str, scope: Scope
    ) -> CompiledExpression:
        functions = PYTHON_MODULES[module]
        name = functions.get(function.name)
        if name is None:
            known = " and ".join(f"{module}.{known}(...)" for known in functions)
            self._context.fail(
                function, f"{module}.{function.name} is not available", f"there is {known}", fault="unknown"
            )
        return self._function_call(node, name, FUNCTIONS[name], scope)

    def _arguments(self, node: syntax.Call, scope: Scope) -> tuple[list[Code], dict[str, Code]]:
        args = [self._code(arg, scope) for arg in node.args]
        return args, {name: self._code(value, scope) for name, value in node.kwargs}

    def _check(self, node: syntax.Call, name: str, least: int, most: int, keywords: frozenset[str]) -> None:
        if not least <= len(node.args) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            self._context.fail(node, f"{name}(...) takes {wanted} arguments, not {len(node.args)}")
        for keyword, value in node.kwargs:
            if keyword not in keywords:
                self._context.fail(
                    value, f'{name}(...) has no option "{keyword}"', nearest(keyword, keywords), fault="unknown"
                )

    def _function_call(self, node: syntax.Call, name: str, function: Function, scope: Scope) -> CompiledExpression:
        self._check(node, name, function.least, function.most, function.keywords)
        self._context.called.add(name)
        args, kwargs = self._arguments(node, scope)
        call = function.call
        if len(args) == 1 and not kwargs:
            only = args[0]
            return CompiledExpression(lambda frame: call(frame[0], only(frame)))

        def apply(frame: Frame) -> Any:
            named = {key: code(frame) for key, code in kwargs.items()}
            return call(frame[0], *[arg(frame) for arg in args], **named)

        return CompiledExpression(apply)

    def _regex_call(self, node: syntax.Call, name: str, scope: Scope) -> CompiledExpression:
        self._check(node, name, 2, 2, frozenset())
        pattern, value = self._compile(node.args[0], scope), self._code(node.args[1], scope)
        mode: Mode = "find" if name == "find" else "match"
        use = find_all if name == "find" else matches
        if pattern.known is None:
            return CompiledExpression(computed_pattern(pattern.code, value, mode, self._context.max_program))
        if not isinstance(pattern.known.value, str):
            self._context.fail(node.args[0], f"a pattern must be a text, not a {word_for(pattern.known.value)}")
        written = pattern.known.raw if pattern.known.raw is not None else pattern.known.value
        regex = self._context.regex(node.args[0], written, mode)
        return CompiledExpression(lambda frame: use(frame[0], regex, value(frame)))

    def _detector_call(self, node: syntax.Call, name: str, scope: Scope) -> CompiledExpression:
        detector = self._context.detectors.detectors[name]
        if isinstance(detector, OutsideDetector):
            return self._asked(node, detector, scope)
        models: frozenset[str] = getattr(detector, "models", frozenset())
        if models and "model" in dict(node.kwargs):
            return self._by_model(node, name, models, scope)
        by_position = positional(detector)
        most = 1 + len(by_position) if by_position or isinstance(detector, Detector) else 3
        self._check(node, name, 1, most, detector.options)
        warn_of_entities(self._context, node, name, by_position)
        args, kwargs = self._arguments(node, scope)
        value, rest = args[0], args[1:]
        named = dict(zip(by_position, rest, strict=False))
        for option in named.keys() & kwargs.keys():
            self._context.fail(node, f'{name}(...) gets "{option}" twice')
        kwargs, rest = kwargs | named, rest[len(named) :]
        apply = detector_call(detector)

        def detect(frame: Frame) -> Any:
            run: Run = frame[0]
            texts = list(searched_texts(value(frame)))
            options = {key: code(frame) for key, code in kwargs.items()}
            values = [arg(frame) for arg in rest]
            parsed = apply(texts, values, options, run)
            if parsed.findings:
                run.items(len(parsed.findings))
                run.marks.extend((texts[found.text], found.start, found.end) for found in parsed.findings)
            if not any(type(text) is Joined for text in texts):
                return parsed.value
            key = (name, repr(values), repr(options))
            return by_detector(run, key, lambda reading: apply([reading], values, options, run), texts, parsed)

        return CompiledExpression(detect)

    def _by_model(self, node: syntax.Call, name: str, models: frozenset[str], scope: Scope) -> CompiledExpression:
        """Compile a detector's call that is answered by the detector named in its option ``model``."""
        model = dict(node.kwargs)["model"]
        if not isinstance(model, syntax.Constant) or model.value not in models:
            known = " or ".join(f'"{each}"' for each in sorted(models))
            self._context.fail(
                model, f"the model of {name}(...) must be written in the call as {known}", fault="unknown"
            )
        if model.value not in self._context.detectors.names:
            needed = UNAVAILABLE[model.value]
            self._context.fail(node, f'{name}(..., model="{model.value}") is not available: it needs {needed}')
        rest = tuple(option for option in node.kwargs if option[0] != "model")
        return self._detector_call(replace(node, kwargs=rest), model.value, scope)

    def _asked(self, node: syntax.Call, detector: OutsideDetector, scope: Scope) -> CompiledExpression:
        """Compile a call that needs an answer from outside. Until there is one, its value is that of no text."""
        name = detector.name
        if not self._context.allow_input:
            self._context.fail(node, f"a constant cannot ask: {name}(...) belongs in a rule")
        self._check(node, name, 0, len(detector.positional), detector.options | set(detector.positional))
        args, kwargs = self._arguments(node, scope)
        for option in detector.positional[: len(args)]:
            if option in kwargs:
                self._context.fail(node, f'{name}(...) gets "{option}" twice')
        kwargs |= dict(zip(detector.positional, args, strict=False))
        for needed in detector.positional[: detector.positional.index(detector.subject) + 1]:
            if needed not in kwargs:
                self._context.fail(node, f'{name}(...) needs "{needed}"')
        subject = kwargs.pop(detector.subject)
        self._context.asks.add(name)

        def ask(frame: Frame) -> Any:
            run: Run = frame[0]
            value = subject(frame)
            texts = images_of(value) if detector.images else list(searched_texts(value))
            options = plain({key: code(frame) for key, code in kwargs.items()}, run)
            written = orjson.dumps(options, option=orjson.OPT_SORT_KEYS).decode()
            wholes = whole_texts(texts)
            answered = [run.answer(Question(name, text, written)) for text in wholes]
            answers = [
                detector.nothing if answer is None else marked(run, answer, standing)
                for answer, standing in zip(answered, wholes.values(), strict=True)
            ]
            if not detector.placed and any(answers):
                run.marks.extend((text, -1, -1) for text in texts)
            return detector.joined(answers)

        return CompiledExpression(ask)

    def _predicate_call(self, node: syntax.Call, predicate: CompiledPredicate, scope: Scope) -> CompiledExpression:
        if node.kwargs or len(node.args) != len(predicate.parameters):
            self._context.fail(node, f"{predicate.name}(...) takes {len(predicate.parameters)} arguments")
        args = [self._compile(arg, scope) for arg in node.args]
        for arg, written, (name, kind) in zip(args, node.args, predicate.parameters, strict=True):
            if arg.kind in FIELDS and kind in FIELDS and arg.kind != kind:
                self._context.fail(written, f'"{name}" is a {kind}, not a {arg.kind}')
        predicate.compile(self._context, node)
        codes = [arg.code for arg in args]

        def apply(frame: Frame) -> Any:
            run = frame[0]
            run.left -= 1
            if run.left < 0:
                run.refill()
            return predicate.apply(run, [code(frame) for code in codes])

        return CompiledExpression(apply)

    def _method_call(self, node: syntax.Call, function: syntax.Attribute, scope: Scope) -> CompiledExpression:
        name = function.name
        if name not in ARITY:
            hint = METHODS_ELSEWHERE.get(name) or nearest(name, ARITY)
            self._context.fail(function, f'unknown method "{name}"', hint, fault="unknown")
        least, most = ARITY[name]
        if name != "format":
            self._check(node, name, least, most, frozenset())
        inner = self._compile(function.value, scope)
        if inner.kind is not None and inner.kind != "function":
            self._context.fail(
                function, f"a {inner.kind} has no methods", "read a field first, as in .content", fault="unknown"
            )
        args, kwargs = self._arguments(node, scope)
        return CompiledExpression(method_call(inner.code, name, args, kwargs))


def _joined_raw(left: Known, right: Known) -> str | None:
    """Two string literals joined are the pattern that both texts make."""
    if not isinstance(left.value, str) or not isinstance(right.value, str):
        return None
    raws = [known.raw if known.raw is not None else str(known.value) for known in (left, right)]
    return "".join(raws)


def _given(rule: syntax.Raise, name: str) -> syntax.Expr | None:
    """Return what a rule gives its violation as ``name``, None if it gives nothing."""
    return dict(rule.error.kwargs).get(name) if isinstance(rule.error, syntax.Call) else None


# Patterns after ``is``: which tool, and what its arguments must look like

_Matcher = Callable[[Run, Any], bool]


def _matcher(context: Context, pattern: syntax.Pattern) -> _Matcher:
    """Compile a test of a value. A tool output is tested as its call, without a call by its own ``name``."""
    if isinstance(pattern, syntax.ToolPattern):
        return _tool_matcher(context, pattern)
    if isinstance(pattern, syntax.TextPattern):
        return _text_matcher(context, pattern)
    if isinstance(pattern, syntax.Wildcard):
        return lambda run, value: True
    if isinstance(pattern, syntax.EntityPattern):
        return _entity_matcher(context, pattern)
    if isinstance(pattern, syntax.ListPattern):
        return _list_matcher([_matcher(context, item) for item in pattern.items])
    if isinstance(pattern, syntax.MappingPattern):
        return _mapping_matcher([(key, _matcher(context, item)) for key, item in pattern.entries])
    return _literal_matcher(pattern.value)


def _tool_matcher(context: Context, pattern: syntax.ToolPattern) -> _Matcher:
    name = pattern.name
    arguments = None if pattern.arguments is None else _matcher(context, pattern.arguments)

    def match_tool(run: Run, value: Any) -> bool:
        if type(value) is not Event:
            return False
        call = value.call if value.kind == "ToolOutput" else value
        if call is None:
            # The client left the call out of the history: only the output itself names its tool.
            return arguments is None and value.data.get("name") == name
        if call.kind != "ToolCall":
            return False
        function = call.data["function"]
        return function["name"] == name and (arguments is None or arguments(run, function["arguments"]))

    return match_tool


def _text_matcher(context: Context, pattern: syntax.TextPattern) -> _Matcher:
    written = pattern.value
    if isinstance(written, syntax.Name):
        known = context.constants.get(written.name)
        if known is None:
            fail_unknown(context, written, written.name, ())
        if not isinstance(known.value, str):
            return _literal_matcher(known.value)
        literal, raw = known.value, known.raw
    else:
        literal, raw = str(written.value), written.raw
    regex = context.regex(pattern, raw if raw is not None else literal, "whole")
    return _whole_matcher(regex, literal)


def _whole_matcher(regex: Regex, literal: str) -> _Matcher:
    def match_text(run: Run, value: Any) -> bool:
        if isinstance(value, str):
            if value == literal or regex.test(value, run):
                return True
            run.marks.append((value, -1, -1))
            return False
        return type(value) is Content and any([match_text(run, text) for text in value.texts])

    return match_text


def _entity_matcher(context: Context, pattern: syntax.EntityPattern) -> _Matcher:
    detector = context.detectors.detectors.get("pii")
    if not isinstance(detector, Detector):
        context.fail(pattern, f"<{pattern.entity}> needs the pii detector, which is not installed")
    known = getattr(detector, "entities", frozenset((pattern.entity,)))
    warn_of_entity(context, pattern, "pii", pattern.entity)
    if pattern.entity not in known | getattr(detector, "not_found", frozenset()):
        context.fail(pattern, f"unknown entity <{pattern.entity}>", f"one of {', '.join(sorted(known))}")
    options = {"entities": [pattern.entity]}

    def match_entity(run: Run, value: Any) -> bool:
        texts = list(texts_of(value))
        findings = list(detector.detect(texts, options, run))
        run.marks.extend((texts[found.text], found.start, found.end) for found in findings)
        return bool(findings)

    return match_entity


def _list_matcher(items: list[_Matcher]) -> _Matcher:
    def match_list(run: Run, value: Any) -> bool:
        if not isinstance(value, list | tuple) or len(value) != len(items):
            return False
        return all(matcher(run, item) for matcher, item in zip(items, value, strict=True))

    return match_list


def _mapping_matcher(entries: list[tuple[str, _Matcher]]) -> _Matcher:
    def match_mapping(run: Run, value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        return all(key in value and matcher(run, value[key]) for key, matcher in entries)

    return match_mapping


def _literal_matcher(expected: object) -> _Matcher:
    if isinstance(expected, bool) or expected is None:
        return lambda run, value: value is expected
    return lambda run, value: not isinstance(value, bool) and bool(value == expected)
