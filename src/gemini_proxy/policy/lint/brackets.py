"""Find the brackets of a policy: the syntax tree only knows what they group."""

from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.lexer import Token, tokenize

# Tokens that may follow a closing bracket if the brackets hold only the beginning of an operand.
_CONTINUES = frozenset("== != < <= > >= in is not + - * / // % ** . [ (".split())
_PAIRS = {"(": ")", "[": "]", "{": "}"}


class Brackets:
    """The tokens of a text that parses and has LF line ends, by place. Nodes inside f-strings have no place."""

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
