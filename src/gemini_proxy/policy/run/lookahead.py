"""Look-aheads at the beginning of a pattern, taken out of it: RE2 has none, and there they are conditions.

``^(?!A)(?=B)C`` fits where ``C`` does, ``A`` does not and ``B`` does, all three from the same place. That is
exact where there is one place to begin at, and where no ``|`` outside of groups gives the conditions to one branch.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FLAGS = re.compile(r"(?:\(\?[A-Za-z]+\))*")
_ANCHOR = re.compile(r"\^|\\A")
_REPEATS = ("*", "+", "?", "{")


@dataclass(frozen=True, slots=True)
class Lookahead:
    """What must stand, or with ``negative`` must not, where the pattern begins."""

    pattern: str
    negative: bool


@dataclass(frozen=True, slots=True)
class Split:
    """A pattern without its look-aheads; ``anchored`` if only the beginning of the text can fit."""

    rest: str
    conditions: tuple[Lookahead, ...]
    anchored: bool


def split(pattern: str) -> Split | None:
    """Take the look-aheads off; None where there are none or they are not conditions on the whole pattern."""
    found = _FLAGS.match(pattern)
    flags = found.group() if found else ""
    at, anchors = len(flags), ""
    conditions: list[Lookahead] = []
    while True:
        if anchor := _ANCHOR.match(pattern, at):
            anchors += anchor.group()
            at = anchor.end()
        elif pattern.startswith(("(?=", "(?!"), at):
            end = _end_of_group(pattern, at)
            if end is None or pattern.startswith(_REPEATS, end + 1):
                return None
            conditions.append(Lookahead(f"{flags}(?:{pattern[at + 3 : end]})", pattern[at + 2] == "!"))
            at = end + 1
        else:
            break
    if not conditions or pattern.startswith(_REPEATS, at) or _has_branches(pattern[at:]):
        return None
    return Split(flags + anchors + pattern[at:], tuple(conditions), bool(anchors) and "m" not in flags)


def _end_of_group(pattern: str, start: int) -> int | None:
    """The place of the bracket that closes the group that begins at ``start``."""
    depth = 0
    for at, char in _outside_classes(pattern, start):
        depth += (char == "(") - (char == ")")
        if char == ")" and depth == 0:
            return at
    return None


def _has_branches(pattern: str) -> bool:
    depth = 0
    for _, char in _outside_classes(pattern, 0):
        depth += (char == "(") - (char == ")")
        if char == "|" and depth <= 0:
            return True
    return False


def _outside_classes(pattern: str, at: int) -> Iterator[tuple[int, str]]:
    """Characters that stand for themselves or for structure, with their places: no escapes, nothing in classes."""
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 1
        elif char == "[":
            at = _end_of_class(pattern, at)
        else:
            yield at, char
        at += 1


def _end_of_class(pattern: str, at: int) -> int:
    at += 2 if pattern.startswith("^", at + 1) else 1
    first = at
    while at < len(pattern) and (pattern[at] != "]" or at == first):
        at += 2 if pattern[at] == "\\" else 1
    return at
