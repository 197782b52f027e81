"""Read string literals, as text and as regular expressions.

As text the usual escapes are read (``\\n \\t \\r \\\\ \\" \\' \\xHH \\uHHHH \\UHHHHHHHH``, a backslash before a line
end); any other backslash stays, so that ``"\\d+"`` is what it looks like. As a regular expression a literal means
exactly what was written between the quotes, and the regular expression engine reads the escapes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ESCAPE = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[\s\S])")
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "\n": ""}
_HIGHEST = 0x10FFFF


@dataclass(frozen=True, slots=True)
class StringLiteral:
    """``body`` is the text between the quotes; ``offset`` where it begins in the token."""

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
    """Parts of an f-string's body: (is an expression, text, offset). Raises ValueError where braces do not pair."""
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
