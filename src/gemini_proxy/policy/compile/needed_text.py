"""Find what a text must contain for a pattern to match it: short patterns to look for in a conversation's JSON.

A need is a part of the pattern that every match contains: ``AIza`` of ``AIza[0-9A-Za-z_-]{35}``, and one part for each
branch of an alternation. It has only characters that JSON does not escape, so that the JSON of a text with the need
contains it too. If nothing is known about a pattern, there is no need and its rule always runs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log2
from typing import Final

import orjson

from gemini_proxy.policy.run.regex_dialect import DialectError, translate
from gemini_proxy.policy.run.rules import LONGEST_NEED, Need

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


def needed_by_value(value: str) -> frozenset[Need] | None:
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
