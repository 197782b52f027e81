"""Expressions to closures. What can be known at load is: names, fields, arity, patterns, constant values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gemini_proxy.policy.compile.logic_code import comparator, conjunction, disjunction, negation
from gemini_proxy.policy.compile.patterns import compile_pattern
from gemini_proxy.policy.compile.scope import Context, Known, Scope, nearest
from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.builtins import as_text
from gemini_proxy.policy.run.events import FIELDS
from gemini_proxy.policy.run.operators import (
    arithmetic,
    attribute,
    contains,
    contains_known,
    index,
    items_of,
    negated,
    slice_of,
)  # fmt: skip
from gemini_proxy.policy.run.regex import literal_finder
from gemini_proxy.policy.run.run import Code, Frame


@dataclass(frozen=True, slots=True)
class Term:
    """A compiled expression. ``known`` is its value if that is known at load; ``kind`` its event kind, or "function"
    for the function of a tool call, if that is.
    """

    code: Code
    known: Known | None = None
    kind: str | None = None


def constant(value: object, raw: str | None = None) -> Term:
    """A term that is always ``value``."""
    return Term(lambda frame: value, Known(value, raw))


class ExpressionCompiler:
    """Compiles expressions of one policy. Calls are compiled by what ``calls`` adds."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._by_type: dict[type, Callable[[Any, Scope], Term]] = {
            syntax.Constant: self._constant, syntax.Template: self._template, syntax.Name: self._name,
            syntax.Attribute: self._attribute, syntax.Index: self._index, syntax.Slice: self._slice,
            syntax.Call: self.call, syntax.Unary: self._unary, syntax.Binary: self._binary,
            syntax.Logical: self._logical, syntax.Comparison: self._comparison, syntax.Is: self._is,
            syntax.Conditional: self._conditional, syntax.Sequence: self._sequence, syntax.Mapping: self._mapping,
            syntax.Comprehension: self._comprehension,
        }  # fmt: skip

    def compile(self, node: syntax.Expr, scope: Scope) -> Term:
        """Raises PolicyError."""
        return self._by_type[type(node)](node, scope)

    def code(self, node: syntax.Expr, scope: Scope) -> Code:
        return self.compile(node, scope).code

    def call(self, node: syntax.Call, scope: Scope) -> Term:
        raise NotImplementedError

    # Names and data

    def _constant(self, node: syntax.Constant, scope: Scope) -> Term:
        return constant(node.value, node.raw)

    def _template(self, node: syntax.Template, scope: Scope) -> Term:
        parts = [self.code(part, scope) for part in node.parts]

        def interpolate(frame: Frame) -> str:
            run = frame[0]
            shown = [as_text(run, part(frame)) for part in parts]
            run.room(sum(map(len, shown)))
            return "".join(shown)

        return Term(interpolate)

    def _name(self, node: syntax.Name, scope: Scope) -> Term:
        slot = scope.slots.get(node.name)
        if slot is not None:
            return Term(lambda frame: frame[slot], kind=scope.kinds.get(node.name))
        known = self.context.constants.get(node.name)
        if known is not None:
            return constant(known.value, known.raw)
        if node.name == "input":
            self.context.fail(node, "input is read by the name of a parameter", "input.name")
        imported = self.context.imported.get(node.name)
        if imported is not None and imported.role == "module":
            self.context.fail(node, f'"{node.name}" is a module', f"call what it has, as in {node.name}.loads(...)")
        if node.name in self.context.predicates or imported is not None:
            self.context.fail(node, f'"{node.name}" must be called', f"{node.name}(...)")
        self.context.unknown(node, node.name, scope.slots)

    def _attribute(self, node: syntax.Attribute, scope: Scope) -> Term:
        if isinstance(node.value, syntax.Name) and node.value.name == "input" and "input" not in scope.slots:
            return self._parameter(node)
        inner = self.compile(node.value, scope)
        name, code = node.name, inner.code
        if inner.kind == "function":
            if name not in ("name", "arguments"):
                self.context.fail(
                    node, f'a function has no field "{name}"', "it has name and arguments", fault="unknown"
                )
            return Term(lambda frame: code(frame)[name])
        if inner.kind is not None:
            return self._event_field(node, inner, scope)
        return Term(lambda frame: attribute(code(frame), name))

    def _event_field(self, node: syntax.Attribute, inner: Term, scope: Scope) -> Term:
        kind, name, code = str(inner.kind), node.name, inner.code
        if name not in FIELDS[kind]:
            hint = nearest(name, FIELDS[kind]) or f"it has {', '.join(FIELDS[kind])}"
            self.context.fail(node, f'{kind} has no field "{name}"', hint, fault="unknown")
        if name == "content":
            return Term(lambda frame: code(frame).content)
        if kind == "ToolCall" and name == "function":
            return Term(lambda frame: code(frame).data["function"], kind="function")
        if name in ("role", "tool_call_id", "id", "type", "text", "name"):
            return Term(lambda frame: code(frame).data.get(name))
        return Term(lambda frame: code(frame).field(name))

    def _parameter(self, node: syntax.Attribute) -> Term:
        if not self.context.allow_input:
            self.context.fail(node, "a constant cannot read input, which is known only when a check runs")
        name = node.name
        self.context.parameters.add(name)

        def read(frame: Frame) -> Any:
            parameters = frame[0].parameters
            if name not in parameters:
                raise EvaluationError(f'missing policy parameter "{name}"')
            return parameters[name]

        return Term(read)

    def _index(self, node: syntax.Index, scope: Scope) -> Term:
        value, key = self.code(node.value, scope), self.code(node.key, scope)
        return Term(lambda frame: index(value(frame), key(frame)))

    def _slice(self, node: syntax.Slice, scope: Scope) -> Term:
        value = self.code(node.value, scope)
        start = constant(None).code if node.start is None else self.code(node.start, scope)
        stop = constant(None).code if node.stop is None else self.code(node.stop, scope)
        return Term(lambda frame: slice_of(value(frame), start(frame), stop(frame), frame[0]))

    def _sequence(self, node: syntax.Sequence, scope: Scope) -> Term:
        terms = [self.compile(item, scope) for item in node.items]
        if all(term.known is not None for term in terms):
            values = [term.known.value for term in terms if term.known is not None]
            return constant(values if node.mutable else tuple(values))
        codes = [term.code for term in terms]
        if node.mutable:
            return Term(lambda frame: [code(frame) for code in codes])
        return Term(lambda frame: tuple(code(frame) for code in codes))

    def _mapping(self, node: syntax.Mapping, scope: Scope) -> Term:
        entries = [(self.compile(key, scope), self.code(value, scope)) for key, value in node.entries]
        for (key, _), (written, _) in zip(entries, node.entries, strict=True):
            if key.known is not None and not isinstance(key.known.value, str | int | float):
                self.context.fail(written, "a key is a text or a number")

        def build(frame: Frame) -> dict[Any, Any]:
            built = {}
            for key, value in entries:
                name = key.code(frame)
                if not isinstance(name, str | int | float):
                    raise EvaluationError("a key is a text or a number")
                built[name] = value(frame)
            return built

        return Term(build)

    # Operators

    def _unary(self, node: syntax.Unary, scope: Scope) -> Term:
        operand = self.compile(node.operand, scope)
        code = operand.code
        if node.operator == "not":
            return Term(negation(code))
        if node.operator == "+":
            return Term(lambda frame: arithmetic(frame[0], "+", 0, code(frame)))
        if operand.known is not None and isinstance(operand.known.value, int | float):
            return constant(-operand.known.value)
        return Term(lambda frame: negated(code(frame)))

    def _binary(self, node: syntax.Binary, scope: Scope) -> Term:
        left, right = self.compile(node.left, scope), self.compile(node.right, scope)
        operator, one, other = node.operator, left.code, right.code
        if operator == "%" and left.known is not None and isinstance(left.known.value, str):
            self.context.fail(node, "% does not format text", 'write f"... {value}"')

        def compute(frame: Frame) -> Any:
            return arithmetic(frame[0], operator, one(frame), other(frame))

        if left.known is None or right.known is None:
            return Term(compute)
        value = self.context.evaluate(node, compute)
        return constant(value, _joined_raw(left.known, right.known) if operator == "+" else None)

    def _logical(self, node: syntax.Logical, scope: Scope) -> Term:
        codes = [self.code(operand, scope) for operand in node.operands]
        return Term(conjunction(codes) if node.operator == "and" else disjunction(codes))

    def _comparison(self, node: syntax.Comparison, scope: Scope) -> Term:
        left = self.compile(node.first, scope)
        if left.known is not None and node.rest[0][0] in ("in", "not in"):
            self._warn_of_labels(node, left.known.value, node.rest[0][1])
        if len(node.rest) == 1 and node.rest[0][0] == "in" and left.known is not None:
            return self._in(left.known.value, node.rest[0][1], scope)
        first = left.code
        rest = [(comparator(operator), self.code(operand, scope)) for operator, operand in node.rest]
        if len(rest) == 1:
            compare, second = rest[0]
            return Term(lambda frame: compare(frame[0], first(frame), second(frame)))

        def chain(frame: Frame) -> bool:
            left = first(frame)
            for compare, code in rest:
                right = code(frame)
                if not compare(frame[0], left, right):
                    return False
                left = right
            return True

        return Term(chain)

    def _warn_of_labels(self, node: syntax.Node, wanted: object, among: syntax.Expr) -> None:
        if isinstance(among, syntax.Call):
            for label in wanted if isinstance(wanted, list | tuple) else [wanted]:
                if isinstance(label, str):
                    self.context.warn_of_label(node, among, label)

    def _in(self, needle: object, hay_node: syntax.Expr, scope: Scope) -> Term:
        """``in`` with a left side that is known at load."""
        hay = self.code(hay_node, scope)
        finder = literal_finder(needle) if isinstance(needle, str) else None
        if finder is None or not isinstance(needle, str):
            return Term(lambda frame: contains(frame[0], needle, hay(frame)))
        text, regex = needle, finder
        return Term(lambda frame: contains_known(frame[0], text, regex, hay(frame)))

    def _is(self, node: syntax.Is, scope: Scope) -> Term:
        value = self.code(node.value, scope)
        matcher = compile_pattern(self.context, node.pattern)
        if node.negated:
            return Term(negation(lambda frame: matcher(frame[0], value(frame))))
        return Term(lambda frame: matcher(frame[0], value(frame)))

    def _conditional(self, node: syntax.Conditional, scope: Scope) -> Term:
        condition, then = self.code(node.condition, scope), self.code(node.then, scope)
        otherwise = self.code(node.otherwise, scope)
        return Term(lambda frame: then(frame) if condition(frame) else otherwise(frame))

    def _comprehension(self, node: syntax.Comprehension, scope: Scope) -> Term:
        source = self.code(node.source, scope)
        inner = scope.inner()
        slots = [inner.bind(name) for name in node.names]
        conditions = [self.code(condition, inner) for condition in node.conditions]
        element = self.code(node.element, inner)
        scope.size = inner.size
        self.context.check_slots(node, scope)

        def collect(frame: Frame) -> list[Any]:
            run = frame[0]
            found: list[Any] = []
            for item in items_of(source(frame), run):
                run.left -= 1
                if run.left < 0:
                    run.refill()
                _spread(frame, slots, item)
                if all(condition(frame) for condition in conditions):
                    found.append(element(frame))
            run.items(len(found))
            return found

        return Term(collect)


def _spread(frame: Frame, slots: list[int], item: Any) -> None:
    if len(slots) == 1:
        frame[slots[0]] = item
        return
    if not isinstance(item, list | tuple) or len(item) != len(slots):
        raise EvaluationError(f"an item does not have {len(slots)} parts")
    for slot, part in zip(slots, item, strict=True):
        frame[slot] = part


def _joined_raw(left: Known, right: Known) -> str | None:
    """Two string literals joined are the pattern that both texts make."""
    if not isinstance(left.value, str) or not isinstance(right.value, str):
        return None
    raws = [known.raw if known.raw is not None else str(known.value) for known in (left, right)]
    return "".join(raws)
