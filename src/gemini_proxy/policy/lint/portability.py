"""Note differences from Invariant's engine, for authors who run one policy in both.

The documentation of this package lists the differences. Those that depend only on the conversation, or change only the
report, are left out: outputs that are data, calls without ids, the forms that ``secrets`` knows, budgets.
``x in m.content`` is left out because it means the same there. A note is not among ``Policy.warnings``: here the policy
is correct.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Final

from gemini_proxy.policy.errors import PolicyWarning
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.lexer import Token, tokenize, unify_lines
from gemini_proxy.policy.parse.parser import parse
from gemini_proxy.policy.run.events import FIELDS

_LISTS = frozenset(("secrets", "pii", "unicode", "copyright", "links", "find", "text", "image", "tuple"))
_LIST_METHODS = frozenset(("split", "splitlines", "keys", "values", "items"))
_LIST_FIELDS = frozenset(("tool_calls", "imports", "builtins", "function_calls", "alt_texts", "links", "comments"))
_NUMBERS = frozenset(("len", "sum", "min", "max"))
_RECORDS = frozenset(("python_code", "html_code"))
_TEXT_METHODS = frozenset(("strip", "lower", "upper", "join", "replace", "format"))
_DICT_METHODS = frozenset(("get", "keys", "values", "items"))
_NEVER = "only True holds there, so this line never does"
_STOCK_DETECTORS: Final = frozenset(
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
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_METHODS = frozenset(
    ("strip", "lower", "upper", "split", "splitlines", "join", "format", "keys", "values", "items", "get")
)
_EACH = "it groups these differently; put each operand in brackets"
_LONGEST_TRIED = 1000


def portability(text: str, source: str = "<policy>") -> tuple[PolicyWarning, ...]:
    """List the places of a policy that mean something else in Invariant's engine, in the order of the text.

    A message says what happens in that engine, and gives the spelling that means the same in both. Raises PolicyError
    if the text does not parse.
    """
    module = parse(text, source)
    found = dict.fromkeys(_PortabilityNotes(unify_lines(text), module).all())
    if "\r" in text:
        found[PolicyWarning(1, 1, "it only reads LF as a line end")] = None
    return tuple(sorted(found, key=lambda note: (note.line, note.column, note.message)))


class _PortabilityNotes:
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

    def all(self) -> Iterator[PolicyWarning]:
        for statement in self._module.statements:
            self._kinds = _kinds_in(statement)
            self._assigned = _assigned_in(statement)
            if isinstance(statement, syntax.Import):
                yield from _imported(statement)
            elif isinstance(statement, syntax.Raise):
                yield from _binds_only(statement)
                yield from _only_new(statement)
                yield from _one_line(statement, self._brackets)
            if isinstance(statement, syntax.Raise | syntax.Predicate):
                yield from self._block(statement.body)
                yield from self._escapes(statement)
            yield from self._nodes(statement)

    def _nodes(self, statement: syntax.Statement) -> Iterator[PolicyWarning]:
        methods = {id(node.function) for node in syntax.walk(statement) if isinstance(node, syntax.Call)}
        for node in syntax.walk(statement):
            for notes in (_grouping, _unknown_forms, _patterns):
                yield from notes(node, self._brackets)
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
                    yield _note(node, "a text outside a list is not a TextChunk; use (t: str) in text(x)")
                case syntax.Declaration(source=syntax.Sequence(items=items) as written):
                    if not all(isinstance(item, syntax.Constant) for item in items):
                        yield _note(written, "it evaluates the items before events are known; write tuple([...])")

    # Lines

    def _block(self, lines: tuple[syntax.Line, ...]) -> Iterator[PolicyWarning]:
        yield from _continuations(lines, self._brackets)
        for line in lines:
            if isinstance(line, syntax.Condition):
                yield from self._truth(line.value)
            elif isinstance(line, syntax.Quantifier):
                yield from _one_line(line, self._brackets)
                yield from _counts_only(line)
                yield from self._block(line.body)

    def _truth(self, value: syntax.Expr) -> Iterator[PolicyWarning]:
        """Note a condition that is known not to be True or False."""
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
                    yield _note(value, f"{_NEVER}; write {spelling}")

    def _spelling(self, value: syntax.Expr) -> str | None:
        """Tell how to turn a list, a number, a text or a record into a truth value; None for anything else."""
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
        """Return what the name of a constant or an assignment stands for."""
        if not isinstance(value, syntax.Name):
            return value
        return self._assigned.get(value.name, self._constants.get(value.name, value))

    # Expressions

    def _call(self, node: syntax.Call) -> Iterator[PolicyWarning]:
        if isinstance(node.function, syntax.Attribute):
            if self._content_of(node.function.value) and node.function.name not in ("text", "image"):
                yield _note(node.function, "methods raise if a content is None or a list; use (t: str) in text(x)")
        elif isinstance(node.function, syntax.Name):
            yield from self._named(node, self._aliases.get(node.function.name, node.function.name))

    def _named(self, node: syntax.Call, name: str) -> Iterator[PolicyWarning]:
        options = {key: value for key, value in node.kwargs}
        if name in ("untrusted", "private", "acts") and name not in self._predicates:
            yield _note(node, f"it has no {name}(...), and does not track where a value came from")
        if name == "tool_changed" and name not in self._predicates:
            yield _note(node, "it has no tool_changed(...), and keeps no declarations of tools")
        if name == "normalized" and name not in self._predicates:
            yield _note(node, "it has no normalized(...), and reads texts as they are written")
        if "model" in options and name == "pii":
            yield _note(options["model"], "its pii has no option model: it always asks presidio")
        if "raw" in options and name in _STOCK_DETECTORS:
            yield _note(options["raw"], f"its {name} has no option raw, and never sees through a disguise")
        if name in ("find", "match") and len(node.args) == 2:
            pattern, value = node.args
            if self._content_of(value) or (isinstance(value, syntax.Name) and value.name in self._kinds):
                message = f"{name} raises if a content is None or a list; use (t: str) in text(x)"
                yield _note(value, message)
            raw = _raw(self._resolved(pattern))
            if name == "match" and raw is not None and _dot_repeats(raw):
                yield _note(pattern, "a line end stops the dot of match; begin the pattern with (?s)")
        elif name == "text" or name in _STOCK_DETECTORS:
            for value in node.args:
                if self._is_of_call(value):
                    yield _note(value, f"{name} finds nothing in a call; use (t: str) in x.function.arguments.values()")
        if name == "fuzzy_contains":
            semantic = options.get("use_semantic")
            if not (isinstance(semantic, syntax.Constant) and semantic.value is False):
                yield _note(node, "it sends the text to a hosted model if it has a key; say use_semantic=False")
        elif name == "secrets" and "generic" in options:
            yield _note(options["generic"], "its secrets has no option generic; use find with a pattern")

    def _content_of(self, value: syntax.Expr) -> bool:
        """Return whether this is the content of a message or a tool output."""
        if not isinstance(value, syntax.Attribute) or value.name != "content":
            return False
        return isinstance(value.value, syntax.Name) and self._kinds.get(value.value.name) in ("Message", "ToolOutput")

    def _is_of_call(self, value: syntax.Expr) -> bool:
        """Return whether this is a call, or its arguments."""
        if isinstance(value, syntax.Name):
            return self._kinds.get(value.name) == "ToolCall"
        return isinstance(value, syntax.Attribute) and value.name == "arguments"

    def _comparison(self, node: syntax.Comparison) -> Iterator[PolicyWarning]:
        left = node.first
        for comparator, right in node.rest:
            if comparator in ("in", "not in") and isinstance(right, syntax.Name) and right.name in self._kinds:
                yield _note(right, f"in finds nothing in an event; use {self._texts_of(right)}")
            elif comparator in ("in", "not in") and not self._is_list(right):
                yield from _taken_as_pattern(left, self._resolved(left))
            left = right

    def _texts_of(self, event: syntax.Name) -> str:
        is_call = self._kinds[event.name] == "ToolCall"
        values = f"{event.name}.function.arguments.values()" if is_call else f"text({event.name})"
        return f"(t: str) in {values}"

    def _escapes(self, statement: syntax.Raise | syntax.Predicate) -> Iterator[PolicyWarning]:
        patterns: set[int] = set()
        for line in statement.body:
            for node in syntax.walk(line):
                if isinstance(node, syntax.Call) and isinstance(node.function, syntax.Name) and node.args:
                    if self._aliases.get(node.function.name, node.function.name) in ("find", "match"):
                        patterns.update(id(part) for part in syntax.walk(node.args[0]))
                elif isinstance(node, syntax.TextPattern | syntax.Template):
                    patterns.update(id(part) for part in syntax.walk(node))
        for line in statement.body:
            for node in syntax.walk(line):
                if id(node) not in patterns and isinstance(node, syntax.Constant | syntax.Name):
                    if _is_escaped(self._resolved(node)):
                        yield _note(
                            node, "a backslash in a text stays a backslash; use find, whose patterns read alike"
                        )


# Tokens that may follow a closing bracket if the brackets hold only the beginning of an operand.
_CONTINUES = frozenset("== != < <= > >= in is not + - * / // % ** . [ (".split())
_PAIRS = {"(": ")", "[": "]", "{": "}"}


class Brackets:
    """The brackets of a policy, of which the syntax tree only knows what they group.

    The text parses and has LF line ends. Nodes inside f-strings have no place.
    """

    def __init__(self, text: str) -> None:
        self._tokens = tokenize(text)
        self._places = {(token.line, token.column): at for at, token in enumerate(self._tokens) if token.text}
        self._closing = _closing(self._tokens)

    def start(self, node: syntax.Node) -> int | None:
        """Return the number of a node's first token, without brackets around it."""
        first = leftmost(node)
        return self._places.get((first.line, first.column))

    def before(self, node: syntax.Node) -> tuple[Token, ...]:
        """Return the opening brackets right before a node, the nearest first, and the token before them."""
        at = self.start(node)
        found: list[Token] = []
        while at:
            at -= 1
            found.append(self._tokens[at])
            if self._tokens[at].text not in _PAIRS:
                break
        return tuple(found)

    def first_on_line(self, node: syntax.Node) -> Token | None:
        """Return the first token of a line that begins with this node."""
        before = self.before(node)
        at = self.start(node)
        if at is None:
            return None
        opened = [token for token in before if token.text in _PAIRS]
        return opened[-1] if opened else self._tokens[at]

    def written(self, node: syntax.Node) -> Token | None:
        """Return the token at a node's place."""
        at = self._places.get((node.line, node.column))
        return self._tokens[at] if at is not None else None

    def around(self, node: syntax.Node, following: syntax.Node | None = None) -> bool:
        """Return whether a node has round brackets of its own; ``following`` is the operand after it, if any.

        True of a node without a place.
        """
        at = self.start(node)
        if at is None:
            return True
        limit = self.start(following) if following is not None else None
        inside = self.start(node.operands[-1]) if isinstance(node, syntax.Logical) else at
        while at and self._tokens[at - 1].text == "(":
            at -= 1
            closing = self._closing[at]
            if limit is not None and closing > limit:
                return False
            if closing > (inside or 0) and self._tokens[closing + 1].text not in _CONTINUES:
                return True
        return False


