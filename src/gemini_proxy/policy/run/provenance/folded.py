"""Fold texts for comparison: letters and digits alone, in one case and one Unicode form, with the way back.

The usual changes that models and tools make to a value (case, white space, punctuation, quotes, Markdown, groups of
four digits, thousands separators, full-width forms) leave its letters and digits and their order unchanged. What is
encoded is decoded, and dates and numbers are looked for in their other spellings.
"""

import binascii
import re
import unicodedata
from array import array
from base64 import b64decode
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final
from urllib.parse import unquote

from gemini_proxy.policy.run.budget import Meter

_WORD = re.compile(r"[^\W_]+")
# Other spellings of a value: percent escapes, base64 and hexadecimal digits.
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
# Some letters cannot begin the encoding of UTF-8 text: so words of prose are not decoded.
_ENCODED = re.compile(
    r"(?=[I-Za-fw-z0-9])(?<![A-Za-z0-9+/_=-])(?:(?:[A-Za-z0-9+/_-]{4})*[A-Za-z0-9+/_-]{2,3}={1,2}|(?:[A-Za-z0-9+/_-]{4}){2,})(?![A-Za-z0-9+/_=-])"
)
_HEX = re.compile(r"\b(?:0x)?((?:[2-7][0-9A-Fa-f]){2,})\b")
# A shorter value must occur as whole words: short runs of letters and digits occur within others by chance.
SHORT: Final = 8
# The most places of one value in one text that are checked for whole words.
_MOST_PLACES: Final = 1000


# The folded form of each ASCII character, and the characters that folding drops.
_LETTERS: Final = bytes(code if code < 128 and chr(code).isalnum() else ord(" ") for code in range(256)).lower()
_SIGNS: Final = bytes(code for code in range(128) if not chr(code).isalnum())


def fold(text: str) -> str:
    """Return the letters and digits of the text, as they are compared."""
    if text.isascii():
        return text.encode().translate(_LETTERS, _SIGNS).decode()
    return "".join(folded_words(text))


def _fold_word(word: str) -> str:
    if word.isascii():
        return word.lower()
    normal = unicodedata.normalize("NFKC", word).casefold()
    return "".join(char for char in normal if char.isalnum())


def _spaced(text: str) -> str:
    """Return the folded words of a text with spaces for all else; in ASCII text characters keep their places."""
    if text.isascii():
        return text.encode().translate(_LETTERS).decode()
    return " ".join(folded_words(text))


@dataclass(frozen=True, slots=True)
class _Part:
    """One text: its ``source``, and the length of what it was decoded from."""

    text: str
    source: int
    decoded_from: int | None


class Folded:
    """A text, or several after another, as one folded text.

    It only grows, and folds added text at the next search. The places of words are computed only for a text with a
    match.
    """

    __slots__ = ("_begins", "_lines", "_parts", "_spaced", "_text", "_worked_out")

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._text = ""
        self._begins = array("q")
        # The same with spaces between words.
        self._spaced = ""
        self._lines = array("q")
        self._worked_out: dict[int, _Words] = {}

    def add(self, text: str, source: int, *, decoded_from: int | None = None) -> None:
        """Add the words of a text with the number ``source``, which is not less than those before.

        A match in a text decoded from one of ``decoded_from`` characters is somewhere in the encoded text.
        """
        self._parts.append(_Part(text, source, decoded_from))

    def _fold(self, meter: Meter) -> None:
        """Fold what was added, all of it or nothing."""
        added = self._parts[len(self._begins) :]
        _charge(added, meter)
        folded = [self._text]
        begin = len(self._text)
        for part in added:
            self._begins.append(begin)
            # A mark that no value contains keeps matches from spanning two texts.
            folded.append(f"{fold(part.text)}\n")
            begin += len(folded[-1])
        self._text = "".join(folded)

    def _space(self, meter: Meter) -> None:
        """Set the words of what was added apart, all of it or nothing."""
        added = self._parts[len(self._lines) :]
        _charge(added, meter)
        spaced = [self._spaced]
        line = len(self._spaced)
        for part in added:
            self._lines.append(line)
            spaced.append(f" {_spaced(part.text)} \n")
            line += len(spaced[-1])
        self._spaced = "".join(spaced)

    def says(self, words: str, limit: int, meter: Meter) -> bool:
        """Return whether a source below ``limit`` has these words unchanged, except for case and signs between them.

        False is not conclusive: they may occur there in another spelling.
        """
        if len(self._lines) < len(self._parts):
            self._space(meter)
        meter.charge(1 + (len(self._spaced) >> 10))
        wanted = _spaced(words).strip()
        at = self._spaced.find(f" {wanted} ") if wanted else -1
        return at >= 0 and self._parts[bisect_right(self._lines, at) - 1].source < limit

    def find(self, needle: str, limit: int, meter: Meter, *, whole: bool | None = None) -> tuple[int, int, int] | None:
        """Find a folded value in the sources below ``limit``: the source's number, and the span in that text.

        ``whole``: whether it must begin and end with words; by default short values must.
        """
        if not needle:
            return None
        if len(self._begins) < len(self._parts):
            self._fold(meter)
        whole = len(needle) < SHORT if whole is None else whole
        meter.charge(1 + (len(self._text) >> 9))
        if whole and (place := self._word(needle, limit, meter)) is not None:
            return place
        text = self._text
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
            meter.charge(1)
            at = text.find(needle, at + 1)
        return None

    def _word(self, needle: str, limit: int, meter: Meter) -> tuple[int, int, int] | None:
        """Return the first place of a value that is one word."""
        if len(self._lines) < len(self._parts):
            self._space(meter)
        at = self._spaced.find(f" {needle} ")
        if at < 0:
            return None
        number = bisect_right(self._lines, at) - 1
        part = self._parts[number]
        if part.source >= limit:
            return None
        if part.decoded_from is None and part.text.isascii():
            start = at - self._lines[number]
            return part.source, start, start + len(needle)
        words = self._words_of(number)
        return self._place(number, words.begins[words.folded.index(needle)], len(needle))

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


