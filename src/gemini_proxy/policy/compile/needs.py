"""Find what a conversation must contain for a rule to fire: from the rule's syntax tree, and from its patterns.

All lines of a rule must hold. So the rule cannot fire if one line is false for every binding, and skipping the rule
changes nothing if no earlier line can raise an error. Only certain facts count: a line that may raise, all lines after
it, and tests other than those below add no need.

A need is a part of a pattern that every match contains: ``AIza`` of ``AIza[0-9A-Za-z_-]{35}``, and one part for each
branch of an alternation. It has only characters that JSON does not escape, so that the JSON of a text with the need
contains it too. If nothing is known about a pattern, there is no need and its rule always runs.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import log2
from typing import Final

import orjson

from gemini_proxy.policy.compile.scope import Context
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.policy import LONGEST_NEED, Need, Needs
from gemini_proxy.policy.run.regex_dialect import DialectError, translate

# The kinds of event that can be found quickly in messages.
_EVENTS: Final = frozenset(("Message", "ToolCall", "ToolOutput", "Tool"))
# The kind of a variable that holds a text of the conversation.
_TEXT: Final = "text"
_MORE_THAN_NONE: Final = ((">", 0), (">=", 1), ("!=", 0))
_CALL_PATH: Final = 3

_Clause = frozenset[Need]


def needs_of(rule: syntax.Raise, context: Context) -> Needs:
    """Return what the rule needs. Its syntax tree must have been compiled: then names and fields are known to exist."""
    return _NeedsReader(context).needs(rule.body)


class _NeedsReader:
    """Read the lines of one rule in their order; ``_kinds`` are those of the variables so far."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kinds: dict[str, str] = {}

    def needs(self, lines: Sequence[syntax.Line]) -> Needs:
        known = Needs()
        # The needs that are known before a second event is bound.
        first: Needs | None = None
        steps = [step for line in lines for step in _steps(line)]
        for number, line in enumerate(steps):
            if first is None and self._kinds and isinstance(line, syntax.Declaration) and line.source is None:
                first = known
            added = self._of_line(line)
            if added is None:
                # A later list may be iterated before another event is bound, and raise there.
                rest = steps[number:]
                later = any(isinstance(other, syntax.Declaration) and other.source is not None for other in rest)
                return first if later and first is not None else known
            known = Needs(known.kinds | added.kinds, tuple(dict.fromkeys((*known.clauses, *added.clauses))))
        return known

    def _of_line(self, line: syntax.Line) -> Needs | None:
        """Return what a line adds, and take up its variables; None where it may raise, or is not understood."""
        if isinstance(line, syntax.Declaration):
            return self._of_event(line) if line.source is None else self._of_items(line, line.source)
        if isinstance(line, syntax.Condition) and self._is_certain(line.value):
            return Needs(clauses=tuple(self._clauses(line.value)))
        if isinstance(line, syntax.Assignment) and self._is_certain(line.value):
            self._kinds[line.name] = ""
            return Needs()
        return None

    def _of_event(self, line: syntax.Declaration) -> Needs:
        kind = self._kinds[line.name] = self._kind(line)
        return Needs(frozenset((kind,)) & _EVENTS)

    def _of_items(self, line: syntax.Declaration, source: syntax.Expr) -> Needs | None:
        if self._kind(line) != "str" or not self._is_list(source):
            return None
        found = self._found(source)
        self._kinds[line.name] = _TEXT
        return Needs() if found is None else Needs(clauses=(found,))

    def _kind(self, line: syntax.Declaration) -> str:
        imported = self._context.imported.get(line.kind)
        return imported.name if imported is not None and imported.role == "kind" else line.kind

    # Needs for an expression to be true

    def _clauses(self, node: syntax.Expr) -> list[_Clause]:
        if isinstance(node, syntax.Logical):
            return self._of_operands(node)
        found: _Clause | None = None
        if isinstance(node, syntax.Comparison) and len(node.rest) == 1:
            found = self._of_comparison(node.first, *node.rest[0])
        elif isinstance(node, syntax.Is) and not node.negated and isinstance(node.pattern, syntax.ToolPattern):
            found = self._of_value(node.value, node.pattern.name) if self._is_event(node.value) else None
        elif isinstance(node, syntax.Call):
            found = self._found(node)
        return [] if found is None else [found]

    def _of_operands(self, node: syntax.Logical) -> list[_Clause]:
        operands = [self._clauses(operand) for operand in node.operands]
        if node.operator == "and":
            return [clause for clauses in operands for clause in clauses]
        # One clause of each operand is enough: the one with the fewest needs.
        if not all(operands):
            return []
        return [frozenset(need for clauses in operands for need in min(clauses, key=len))]

    def _of_comparison(self, left: syntax.Expr, operator: str, right: syntax.Expr) -> _Clause | None:
        if operator == "in":
            text = self._string(left)
            if text is not None:
                return needed_by_text(text) if self._is_searched(right) else None
            values = self._strings(right)
            return _union(self._of_value(left, value) for value in values) if self._is_value(left) and values else None
        if operator in ("==", "is"):
            for value, other in ((left, right), (right, left)):
                text = self._string(other)
                if text is not None and self._is_value(value):
                    return self._of_value(value, text)
            return None
        bound = right.value if isinstance(right, syntax.Constant) else None
        return self._counted(left) if (operator, bound) in _MORE_THAN_NONE else None

    def _of_value(self, node: syntax.Expr, value: str) -> _Clause | None:
        """Return what is needed for a field to be ``value``, or for an event to be of the tool ``value``."""
        match node:
            case syntax.Attribute(name="name", value=syntax.Attribute(name="function", value=syntax.Name(name=event))):
                pass
            case syntax.Name(name=event):
                pass
            case _:
                event = ""
        if self._kinds.get(event) == "ToolCall":
            return frozenset((Need(value, call=True),))
        return _needed_by_value(value)

    def _counted(self, node: syntax.Expr) -> _Clause | None:
        """Return what is needed for ``len(find(..)) + ..`` to be above 0."""
        if isinstance(node, syntax.Binary) and node.operator == "+":
            return _union((self._counted(node.left), self._counted(node.right)))
        if isinstance(node, syntax.Call) and self._called(node) == "len" and len(node.args) == 1:
            return self._found(node.args[0])
        return None

    def _found(self, node: syntax.Expr) -> _Clause | None:
        """Return what is needed for ``find(..)`` or ``any(find(..))`` to find anything."""
        if not isinstance(node, syntax.Call):
            return None
        if self._called(node) == "any" and len(node.args) == 1:
            return self._found(node.args[0])
        pattern = self._pattern(node.args[0]) if self._is_search(node) else None
        return needed_by_pattern(pattern) if pattern is not None else None

    # Expressions that cannot end in an error, for any conversation

    def _is_certain(self, node: syntax.Expr) -> bool:
        if isinstance(node, syntax.Constant):
            return True
        if isinstance(node, syntax.Name):
            return node.name in self._kinds or node.name in self._context.constants
        if isinstance(node, syntax.Attribute):
            return self._is_field(node)
        if isinstance(node, syntax.Unary):
            return node.operator == "not" and self._is_certain(node.operand)
        if isinstance(node, syntax.Logical):
            return all(map(self._is_certain, node.operands))
        if isinstance(node, syntax.Is):
            entities = any(isinstance(part, syntax.EntityPattern) for part in syntax.walk(node.pattern))
            return not entities and self._is_certain(node.value)
        if isinstance(node, syntax.Comparison):
            return len(node.rest) == 1 and self._is_certain_comparison(node.first, *node.rest[0])
        return isinstance(node, syntax.Call) and self._is_certain_call(node)

    def _is_certain_comparison(self, left: syntax.Expr, operator: str, right: syntax.Expr) -> bool:
        if operator in ("in", "not in"):
            if self._string(left) is not None:
                return self._is_searched(right) or self._strings(right) is not None
            return self._is_value(left) and self._strings(right) is not None
        if operator in ("==", "!=", "is", "is not") and self._is_certain(left) and self._is_certain(right):
            # Two values of messages may both be nested too deeply to be compared.
            return any(isinstance(side, syntax.Constant) or self._string(side) is not None for side in (left, right))
        return self._is_count(left) and self._is_count(right)

    def _is_count(self, node: syntax.Expr) -> bool:
        if isinstance(node, syntax.Constant):
            return type(node.value) in (int, float)
        if isinstance(node, syntax.Binary):
            return node.operator == "+" and self._is_count(node.left) and self._is_count(node.right)
        if not isinstance(node, syntax.Call) or self._called(node) != "len" or len(node.args) != 1:
            return False
        return self._is_search(node.args[0])

    def _is_certain_call(self, node: syntax.Call) -> bool:
        name = self._called(node)
        if name in ("any", "all") and len(node.args) == 1:
            return self._is_search(node.args[0])
        return self._is_search(node) or self._is_text(node)

    # Kinds of expression

    def _is_search(self, node: syntax.Expr) -> bool:
        """Return whether this is ``find(pattern, text)`` with a known pattern and a text of the conversation."""
        if not isinstance(node, syntax.Call) or self._called(node) != "find" or len(node.args) != 2 or node.kwargs:
            return False
        return self._pattern(node.args[0]) is not None and self._is_text(node.args[1])

    def _is_text(self, node: syntax.Expr) -> bool:
        """Return whether each text of the value stands in the messages' JSON as it is, or in what readers join."""
        if isinstance(node, syntax.Name):
            return self._is_event(node) or self._kinds.get(node.name) == _TEXT
        if isinstance(node, syntax.Call):
            return self._called(node) == "text" and not node.kwargs and all(map(self._is_text, node.args))
        return self._is_content(node) or self._is_call_field(node)

    def _is_list(self, node: syntax.Expr) -> bool:
        """Return whether the items of the value are texts of the conversation, whatever the messages are."""
        if isinstance(node, syntax.Name):
            return self._kinds.get(node.name) == _TEXT
        return (
            self._is_content(node) or self._is_search(node) or (isinstance(node, syntax.Call) and self._is_text(node))
        )

    def _is_searched(self, node: syntax.Expr) -> bool:
        """Return whether ``in`` can look for a text in the value, whatever the messages are."""
        if isinstance(node, syntax.Name):
            return self._is_event(node) or self._kinds.get(node.name) == _TEXT
        return self._is_content(node)

    def _is_value(self, node: syntax.Expr) -> bool:
        """Return whether this is a field whose value, if it is a string, is one string of the messages."""
        if not isinstance(node, syntax.Attribute):
            return False
        if isinstance(node.value, syntax.Name):
            return node.name == "role" and self._kinds.get(node.value.name) in ("Message", "ToolOutput")
        return self._is_call_field(node)

    def _is_event(self, node: syntax.Expr) -> bool:
        return isinstance(node, syntax.Name) and self._kinds.get(node.name) in _EVENTS

    def _is_content(self, node: syntax.Expr) -> bool:
        if not isinstance(node, syntax.Attribute) or not isinstance(node.value, syntax.Name):
            return False
        return node.name == "content" and self._kinds.get(node.value.name) in ("Message", "ToolOutput")

    def _is_call_field(self, node: syntax.Expr) -> bool:
        """Return whether this is ``c.function.name``, ``c.function.arguments`` or ``c.function.arguments.x``."""
        path: list[str] = []
        while isinstance(node, syntax.Attribute):
            path.append(node.name)
            node = node.value
        if not isinstance(node, syntax.Name) or self._kinds.get(node.name) != "ToolCall":
            return False
        path.reverse()
        return path == ["function", "name"] or (path[:2] == ["function", "arguments"] and len(path) <= _CALL_PATH)

    def _is_field(self, node: syntax.Attribute) -> bool:
        """Return whether this reads a field of an event, or what a call has at a fixed place."""
        if isinstance(node.value, syntax.Name):
            return self._is_event(node.value)
        return self._is_call_field(node)

    def _called(self, node: syntax.Call) -> str:
        """Return the name of the built-in function that is called, empty for anything else."""
        if not isinstance(node.function, syntax.Name) or node.function.name in self._kinds:
            return ""
        imported = self._context.imported.get(node.function.name)
        if imported is not None:
            return imported.name if imported.role == "function" else ""
        return "" if node.function.name in self._context.predicates else node.function.name

    def _string(self, node: syntax.Expr) -> str | None:
        value = self._known(node)
        return value if isinstance(value, str) else None

    def _strings(self, node: syntax.Expr) -> list[str] | None:
        """Return a list of texts that is known at load."""
        items: object = self._known(node)
        if isinstance(node, syntax.Sequence):
            items = [self._known(item) for item in node.items]
        if not isinstance(items, list | tuple):
            return None
        strings = [item for item in items if isinstance(item, str)]
        return strings if len(strings) == len(items) else None

    def _pattern(self, node: syntax.Expr) -> str | None:
        """Return a pattern as it is written."""
        if isinstance(node, syntax.Constant):
            written = node.raw if node.raw is not None else node.value
        elif isinstance(node, syntax.Name) and node.name not in self._kinds:
            known = self._context.constants.get(node.name)
            written = None if known is None else known.raw if known.raw is not None else known.value
        else:
            written = None
        return written if isinstance(written, str) else None

    def _known(self, node: syntax.Expr) -> object:
        """Return the value of a constant; None for anything else."""
        if isinstance(node, syntax.Constant):
            return node.value
        if isinstance(node, syntax.Name) and node.name not in self._kinds:
            known = self._context.constants.get(node.name)
            return None if known is None else known.value
        return None


