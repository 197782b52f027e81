"""Masking: what guardrails find goes upstream as placeholders, and comes back to the client as it was. No I/O."""

import hashlib
import hmac
import json
import re
import sys
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar

import orjson

from gemini_proxy.errors import DecodeError
from gemini_proxy.gemini.batches import is_text_of_request
from gemini_proxy.gemini.framing.frames import Frame, Framing
from gemini_proxy.gemini.generate_wire import GENERATE
from gemini_proxy.gemini.json_edit import JsonString, Path, StringEdit, edited, json_items, json_strings, without_items
from gemini_proxy.gemini.uploads import UploadedFile
from gemini_proxy.gemini.wire import Run, TextPlaces, Wire
from gemini_proxy.guardrails.addresses import message_of, renumbered, value_at, without_offsets
from gemini_proxy.guardrails.verdict import Violation
from gemini_proxy.policy import kind_of_value

T = TypeVar("T")
Restore = Literal["text", "all", "off"]

_DIGITS: Final = 10
"""Hexadecimal digits that tell values of one kind apart: two of a thousand values share them once in two million."""
_MOST_PLACES: Final = 100_000
"""The most ranges that are masked in one body or file; more are refused."""
_MOST_VALUES: Final = 1_000
"""The most values that are masked in one request or live session; more are refused."""
_MOST_REPETITIONS: Final = 10_000
"""The most placeholders in one response whose spelling is compared."""
REMOVED: Final = "<REMOVED>"
"""The replacement in a history for a text that was refused earlier."""


class CannotMask(Exception):
    """A match cannot be replaced. The text says why."""


