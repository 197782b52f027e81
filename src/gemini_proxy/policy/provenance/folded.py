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
from typing import Final
from urllib.parse import unquote

_WORD = re.compile(r"[^\W_]+")
# Where a value may stand in another spelling: percent escapes, base64 and hexadecimal digits.
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_ENCODED = re.compile(
    r"(?<![A-Za-z0-9+/_=-])(?:(?:[A-Za-z0-9+/_-]{4})*[A-Za-z0-9+/_-]{2,3}={1,2}|(?:[A-Za-z0-9+/_-]{4}){2,})(?![A-Za-z0-9+/_=-])"
)
_HEX = re.compile(r"\b(?:0x)?((?:[2-7][0-9A-Fa-f]){2,})\b")
# Below, a value must stand as whole words: shorter runs of letters and digits stand in others by chance.
SHORT: Final = 8
# Places of one value in one text that are looked at for whole words.
_MOST_PLACES: Final = 1000


def fold(text: str) -> str:
    """Letters and digits of the text, as they are compared."""
    if text.isascii():
        return "".join(_WORD.findall(text)).lower()
    return "".join(map(_fold_word, _WORD.findall(text)))


def _fold_word(word: str) -> str:
    if word.isascii():
        return word.lower()
    normal = unicodedata.normalize("NFKC", word).casefold()
    return "".join(char for char in normal if char.isalnum())


class Folded:
    """A text, or several after another, as one folded text whose words know where they stood.

    ``text`` is only added to; so are the places of words in it, and of the sources in them.
    """

    __slots__ = ("_begins", "_length", "_parts", "_sources", "_spans", "_text", "words")

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._text = ""
        self._length = 0
        self._begins = array("q")
        self._spans: list[tuple[int, int]] = []
        self._sources = array("q")
        self.words: dict[str, int] = {}
        """Each folded word, and the number of the first that is one."""

    def __len__(self) -> int:
        """Characters of the folded text, without those of its last word."""
        return self._begins[-1] if self._begins else 0

    def add(self, text: str, source: int) -> None:
        """Add the words of a text that has the number ``source``, which is greater than those before."""
        spans = [found.span() for found in _WORD.finditer(text)]
        if text.isascii():
            lower = str(text).lower()
            words = [lower[start:end] for start, end in spans]
        else:
            words = [_fold_word(text[start:end]) for start, end in spans]
        at, known = self._length, self.words
        for number, word in enumerate(words, len(self._spans)):
            if word not in known:
                known[word] = number
            self._begins.append(at)
            at += len(word)
        self._spans.extend(spans)
        self._sources.extend([source] * len(spans))
        self._parts.extend(words)
        # A mark that no value has keeps values from going over two texts.
        self._parts.append("\n")
        self._length = at + 1

    def add_whole(self, text: str, source: int, length: int) -> None:
        """Add a text that was decoded from the source, which has ``length``: what is found stands somewhere in it."""
        first = len(self._spans)
        self.add(text, source)
        self._spans[first:] = [(0, length)] * (len(self._spans) - first)

    @property
    def text(self) -> str:
        if self._parts:
            self._text += "".join(self._parts)
            self._parts.clear()
        return self._text

    def find(self, needle: str, *, whole: bool | None = None) -> tuple[int, int, int] | None:
        """The first place of a folded value: the number of its source, and the span in that text.

        ``whole``: whether it must begin and end with words; by default short values must.
        """
        if not needle:
            return None
        whole = len(needle) < SHORT if whole is None else whole
        if whole and (number := self.words.get(needle)) is not None:
            return self._sources[number], *self._spans[number]
        text = self.text
        at = text.find(needle)
        for _ in range(_MOST_PLACES):
            if at < 0:
                return None
            if not whole or (self._begins_word(at) and self._begins_word(at + len(needle))):
                return self._place(at, at + len(needle))
            at = text.find(needle, at + 1)
        return None

    def _begins_word(self, at: int) -> bool:
        if at >= len(self._text) or self._text[at] == "\n":
            return True
        number = bisect_left(self._begins, at)
        return number < len(self._begins) and self._begins[number] == at

    def _place(self, start: int, end: int) -> tuple[int, int, int]:
        first = bisect_right(self._begins, start) - 1
        last = bisect_left(self._begins, end) - 1
        return self._sources[first], self._spans[first][0], self._spans[last][1]


def decoded(text: str) -> Iterator[str]:
    """The text with what is encoded in it read: percent escapes, base64, hexadecimal digits. Nothing where none is."""
    plain = unquote(text) if _PERCENT.search(text) else text
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