def _steps(line: syntax.Line) -> Sequence[syntax.Line]:
    """Return a line, of a flow the events that it declares: their order raises nothing."""
    if not isinstance(line, syntax.Flow):
        return (line,)
    return [link for link in line.links if isinstance(link, syntax.Declaration)]


def _union(clauses: Iterable[_Clause | None]) -> _Clause | None:
    """Return the clause of which one need is met where one of the clauses is; None where one is not known."""
    known: set[Need] = set()
    for clause in clauses:
        if clause is None:
            return None
        known |= clause
    return frozenset(known)


# What a text must contain for a pattern to match it

_COUNT: Final = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_SCOPE: Final = re.compile(r"\(\?([imsau]*)(?:-([ims]+))?([:)])")
_NAMED: Final = re.compile(r"\(\?P<\w+>")
_CODE: Final = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8}))")
_SPECIAL: Final = frozenset("\\^$.|?*+(){}[]")
_ANCHORS: Final = frozenset("bBAZz")
_CONTROLS: Final = frozenset("nrtfva")
# JSON escapes these.
_ESCAPED: Final = frozenset('"\\')
# The characters of numbers, which JSON may write differently from the form that rules read.
_OF_NUMBERS: Final = frozenset("0123456789.+-einfa")
_NOT_IN_JSON: Final = ("inf", "-inf", "nan")
# Characters that occur in most texts.
_COMMON: Final = frozenset(" .,:;-/()'")
_SIZES: Final = {"d": 10, "w": 63}
_LONGEST: Final = 16
_LONGEST_LITERAL: Final = 24
_LEAST_LITERAL: Final = 3
_MOST_BRANCHES: Final = 32
_MOST_ATOMS: Final = 100
_LEAST_BITS: Final = 8.0
# Enough: further classes would add little and make the search larger.
_ENOUGH_BITS: Final = 40.0