def _charge(parts: Sequence[_Part], meter: Meter) -> None:
    meter.charge(sum(1 + (len(part.text) >> (6 if part.text.isascii() else 3)) for part in parts))


class Spoken:
    """Texts in their order, as they are and with what is encoded in them, which is read when it is looked for."""

    __slots__ = ("_encoded", "_plain", "_read")

    def __init__(self) -> None:
        self._plain = Folded()
        self._read = Folded()
        self._encoded: list[tuple[str, int]] = []

    def add(self, text: str, source: int) -> None:
        """Add a text that has the number ``source``, which is greater than those before."""
        self._plain.add(text, source)
        self._encoded.append((text, source))

    def says(self, words: str, limit: int, meter: Meter) -> bool:
        """As ``Folded.says``, of the texts as they are."""
        return self._plain.says(words, limit, meter)

    def find(self, needle: str, limit: int, meter: Meter, *, whole: bool | None = None) -> tuple[int, int, int] | None:
        """As ``Folded.find``; of one source, the text as it is goes first."""
        if self._encoded:
            self._decode(meter)
        plain = self._plain.find(needle, limit, meter, whole=whole)
        read = self._read.find(needle, limit if plain is None else plain[0], meter, whole=whole)
        return plain if read is None else read

    def _decode(self, meter: Meter) -> None:
        meter.charge(sum(1 + (len(text) >> 2) for text, _ in self._encoded))
        for text, source in self._encoded:
            for made in (*decoded(text), *_days_of_ranges(text)):
                self._read.add(made, source, decoded_from=len(text))
        self._encoded.clear()


class _Words:
    """The words of one text: folded, where each begins in the folded text, and its span in the text."""

    __slots__ = ("begins", "folded", "spans", "starts")

    def __init__(self, text: str) -> None:
        self.spans = [match.span() for match in _WORD.finditer(text)]
        self.folded = folded_words(text)
        ends = list(accumulate(map(len, self.folded), initial=0))
        self.begins = array("q", ends[:-1])
        self.starts = frozenset(ends)


def folded_words(text: str) -> list[str]:
    """Return the words of the text as they are compared."""
    if text.isascii():
        return _spaced(text).split()
    return [_fold_word(word) for word in _WORD.findall(text)]


def decoded(text: str) -> Iterator[str]:
    """Return the text with percent escapes, base64 and hexadecimal digits decoded; nothing if it has none."""
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


# Other spellings of a date and of a number, folded

MONTHS: Final = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTH = "|".join(f"{name}|{name[:3]}" for name in MONTHS)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_RANGE = re.compile(
    rf"\b({_DAY}) ?(?:to|-|–|until|till|through|and) ?(?:the )?({_DAY}) (?:of )?({_MONTH})\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?(\d{1,3}(?:[,' ]\d{3})+|\d+)(?:\.(\d*))?")


def spellings_of_date(year: int, month: int, day: int) -> list[str]:
    """Return how a date is written: as in ISO 8601 first, then with the month's name or number."""
    if not 1 <= month <= len(MONTHS):
        return [f"{year:04}{month:02}{day:02}"]
    name, ordinal = MONTHS[month - 1], _ordinal(day)
    found = [f"{year:04}{month:02}{day:02}", f"{day:02}{month:02}{year:04}", f"{month:02}{day:02}{year:04}"]
    for called in dict.fromkeys((name, name[:3])):
        for number in (str(day), ordinal):
            found.extend((f"{called}{number}", f"{number}{called}", f"{number}of{called}", f"{called}the{number}"))
    return found


def _days_of_ranges(text: str) -> Iterator[str]:
    """Yield the first day of each range that names its month once: ``1 May`` of "the 1st to the 5th of May"."""
    for match in _RANGE.finditer(text):
        yield f"{match[1]} {match[3]}"


def _ordinal(day: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th") if day not in (11, 12, 13) else "th"
    return f"{day}{ending}"


def spellings_of_number(value: str) -> list[str]:
    """Return a number without thousands separators, with and without zeros after the point."""
    match = _NUMBER.fullmatch(value)
    if match is None:
        return []
    whole, behind = re.sub(r"\D", "", match[1]), (match[2] or "").rstrip("0")
    return [whole + behind] if behind else [whole, f"{whole}0", f"{whole}00"]
