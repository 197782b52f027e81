"""What reads differently in Invariant's engine: notes for authors who run one policy in both.

Only what the text shows, of the differences in the documentation of this package. Left out are those that depend on the
conversation alone or change only what is reported: outputs that are data, calls without ids, the forms that ``secrets``
knows, budgets. ``x in m.content`` is left out because it means the same there. A note does not make a policy worse
here, so it is no warning of ``Policy.warnings``.
"""

from collections.abc import Iterator

from gemini_proxy.policy.errors import Warning
from gemini_proxy.policy.lint.brackets import Brackets
from gemini_proxy.policy.lint.portable_grouping import (
    continuations,
    grouping,
    note,
    one_line,
    tool_patterns,
    unknown_forms,
)
from gemini_proxy.policy.lint.portable_literals import compiles, dot_repeats, is_escaped, is_plain, search_for
from gemini_proxy.policy.lint.portable_statements import (
    STOCK_DETECTORS,
    assigned,
    binds_only,
    counts_only,
    imported,
    kinds,
)
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.lexer import unify_lines
from gemini_proxy.policy.parse.parser import parse

_LISTS = frozenset(("secrets", "pii", "unicode", "copyright", "links", "find", "text", "image", "tuple"))
_LIST_METHODS = frozenset(("split", "splitlines", "keys", "values", "items"))
_LIST_FIELDS = frozenset(("tool_calls", "imports", "builtins", "function_calls", "alt_texts", "links", "comments"))
_NUMBERS = frozenset(("len", "sum", "min", "max"))
_RECORDS = frozenset(("python_code", "html_code"))
_TEXT_METHODS = frozenset(("strip", "lower", "upper", "join", "replace", "format"))
_DICT_METHODS = frozenset(("get", "keys", "values", "items"))
_NEVER = "only True holds there, so this line never does"


def portability(text: str, source: str = "<policy>") -> tuple[Warning, ...]:
    """Each place of a policy that reads differently in Invariant's engine, in the order of the text.

    A message says what happens there, and the spelling that means the same in both. Raises PolicyError where the text
    does not parse.
    """
    module = parse(text, source)
    found = dict.fromkeys(_Reader(unify_lines(text), module).notes())
    if "\r" in text:
        found[Warning(1, 1, "it reads no line ends but LF")] = None
    return tuple(sorted(found, key=lambda each: (each.line, each.column, each.message)))