class _UnreadableError(Exception):
    """The pattern has something that this reader does not understand."""


@dataclass(frozen=True, slots=True)
class _Atom:
    """A character of a match: ``source`` is its part of the pattern, ``size`` the number of characters that fit.

    ``numbers`` holds those of these characters that occur in numbers.
    """

    source: str
    size: int
    numbers: frozenset[str]
    folded: bool = False

    @property
    def bits(self) -> float:
        """Return how much the character tells, in bits: rare ones tell more."""
        return max(0.0, (5 if self.source[-1] in _COMMON else 8) - log2(self.size * (1 + self.folded)))


@dataclass(frozen=True, slots=True)
class _Choice:
    branches: "tuple[_Sequence, ...]"


# None stands for anything, or nothing: the parts before and after it may not be adjacent.
_Sequence = tuple["_Atom | _Choice | None", ...]


def needed_by_pattern(pattern: str) -> frozenset[Need] | None:
    """Return needs of which one is met wherever the pattern matches; None where none is known."""
    try:
        best = _best(_PatternReader(pattern).read())
    except (_UnreadableError, DialectError, OverflowError, RecursionError):
        return None
    return None if best is None else best[1]


def needed_by_text(text: str) -> frozenset[Need] | None:
    """Return the need that is met wherever ``text`` stands in a text."""
    best = _best(tuple(_atom_of(char) if _is_plain(char) else None for char in text))
    return None if best is None else best[1]


