"""Translate regular expressions from Python's dialect, which policies use, to RE2's.

Differences are rewritten where that is exact. Otherwise the pattern is refused with a suggestion, or, if RE2 reads it
more narrowly, translated with a caveat.

=====================  ==========================================================================================
``\\d \\w \\s`` etc.       Unicode in Python, ASCII in RE2: rewritten to Unicode classes for texts that are not ASCII
``$``                  also before a final line end in Python: rewritten where it ends a branch
``\\Z  (?u)  {,n}  \\uXXXX``  other spellings of the same
``\\b \\B``               ASCII words in RE2 and no rewrite: a caveat
look-around, back references, possessive and atomic groups, conditions, ``(?x)``, ``(?#..)``: refused, but for
look-aheads at the beginning, which ``split`` takes off
=====================  ==========================================================================================

``^(?!A)(?=B)C`` matches where ``C`` does, ``A`` does not and ``B`` does, all three from the same place. That is exact
if there is only one place to begin at, and no ``|`` outside of groups limits the conditions to one branch.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_DIGIT = r"\p{Nd}"
_WORD = r"\p{L}\p{N}_"
_SPACE = r"\t-\r\x1c-\x20\x{85}\p{Z}"
_NOT_SPACE = (
    r"\x00-\x08\x0e-\x1b\x21-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027}"
    r"\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff}"
)
_OUTSIDE = {
    "d": f"[{_DIGIT}]", "D": f"[^{_DIGIT}]", "w": f"[{_WORD}]", "W": f"[^{_WORD}]",
    "s": f"[{_SPACE}]", "S": f"[{_NOT_SPACE}]",
}  # fmt: skip
# All categories except letters and numbers, and all connector punctuation except the underscore.
_NOT_WORD = (
    r"\p{M}\p{S}\p{Z}\p{C}\p{Pd}\p{Ps}\p{Pe}\p{Pi}\p{Pf}\p{Po}"
    r"\x{203f}\x{2040}\x{2054}\x{fe33}\x{fe34}\x{fe4d}-\x{fe4f}\x{ff3f}"
)
_INSIDE = {"d": _DIGIT, "D": r"\P{Nd}", "w": _WORD, "W": _NOT_WORD, "s": _SPACE, "S": _NOT_SPACE}
# RE2's own \s lacks five control characters that are white space in Python. A pattern must mean the same for texts with
# and without other than ASCII characters.
_ASCII_OUTSIDE = {"s": r"[\t-\r\x1c-\x20]", "S": r"[^\t-\r\x1c-\x20]"}
_ASCII_INSIDE = {"s": r"\t-\r\x1c-\x20", "S": r"\x00-\x08\x0e-\x1b\x21-\x7f"}
_FLAGS = re.compile(r"\(\?([A-Za-z]*)(-[A-Za-z]+)?([:)])")
_SHORT_COUNT = re.compile(r"\{,(\d+)\}")
_COUNT = re.compile(r"\{\d*,?\d*\}")

_REFUSED = (
    ("(?=", "look-ahead", "state both conditions as two find(...) or match(...) joined by and"),
    ("(?!", "negative look-ahead", "use match(...) and not match(...) as two conditions"),
    ("(?<=", "look-behind", "match the text before as well"),
    ("(?<!", "negative look-behind", "match the text before as well, as in (^|[^a-z])word"),
    ("(?P=", "a back reference", "compare the found texts in the rule"),
    ("(?>", "an atomic group", "use (?:...); matching is linear anyway"),
    ("(?(", "a conditional group", "write both alternatives out, as in (a|b)"),
    ("(?#", "a comment", "put it in a # comment of the policy"),
)

_LEADING_FLAGS = re.compile(r"(?:\(\?[A-Za-z]+\))*")
_ANCHOR = re.compile(r"\^|\\A")
_REPEATS = ("*", "+", "?", "{")


class DialectError(ValueError):
    """RE2 has no equal for the pattern; ``suggestion`` names a rewrite."""

    def __init__(self, reason: str, suggestion: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.suggestion = suggestion


@dataclass(frozen=True, slots=True)
class Translation:
    """``ascii`` is for ASCII text, ``unicode`` for any; they are the same string where no class differs."""

    ascii: str
    unicode: str
    caveats: tuple[str, ...]


def translate(pattern: str, *, whole: bool = False) -> Translation:
    """Rewrite a Python pattern for RE2; ``whole`` says that the engine will require all of the text to match.

    Raises DialectError.
    """
    return _Translator(pattern, whole).run()


class _Translator:
    def __init__(self, pattern: str, whole: bool) -> None:
        self._pattern = pattern
        self._whole = whole
        self._at = 0
        self._in_class = False
        self._class_start = -1
        self._ascii_only = False
        self._multiline = False
        self._ascii: list[str] = []
        self._unicode: list[str] = []
        self._caveats: dict[str, None] = {}

    def run(self) -> Translation:
        while self._at < len(self._pattern):
            self._step(self._pattern[self._at])
        return Translation("".join(self._ascii), "".join(self._unicode), tuple(self._caveats))

    def _emit(self, width: int, ascii_form: str, unicode_form: str | None = None) -> None:
        self._at += width
        self._ascii.append(ascii_form)
        same = unicode_form is None or self._ascii_only
        self._unicode.append(ascii_form if same or unicode_form is None else unicode_form)

    def _step(self, char: str) -> None:
        if char == "\\":
            self._escape()
        elif self._in_class:
            self._in_class = char != "]" or self._at == self._class_start
            self._emit(1, char)
        elif char == "[":
            negated = self._pattern.startswith("^", self._at + 1)
            self._in_class = True
            self._class_start = self._at + 1 + negated
            self._emit(1 + negated, "[^" if negated else "[")
        elif char == "(":
            self._group()
        elif char == "$":
            self._dollar()
        elif char in "*+?{":
            self._repeat(char)
        else:
            self._emit(1, char)

    def _escape(self) -> None:
        following = self._pattern[self._at + 1 : self._at + 2]
        if not following:
            raise DialectError("a pattern cannot end in a backslash", r"a backslash itself is \\")
        if following in "dDwWsS":
            self._class_escape(following)
        elif following in "bB" and not self._in_class:
            self._caveats[rf"\{following} knows ASCII words only; beside other letters write (?:^|[^\pL\pN_])"] = None
            self._emit(2, "\\" + following)
        elif following in "123456789" and not self._in_class:
            raise DialectError("back references are not available", "compare the found texts in the rule")
        elif following in "CQE":
            raise DialectError(rf"\{following} is not available")
        else:
            self._emit_escape(following)

    def _emit_escape(self, following: str) -> None:
        width = {"u": 4, "U": 8}.get(following, 0)
        digits = self._pattern[self._at + 2 : self._at + 2 + width]
        if width and len(digits) == width and all(digit in "0123456789abcdefABCDEF" for digit in digits):
            self._emit(2 + width, f"\\x{{{digits}}}")
        elif following == "Z":
            self._emit(2, r"\z")
        elif following == "b":
            self._emit(2, r"\x08")
        elif not following.isascii() or following.isspace():
            self._emit(2, following)
        else:
            self._emit(2, "\\" + following)

    def _class_escape(self, letter: str) -> None:
        table = _INSIDE if self._in_class else _OUTSIDE
        narrow = "\\" + letter
        if not self._ascii_only:
            narrow = (_ASCII_INSIDE if self._in_class else _ASCII_OUTSIDE).get(letter, narrow)
        self._emit(2, narrow, table[letter])

    def _group(self) -> None:
        for opening, what, rewrite in _REFUSED:
            if self._pattern.startswith(opening, self._at):
                raise DialectError(f"{what} is not available in linear-time regular expressions", rewrite)
        match = _FLAGS.match(self._pattern, self._at)
        if match is None:
            self._emit(1, "(")
            return
        flags, off, closing = match.group(1), match.group(2) or "", match.group(3)
        if "x" in flags:
            raise DialectError("verbose patterns are not available", "write the pattern without white space")
        self._ascii_only = self._ascii_only or "a" in flags
        self._multiline = self._multiline or "m" in flags
        kept = flags.replace("u", "").replace("a", "") + off
        self._emit(len(match.group()), "" if closing == ")" and not kept else f"(?{kept}{closing}")

    def _dollar(self) -> None:
        following = self._pattern[self._at + 1 : self._at + 2]
        if self._multiline or self._whole:
            self._emit(1, "$")
        elif following in ("", ")", "|"):
            self._emit(1, r"(?:\n?\z)")
        else:
            self._caveats["$ inside a pattern means the very end of the text; put it last or use (?m)"] = None
            self._emit(1, "$")

    def _repeat(self, char: str) -> None:
        if char == "{":
            if short := _SHORT_COUNT.match(self._pattern, self._at):
                self._emit(len(short.group()), f"{{0,{short.group(1)}}}")
            else:
                count = _COUNT.match(self._pattern, self._at)
                self._emit(len(count.group()) if count else 1, count.group() if count else r"\{")
        else:
            self._emit(1, char)
        if self._pattern.startswith("+", self._at) and char != "+" or self._pattern.startswith("++", self._at - 1):
            raise DialectError("possessive repetition is not available", "drop the last +; matching is linear anyway")


@dataclass(frozen=True, slots=True)
class Lookahead:
    """The text that must be, or with ``negative`` must not be, where the pattern begins."""

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
    match = _LEADING_FLAGS.match(pattern)
    flags = match.group() if match else ""
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
    """Return the place of the bracket that closes the group that begins at ``start``."""
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