class _Reader:
    def __init__(self, text: str, module: syntax.Module) -> None:
        self._brackets = Brackets(text)
        self._module = module
        self._aliases: dict[str, str] = {}
        self._constants: dict[str, syntax.Expr] = {}
        self._assigned: dict[str, syntax.Expr] = {}
        self._kinds: dict[str, str] = {}
        self._predicates = {each.name for each in module.statements if isinstance(each, syntax.Predicate)}
        for statement in module.statements:
            if isinstance(statement, syntax.Import):
                self._aliases.update({alias: name.name for name, alias in statement.names})
            elif isinstance(statement, syntax.Define):
                self._constants[statement.name] = statement.value

    def notes(self) -> Iterator[Warning]:
        for statement in self._module.statements:
            self._kinds = kinds(statement)
            self._assigned = assigned(statement)
            if isinstance(statement, syntax.Import):
                yield from imported(statement)
            elif isinstance(statement, syntax.Raise):
                yield from binds_only(statement)
                yield from one_line(statement, self._brackets)
            if isinstance(statement, syntax.Raise | syntax.Predicate):
                yield from self._block(statement.body)
                yield from self._escapes(statement)
            yield from self._nodes(statement)

    def _nodes(self, statement: syntax.Statement) -> Iterator[Warning]:
        methods = {id(node.function) for node in syntax.walk(statement) if isinstance(node, syntax.Call)}
        for node in syntax.walk(statement):
            for rule in (grouping, unknown_forms, tool_patterns):
                yield from rule(node, self._brackets)
            match node:
                case syntax.Call():
                    yield from self._call(node)
                case syntax.Comparison():
                    yield from self._comparison(node)
                case syntax.Attribute() | syntax.Index():
                    yield from _argument(node, id(node) in methods)
                case syntax.Comprehension(conditions=conditions):
                    for condition in conditions:
                        yield from self._truth(condition)
                case syntax.Declaration(kind="TextChunk", source=None):
                    yield note(node, "a text that is not in a list is no TextChunk; use (t: str) in text(x)")
                case syntax.Declaration(source=syntax.Sequence(items=items) as written):
                    if not all(isinstance(item, syntax.Constant) for item in items):
                        yield note(written, "it takes the items before events are known; write tuple([...])")

    # Lines

    def _block(self, lines: tuple[syntax.Line, ...]) -> Iterator[Warning]:
        yield from continuations(lines, self._brackets)
        for line in lines:
            if isinstance(line, syntax.Condition):
                yield from self._truth(line.value)
            elif isinstance(line, syntax.Quantifier):
                yield from one_line(line, self._brackets)
                yield from counts_only(line)
                yield from self._block(line.body)

    def _truth(self, value: syntax.Expr) -> Iterator[Warning]:
        """A note where a condition is known not to be True or False."""
        match value:
            case syntax.Logical(operator="or", operands=operands):
                for operand in operands:
                    yield from self._truth(operand)
            case syntax.Logical(operands=operands):
                yield from self._truth(operands[-1])
            case syntax.Conditional(then=then, otherwise=otherwise):
                yield from (*self._truth(then), *self._truth(otherwise))
            case _:
                spelling = self._spelling(value)
                if spelling:
                    yield note(value, f"{_NEVER}; write {spelling}")

    def _spelling(self, value: syntax.Expr) -> str | None:
        """How to make a truth value of what is a list, a number, a text or a record; None of anything else."""
        if self._is_list(value):
            return "any(...)"
        match self._resolved(value):
            case syntax.Comprehension():
                return "any([...])"
            case syntax.Call(function=syntax.Name(name=name)):
                meant = self._aliases.get(name, name)
                return "... > 0" if meant in _NUMBERS else "one of its fields" if meant in _RECORDS else None
            case syntax.Call(function=syntax.Attribute(name=name)):
                return "len(...) > 0" if name in _TEXT_METHODS else None
            case syntax.Attribute(name="content", value=syntax.Name(name=name)) if name in self._kinds:
                return "not empty(...)"
            case syntax.Binary() | syntax.Unary(operator="-" | "+"):
                return "... != 0"
            case syntax.Constant(value=constant) if not isinstance(constant, bool):
                return "True or False"
        return None

    def _is_list(self, value: syntax.Expr) -> bool:
        return self._has_form_of_list(self._resolved(value))

    def _has_form_of_list(self, value: syntax.Expr) -> bool:
        match value:
            case syntax.Sequence() | syntax.Mapping():
                return True
            case syntax.Call(function=syntax.Name(name=name)):
                return self._aliases.get(name, name) in _LISTS
            case syntax.Call(function=syntax.Attribute(name=name)):
                return name in _LIST_METHODS
            case syntax.Binary(operator="+", left=left, right=right):
                return self._has_form_of_list(left) or self._has_form_of_list(right)
            case syntax.Attribute(name=name):
                return name in _LIST_FIELDS
        return False

    def _resolved(self, value: syntax.Expr) -> syntax.Expr:
        """What the name of a constant or an assignment stands for."""
        if not isinstance(value, syntax.Name):
            return value
        return self._assigned.get(value.name, self._constants.get(value.name, value))

    # Expressions

    def _call(self, node: syntax.Call) -> Iterator[Warning]:
        if isinstance(node.function, syntax.Attribute):
            if self._content_of(node.function.value) and node.function.name not in ("text", "image"):
                yield note(node.function, "methods raise on a content that is None or a list; use (t: str) in text(x)")
        elif isinstance(node.function, syntax.Name):
            yield from self._named(node, self._aliases.get(node.function.name, node.function.name))

    def _named(self, node: syntax.Call, name: str) -> Iterator[Warning]:
        options = {key: value for key, value in node.kwargs}
        if name in ("untrusted", "private", "acts") and name not in self._predicates:
            yield note(node, f"it has no {name}(...), and does not know who said a value")
        if name == "tool_changed" and name not in self._predicates:
            yield note(node, "it has no tool_changed(...), and keeps no declarations of tools")
        if name == "normalized" and name not in self._predicates:
            yield note(node, "it has no normalized(...), and reads texts as they are written")
        if "model" in options and name == "pii":
            yield note(options["model"], "its pii has no option model: it always asks presidio")
        if "raw" in options and name in STOCK_DETECTORS:
            yield note(options["raw"], f"its {name} has no option raw, and never sees through a disguise")
        if name in ("find", "match") and len(node.args) == 2:
            pattern, value = node.args
            if self._content_of(value) or (isinstance(value, syntax.Name) and value.name in self._kinds):
                message = f"{name} raises on a content that is None or a list; use (t: str) in text(x)"
                yield note(value, message)
            raw = _raw(self._resolved(pattern))
            if name == "match" and raw is not None and dot_repeats(raw):
                yield note(pattern, "a line end stops the dot of match; begin the pattern with (?s)")
        elif name == "text" or name in STOCK_DETECTORS:
            for value in node.args:
                if self._is_of_call(value):
                    yield note(value, f"{name} finds nothing in a call; use (t: str) in x.function.arguments.values()")
        if name == "fuzzy_contains":
            semantic = options.get("use_semantic")
            if not (isinstance(semantic, syntax.Constant) and semantic.value is False):
                yield note(node, "it sends the text to a hosted model where it has a key; say use_semantic=False")
        elif name == "secrets" and "generic" in options:
            yield note(options["generic"], "its secrets has no option generic; use find with a pattern")

    def _content_of(self, value: syntax.Expr) -> bool:
        """Whether this is the content of a message or a tool output."""
        if not isinstance(value, syntax.Attribute) or value.name != "content":
            return False
        return isinstance(value.value, syntax.Name) and self._kinds.get(value.value.name) in ("Message", "ToolOutput")

    def _is_of_call(self, value: syntax.Expr) -> bool:
        """Whether this is a call, or its arguments."""
        if isinstance(value, syntax.Name):
            return self._kinds.get(value.name) == "ToolCall"
        return isinstance(value, syntax.Attribute) and value.name == "arguments"

    def _comparison(self, node: syntax.Comparison) -> Iterator[Warning]:
        left = node.first
        for comparator, right in node.rest:
            if comparator in ("in", "not in") and isinstance(right, syntax.Name) and right.name in self._kinds:
                yield note(right, f"in finds nothing in an event; use {self._texts_of(right)}")
            elif comparator in ("in", "not in") and not self._is_list(right):
                yield from _taken_as_pattern(left, self._resolved(left))
            left = right

    def _texts_of(self, event: syntax.Name) -> str:
        is_call = self._kinds[event.name] == "ToolCall"
        values = f"{event.name}.function.arguments.values()" if is_call else f"text({event.name})"
        return f"(t: str) in {values}"

    def _escapes(self, statement: syntax.Raise | syntax.Predicate) -> Iterator[Warning]:
        patterns: set[int] = set()
        for line in statement.body:
            for node in syntax.walk(line):
                if isinstance(node, syntax.Call) and isinstance(node.function, syntax.Name) and node.args:
                    if self._aliases.get(node.function.name, node.function.name) in ("find", "match"):
                        patterns.update(id(each) for each in syntax.walk(node.args[0]))
                elif isinstance(node, syntax.TextPattern | syntax.Template):
                    patterns.update(id(each) for each in syntax.walk(node))
        for line in statement.body:
            for node in syntax.walk(line):
                if id(node) not in patterns and isinstance(node, syntax.Constant | syntax.Name):
                    if _is_escaped(self._resolved(node)):
                        yield note(node, "a backslash in a text stays a backslash; use find, whose patterns read alike")


def _argument(node: syntax.Attribute | syntax.Index, is_method: bool) -> Iterator[Warning]:
    if not isinstance(node.value, syntax.Attribute) or node.value.name != "arguments":
        return
    key = node.name if isinstance(node, syntax.Attribute) else getattr(node.key, "value", None)
    if isinstance(key, str) and not (is_method and key in _DICT_METHODS):
        yield note(node, f'it raises where there is no such argument; write .get("{key}", "")')


def _raw(value: syntax.Expr) -> str | None:
    return value.raw if isinstance(value, syntax.Constant) else None


def _is_escaped(value: syntax.Node) -> bool:
    if not isinstance(value, syntax.Constant) or value.raw is None or not isinstance(value.value, str):
        return False
    return is_escaped(value.raw, value.value)


def _taken_as_pattern(node: syntax.Expr, needle: syntax.Expr) -> Iterator[Warning]:
    if not isinstance(needle, syntax.Constant) or not isinstance(needle.value, str) or _is_escaped(needle):
        return
    text = needle.value
    if not compiles(text):
        yield note(node, f"in also takes its left side as a pattern, and this one raises; write {search_for(text)}")
    elif not is_plain(text):
        yield note(node, f"in marks what its left side matches as a pattern; write {search_for(text)}")
