"""Find what a conversation must contain for a rule to fire, from the rule's syntax tree at load.

All lines of a rule must hold. So the rule cannot fire if one line is false for every binding, and skipping the rule
changes nothing if no earlier line can raise an error. Only certain facts count: a line that may raise, all lines after
it, and tests other than those below add no need.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from gemini_proxy.policy.compile.needed_text import needed_by_pattern, needed_by_text, needed_by_value
from gemini_proxy.policy.compile.scope import Context
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.rules import Need, Needs

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
        return needed_by_value(value)

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
