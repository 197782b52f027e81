"""Turn the text of a policy into tokens, and string tokens into what they mean.

INDENT and DEDENT are made from leading white space.

A line that ends in ``:`` or ``:=`` opens a block. Every following line that is indented more than that line belongs to
the block, whatever the indentation of the lines between, so a text may be indented as a whole.
A line continues if it ends in what needs an operand, or if the next begins with ``and`` or ``or``.
Lines may end in LF, CRLF or CR. Inside brackets line ends and indentation mean nothing, as in Python. A tab counts to
the next multiple of eight.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["name", "number", "string", "op", "tool", "newline", "indent", "dedent", "end"]

_MAX_INDENT_LEVELS = 20

NUMBER = re.compile(r"(?:\d+(?:_\d+)*)(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?", re.ASCII)
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TOOL = re.compile(r"tool[ \t]*:[ \t]*([A-Za-z0-9_](?:[A-Za-z0-9_./:-]*[A-Za-z0-9_])?)")
OPERATOR = re.compile(r":=|->|~>|==|!=|<=|>=|\*\*|//|[-+*/%<>()\[\]{}:,.=]")
# A line that ends in one of these continues. Not "*" and ">", which end patterns.
WANTS_MORE = frozenset("and or not in == != < <= >= + - / // % ** -> ~> , .".split())
_GOES_ON = re.compile(r"(?:[ \t\f\xa0]*(?:#[^\n]*)?\n)*[ \t\f\xa0]*(?:and|or)\b")
# Hints for characters that other languages use.
_WORDS = {
    "!": "negation is the word not",
    "&": "write the word and",
    "|": "write the word or",
    ";": "a line needs no character at its end",
}
_BLANK = re.compile(r"(?:[ \t\f\xa0\ufeff]|\\\n)+")
_STRING = re.compile(
    r"([rRfF]{0,2})(\"\"\"(?:[^\"\\]|\\[\s\S]|\"(?!\"\"))*\"\"\"|'''(?:[^'\\]|\\[\s\S]|'(?!''))*'''"
    r"|\"(?:[^\"\\\n]|\\[\s\S])*\"|'(?:[^'\\\n]|\\[\s\S])*')"
)


@dataclass(frozen=True, slots=True)
class Token:
    """``text`` is as written; of a tool token, the tool's name. ``end`` is the offset after it."""

    kind: Kind
    text: str
    line: int
    column: int
    start: int
    end: int


class LexError(Exception):
    """No token can start here; with ``excess`` there are too many levels."""

    def __init__(
        self, reason: str, line: int, column: int, suggestion: str | None = None, *, excess: bool = False
    ) -> None:
        super().__init__(reason, line, column, suggestion)
        self.reason = reason
        self.line = line
        self.column = column
        self.suggestion = suggestion
        self.excess = excess


