"""A cursor over tokens, shared by everything that parses."""

from typing import NoReturn, TypeVar

from gemini_proxy.policy.errors import Fault, PolicyError
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.parse.lexer import Token

# A tree this high is evaluated within a few hundred Python frames.
MAX_DEPTH = 60

KEYWORDS = frozenset("and or not in is if else for raise from import as def None True False".split())
NodeT = TypeVar("NodeT", bound=syntax.Node)


class Cursor:
    """Tokens and the depth reached. Every error is a PolicyError at the token that does not fit."""

    def __init__(self, text: str, source: str, tokens: tuple[Token, ...]) -> None:
        self._text = text
        self._source = source
        self._tokens = tokens
        self._index = 0
        self._depth = 0
        self._heights: dict[int, int] = {}

    @property
    def _token(self) -> Token:
        return self._tokens[self._index]

    def _ahead(self, count: int = 1) -> Token:
        return self._tokens[min(self._index + count, len(self._tokens) - 1)]

    def _advance(self) -> Token:
        token = self._token
        if token.kind != "end":
            self._index += 1
        return token

    def _at(self, text: str) -> bool:
        return self._token.text == text and self._token.kind in ("op", "name")

    def _take(self, text: str) -> Token | None:
        return self._advance() if self._at(text) else None

    def _expect(self, text: str, purpose: str) -> Token:
        return self._take(text) or self._fail(f'expected "{text}" {purpose}, found {describe(self._token)}')

    def _fail(
        self,
        reason: str,
        at: Token | syntax.Node | None = None,
        suggestion: str | None = None,
        *,
        fault: Fault = "form",
    ) -> NoReturn:
        where = at or self._token
        raise PolicyError(self._source, where.line, where.column, reason, suggestion, fault=fault, text=self._text)

    def _too_deep(self, at: syntax.Node | None = None) -> NoReturn:
        self._fail(f"nested more than {MAX_DEPTH} deep", at, fault="excess")

    def _identifier(self, purpose: str) -> Token:
        token = self._token
        if token.kind != "name" or token.text in KEYWORDS:
            self._fail(f"expected {purpose}, found {describe(token)}")
        if token.text.startswith("__"):
            self._fail(f'names that begin with two underscores are not available: "{token.text}"')
        return self._advance()

    def _grown(self, node: NodeT, *children: syntax.Node) -> NodeT:
        height = 1 + max((self._heights.get(id(child), 1) for child in children), default=0)
        if height > MAX_DEPTH:
            self._too_deep(node)
        self._heights[id(node)] = height
        return node


def describe(token: Token) -> str:
    """A token as an error message names it."""
    words = {"newline": "the end of the line", "indent": "an indented line", "end": "the end of the policy"}
    words["dedent"] = "the end of the indented block"
    shown = token.text if len(token.text) <= 30 else token.text[:27] + "..."
    return words.get(token.kind, f'"{shown}"' if token.kind != "string" else shown)