def leftmost(node: syntax.Node) -> syntax.Node:
    """Return the part of an expression that is written first. An attribute is placed at its name."""
    while True:
        match node:
            case syntax.Attribute(value=inner) | syntax.Index(value=inner) | syntax.Slice(value=inner):
                node = inner
            case syntax.Call(function=inner) | syntax.Binary(left=inner) | syntax.Comparison(first=inner):
                node = inner
            case syntax.Is(value=inner) | syntax.Conditional(then=inner) | syntax.Comprehension(element=inner):
                node = inner
            case syntax.Logical(operands=(inner, *_)):
                node = inner
            case _:
                return node


def _closing(tokens: tuple[Token, ...]) -> dict[int, int]:
    """Map the number of each opening bracket to that of its closing one."""
    opened: list[int] = []
    found = {}
    for at, token in enumerate(tokens):
        if token.kind == "op" and token.text in _PAIRS:
            opened.append(at)
        elif token.kind == "op" and token.text in _PAIRS.values():
            found[opened.pop()] = at
    return found


def _argument(node: syntax.Attribute | syntax.Index, is_method: bool) -> Iterator[PolicyWarning]:
    if not isinstance(node.value, syntax.Attribute) or node.value.name != "arguments":
        return
    key = node.name if isinstance(node, syntax.Attribute) else getattr(node.key, "value", None)
    if isinstance(key, str) and not (is_method and key in _DICT_METHODS):
        yield _note(node, f'it raises if there is no such argument; write .get("{key}", "")')