class Placeholders:
    """Name values of one owner and dataset: the same value has the same placeholder on every machine with ``key``."""

    def __init__(self, key: bytes, owner: str, dataset: str | None) -> None:
        self._key = hmac.digest(key, f"{owner}\0{dataset or ''}".encode(), "sha256")

    def digest(self, value: str) -> str:
        """Return a keyed digest of ``value``."""
        return hmac.new(self._key, value.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()

    def of(self, value: str) -> str:
        """Return the placeholder of ``value``, which tells its kind: ``<EMAIL_ADDRESS_7f3a9c0b12>``."""
        digest = self.digest(value)
        if (kind := _KINDS.get(digest)) is None:
            if len(_KINDS) >= _MOST_KINDS:
                _KINDS.clear()
            kind = _KINDS[digest] = kind_of_value(value)
        return f"<{kind}_{digest[:_DIGITS]}>"


_MOST_KINDS: Final = 10_000
_KINDS: Final[dict[str, str]] = {}
"""The kinds of values by their digests: the detectors that find a kind cost more than all else of a placeholder."""


class Masks:
    """The masked values of one exchange with their placeholders, and the texts that are removed for good.

    ``unsent`` has the values that the client did not send.
    """

    def __init__(
        self, placeholders: Mapping[str, str], removed: Collection[str] = (), unsent: Collection[str] = ()
    ) -> None:
        self.placeholders: Mapping[str, str] = dict(placeholders)
        self.unsent = frozenset(unsent)
        self._hiding = {**dict.fromkeys(removed, REMOVED), **placeholders}
        # By the digits of its placeholder: a value, and the kind before the digits.
        self._values = {
            placeholder[-_DIGITS - 1 : -1]: (placeholder[1 : -_DIGITS - 2], value)
            for value, placeholder in placeholders.items()
        }
        cores = [placeholder[1:-1].upper() for placeholder in placeholders.values()]
        self._beginnings = {core[:size] for core in cores for size in range(len(core) + 1)}
        self._first = {core[0] for core in cores}.union(r"<\&")
        self._longest = max(map(len, cores), default=0) + _SPELLING_ROOM

    @cached_property
    def longest_value(self) -> int:
        """Return how many characters the longest of the values has."""
        return max(map(len, self.placeholders), default=0)

    @property
    def values(self) -> Mapping[str, str]:
        """Return the values that come back, each by its placeholder."""
        return {placeholder: value for value, placeholder in self.placeholders.items()}

    def hide(self, text: str) -> str:
        """Return ``text`` with placeholders in place of values."""
        return _replaced(text, self.hidden(text, 0))

    def show(self, text: str) -> str:
        """Return ``text`` with values in place of placeholders, in any spelling of a model."""
        return _replaced(text, self.shown(text, 0))

    def shown(self, text: str, start: int) -> Iterator[tuple[int, int, str]]:
        """Yield the placeholders in ``text`` from ``start`` on: where each begins and ends, and its value."""
        for match in _SPELLED_DIGITS.finditer(text, start):
            kind, value = self._values.get(match[1].lower(), ("", ""))
            begin = max(start, match.start() - 2 * len(kind) - _SPELLING_ROOM)
            if value and (before := _spelled_kind(kind).search(text, begin, match.start())) is not None:
                yield before.start(), match.end(), value
                start = match.end()

    def unfinished(self, text: str) -> int:
        """Return where a placeholder begins that ends behind ``text``, the length of ``text`` where none can."""
        end = len(text)
        start = end
        while start > max(0, end - self._longest) and text[start - 1] in _SPELLING:
            start -= 1
        for at in range(start, end):
            if text[at].upper() in self._first and _core(text[at:]) in self._beginnings:
                return at
        return end

    def hidden(self, text: str, start: int) -> Iterator[tuple[int, int, str]]:
        """Yield the values in ``text`` from ``start`` on: where each begins and ends, and its placeholder."""
        here = [value for value in self._hiding if value in text]
        # Merged as they are found: a list of all of them could exceed the memory.
        for at, size, value in merge(*(_places(value, text, start) for value in here)) if here else ():
            if at >= start:
                start = at - size
                yield at, start, self._hiding[value]

    def may_show(self, raw: bytes) -> bool:
        """Return whether a placeholder may stand in ``raw``; False is certain."""
        return any(found[1].decode().lower() in self._values for found in _DIGITS_IN_JSON.finditer(raw))


def _places(value: str, text: str, start: int) -> Iterator[tuple[int, int, str]]:
    """Yield where a value stands in a text from ``start`` on, with its length as a negative number."""
    at = text.find(value, start)
    while at >= 0:
        yield at, -len(value), value
        at = text.find(value, at + 1)


# Models may spell a placeholder in another case, without brackets, or with escapes of Markdown, JSON or HTML.
_SPELLED_DIGITS: Final = re.compile(rf"\\?_([0-9a-fA-F]{{{_DIGITS}}})(?:\\?>|&gt;|\\u003[eE])?")
_SPELLING: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_<\\&;")
_SPELLING_ROOM: Final = 32
_AROUND: Final = re.compile(r"\\u(?:0(?:0(?:3[ceCE]?)?)?)?|\\|<|>|&(?:[lg](?:t;?)?)?")


@lru_cache(maxsize=512)
def _spelled_kind(kind: str) -> re.Pattern[str]:
    """Return a pattern for a kind as models spell it, at the end of a text."""
    return re.compile(rf"(?:\\?<|&lt;|\\u003c)?{kind.replace('_', chr(92) * 2 + '?_')}\Z", re.IGNORECASE)


# After an underscore, or the end of its JSON escape.
_DIGITS_IN_JSON: Final = re.compile(rb"(?:_|5[fF])(?=([0-9a-fA-F]{%d}))" % _DIGITS)
_SLICE: Final = 65_536
"""Bytes of a body to search before another thread gets its turn: a millisecond at most."""


def may_hold_placeholder(body: bytes) -> bool:
    """Return whether a placeholder may stand in a request's body; False is certain. True for one that is large."""
    return len(body) > _SLICE or _DIGITS_IN_JSON.search(body) is not None


def placeholder_digits(body: bytes, most: int) -> list[str]:
    """Return up to ``most`` possible digits of placeholders in JSON text, in any spelling of a model."""
    found: dict[str, None] = {}
    for start in range(0, len(body), _SLICE):
        # A match that begins at the end of a slice may end in the next one.
        for match in _DIGITS_IN_JSON.finditer(body, start, start + _SLICE + _DIGITS + 1):
            found[match[1].decode().lower()] = None
            if len(found) == most:
                return list(found)
    return list(found)


def placeholders_of_trace(document: bytes) -> list[str]:
    """Return the texts in a trace's JSON that look like placeholders, each once, in order."""
    return list(dict.fromkeys(match[0] for match in _PLACEHOLDER.finditer(document.decode())))


def is_placeholder(text: str) -> bool:
    """Return whether a text has the form of a placeholder."""
    return _PLACEHOLDER.fullmatch(text) is not None


PLACEHOLDER: Final = rf"<[A-Z][A-Z0-9_]{{0,63}}_[0-9a-f]{{{_DIGITS}}}>"
"""The form of a placeholder, as a regular expression."""
_PLACEHOLDER: Final = re.compile(PLACEHOLDER)


def _core(spelled: str) -> str:
    """Return a placeholder, or the beginning of one, in capitals and without what may stand around and within it."""
    return _AROUND.sub("", spelled).upper()


def _replaced(text: str, replacements: Iterable[tuple[int, int, str]]) -> str:
    pieces: list[str] = []
    at = 0
    for start, end, replacement in replacements:
        pieces += [text[at:start], replacement]
        at = end
    return "".join([*pieces, text[at:]]) if pieces else text


class Repetition(NamedTuple):
    """A placeholder in a response, in the order of its text: in which frame and where in it, and how it is spelled."""

    frame: int
    start: int
    offset: int
    thought: bool
    value: str
    spelled: str


Occurrence = tuple[str, bool, int]
"""Which placeholder of a turn of the model is meant: what it is, if it is in a thought, and how many came before."""


def other_spellings(repetitions: Iterable[Repetition], masks: Masks) -> dict[Occurrence, str]:
    """Return the placeholders of a response that the model spelled differently from the request."""
    found: dict[Occurrence, str] = {}
    counts = Counter[tuple[str, bool]]()
    for one in sorted(repetitions):
        placeholder = masks.placeholders[one.value]
        if one.spelled != placeholder:
            found[placeholder, one.thought, counts[placeholder, one.thought]] = one.spelled
        counts[placeholder, one.thought] += 1
    return found


@dataclass(frozen=True, slots=True)
class Spellings:
    """The spellings of placeholders in a model's earlier turns, so that the model finds its own text unchanged.

    ``turns`` has the turn of each content, by the digest of the conversation up to the end of the content.
    """

    turns: Mapping[int, str]
    known: Mapping[tuple[str, Occurrence], str]

    def applied(self, edits: Iterable[StringEdit], wire: Wire, body: bytes) -> Iterator[StringEdit]:
        """Yield edits that hide values in ``body``, in turns of the model with placeholders as it spelled them."""
        document = orjson.loads(body)
        counts = Counter[tuple[str, str, bool]]()
        for edit in edits:
            content = wire.content_of(edit.string.path)
            turn = None if content is None else self.turns.get(content)
            if turn is None:
                yield edit
                continue
            thought = _is_thought_text(edit.string.path, document)
            key = (turn, edit.text, thought)
            spelled = self.known.get((turn, (edit.text, thought, counts[key])), edit.text)
            counts[key] += 1
            yield edit._replace(text=spelled)


_THOUGHTS: Final = frozenset(("reasoning_content", "reasoning", "thought_summary", "summary"))


def _is_thought_text(path: Path, document: Any) -> bool:
    """Return whether the string at ``path`` of a request or a frame belongs to a thought, on any wire."""
    if not _THOUGHTS.isdisjoint(path):
        return True
    for step in path[:-1]:
        try:
            document = document[step]
        except (LookupError, TypeError):
            return False
        if isinstance(document, Mapping) and (document.get("thought") is True or document.get("type") in _THOUGHTS):
            return True
    return False


def _is_repeated_in_history(path: Path, payload: Mapping[str, Any]) -> bool:
    """Return whether clients send the string at ``path`` of a frame back: of candidates, only the first."""
    if path[0] not in ("candidates", "choices"):
        return path[-1] != "output_text"
    try:
        return not payload[path[0]][path[1]].get("index") and path[2] in ("content", "delta", "message")
    except (LookupError, TypeError, AttributeError):
        return False


@dataclass(frozen=True)
class RequestMasks:
    """The masks of a request: values anywhere in it, and earlier refused texts in their contents.

    ``earlier`` has values that were masked before, by their placeholders, which are already in the request;
    ``spellings`` has the model's own spellings of placeholders. ``dropped`` are the contents that are cut out;
    ``contents`` has the index of its content for each message.
    """

    placeholders: Mapping[str, str] = field(default_factory=dict)
    earlier: Mapping[str, str] = field(default_factory=dict)
    spellings: Spellings | None = None
    removed: Mapping[int, frozenset[str]] = field(default_factory=dict)
    dropped: frozenset[int] = frozenset()
    contents: Sequence[int | None] = ()

    @property
    def restorable(self) -> Masks | None:
        """Return the values that come back in the response; None where there are none."""
        if self.earlier:
            return Masks({**{value: placeholder for placeholder, value in self.earlier.items()}, **self.placeholders})
        return self._everywhere if self.placeholders else None

    @property
    def contents_left(self) -> Sequence[int | None]:
        """Say of each message that is left which of the contents it is made of, by their numbers before."""
        return [content for content in self.contents if content not in self.dropped]

    def with_values(self, placeholders: Mapping[str, str]) -> "RequestMasks":
        """Return these masks with more values, each with its placeholder. Raises CannotMask for too many."""
        together = {**self.placeholders, **placeholders}
        if len(together) > _MOST_VALUES:
            raise CannotMask(f"more than {_MOST_VALUES} values would be masked")
        return replace(self, placeholders=together)

    def of(self, content: int | None) -> Masks:
        """Return the masks of one of the contents, or of what is in none."""
        return self._by_content.get(content, self._everywhere) if content is not None else self._everywhere

    @cached_property
    def _everywhere(self) -> Masks:
        return Masks(self.placeholders)

    @cached_property
    def _by_content(self) -> Mapping[int, Masks]:
        return {index: Masks(self.placeholders, texts) for index, texts in self.removed.items()}


def masked_values(messages: Sequence[Mapping[str, Any]], violations: Iterable[Violation]) -> list[str]:
    """Return the texts that the violations point at, each once. Raises CannotMask."""
    values: dict[str, None] = {}
    for violation in violations:
        if not violation.ranges:
            raise CannotMask("the rule does not say where it found it")
        for address in violation.ranges:
            values.update(dict.fromkeys(texts_at(messages, address)))
    if len(values) > _MOST_VALUES:
        raise CannotMask(f"it is in more than {_MOST_VALUES} places")
    return list(values)


def texts_at(messages: Sequence[Mapping[str, Any]], address: str) -> list[str]:
    """Return the texts that an address points at. Raises CannotMask where there are none."""
    path, offsets = without_offsets(address)
    value = value_at(messages, path)
    if offsets is not None and isinstance(value, str):
        value = value[slice(*offsets)]
    texts = [text for text in _texts_of(value) if text.strip()]
    if not texts:
        raise CannotMask("there is no text in it")
    return texts


def _texts_of(value: Any) -> Iterator[str]:
    """Yield the texts of a message or a part of one. Raises CannotMask for content that is not text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts_of(item)
    elif isinstance(value, Mapping):
        if value.get("type") in ("image_url", "file"):
            raise CannotMask("an image or a file cannot be masked")
        for name, inner in value.items():
            if name not in ("role", "type", "id", "tool_call_id", "tool_name", "name", "turn", "field"):
                yield from _texts_of(inner)


def is_history(contents: Sequence[int | None], violation: Violation, *, earlier: int = 0) -> bool:
    """Tell whether a violation points only at contents of the request before the last one.

    The first ``earlier`` messages, which the request only refers to, always count as before it.
    """
    last = max((content for content in contents if content is not None), default=0)
    for address in violation.ranges:
        index = message_of(address)
        if index is not None and index < earlier:
            continue
        content = contents[index] if index is not None and index < len(contents) else None
        if content is None or content >= last:
            return False
    return bool(violation.ranges)


def evidence(messages: Sequence[Mapping[str, Any]], violation: Violation) -> list[str]:
    """Return what a violation points at, by which it is known again: its texts, or all of it as JSON if it is none."""
    try:
        return masked_values(messages, [violation])
    except CannotMask:
        values = [value_at(messages, without_offsets(address)[0]) for address in violation.ranges]
        return [orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode() for value in values]


def turn_of(content: int, contents: Sequence[int | None], messages: Sequence[Mapping[str, Any]]) -> frozenset[int]:
    """Return the contents to drop together with one of the history: a question and everything that followed from it.

    ``contents`` has the index of its content for each message. Raises CannotMask if the content is in no such turn, or
    in the turn that is still open.
    """
    roles: dict[int, set[Any]] = {}
    for number, message in zip(contents, messages, strict=False):
        if number is not None:
            roles.setdefault(number, set()).add(message.get("role"))
    turns: list[set[int]] = []
    for number in sorted(roles):
        if "user" in roles[number] and "tool" not in roles[number]:
            turns.append(set())
        if turns and "system" not in roles[number]:
            turns[-1].add(number)
    found = next((turn for turn in turns[:-1] if content in turn), None)
    if found is None:
        raise CannotMask("its turn cannot be left out of the request")
    return frozenset(found)


def moved_in_request(
    violations: Iterable[Violation], masks: RequestMasks, messages: Sequence[Mapping[str, Any]]
) -> list[Violation]:
    """Return what ``moved`` does for a request, each of whose contents may have masks of its own, or be cut out."""
    shifts: dict[str, _Shift] = {}

    def places(address: str) -> Iterator[str]:
        index = message_of(address)
        if index is None or index >= len(masks.contents):
            yield _moved(address, masks.of(None), messages, shifts)
        elif masks.contents[index] not in masks.dropped:
            before = sum(content in masks.dropped for content in masks.contents[:index])
            yield renumbered(_moved(address, masks.of(masks.contents[index]), messages, shifts), -before)

    return [
        replace(violation, ranges=tuple(place for address in violation.ranges for place in places(address)))
        for violation in violations
    ]


def moved(violations: Iterable[Violation], masks: Masks, messages: Sequence[Mapping[str, Any]]) -> list[Violation]:
    """Return violations in ``messages`` as they stand once these are masked: their ranges are where values were."""
    shifts: dict[str, _Shift] = {}
    return [
        replace(violation, ranges=tuple(_moved(address, masks, messages, shifts) for address in violation.ranges))
        for violation in violations
    ]


class _Shift:
    """Map positions in a text to positions in its masked form. It scans the text once for any number of lookups."""

    def __init__(self, text: str, masks: Masks) -> None:
        self._ends, self._longer = [0], [0]
        for start, end, placeholder in masks.hidden(text, 0):
            self._ends.append(end)
            self._longer.append(self._longer[-1] + len(placeholder) - (end - start))

    def of(self, offset: int) -> int:
        return offset + self._longer[bisect_right(self._ends, offset) - 1]


def _moved(address: str, masks: Masks, messages: Sequence[Mapping[str, Any]], shifts: dict[str, _Shift]) -> str:
    path, offsets = without_offsets(address)
    text = value_at(messages, path)
    if offsets is None or not isinstance(text, str):
        return address
    if path not in shifts:
        shifts[path] = _Shift(text, masks)
    start, end = map(shifts[path].of, offsets)
    return f"{path}:{start}-{end}"


def mask_body(body: bytes, masks: RequestMasks, wire: Wire = GENERATE) -> bytes:
    """Return a request's body masked wherever the model reads text, without the dropped contents; all other bytes stay.

    Raises CannotMask if there are too many places to mask.
    """
    hiding = _hiding(json_strings(body), lambda path: masks.of(wire.content_of(path)))
    edits: Iterable[StringEdit] = _bounded(edit for edit in hiding if wire.is_request_text(edit.string.path))
    body = edited(body, edits if masks.spellings is None else masks.spellings.applied(edits, wire, body))
    if not masks.dropped:
        return body
    return without_items(body, {item.path for item in json_items(body) if wire.content_of(item.path) in masks.dropped})


def mask_file(file: UploadedFile, masks: Masks) -> UploadedFile:
    """Return an uploaded file masked: its names, and its text or the text of the requests in it. All other bytes stay.

    Raises CannotMask for a document whose other bytes hold lengths of its text, and if there are too many places to
    mask.
    """
    data = file.data
    if data is not None and file.announced.is_document:
        raise CannotMask("a document cannot be changed")
    if data is not None and file.announced.is_batch:
        data = _mask_lines(data, masks)
    elif data is not None:
        text = data.decode()
        data = _replaced(text, _bounded(masks.hidden(text, 0))).encode()
    return file.changed(data, masks.hide)


def _mask_lines(data: bytes, masks: Masks) -> bytes:
    lines = data.split(b"\n")
    edits = _bounded((number, edit) for number, line in enumerate(lines) for edit in _line_edits(line, masks))
    for number, group in groupby(edits, key=itemgetter(0)):
        lines[number] = edited(lines[number], [edit for _, edit in group])
    return b"\n".join(lines)


def _line_edits(line: bytes, masks: Masks) -> Iterator[StringEdit]:
    return _hiding((string for string in json_strings(line) if is_text_of_request(string.path)), lambda path: masks)


def _hiding(strings: Iterable[JsonString], masks_of: Callable[[Path], Masks]) -> Iterator[StringEdit]:
    for string in strings:
        for start, end, text in masks_of(string.path).hidden(string.text, 0):
            yield StringEdit(string, start, end, text)


def _bounded(found: Iterable[T]) -> Iterator[T]:
    """Yield the matches. Raises CannotMask for a value in too many places."""
    for number, one in enumerate(found):
        if number == _MOST_PLACES:
            raise CannotMask(f"it is in more than {_MOST_PLACES} places")
        yield one


def hide_in_messages(messages: Iterable[Mapping[str, Any]], masks: Masks) -> list[dict[str, Any]]:
    """Return messages with placeholders in place of values, in every text."""
    return [_hidden(message, masks) for message in messages]


def _hidden(value: Any, masks: Masks) -> Any:
    if isinstance(value, str):
        return masks.hide(value)
    if isinstance(value, Mapping):
        return {name: _hidden(inner, masks) for name, inner in value.items()}
    return [_hidden(item, masks) for item in value] if isinstance(value, list) else value


class Substitution(Protocol):
    """The replacements in the texts of a response.

    ``find`` yields the beginning, end and text of each replacement from ``start`` on. ``unfinished`` returns the place
    from which on more text may still change the result. ``whole`` says that a text is settled only at its end.
    ``passes`` may say of a frame and its texts that nothing in it will be replaced, now or with what follows.
    """

    @property
    def whole(self) -> bool: ...

    def find(self, text: str, start: int) -> Iterable[tuple[int, int, str]]: ...

    def unfinished(self, text: str) -> int: ...

    def passes(self, raw: bytes, texts: Iterable[str]) -> bool: ...


@dataclass(frozen=True, slots=True)
class Restoring:
    """Put values in place of placeholders."""

    masks: Masks
    whole: bool = False

    def find(self, text: str, start: int) -> Iterable[tuple[int, int, str]]:
        return self.masks.shown(text, start)

    def unfinished(self, text: str) -> int:
        return self.masks.unfinished(text)

    def passes(self, raw: bytes, texts: Iterable[str]) -> bool:
        return not self.masks.may_show(raw) and all(self.masks.unfinished(text) == len(text) for text in texts)


@dataclass(frozen=True, slots=True)
class Hiding:
    """Put placeholders in place of values, in a whole response."""

    masks: Masks
    whole: bool = True

    def find(self, text: str, start: int) -> Iterable[tuple[int, int, str]]:
        return self.masks.hidden(text, start)

    def unfinished(self, text: str) -> int:
        return 0

    def passes(self, raw: bytes, texts: Iterable[str]) -> bool:
        return False


@dataclass(slots=True)
class _HeldFrame:
    """A frame on its way, and in how many texts of it something may still be found."""

    raw: bytes
    number: int = 0
    edits: list[StringEdit] = field(default_factory=list)
    open: int = 0


@dataclass(slots=True)
class _Text:
    """The unsettled end of a run of text, and the ``pieces`` that it came in.

    ``new`` is the text that came since the last join; ``scanned`` is the length of the part that is settled.
    """

    text: str = ""
    new: list[str] = field(default_factory=list)
    scanned: int = 0
    pieces: deque[tuple[_HeldFrame, JsonString]] = field(default_factory=deque)
    noted: bool = False
    thought: bool = False

    def join(self) -> str:
        """Return all of it."""
        if self.new:
            self.text = "".join((self.text, *self.new))
            self.new.clear()
        return self.text


class FrameEditor:
    """Replace text in the frames of a response as they pass, including text that is split over several frames.

    A frame leaves when nothing in it can still be part of a replacement, and all frames before it have left. Frames
    without a replacement leave as they came. ``texts_only`` leaves calls, code and other fields alone. ``places`` finds
    the texts in frames. ``repetitions`` records replacements in text that clients will send again. Replacements that
    make the body longer by more than ``most_added`` characters are a DecodeError: a value may have many times the
    length of its placeholder.
    """

    def __init__(
        self,
        framing: Framing,
        substitution: Substitution,
        *,
        texts_only: bool = False,
        places: TextPlaces = GENERATE.places,
        repetitions: list[Repetition] | None = None,
        most_added: int = sys.maxsize,
    ) -> None:
        self._framing = framing
        self._room = most_added
        self._places = places
        self._repetitions = repetitions
        self._frames = 0
        self._substitution = substitution
        self._texts_only = texts_only
        self._waiting: deque[_HeldFrame] = deque()
        self._runs: dict[Run, _Text] = {}
        self.unread = 0
        """Bytes that have arrived and belong to no frame yet."""
        self.replaced: set[str] = set()
        """The texts that were replaced."""

    def replace_by(self, substitution: Substitution) -> None:
        """Apply another substitution to the text that is not final yet."""
        self._substitution = substitution

    def feed(self, data: bytes) -> bytes:
        """Take in bytes and return those that may leave. Raises DecodeError for what cannot be read."""
        self.unread += len(data)
        return self._take(self._framing.feed(data))

    def end(self) -> bytes:
        """Take in the end of the body and return what is left of it. Raises DecodeError."""
        return self._take(self._framing.end()) + self.flush()

    def edit(self, body: bytes) -> bytes:
        """Return a whole body with the replacements made. Raises DecodeError."""
        return self.feed(body) + self.end()

    def flush(self) -> bytes:
        """Return every frame that waits: no more of the response will come."""
        for run in list(self._runs):
            self._close(run)
        return self._leave()

    def _take(self, frames: Iterable[Frame]) -> bytes:
        places = self._places
        for raw, payload in frames:
            self.unread -= len(raw)
            waiting = _HeldFrame(raw, self._frames)
            self._frames += 1
            self._waiting.append(waiting)
            if payload is None:
                continue
            if any(text.pieces for text in self._runs.values()) or not self._substitution.passes(
                raw, places.texts(payload)
            ):
                self._read(waiting, payload)
        return self._leave()

    def _read(self, waiting: _HeldFrame, payload: Mapping[str, Any]) -> None:
        places = self._places
        for string in json_strings(waiting.raw):
            run = places.run_of(string.path, payload)
            if run is not None and not (self._texts_only and run[1] == "argument"):
                self._append(run, waiting, string, payload)
            elif not self._texts_only and not places.is_opaque(string.path):
                for start, end, text in self._substitution.find(string.text, 0):
                    self._replace(waiting, string, start, end, text)
                    if self._repetitions is not None and _is_repeated_in_history(string.path, payload):
                        thought = _is_thought_text(string.path, payload)
                        self._note(waiting, string, start, thought, text, string.text[start:end])
        for run in [run for run in self._runs if places.ends(run, payload)]:
            self._close(run)

    def _append(self, run: Run, waiting: _HeldFrame, string: JsonString, payload: Mapping[str, Any]) -> None:
        text = self._runs.get(run)
        if text is None:
            text = self._runs[run] = _Text()
            if self._repetitions is not None:
                text.noted = _is_repeated_in_history(string.path, payload)
                text.thought = _is_thought_text(string.path, payload)
        text.new.append(string.text)
        text.pieces.append((waiting, string))
        waiting.open += 1
        if not self._substitution.whole:
            self._settle(text, self._substitution.unfinished(text.join()))

    def _close(self, run: Run) -> None:
        text = self._runs.pop(run)
        self._settle(text, len(text.join()))

    def _settle(self, text: _Text, safe: int) -> None:
        """Make the replacements that end before ``safe``, and let go of the pieces that do."""
        for start, end, replacement in self._substitution.find(text.text, text.scanned):
            if end > safe:
                # Its closing characters may begin another one, so it is not settled: none of it may leave.
                safe = min(safe, start)
                break
            waiting, string, offset = self._spread(text, start, end, replacement)
            if text.noted:
                self._note(waiting, string, offset, text.thought, replacement, text.text[start:end])
            text.scanned = end
        cut = 0
        while text.pieces and cut + len(text.pieces[0][1].text) <= safe:
            waiting, string = text.pieces.popleft()
            waiting.open -= 1
            cut += len(string.text)
        text.text = text.text[cut:]
        text.scanned = max(0, text.scanned - cut)

    def _spread(self, text: _Text, start: int, end: int, replacement: str) -> tuple[_HeldFrame, JsonString, int]:
        """Replace characters of a run: the first piece gets the replacement, the others lose their parts.

        Return the first piece, and the place of the replacement in it.
        """
        at = 0
        places: list[tuple[_HeldFrame, JsonString, int]] = []
        for waiting, string in text.pieces:
            first, last = max(start - at, 0), min(end - at, len(string.text))
            if first < last:
                self._replace(waiting, string, first, last, "" if places else replacement)
                places.append((waiting, string, first))
            at += len(string.text)
        return places[0]

    def _note(
        self, waiting: _HeldFrame, string: JsonString, offset: int, thought: bool, value: str, spelled: str
    ) -> None:
        if self._repetitions is not None and len(self._repetitions) < _MOST_REPETITIONS:
            self._repetitions.append(Repetition(waiting.number, string.start, offset, thought, value, spelled))

    def _replace(self, waiting: _HeldFrame, string: JsonString, start: int, end: int, text: str) -> None:
        self._room -= max(0, len(text) - (end - start))
        if self._room < 0:
            raise DecodeError("The response with its masked values is larger than upstream.max_answer_bytes allows")
        if text:
            self.replaced.add(text)
        if self._places.is_json(string.path):
            text = json.dumps(text, ensure_ascii=False)[1:-1]
        waiting.edits.append(StringEdit(string, start, end, text))

    def _leave(self) -> bytes:
        leaving: list[bytes] = []
        while self._waiting and not self._waiting[0].open:
            frame = self._waiting.popleft()
            leaving.append(edited(frame.raw, frame.edits) if frame.edits else frame.raw)
        return b"".join(leaving)
