"""What string literals of a policy mean in Invariant's engine: as texts, and where they are taken as patterns."""

import re
import warnings
from collections.abc import Iterator

_LONGEST_TRIED = 1000


def dot_repeats(pattern: str) -> bool:
    """Whether a dot that stops at line ends is repeated."""
    if re.match(r"\(\?[a-zA-Z]*s", pattern):
        return False
    chars = list(outside_classes(pattern))
    return any(char == "." and after in ("*", "+", "{") for char, after in zip(chars, chars[1:], strict=False))


def is_escaped(raw: str, value: str) -> bool:
    """Whether a text has an escape that is read here and not there, where only quotes are escaped."""
    return re.sub(r"\\([\"'])", r"\1", raw) != value


def is_plain(text: str) -> bool:
    """Whether a text means itself as a pattern."""
    return re.search(r"[.^$*+?{}\[\]\\|()]", text) is None


def compiles(pattern: str) -> bool:
    """Whether Python's ``re`` takes a pattern; False of one that is too long to try."""
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
    """The call of find that looks for a text literally."""
    if len(text) > 40 or not text.isprintable() or set(text) & set("\\^\"'"):
        return "any(find(...))"
    spelled = re.sub(r"[.$*+?{}\[|()]", r"[\g<0>]", text)
    return f'any(find("{spelled}", x))'


def has_alternatives(pattern: str) -> bool:
    """Whether a regular expression has a ``|`` outside of groups and classes."""
    depth = 0
    for char in outside_classes(pattern):
        depth += (char == "(") - (char == ")")
        if char == "|" and not depth:
            return True
    return False


def outside_classes(pattern: str) -> Iterator[str]:
    """The characters of a regular expression; an escape and a class each come as one empty text."""
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
