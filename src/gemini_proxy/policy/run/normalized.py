"""Show texts as a reader sees them: without what hides, splits or encodes words, and with the way back.

Rounds of passes change a text until nothing is left to change: characters (invisible ones, combining marks,
compatibility forms, look-alikes), escapes (percent, HTML, JSON, RTF, UTF-7, quoted-printable), encoded text (base64,
hexadecimal) and layout (markup inside a word, letters set apart, a token broken into pieces). A pass runs where one
search for all of them says that it may have something to do, so plain text costs that search alone.
"""

import binascii
import json
import re
import unicodedata
from array import array
from base64 import b64decode
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import unescape
from importlib.resources import files
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.regex import Patterns, Regex

_ROUNDS: Final = 4
"""An encoding within an encoding takes a round; each is over the whole text."""
_LONGEST_CHARACTER: Final = 8
"""Characters that one becomes at most: compatibility forms have up to 18."""
_LEAST_ENCODED: Final = 8
"""Readable characters that encoded text begins with; random letters are that in one case of 3,000."""
_NEAR: Final = 400
"""Characters beside a change that detectors look at again: longer than a token's part that tells what it is."""


class Edit(NamedTuple):
    """``text`` in place of what stands at ``[start:end]``, character for character where ``exact``."""

    start: int
    end: int
    text: str
    exact: bool = False


class Normalized(str):
    """A text made from ``source``, with the spans of it that characters come from."""

    __slots__ = ("_at", "_exact", "_from", "_inner", "_to", "changes", "source")
    source: str
    changes: list[tuple[int, int]]
    """The stretches that were changed, empty ones where characters were left out, in order."""
    # For each segment: its beginning here, its beginning and end in the text before the pass, and whether its
    # characters correspond one to one.
    _at: "array[int]"
    _from: "array[int]"
    _to: "array[int]"
    _exact: bytearray
    _inner: "Normalized | None"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Travel as the text alone."""
        return str, (str(self),)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the span of ``source`` that the characters ``[start:end]`` come from."""
        first = max(0, bisect_right(self._at, start) - 1)
        last = max(first, bisect_right(self._at, end - 1) - 1)
        begins = self._from[first] + (start - self._at[first] if self._exact[first] else 0)
        ends = self._from[last] + end - self._at[last] if self._exact[last] else self._to[last]
        inner = self._inner
        return (begins, ends) if inner is None else inner.span(begins, ends)

    def _forward(self, at: int) -> int:
        """Return where a position of the text before the last pass stands after it."""
        number = bisect_right(self._from, at) - 1
        return self._at[number] + (min(at, self._to[number]) - self._from[number] if self._exact[number] else 0)


def _edited(text: str, edits: Sequence[Edit]) -> Normalized:
    """Apply edits, which are in order and do not overlap. ``text`` is the source or what earlier passes made of it."""
    parts: list[str] = []
    at, starts, ends = array("q"), array("q"), array("q")
    exact = bytearray()
    changes: list[tuple[int, int]] = []
    done = length = 0
    for edit in (*edits, Edit(len(text), len(text), "", exact=True)):
        if done < edit.start:
            parts.append(text[done : edit.start])
            at.append(length)
            starts.append(done)
            ends.append(edit.start)
            exact.append(1)
            length += edit.start - done
        parts.append(edit.text)
        at.append(length)
        starts.append(edit.start)
        ends.append(edit.end)
        exact.append(edit.exact)
        changes.append((length, length + len(edit.text)))
        length += len(edit.text)
        done = edit.end
    changes.pop()
    made = Normalized("".join(parts))
    made._at, made._from, made._to, made._exact = at, starts, ends, exact
    inner = made._inner = text if type(text) is Normalized else None
    made.source = text if inner is None else inner.source
    if inner is not None:
        forward = made._forward
        changes = _united((*changes, *((forward(start), forward(end)) for start, end in inner.changes)))
    made.changes = changes
    return made


