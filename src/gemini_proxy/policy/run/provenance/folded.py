"""Texts as they are compared: letters and digits alone, in one case and one Unicode form, with the way back.

What models and tools do to a value (case, white space, punctuation, quotes, Markdown, groups of four digits, thousands
separators, full-width forms) changes nothing of its letters and digits in their order.
"""

import binascii
import re
import unicodedata
from array import array
from base64 import b64decode
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Final
from urllib.parse import unquote

_WORD = re.compile(r"[^\W_]+")
# Where a value may stand in another spelling: percent escapes, base64 and hexadecimal digits.
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
# The first byte of a text in UTF-8 leaves some letters out: words of prose are not tried.
_ENCODED = re.compile(
    r"(?=[I-Za-fw-z0-9])(?<![A-Za-z0-9+/_=-])(?:(?:[A-Za-z0-9+/_-]{4})*[A-Za-z0-9+/_-]{2,3}={1,2}|(?:[A-Za-z0-9+/_-]{4}){2,})(?![A-Za-z0-9+/_=-])"
)
_HEX = re.compile(r"\b(?:0x)?((?:[2-7][0-9A-Fa-f]){2,})\b")
# Below, a value must stand as whole words: shorter runs of letters and digits stand in others by chance.
SHORT: Final = 8
# Places of one value in one text that are looked at for whole words.
_MOST_PLACES: Final = 1000


def fold(text: str) -> str:
    """Letters and digits of the text, as they are compared."""
    return "".join(folded_words(text))


def _fold_word(word: str) -> str:
    if word.isascii():
        return word.lower()
    normal = unicodedata.normalize("NFKC", word).casefold()
    return "".join(char for char in normal if char.isalnum())


@dataclass(frozen=True, slots=True)
class _Part:
    """One text: its ``source``, where it begins in the folded text, and the length of what it was decoded from."""

    text: str
    source: int
    begin: int
    decoded_from: int | None


class Folded:
    """A text, or several after another, as one folded text.

    It is only added to. Where a word stood is worked out for a text in which something is found.
    """

    __slots__ = ("_begins", "_length", "_parts", "_pieces", "_text", "_words", "_worked_out")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._text = ""
        self._length = 0
        self._parts: list[_Part] = []
        self._begins = array("q")
        self._words: dict[str, int] = {}
        self._worked_out: dict[int, _Words] = {}

    def __len__(self) -> int:
        """Characters of the folded text."""
        return self._length

    def add(self, text: str, source: int, *, decoded_from: int | None = None) -> None:
        """Add the words of a text that has the number ``source``, which is not less than those before.

        What is found in a text that was decoded from one of ``decoded_from`` characters stands somewhere in that.
        """
        words = folded_words(text)
        new = set(words).difference(self._words)
        self._words.update(dict.fromkeys(new, len(self._parts)))
        self._parts.append(_Part(text, source, self._length, decoded_from))
        self._begins.append(self._length)
        # A mark that no value has keeps values from going over two texts.
        self._pieces.extend((folded := "".join(words), "\n"))
        self._length += len(folded) + 1

    @property
    def text(self) -> str:
        if self._pieces:
            self._text += "".join(self._pieces)
            self._pieces.clear()
        return self._text

    def find(self, needle: str, limit: int, *, whole: bool | None = None) -> tuple[int, int, int] | None:
        """The first place of a folded value in sources below ``limit``: the source's number, and the span in that text.

        ``whole``: whether it must begin and end with words; by default short values must.
        """
        if not needle:
            return None
        whole = len(needle) < SHORT if whole is None else whole
        if whole and (number := self._words.get(needle)) is not None and self._parts[number].source < limit:
            words = self._words_of(number)
            return self._place(number, words.begins[words.folded.index(needle)], len(needle))
        text = self.text
        at = text.find(needle)
        for _ in range(_MOST_PLACES):
            if at < 0:
                return None
            number = bisect_right(self._begins, at) - 1
            if self._parts[number].source >= limit:
                return None
            within = at - self._begins[number]
            if not whole or self._are_words(number, within, within + len(needle)):
                return self._place(number, within, len(needle))
            at = text.find(needle, at + 1)
        return None

    def _are_words(self, number: int, start: int, end: int) -> bool:
        words = self._words_of(number)
        return start in words.starts and end in words.starts

    def _place(self, number: int, start: int, length: int) -> tuple[int, int, int]:
        part, words = self._parts[number], self._words_of(number)
        if part.decoded_from is not None:
            return part.source, 0, part.decoded_from
        first = bisect_right(words.begins, start) - 1
        last = bisect_left(words.begins, start + length) - 1
        return part.source, words.spans[first][0], words.spans[last][1]

    def _words_of(self, number: int) -> "_Words":
        if number not in self._worked_out:
            self._worked_out[number] = _Words(self._parts[number].text)
        return self._worked_out[number]


class _Words:
    """The words of one text: folded, where each begins in the folded text, and its span in the text."""

    __slots__ = ("begins", "folded", "spans", "starts")

    def __init__(self, text: str) -> None:
        self.spans = [found.span() for found in _WORD.finditer(text)]
        self.folded = folded_words(text)
        ends = list(accumulate(map(len, self.folded), initial=0))
        self.begins = array("q", ends[:-1])
        self.starts = frozenset(ends)


def folded_words(text: str) -> list[str]:
    """The words of the text, as they are compared."""
    if text.isascii():
        return _WORD.findall(str(text).lower())
    return [_fold_word(word) for word in _WORD.findall(text)]


def decoded(text: str) -> Iterator[str]:
    """The text with what is encoded in it read: percent escapes, base64, hexadecimal digits. Nothing where none is."""
    plain = unquote(text) if "%" in text and _PERCENT.search(text) else text
    read = _HEX.sub(lambda found: _of_hex(found[1]) or found[0], plain)
    read = _ENCODED.sub(lambda found: _of_base64(found[0]) or found[0], read)
    if plain != text:
        yield plain
    if read != plain:
        yield read


def _of_base64(text: str) -> str | None:
    try:
        return _readable(b64decode(text.replace("-", "+").replace("_", "/"), validate=True))
    except (ValueError, binascii.Error):
        return None


def _of_hex(text: str) -> str | None:
    return _readable(bytes.fromhex(text))


def _readable(data: bytes) -> str | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() and text.strip() else None
