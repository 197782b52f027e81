"""What Invariant's engine groups otherwise than Python does, or does not parse.

There, how operands group depends on their shape: two operands of ``and`` or ``or`` group as in Python, and so do more
when all are calls of functions. A line that begins with a bracket or a sign goes on with the line before.
"""

import re
from collections.abc import Iterator, Sequence

from gemini_proxy.policy.errors import Warning
from gemini_proxy.policy.lint.brackets import Brackets
from gemini_proxy.policy.lint.portable_literals import has_alternatives
from gemini_proxy.policy.parse import syntax

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_METHODS = frozenset(
    ("strip", "lower", "upper", "split", "splitlines", "join", "format", "keys", "values", "items", "get")
)
_EACH = "it groups these otherwise; put each operand in brackets"


def note(node: syntax.Node, message: str) -> Warning:
    """A warning at a node."""
    return Warning(node.line, node.column, message)


def grouping(node: syntax.Node, brackets: Brackets) -> Iterator[Warning]:
    """Notes on one node: how its operands group."""
    match node:
        case syntax.Unary(operator="not", operand=operand):
            loose = isinstance(operand, syntax.Comparison | syntax.Is | syntax.Binary)
            if loose and not brackets.around(operand):
                yield note(node, "it takes not with the first word only; write not (...)")
        case syntax.Logical():
            if _is_loose(node, brackets):
                yield note(node, _EACH)
        case syntax.Comparison(rest=rest) if len(rest) > 1:
            yield note(node, "it compares the result of the first comparison; write one comparison after the other")
        case syntax.Conditional(then=then):
            loose = isinstance(then, syntax.Comparison | syntax.Logical | syntax.Is)
            if loose and not brackets.around(then, node.condition):
                yield note(
                    node, "it takes the condition with the last word before if; put what is before if in brackets"
                )


def _is_loose(node: syntax.Logical, brackets: Brackets) -> bool:
    following = (*node.operands[1:], None)
    loose = [
        operand for operand, after in zip(node.operands, following, strict=True) if not brackets.around(operand, after)
    ]
    if any(isinstance(operand, syntax.Logical) for operand in loose):
        return True
    if len(node.operands) == 2:
        return False
    ends = (node.operands[0], node.operands[-1])
    return not all(_stands_alone(operand, operand in ends) for operand in loose)


def _stands_alone(operand: syntax.Expr, at_an_end: bool) -> bool:
    if isinstance(operand, syntax.Unary) and operand.operator == "not" and at_an_end:
        operand = operand.operand
    if isinstance(operand, syntax.Call):
        return isinstance(operand.function, syntax.Name)
    return isinstance(operand, syntax.Name | syntax.Constant)


def continuations(lines: Sequence[syntax.Line], brackets: Brackets) -> Iterator[Warning]:
    """Notes on lines of one block that go on with the line before."""
    for at, line in enumerate(lines):
        # A declaration ends where it does in the first line only.
        if not isinstance(line, syntax.Condition) or not at or (at == 1 and _ends_alone(lines[0])):
            continue
        first = brackets.first_on_line(line.value)
        if first is not None and first.text in ("(", "[", "-", "+") and first.kind == "op":
            yield Warning(
                first.line, first.column, f'it reads a line that begins with "{first.text}" as the end of the line '
                "before; write True and (...)",
            )  # fmt: skip


def _ends_alone(line: syntax.Line) -> bool:
    return isinstance(line, syntax.Flow) or (isinstance(line, syntax.Declaration) and line.source is None)


def one_line(node: syntax.Raise | syntax.Quantifier, brackets: Brackets) -> Iterator[Warning]:
    """A note where a block begins on the line of its head."""
    first = node.body[0]
    place = first.links[0] if isinstance(first, syntax.Flow) else first
    inner = place.value if isinstance(place, syntax.Condition) else place
    before = brackets.before(inner)
    if before and before[-1].text == ":":
        yield note(first, "it does not parse this; put it on a line of its own")


def unknown_forms(node: syntax.Node, brackets: Brackets) -> Iterator[Warning]:
    """Notes on one node: what does not parse or load there."""
    match node:
        case syntax.Comparison(rest=rest):
            yield from _comparators(node, [comparator for comparator, _ in rest], rest[0][1])
        case syntax.Is(negated=True):
            yield note(node, "is not with a pattern never holds; write not (x is ...)")
        case syntax.Binary(operator="//"):
            yield note(node, "it has no //; write x / y")
        case syntax.Slice():
            yield note(node, "it has no slices; use find or match with a pattern")
        case syntax.Sequence(mutable=False, items=items) if items:
            yield note(node, "it reads only the first item; write a list in [ ]")
        case syntax.Call(function=function):
            yield from _calls(node, function)
        case syntax.Comprehension(names=names, conditions=conditions):
            inside = any(token.text == "[" for token in brackets.before(node))
            if not inside or len(names) > 1 or len(conditions) > 1:
                yield note(node, "it knows [x for y in z if c] only: in [ ], with one name and one if")
        case syntax.Template():
            yield note(
                node, 'it does not fill in f-strings; give the value by name, as in PolicyViolation("...", value=x)'
            )


def _comparators(node: syntax.Comparison, words: list[syntax.Comparator], right: syntax.Expr) -> Iterator[Warning]:
    if "not in" in words:
        yield note(node, "it has no not in; write not (x in y)")
    if "is not" in words and not (isinstance(right, syntax.Constant) and right.value is None):
        yield note(node, "is not never holds but for None; write x != y")


def _calls(node: syntax.Call, function: syntax.Expr) -> Iterator[Warning]:
    if isinstance(function, syntax.Attribute) and function.name not in _METHODS:
        yield note(function, f"it has no method {function.name}; use find or match")
    if isinstance(function, syntax.Name) and function.name == "all":
        yield note(node, "it has no all(...); write not any([not (...) for x in ...])")


def tool_patterns(node: syntax.Node, brackets: Brackets) -> Iterator[Warning]:
    """Notes on one node of a pattern after ``is``."""
    match node:
        case syntax.ToolPattern(name=name) if not _WORD.fullmatch(name):
            yield note(node, f'it does not read this name; write x.function.name == "{name}"')
        case syntax.TextPattern(value=syntax.Name()):
            yield note(node, "it takes no constants in patterns; write the text itself")
        case syntax.TextPattern(value=syntax.Constant(raw=raw)) if raw and has_alternatives(raw):
            yield note(node, 'only the last alternative has to reach the end of the text; write "(a|b)"')
        case syntax.Wildcard():
            written = brackets.written(node)
            if written is not None and written.kind == "string":
                yield note(node, 'a "*" in quotes raises re.error; write * without them')
        case syntax.LiteralPattern(value=value):
            if value is None or isinstance(value, bool) or (isinstance(value, int | float) and value < 0):
                yield note(
                    node, "it takes no such value in patterns; compare x.function.arguments.get(...) on its own line"
                )
        case syntax.EntityPattern(entity=entity):
            yield note(node, f"<{entity}> needs presidio and a model, or is not known; use find with a pattern")