def _united(stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return stretches in order, those that overlap as one."""
    united: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if united and start < united[-1][1]:
            united[-1] = (united[-1][0], max(united[-1][1], end))
        elif not united or united[-1] != (start, end):
            united.append((start, end))
    return united


def _look_alikes() -> dict[str, str]:
    """Return the ASCII characters that others are taken for, from Unicode's list (UTS 39)."""
    listed = json.loads((files("confusable_homoglyphs") / "confusables.json").read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    for char, others in listed.items():
        plain = next((other["c"] for other in others if len(other["c"]) == 1 and other["c"].isascii()), None)
        if len(char) == 1 and not char.isascii() and plain is not None:
            found[char] = plain
    return found


_LOOK_ALIKES: Final = _look_alikes()
_LEFT_OUT: Final = frozenset(("Cf", "Mn", "Me"))
# Hangul fillers and the blank braille pattern are invisible letters and symbols.
_BLANK: Final = frozenset("\u115f\u1160\u3164\uffa0\u2800")


class _Characters(dict[str, str]):
    """Replacements by character, cached on first use; Unicode bounds their number."""

    def __missing__(self, char: str) -> str:
        if unicodedata.category(char) in _LEFT_OUT or char in _BLANK:
            # Tag characters encode ASCII that a model reads.
            code = ord(char)
            plain = chr(code - 0xE0000) if 0xE0020 <= code <= 0xE007E else ""
        else:
            form = unicodedata.normalize("NFKD", char)
            form = "".join(part for part in form if unicodedata.category(part) not in _LEFT_OUT)
            plain = "".join(_LOOK_ALIKES.get(part, part) for part in form)[:_LONGEST_CHARACTER]
            if plain.isspace():
                plain = " "
        self[char] = plain
        return plain


_CHARACTERS: Final = _Characters()
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]+")


def _characters(text: str, meter: Meter) -> Iterator[Edit]:
    plain = _CHARACTERS
    for match in _NOT_ASCII.finditer(text):
        meter.charge(1 + match.end() - match.start())
        run, start = match[0], match.start()
        made = [plain[char] for char in run]
        if all(len(plain_form) == 1 for plain_form in made):
            if (changed := "".join(made)) != run:
                yield Edit(start, match.end(), changed, exact=True)
            continue
        for at, (char, plain_form) in enumerate(zip(run, made, strict=True), start):
            if char != plain_form:
                yield Edit(at, at + 1, plain_form)


# Each alternative is a run of one kind of escape.
_ESCAPES: Final = re.compile(
    r"(?P<percent>(?:%[0-9A-Fa-f]{2})+)"
    r"|(?P<html>&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});?)"
    r"|\\(?P<code>u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|u\{[0-9A-Fa-f]{1,6}\}|U[0-9A-Fa-f]{8})"
    r"|\\(?P<octal>[0-3]?[0-7]{2})"
    r"|\\'(?P<rtf>[0-9A-Fa-f]{2})"
    r"|\\u(?P<decimal>[0-9]{2,5}) ?\?"
    r"|(?P<printable>=(?:[0-9A-F]{2}=)+[0-9A-F]{2}|=\r?\n)"
    r"|\+(?P<utf7>A[A-Za-z0-9+/]{2,})-?"
)
_ESCAPED: Final = Regex(re.sub(r"\(\?P<[a-z0-9]+>", "(?:", _ESCAPES.pattern), "find", tame=True)
_TO_ESCAPE: Final = r"%[0-9A-Fa-f]{2}|&#|&[A-Za-z]+[0-9]*;|\\[0-7ux']|=[0-9A-F]{2}=|=\r?\n|\+A[A-Za-z0-9+/]{2}"


def _escapes(text: str, meter: Meter) -> Iterator[Edit]:
    for start, end in _ESCAPED.spans(text, meter):
        match = _ESCAPES.fullmatch(text, start, end)
        kind = None if match is None else match.lastgroup
        if match is None or kind is None:
            continue
        if kind == "percent":
            meter.charge(end - start >> 3)
            yield from _unquoted(match[0], start)
        elif (plain := _READ[kind](match[kind])) is not None:
            yield Edit(start, end, plain)


def _unquoted(run: str, start: int) -> Iterator[Edit]:
    data = unquote_to_bytes(run)
    if data.isascii():
        # Each of the three characters has its own place.
        for number, byte in enumerate(data):
            if (plain := _character(byte)) is not None:
                yield Edit(start + 3 * number, start + 3 * number + 3, plain)
        return
    plain = _readable(data)
    if plain:
        yield Edit(start, start + len(run), plain)


def _character(code: int) -> str | None:
    return chr(code) if 32 <= code < 0xD800 or 0xE000 <= code < 0x110000 or code in (9, 10, 13) else None


def _entity(found: str) -> str | None:
    plain = unescape(found)
    return plain if plain != found else None


def _utf7(digits: str) -> str | None:
    """Read what UTF-7 encodes (RFC 2152): UTF-16 in base64. Only ASCII text is hidden that way."""
    digits = digits[: -(-(len(digits) * 6 // 16) * 16 // 6)]
    try:
        data = b64decode(digits + "=" * (-len(digits) % 4))
        plain = data[: len(data) & ~1].decode("utf-16-be")
    except ValueError:
        return None
    return plain if plain.isascii() and plain.isprintable() and plain else None


def _quoted_printable(found: str) -> str | None:
    return "" if found.endswith("\n") else _readable(bytes.fromhex(found.replace("=", ""))) or None


_READ: Final[dict[str, Callable[[str], str | None]]] = {
    "html": _entity,
    "code": lambda found: _character(int(found.strip("uUx{}"), 16)),
    "octal": lambda found: _character(int(found, 8)),
    "rtf": lambda found: _character(int(found, 16)),
    "decimal": lambda found: _character(int(found)),
    "printable": _quoted_printable,
    "utf7": _utf7,
}

# Hexadecimal digits, alone or in pairs; base64 with its lines; codes of characters.
_HEX: Final = r"\b(?:(?:0x)?[0-9A-Fa-f]{2}[ :,\n-]{0,2}){15,}(?:0x)?[0-9A-Fa-f]{2}\b"
_BASE64: Final = r"[A-Za-z0-9+/_-]{20,}(?:\r?\n[ \t>]*[A-Za-z0-9+/_-]{4,})*={0,2}"
_CODES: Final = r"\b(?:[0-9]{2,3}[ ,;]{1,2}){11,}[0-9]{2,3}\b"
_ENCODED: Final = Regex(f"{_HEX}|{_BASE64}|{_CODES}", "find", tame=True)
_TO_DECODE: Final = f"{_HEX}|[A-Za-z0-9+/_-]{{20}}|{_CODES}"
# Neither readable text in base64 nor text in the other encodings begins with one of these.
_NEVER_FIRST: Final = frozenset("GHghijklmnopqrstuv+/_")
_ONLY_HEX: Final = re.compile(r"(?:0x|[0-9A-Fa-f :,\n-])+")
_ONLY_CODES: Final = re.compile(r"[0-9 ,;]+")


def _decoded(text: str, meter: Meter) -> Iterator[Edit]:
    for start, end in _ENCODED.spans(text, meter):
        if text[start] in _NEVER_FIRST:
            continue
        meter.charge(end - start >> 6)
        plain = _decode(text[start:end])
        if len(plain) >= _LEAST_ENCODED:
            yield Edit(start, end, plain)


def _decode(found: str) -> str:
    """Decode text in one of the encodings; return "" if the result is not text."""
    if _ONLY_CODES.fullmatch(found) and not found.isdigit():
        return _of_codes(found)
    return (_of_hex(found) if _ONLY_HEX.fullmatch(found) else "") or _of_base64(found)


_SPACES: Final = re.compile(r"[\s>]+")
_HEAD: Final = 64
_ONES: Final = str.maketrans("-_", "+/")


def _of_base64(found: str) -> str:
    head = _of_base64_digits(found[:_HEAD])
    if len(head) < _LEAST_ENCODED or len(found) <= _HEAD:
        return head
    return _of_base64_digits(found)


def _of_base64_digits(found: str) -> str:
    digits = _SPACES.sub("", found).rstrip("=").translate(_ONES)
    digits = digits[: len(digits) - (len(digits) % 4 == 1)]
    try:
        data = b64decode(digits + "=" * (-len(digits) % 4))
    except binascii.Error:
        return ""
    # UTF-16, as in PowerShell's encoded commands.
    if len(data) > _LEAST_ENCODED and not any(data[1:_LEAST_ENCODED:2]):
        data = data[::2]
    return _readable(data)


def _of_hex(found: str) -> str:
    digits = re.sub(r"0x|[ :,\n-]", "", found)
    plain = _readable(bytes.fromhex(digits[: len(digits) & ~1]))
    return plain if len(plain) >= _LEAST_ENCODED else ""


def _of_codes(found: str) -> str:
    return _readable(bytes(min(255, int(code)) for code in re.findall(r"[0-9]+", found)))


_UNREADABLE: Final = re.compile(r"[^\t\n\r -~\u00a0-\U0010ffff]|\ufffd")


def _readable(data: bytes) -> str:
    """Return the text that the bytes begin with: more bytes only make it longer."""
    text = data.decode(errors="replace")
    bad = _UNREADABLE.search(text)
    return text if bad is None else text[: bad.start()]


# Markup between two characters of a word, a backslash before punctuation, and strings joined in a program.
_MARKUP: Final = re.compile(
    r"(?<=[A-Za-z0-9_])"
    r"(?:\*{1,3}|`|~~|</?[A-Za-z]{1,6}/?>|<!--(?:[^-]|-[^-]){0,80}-->|[\"'][ \t]*+[+.&]?[ \t]*+[\"'])+"
    r"(?=[A-Za-z0-9_])"
    r"|\\(?=[_*~`.-])"
)
_MARKS: Final = (
    r"(?:\*{1,3}|[`]|~~|</?[A-Za-z]{1,6}/?>|<!--(?:[^-]|-[^-]){0,80}-->|[\"'][ \t]*[+.&]?[ \t]*[\"'])+[A-Za-z0-9_]"
)
_TO_UNMARK: Final = rf"[A-Za-z0-9_]{_MARKS}|\\[_*~`.-]"
_MARKED: Final = Regex(rf"[A-Za-z0-9_]{_MARKS}(?:[A-Za-z0-9_]*{_MARKS})*|\\[_*~`.-]", "find", tame=True)


def _unmarked(text: str, meter: Meter) -> Iterator[Edit]:
    for start, end in _MARKED.spans(text, meter):
        for match in _MARKUP.finditer(text, start, end):
            meter.charge(1)
            yield Edit(match.start(), match.end(), "")


# Letters separated by the same gap.
_GAPS: Final = (r"[\"'],[ \t]?[\"']", ",[ \t]?", r"[ \t\n|*_.-]")
_SPACED: Final = re.compile(
    rf"(?<![^\s,'\"|\[(.*_-])[^\s,'\"](?P<gap>{'|'.join(_GAPS)})[^\s](?:(?P=gap){{1,4}}[^\s]){{5,}}+"
)
_TO_CLOSE: Final = "|".join(
    rf"(?:[^\s]{gap}){{6,}}[^\s]" for gap in (*_GAPS[:2], " {1,4}", r"\t", r"\n", "[|]", "[*]", "_", "[.]", "-")
)
_APART: Final = Regex(_TO_CLOSE, "find", tame=True)


def _closed(text: str, meter: Meter) -> Iterator[Edit]:
    """Close the gaps between letters that are set apart; digits alone are a list of numbers."""
    for found in _within(_APART, _SPACED, text, meter):
        run, gap = found[0], found["gap"]
        gaps = list(_gaps(run, gap))
        letters = len(run) - sum(end - start for start, end in gaps)
        meter.charge(1 + letters)
        if 3 * sum(map(str.isalpha, run)) < letters or len(set(run)) < _LEAST_LETTERS:
            continue
        for start, end in gaps:
            between = " " if end - start > len(gap) else ""
            yield Edit(found.start() + start, found.start() + end, between)


def _gaps(run: str, gap: str) -> Iterator[tuple[int, int]]:
    """Yield the gaps between the letters of a run; one that is wider than ``gap`` ends a word."""
    end = 1
    while end < len(run):
        start = end
        while run.startswith(gap, end) and end + len(gap) < len(run) and end - start < 4 * len(gap):
            end += len(gap)
        yield start, end
        end += 1


def _within(candidates: Regex, pattern: re.Pattern[str], text: str, meter: Meter) -> Iterator[re.Match[str]]:
    """Yield the matches of a pattern that begin where a quicker one finds something."""
    done = 0
    for start, end in candidates.spans(text, meter):
        for found in pattern.finditer(text, max(done, start), min(len(text), end + _LONGEST_PIECE)):
            if found.start() >= end:
                break
            meter.charge(1)
            done = found.end()
            yield found


_LEAST_LETTERS: Final = 4
_TOKEN: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_.~=-"
_LONGEST_PIECE: Final = 200
_MIXED: Final = re.compile(r"[A-Za-z][0-9]|[0-9][A-Za-z]")
_PIECE: Final = re.compile(rf"[{_TOKEN}]{{0,{_LONGEST_PIECE}}}")
_BROKEN: Final = re.compile(
    rf"(?:{_MIXED.pattern})[{_TOKEN}]{{0,{_LONGEST_PIECE}}}+"
    rf"(?P<gap>[ \t]*+\r?\n[ \t>#*]*+|[ \t]{{1,2}})(?=[{_TOKEN}]{{3}})"
)
_TO_JOIN: Final = rf"(?:{_MIXED.pattern})[{_TOKEN}]*\s[\s>#*]*[{_TOKEN}]*(?:{_MIXED.pattern})"
_PIECES: Final = Regex(_TO_JOIN, "find", tame=True)
_LEAST_TOKEN: Final = 16
_LEAST_CHANGES: Final = 3


def _joined(text: str, meter: Meter) -> Iterator[Edit]:
    """Join pieces of one token: what changes between letters and digits as often as random text does."""
    for found in _within(_PIECES, _BROKEN, text, meter):
        head = text[max(0, found.start() - _LONGEST_PIECE) : found.start("gap")]
        before = head[len(head.rstrip(_TOKEN)) :]
        after = text[found.end() : _PIECE.match(text, found.end()).end()]  # type: ignore[union-attr]
        changes = len(_MIXED.findall(before)), len(_MIXED.findall(after))
        if all(changes) and sum(changes) >= _LEAST_CHANGES and len(before) + len(after) >= _LEAST_TOKEN:
            yield Edit(found.start("gap"), found.end("gap"), "")


_PASSES: Final = (_escapes, _decoded, _unmarked, _closed, _joined)
_SIGNS: Final = (_TO_ESCAPE, _TO_DECODE, _TO_UNMARK, _TO_CLOSE, _TO_JOIN)
"""Patterns of the texts that the pass of the same number may change."""


_ANY: Final = Patterns(_SIGNS)


def normalize(text: str, meter: Meter) -> str:
    """Return the text as a reader sees it: a Normalized, or the same object if there is nothing to change.

    The time and the length of the result are in proportion to the text.
    """
    made = text
    for _ in range(_ROUNDS):
        before = made
        # After the first round, only changed text and its neighborhood can reveal more.
        shown = "\n".join(made[start:end] for start, end in near_changes(made)) if type(made) is Normalized else made
        if not shown.isascii():
            made = _passed(_characters, made, meter)
        for number in sorted(_ANY.found(shown, meter)):
            made = _passed(_PASSES[number], made, meter)
        if made is before:
            break
    return made


def is_plain(text: str, meter: Meter) -> bool:
    """Return whether nothing in a text may be disguised. Each of its lines is plain as well, on its own."""
    return text.isascii() and not _ANY.found(text, meter)


def _passed(change: Callable[[str, Meter], Iterable[Edit]], text: str, meter: Meter) -> str:
    edits = list(change(text, meter))
    if not edits:
        return text
    meter.room(len(text))
    meter.charge(len(edits))
    return _edited(text, edits)


def near_changes(text: Normalized) -> Iterator[tuple[int, int]]:
    """Yield the stretches of a text that hold all changes and what stands near them."""
    begins = ends = -1
    for start, end in text.changes:
        if ends < 0:
            begins = max(0, start - _NEAR)
        elif start - _NEAR > ends:
            yield begins, ends
            begins = start - _NEAR
        ends = max(ends, min(len(text), end + _NEAR))
    if ends >= 0:
        yield begins, ends