def _raw(value: syntax.Expr) -> str | None:
    return value.raw if isinstance(value, syntax.Constant) else None


def _is_escaped(value: syntax.Node) -> bool:
    if not isinstance(value, syntax.Constant) or value.raw is None or not isinstance(value.value, str):
        return False
    return _reads_otherwise(value.raw, value.value)


def _taken_as_pattern(node: syntax.Expr, needle: syntax.Expr) -> Iterator[PolicyWarning]:
    if not isinstance(needle, syntax.Constant) or not isinstance(needle.value, str) or _is_escaped(needle):
        return
    text = needle.value
    if not compiles(text):
        yield _note(node, f"in also takes its left side as a pattern, and this one raises; write {search_for(text)}")
    elif not _is_plain(text):
        yield _note(node, f"in marks what its left side matches as a pattern; write {search_for(text)}")


# Grouping of operands, and forms that do not parse: two operands of and or or group as in Python, and so do more if all
# are calls of functions. A line that begins with a bracket or a sign continues the line before.


def _only_new(rule: syntax.Raise) -> Iterator[PolicyWarning]:
    match dict(rule.error.kwargs).get("scope") if isinstance(rule.error, syntax.Call) else None:
        case syntax.Constant(value="new") as scope:
            yield _note(scope, "its rules have no scope, and check the whole conversation each time")


