"""Define the syntax tree: frozen values, each with the line and column of its first character."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    line: int
    column: int


@dataclass(frozen=True, slots=True, eq=False)
class Constant(Node):
    """A literal. ``raw`` is a string literal as it was written, which is what a regular expression means."""

    value: object
    raw: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Template(Node):
    """An f-string: text and expressions in turn."""

    parts: tuple["Expr", ...]


@dataclass(frozen=True, slots=True, eq=False)
class Name(Node):
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Attribute(Node):
    value: "Expr"
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Index(Node):
    value: "Expr"
    key: "Expr"


@dataclass(frozen=True, slots=True, eq=False)
class Slice(Node):
    value: "Expr"
    start: "Expr | None"
    stop: "Expr | None"


@dataclass(frozen=True, slots=True, eq=False)
class Call(Node):
    function: "Expr"
    args: tuple["Expr", ...]
    kwargs: tuple[tuple[str, "Expr"], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Unary(Node):
    operator: Literal["not", "-", "+"]
    operand: "Expr"


@dataclass(frozen=True, slots=True, eq=False)
class Binary(Node):
    operator: "Operator"
    left: "Expr"
    right: "Expr"


@dataclass(frozen=True, slots=True, eq=False)
class Logical(Node):
    operator: Literal["and", "or"]
    operands: tuple["Expr", ...]


Arrow = Literal["->", "~>"]
Operator = Literal["+", "-", "*", "/", "//", "%", "**"]
Comparator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in", "is", "is not"]


@dataclass(frozen=True, slots=True, eq=False)
class Comparison(Node):
    """A chain as in Python: ``a < b < c`` is ``a < b and b < c`` with ``b`` evaluated once."""

    first: "Expr"
    rest: tuple[tuple[Comparator, "Expr"], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Is(Node):
    """``value is [not] pattern``."""

    value: "Expr"
    pattern: "Pattern"
    negated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Conditional(Node):
    condition: "Expr"
    then: "Expr"
    otherwise: "Expr"


@dataclass(frozen=True, slots=True, eq=False)
class Sequence(Node):
    """``[..]``, ``(a, b)`` or ``{a, b}``; a set is kept as a tuple, for membership is all it is used for."""

    items: tuple["Expr", ...]
    mutable: bool


@dataclass(frozen=True, slots=True, eq=False)
class Mapping(Node):
    entries: tuple[tuple["Expr", "Expr"], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Comprehension(Node):
    element: "Expr"
    names: tuple[str, ...]
    source: "Expr"
    conditions: tuple["Expr", ...]


Expr = (
    Constant | Template | Name | Attribute | Index | Slice | Call | Unary | Binary | Logical | Comparison | Is
    | Conditional | Sequence | Mapping | Comprehension
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class ToolPattern(Node):
    """``tool:name`` with at most one pattern for its arguments."""

    name: str
    arguments: "Pattern | None"


@dataclass(frozen=True, slots=True, eq=False)
class TextPattern(Node):
    """A regular expression that must match the whole value, or a name of a constant holding one."""

    value: "Constant | Name"


@dataclass(frozen=True, slots=True, eq=False)
class LiteralPattern(Node):
    value: object


@dataclass(frozen=True, slots=True, eq=False)
class Wildcard(Node):
    pass


@dataclass(frozen=True, slots=True, eq=False)
class EntityPattern(Node):
    """``<EMAIL_ADDRESS>``: a text that holds such an entity."""

    entity: str


@dataclass(frozen=True, slots=True, eq=False)
class ListPattern(Node):
    items: tuple["Pattern", ...]


@dataclass(frozen=True, slots=True, eq=False)
class MappingPattern(Node):
    entries: tuple[tuple[str, "Pattern"], ...]


Pattern = ToolPattern | TextPattern | LiteralPattern | Wildcard | EntityPattern | ListPattern | MappingPattern


@dataclass(frozen=True, slots=True, eq=False)
class Declaration(Node):
    """``(name: kind)``, over the events of a kind, or ``(name: kind) in source``."""

    name: str
    kind: str
    source: Expr | None


@dataclass(frozen=True, slots=True, eq=False)
class Flow(Node):
    """``a -> b ~> c``: each link a declaration or the name of a bound event."""

    links: tuple[Declaration | Name, ...]
    arrows: tuple[Arrow, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Assignment(Node):
    name: str
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Condition(Node):
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Quantifier(Node):
    """``[not] forall:`` or ``[not] count(min=, max=):`` over a body of its own."""

    name: str
    kwargs: tuple[tuple[str, Expr], ...]
    body: tuple["Line", ...]
    negated: bool


Line = Declaration | Flow | Assignment | Condition | Quantifier


@dataclass(frozen=True, slots=True, eq=False)
class Import(Node):
    """``from module import name as other``, or ``import module as alias`` without names."""

    module: str
    names: tuple[tuple[Name, str], ...]
    alias: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Define(Node):
    """``NAME := expr``."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Predicate(Node):
    """``name(a: type, ..) := lines``."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    body: tuple[Line, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Raise(Node):
    """A rule; ``text`` is its source."""

    error: Expr
    body: tuple[Line, ...]
    text: str


Statement = Import | Define | Predicate | Raise


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    statements: tuple[Statement, ...]


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and every node below it."""
    stack: list[object] = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, Node):
            yield item
            stack.extend(getattr(item, field.name) for field in fields(item))
        elif isinstance(item, tuple):
            stack.extend(item)


def names_in(node: Node) -> set[str]:
    """Return every name that a node mentions."""
    return {inner.name for inner in walk(node) if isinstance(inner, Name)}


def lines_within(lines: Iterable[Line]) -> Iterator[Line]:
    """Yield lines, those of quantifiers' blocks included."""
    for line in lines:
        yield line
        if isinstance(line, Quantifier):
            yield from lines_within(line.body)


def declarations(lines: Iterable[Line]) -> list[Declaration]:
    """Return every declaration in the lines, those in flows and quantifiers included."""
    found = []
    for line in lines_within(lines):
        if isinstance(line, Declaration):
            found.append(line)
        elif isinstance(line, Flow):
            found.extend(link for link in line.links if isinstance(link, Declaration))
    return found