def unify_lines(text: str) -> str:
    """Replace CRLF and CR by LF; nothing else changes."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def tokenize(text: str) -> tuple[Token, ...]:
    """Return the tokens of a text whose lines end in LF; the last is ``end``. Raises LexError."""
    return tuple(_Lexer(text).run())


class _Lexer:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._line_start = 0
        self._width = 0
        self._heads: list[int] = []
        self._opens_block = False
        self._continues = False
        self._brackets: list[Token] = []
        self._previous: Token | None = None

    def run(self) -> Iterator[Token]:
        while self._at < len(self._text):
            if not self._continues and self._at == self._line_start:
                yield from self._start_line()
                if self._at >= len(self._text):
                    break
            token = self._next()
            if token is not None:
                if token.kind != "newline":
                    self._opens_block = token.kind == "op" and token.text in (":", ":=")
                self._previous = token
                yield token
        if self._brackets:
            opened = self._brackets[-1]
            raise LexError(f'"{opened.text}" is never closed', opened.line, opened.column)
        if self._previous is not None and self._previous.kind != "newline":
            yield self._token("newline", "")
        yield from (self._token("dedent", "") for _ in self._heads)
        yield self._token("end", "")

    def _start_line(self) -> Iterator[Token]:
        """Skip blank and comment lines, then close the blocks that this line is not in, and open the one it begins."""
        while True:
            width, at = self._indentation()
            if at >= len(self._text) or self._text[at] not in "\n#":
                break
            end = self._text.find("\n", at)
            if end < 0:
                self._at = len(self._text)
                return
            self._new_line(end + 1)
        self._at = at
        if at >= len(self._text):
            return
        while self._heads and width <= self._heads[-1]:
            self._heads.pop()
            yield self._token("dedent", "")
        if self._opens_block and width > self._width:
            self._heads.append(self._width)
            if len(self._heads) >= _MAX_INDENT_LEVELS:
                raise LexError("the line is indented too deeply", self._line, self._column(), excess=True)
            yield self._token("indent", "")
        self._width = width

    def _indentation(self) -> tuple[int, int]:
        width, at = 0, self._at
        while at < len(self._text) and (char := self._text[at]) in " \t\f\xa0\ufeff":
            width = (width // 8 + 1) * 8 if char == "\t" else width + (char != "\ufeff")
            at += 1
        return width, at

    def _next(self) -> Token | None:
        text, at = self._text, self._at
        char = text[at]
        if char == "\n":
            goes_on = bool(self._brackets) or self._goes_on(at + 1)
            token = None if goes_on else self._token("newline", "\n")
            self._new_line(at + 1)
            self._continues = goes_on
            return token
        if char == "#":
            end = text.find("\n", at)
            self._at = len(text) if end < 0 else end
            return None
        if blank := _BLANK.match(text, at):
            self._count_lines(at, blank.end())
            self._at = blank.end()
            # Whatever its indentation, if it has any.
            self._continues = self._at == self._line_start
            return None
        return self._word(at)

    def _goes_on(self, at: int) -> bool:
        """Return whether the line that begins here continues the one before."""
        previous = self._previous
        if previous is not None and previous.kind in ("op", "name") and previous.text in WANTS_MORE:
            return True
        return previous is not None and not self._opens_block and _GOES_ON.match(self._text, at) is not None

    def _word(self, at: int) -> Token:
        text = self._text
        if match := _STRING.match(text, at):
            if len(match.group(2)) == 2 and text.startswith(match.group(2)[0], match.end()):
                raise LexError("this triple-quoted string is never closed", self._line, self._column())
            token = self._token("string", match.group())
            self._count_lines(at, match.end())
            self._at = match.end()
            return token
        if self._expects_tool() and (match := TOOL.match(text, at)):
            return self._take("tool", match.group(1), match.end())
        if match := NAME.match(text, at):
            return self._take("name", match.group(), match.end())
        if match := NUMBER.match(text, at):
            return self._take("number", match.group(), match.end())
        if match := OPERATOR.match(text, at):
            token = self._take("op", match.group(), match.end())
            self._match_bracket(token)
            return token
        if text[at] in "\"'":
            raise LexError("this string is not closed on its line", self._line, self._column())
        raise LexError(f"unexpected character {text[at]!r}", self._line, self._column(), _WORDS.get(text[at]))

    def _expects_tool(self) -> bool:
        previous = self._previous
        return previous is not None and previous.kind == "name" and previous.text in ("is", "not")

    def _match_bracket(self, token: Token) -> None:
        if token.text in "([{":
            self._brackets.append(token)
        elif token.text in ")]}":
            if not self._brackets or self._brackets[-1].text + token.text not in ("()", "[]", "{}"):
                raise LexError(f'"{token.text}" closes nothing', token.line, token.column)
            self._brackets.pop()

    def _column(self) -> int:
        return self._at - self._line_start + 1

    def _token(self, kind: Kind, text: str) -> Token:
        return Token(kind, text, self._line, self._column(), self._at, self._at + len(text))

    def _take(self, kind: Kind, text: str, end: int) -> Token:
        token = Token(kind, text, self._line, self._column(), self._at, end)
        self._at = end
        return token

    def _new_line(self, at: int) -> None:
        self._line += 1
        self._at = self._line_start = at

    def _count_lines(self, start: int, end: int) -> None:
        count = self._text.count("\n", start, end)
        if count:
            self._line += count
            self._line_start = self._text.rfind("\n", start, end) + 1


_ESCAPE = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[\s\S])")
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "\n": ""}
_HIGHEST = 0x10FFFF


@dataclass(frozen=True, slots=True)
class StringLiteral:
    """``body`` is the text between the quotes; ``offset`` where it begins in the token.

    As text the usual escapes are read (``\\n \\t \\r \\\\ \\" \\' \\xHH \\uHHHH \\UHHHHHHHH``, a backslash before a
    line end); any other backslash stays, so that ``"\\d+"`` is what it looks like. As a regular expression a literal
    means exactly what was written between the quotes, and the regular expression engine reads the escapes.
    """

    body: str
    offset: int
    is_raw: bool
    is_template: bool

    @property
    def value(self) -> str:
        return self.body if self.is_raw else cook(self.body)


def read_string(token: str) -> StringLiteral:
    """Split a string token into prefix and body; a prefix has at most one ``r`` and one ``f``."""
    quote = min(index for index in (token.find('"'), token.find("'")) if index >= 0)
    prefix = token[:quote].lower()
    width = 3 if token[quote : quote + 3] in ('"""', "'''") and len(token) - quote >= 6 else 1
    return StringLiteral(token[quote + width : -width], quote + width, "r" in prefix, "f" in prefix)


def cook(body: str) -> str:
    """Read the escapes of a literal's body; an escape that is not known stays as it is."""
    return _ESCAPE.sub(_cook_one, body) if "\\" in body else body


def _cook_one(found: re.Match[str]) -> str:
    escape = found.group()
    if len(escape) > 2:
        code = int(escape[2:], 16)
        return chr(code) if code <= _HIGHEST and not 0xD800 <= code <= 0xDFFF else escape
    return _SIMPLE.get(escape[1], escape)


def split_template(body: str) -> Iterator[tuple[bool, str, int]]:
    """Return an f-string's parts: (is an expression, text, offset). Raises ValueError if braces do not pair."""
    at, text_start, text = 0, 0, ""
    while at < len(body):
        char = body[at]
        if char in "{}" and body[at : at + 2] == char * 2:
            text += body[text_start : at + 1]
            at = text_start = at + 2
        elif char == "{":
            yield False, text + body[text_start:at], text_start
            end = _closing(body, at)
            yield True, body[at + 1 : end], at + 1
            text, at = "", end + 1
            text_start = at
        elif char == "}":
            raise ValueError('a single "}" in an f-string')
        else:
            at += 1
    yield False, text + body[text_start:], text_start


def _closing(body: str, start: int) -> int:
    depth, quote = 0, ""
    for at in range(start, len(body)):
        char = body[at]
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
            if depth == 0:
                return at
    raise ValueError('"{" is never closed in an f-string')