def _note(node: syntax.Node, message: str) -> PolicyWarning:
    """Return a warning at a node."""
    return PolicyWarning(node.line, node.column, message)


def _grouping(node: syntax.Node, brackets: Brackets) -> Iterator[PolicyWarning]:
    """Yield notes on how the operands of one node group."""
    match node:
        case syntax.Unary(operator="not", operand=operand):
            loose = isinstance(operand, syntax.Comparison | syntax.Is | syntax.Binary)
            if loose and not brackets.around(operand):
                yield _note(node, "it takes not with the first word only; write not (...)")
        case syntax.Logical():
            if _is_loose(node, brackets):
                yield _note(node, _EACH)
        case syntax.Comparison(rest=rest) if len(rest) > 1:
            yield _note(node, "it compares the result of the first comparison; write one comparison after the other")
        case syntax.Conditional(then=then):
            loose = isinstance(then, syntax.Comparison | syntax.Logical | syntax.Is)
            if loose and not brackets.around(then, node.condition):
                yield _note(
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


def _continuations(lines: Sequence[syntax.Line], brackets: Brackets) -> Iterator[PolicyWarning]:
    """Yield notes on lines of one block that continue the line before."""
    for at, line in enumerate(lines):
        # A declaration ends where it does in the first line only.
        if not isinstance(line, syntax.Condition) or not at or (at == 1 and _ends_alone(lines[0])):
            continue
        first = brackets.first_on_line(line.value)
        if first is not None and first.text in ("(", "[", "-", "+") and first.kind == "op":
            yield PolicyWarning(
                first.line, first.column, f'it reads a line that begins with "{first.text}" as the end of the line '
                "before; write True and (...)",
            )  # fmt: skip


def _ends_alone(line: syntax.Line) -> bool:
    return isinstance(line, syntax.Flow) or (isinstance(line, syntax.Declaration) and line.source is None)


def _one_line(node: syntax.Raise | syntax.Quantifier, brackets: Brackets) -> Iterator[PolicyWarning]:
    """Note a block that begins on the line of its head."""
    first = node.body[0]
    place = first.links[0] if isinstance(first, syntax.Flow) else first
    inner = place.value if isinstance(place, syntax.Condition) else place
    before = brackets.before(inner)
    if before and before[-1].text == ":":
        yield _note(first, "it does not parse this; put it on a line of its own")


def _unknown_forms(node: syntax.Node, brackets: Brackets) -> Iterator[PolicyWarning]:
    """Yield notes on parts of one node that do not parse or load there."""
    match node:
        case syntax.Comparison(rest=rest):
            yield from _comparators(node, [comparator for comparator, _ in rest], rest[0][1])
        case syntax.Is(negated=True):
            yield _note(node, "is not with a pattern never holds; write not (x is ...)")
        case syntax.Binary(operator="//"):
            yield _note(node, "it has no //; write x / y")
        case syntax.Slice():
            yield _note(node, "it has no slices; use find or match with a pattern")
        case syntax.Sequence(mutable=False, items=items) if items:
            yield _note(node, "it reads only the first item; write a list in [ ]")
        case syntax.Call(function=function):
            yield from _calls(node, function)
        case syntax.Comprehension(names=names, conditions=conditions):
            inside = any(token.text == "[" for token in brackets.before(node))
            if not inside or len(names) > 1 or len(conditions) > 1:
                yield _note(node, "it knows [x for y in z if c] only: in [ ], with one name and one if")
        case syntax.Template():
            yield _note(
                node, 'it does not fill in f-strings; give the value by name, as in PolicyViolation("...", value=x)'
            )


def _comparators(
    node: syntax.Comparison, words: list[syntax.Comparator], right: syntax.Expr
) -> Iterator[PolicyWarning]:
    if "not in" in words:
        yield _note(node, "it has no not in; write not (x in y)")
    if "is not" in words and not (isinstance(right, syntax.Constant) and right.value is None):
        yield _note(node, "is not only holds for None; write x != y")


def _calls(node: syntax.Call, function: syntax.Expr) -> Iterator[PolicyWarning]:
    if isinstance(function, syntax.Attribute) and function.name not in _METHODS:
        yield _note(function, f"it has no method {function.name}; use find or match")
    if isinstance(function, syntax.Name) and function.name == "all":
        yield _note(node, "it has no all(...); write not any([not (...) for x in ...])")


def _patterns(node: syntax.Node, brackets: Brackets) -> Iterator[PolicyWarning]:
    """Yield notes on one node of a pattern after ``is``."""
    match node:
        case syntax.ToolPattern(name=name) if not _WORD.fullmatch(name):
            yield _note(node, f'it does not read this name; write x.function.name == "{name}"')
        case syntax.TextPattern(value=syntax.Name()):
            yield _note(node, "it does not accept constants in patterns; write the text itself")
        case syntax.TextPattern(value=syntax.Constant(raw=raw)) if raw and _has_alternatives(raw):
            yield _note(node, 'only the last alternative has to reach the end of the text; write "(a|b)"')
        case syntax.Wildcard():
            written = brackets.written(node)
            if written is not None and written.kind == "string":
                yield _note(node, 'a "*" in quotes raises re.error; write * without them')
        case syntax.LiteralPattern(value=value):
            if value is None or isinstance(value, bool) or (isinstance(value, int | float) and value < 0):
                yield _note(
                    node,
                    "it does not accept this value in patterns; compare x.function.arguments.get(...) on its own line",
                )
        case syntax.EntityPattern(entity=entity):
            yield _note(node, f"<{entity}> needs presidio and a model, or is not known; use find with a pattern")


# Statements: imports, and rules that only bind variables


def _kinds_in(statement: syntax.Statement) -> dict[str, str]:
    """Return the event kind of each variable of a rule or a predicate."""
    if not isinstance(statement, syntax.Raise | syntax.Predicate):
        return {}
    found = dict(statement.parameters) if isinstance(statement, syntax.Predicate) else {}
    found.update({node.name: node.kind for node in syntax.walk(statement) if isinstance(node, syntax.Declaration)})
    return {name: kind for name, kind in found.items() if kind in FIELDS}


def _assigned_in(statement: syntax.Statement) -> dict[str, syntax.Expr]:
    """Return what each assigned variable of a rule or a predicate stands for."""
    if not isinstance(statement, syntax.Raise | syntax.Predicate):
        return {}
    return {node.name: node.value for node in syntax.walk(statement) if isinstance(node, syntax.Assignment)}


def _imported(statement: syntax.Import) -> Iterator[PolicyWarning]:
    """Yield notes on detectors that are missing there, or that need something outside the engine."""
    for name, _ in statement.names:
        if name.name in _NEEDS:
            yield _note(name, f"{name.name} needs {_NEEDS[name.name]}, and without it the check ends in an error")
        elif statement.module.split(".")[-1] in ("detectors", "parsers") and name.name not in _STOCK_DETECTORS:
            yield _note(name, f"it has no detector {name.name}; use find with a pattern")


def _binds_only(statement: syntax.Raise) -> Iterator[PolicyWarning]:
    """Yield notes on variables without a condition: there the rule also fires if no such value exists."""
    declared = [line for line in statement.body if isinstance(line, syntax.Declaration)]
    raised = syntax.names_in(statement.error)
    if declared and all(isinstance(line, syntax.Declaration | syntax.Assignment) for line in statement.body):
        if not raised & {line.name for line in declared}:
            yield _unasked(declared[0], "this fires on every trace, an empty one too")
        return
    mentioned = raised.union(*(syntax.names_in(line) for line in statement.body))
    for line in declared:
        if line.source is not None and line.name not in mentioned:
            yield _unasked(line, f"this fires where there is no {line.name}")


def _unasked(line: syntax.Declaration, message: str) -> PolicyWarning:
    return _note(
        line, f'{message}; add a condition on {line.name}, or raise PolicyViolation("...", {line.name}={line.name})'
    )


def _counts_only(node: syntax.Quantifier) -> Iterator[PolicyWarning]:
    """Note a count of all events of a kind: there it is always one."""
    if node.name == "count" and all(isinstance(line, syntax.Declaration) for line in node.body):
        yield _note(node, "without a condition this always counts one; add a condition on what is counted")


# String literals, as texts and where they are taken as patterns


def _dot_repeats(pattern: str) -> bool:
    """Return whether a dot that stops at line ends is repeated."""
    if re.match(r"\(\?[a-zA-Z]*s", pattern):
        return False
    chars = list(_outside_classes(pattern))
    return any(char == "." and after in ("*", "+", "{") for char, after in zip(chars, chars[1:], strict=False))


def _reads_otherwise(raw: str, value: str) -> bool:
    """Return whether a text has an escape that is read here but not there, where only quotes are escaped."""
    return re.sub(r"\\([\"'])", r"\1", raw) != value


def _is_plain(text: str) -> bool:
    """Return whether a text means itself as a pattern."""
    return re.search(r"[.^$*+?{}\[\]\\|()]", text) is None


def compiles(pattern: str) -> bool:
    """Return whether Python's ``re`` takes a pattern; False if it is too long to try."""
    if len(pattern) > _LONGEST_TRIED:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError):
            return False
    return True


def search_for(text: str) -> str:
    """Return the call of find that looks for a text literally."""
    if len(text) > 40 or not text.isprintable() or set(text) & set("\\^\"'"):
        return "any(find(...))"
    spelled = re.sub(r"[.$*+?{}\[|()]", r"[\g<0>]", text)
    return f'any(find("{spelled}", x))'


def _has_alternatives(pattern: str) -> bool:
    """Return whether a regular expression has a ``|`` outside of groups and classes."""
    depth = 0
    for char in _outside_classes(pattern):
        depth += (char == "(") - (char == ")")
        if char == "|" and not depth:
            return True
    return False


def _outside_classes(pattern: str) -> Iterator[str]:
    """Yield the characters of a regular expression; an escape and a class each come as one empty text."""
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at, char = at + 1, ""
        elif char == "[":
            at, char = _class_end(pattern, at), ""
        yield char
        at += 1


def _class_end(pattern: str, at: int) -> int:
    at += 2 if pattern[at + 1 : at + 2] == "^" else 1
    start = at
    while at < len(pattern) and (pattern[at] != "]" or at == start):
        at += 2 if pattern[at] == "\\" else 1
    return at