def _needed_by_value(value: str) -> frozenset[Need] | None:
    """Return the need that is met wherever a string is ``value`` as a whole."""
    try:
        written = orjson.dumps(value).decode()
    except (TypeError, UnicodeError):
        return None
    if len(written) > LONGEST_NEED // 4:
        return None
    return frozenset((Need("".join(map(_escaped, written))),))


class _PatternReader:
    """Read as much of a pattern in Python's dialect as it takes to know what every match contains."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def read(self) -> _Sequence:
        choice = self._choice(folded=False)
        if self._at < len(self._pattern):
            raise _UnreadableError
        return choice

    def _choice(self, *, folded: bool) -> _Sequence:
        """Read branches up to the end of their group."""
        branches: list[_Sequence] = []
        sequence: list[_Atom | _Choice | None] = []
        while self._at < len(self._pattern) and self._pattern[self._at] != ")":
            if self._pattern[self._at] == "|":
                self._at += 1
                branches.append(tuple(sequence))
                sequence = []
                continue
            scope = _SCOPE.match(self._pattern, self._at)
            if scope is not None and scope[3] == ")":
                # Flags hold to the end of their group, in all further branches.
                self._at = scope.end()
                folded = _folds(scope, folded)
                continue
            sequence.extend(self._repeated(self._item(folded=folded)))
            if len(sequence) > _MOST_ATOMS:
                raise _UnreadableError
        if not branches:
            return tuple(sequence)
        return (None, _Choice((*branches, tuple(sequence))), None)

    def _item(self, *, folded: bool) -> _Sequence:
        char = self._pattern[self._at]
        if char == "(":
            return self._group(folded=folded)
        if char == "[":
            return (self._class(folded=folded),)
        if char == "\\":
            return self._escape(folded=folded)
        self._at += 1
        if char in "^$":
            return ()
        if char == ".":
            return (None,)
        if char in _SPECIAL:
            raise _UnreadableError
        return (_atom_of(char, folded=folded) if _is_plain(char) else None,)

    def _group(self, *, folded: bool) -> _Sequence:
        opening = _SCOPE.match(self._pattern, self._at) or _NAMED.match(self._pattern, self._at)
        if opening is not None:
            self._at = opening.end()
            folded = _folds(opening, folded) if opening.re is _SCOPE else folded
        elif self._pattern.startswith("(?", self._at):
            raise _UnreadableError
        else:
            self._at += 1
        inner = self._choice(folded=folded)
        if self._at >= len(self._pattern):
            raise _UnreadableError
        self._at += 1
        return inner

    def _escape(self, *, folded: bool) -> _Sequence:
        following = self._pattern[self._at + 1 : self._at + 2]
        if following in _ANCHORS:
            self._at += 2
            return ()
        char = self._escaped_character()
        if char is not None:
            return (_atom_of(char, folded=folded) if _is_plain(char) else None,)
        if following in _SIZES:
            atom = _Atom(f"\\{following}", _SIZES[following], _OF_NUMBERS)
        elif following not in "DWSs":
            raise _UnreadableError
        else:
            atom = None
        self._at += 2
        return (atom,)

    def _escaped_character(self) -> str | None:
        """Read an escape that stands for one character; None, and nothing read, for a class."""
        following = self._pattern[self._at + 1 : self._at + 2]
        if code := _CODE.match(self._pattern, self._at):
            self._at = code.end()
            return chr(int(code[1] or code[2] or code[3], 16))
        if not following or following in _CONTROLS:
            # JSON escapes all control characters, so it does not matter which one this is.
            self._at += 2
            return "\n"
        if following.isalnum() or following == "_":
            return None
        self._at += 2
        return following

    def _class(self, *, folded: bool) -> _Atom | None:
        start = self._at
        self._at += 1
        negated = self._pattern.startswith("^", self._at)
        self._at += negated
        ranges: list[tuple[str, str]] = []
        size, opaque, first = 0, negated, True
        while first or not self._pattern.startswith("]", self._at):
            first = False
            low = self._class_character()
            if low is None:
                kind = self._pattern[self._at + 1]
                self._at += 2
                opaque = opaque or kind not in _SIZES
                size += _SIZES.get(kind, 0)
                ranges.append(("0", "9"))
                continue
            high = low
            if self._pattern.startswith("-", self._at) and not self._pattern.startswith("-]", self._at):
                self._at += 1
                high = self._class_character() or ""
            if high < low:
                raise _UnreadableError
            ranges.append((low, high))
            size += ord(high) - ord(low) + 1
        self._at += 1
        if opaque or any(low < " " or any(low <= char <= high for char in _ESCAPED) for low, high in ranges):
            return None
        source = self._pattern[start : self._at]
        if any(kind in source for kind in (r"\d", r"\w")):
            return _Atom(source, size, _OF_NUMBERS, folded)
        numbers = frozenset(
            char
            for char in _OF_NUMBERS
            if any(low <= form <= high for low, high in ranges for form in (char, char.upper()))
        )
        return _Atom(source, size, numbers, folded)

    def _class_character(self) -> str | None:
        char = self._pattern[self._at : self._at + 1]
        if not char or self._pattern.startswith("[:", self._at):
            raise _UnreadableError
        if char != "\\":
            self._at += 1
            return char
        following = self._pattern[self._at + 1 : self._at + 2]
        if following == "b":
            self._at += 2
            return "\b"
        found = self._escaped_character()
        if found is None and following not in "dDwWsS":
            raise _UnreadableError
        return found

    def _repeated(self, item: _Sequence) -> _Sequence:
        """Read how often an item stands there."""
        least, most = self._bounds()
        if self._pattern.startswith(("?", "+"), self._at) and (least, most) != (1, 1):
            # Lazy repetition matches the same texts. Possessive repetition does not load.
            self._at += 1
        if (least, most) == (1, 1) or not item:
            return item
        if least == 0:
            return (None,)
        copies = max(1, min(least, _LONGEST // len(item)))
        if copies == most:
            return item * copies
        return (*item * copies, None, *item)

    def _bounds(self) -> tuple[int, int | None]:
        char = self._pattern[self._at : self._at + 1]
        if char in ("*", "+", "?") and char:
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        if char != "{":
            return 1, 1
        count = _COUNT.match(self._pattern, self._at)
        if count is None:
            raise _UnreadableError
        self._at = count.end()
        least = int(count[1])
        if count[2] is None:
            return least, least
        return least, int(count[3]) if count[3] else None


def _folds(scope: re.Match[str], folded: bool) -> bool:
    return (folded or "i" in scope[1]) and "i" not in (scope[2] or "")


def _is_plain(char: str) -> bool:
    return char >= " " and char not in _ESCAPED and not "\ud800" <= char <= "\udfff"


def _atom_of(char: str, *, folded: bool = False) -> _Atom:
    return _Atom(_escaped(char), 1, _OF_NUMBERS & {char, char.lower()}, folded)


def _escaped(char: str) -> str:
    return f"\\{char}" if char in _SPECIAL else char


def _best(sequence: _Sequence) -> tuple[float, frozenset[Need]] | None:
    """Return the needs of the sequence that tell most, and how much that is in bits."""
    candidates = [found for stretch in _stretches(sequence) if (found := _of_stretch(stretch)) is not None]
    for item in sequence:
        if isinstance(item, _Choice):
            branches = [_best(branch) for branch in item.branches]
            known = [branch for branch in branches if branch is not None]
            needs = frozenset(need for _, found in known for need in found)
            if len(known) == len(branches) and len(needs) <= _MOST_BRANCHES:
                candidates.append((min(bits for bits, _ in known), needs))
    return max(candidates, key=lambda found: found[0], default=None)


def _stretches(sequence: _Sequence) -> Iterator[list[_Atom]]:
    stretch: list[_Atom] = []
    for item in (*sequence, None):
        if isinstance(item, _Atom):
            stretch.append(item)
        elif stretch:
            yield stretch
            stretch = []


def _of_stretch(stretch: Sequence[_Atom]) -> tuple[float, frozenset[Need]] | None:
    literal = max(_literals(stretch), key=len, default=[])
    atoms = literal[:_LONGEST_LITERAL] if len(literal) >= _LEAST_LITERAL else _window(stretch)
    bits = _bits(atoms)
    if bits < _LEAST_BITS:
        return None
    source = "".join(atom.source for atom in atoms)
    if any(atom.folded for atom in atoms):
        source = f"(?i:{source})"
    if any(_may_be_in(word, atoms) for word in _NOT_IN_JSON):
        return None
    # The Unicode classes are wider: the text need not be ASCII.
    return bits, frozenset((Need(translate(source).unicode, all(atom.numbers for atom in atoms)),))


def _may_be_in(word: str, atoms: Sequence[_Atom]) -> bool:
    """Return whether the atoms may match part of a word that stands for a number."""
    return any(
        all(char in atom.numbers for char, atom in zip(word[at:], atoms, strict=False))
        for at in range(len(word) - len(atoms) + 1)
    )


def _literals(stretch: Sequence[_Atom]) -> Iterator[list[_Atom]]:
    literal: list[_Atom] = []
    for atom in (*stretch, None):
        if atom is not None and atom.size == 1:
            literal.append(atom)
        elif literal:
            yield literal
            literal = []


def _window(stretch: Sequence[_Atom]) -> Sequence[_Atom]:
    """Return the part of a stretch that tells most."""
    starts = range(max(1, len(stretch) - _LONGEST + 1))
    atoms = max((stretch[at : at + _LONGEST] for at in starts), key=_bits)
    while len(atoms) > 1:
        shorter = atoms[:-1] if atoms[-1].bits <= atoms[0].bits else atoms[1:]
        if _bits(shorter) < _ENOUGH_BITS:
            break
        atoms = shorter
    return atoms


def _bits(atoms: Sequence[_Atom]) -> float:
    return sum(atom.bits for atom in atoms)
