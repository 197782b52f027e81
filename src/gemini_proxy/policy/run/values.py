"""Define the values that rules compute with, and how they remember their place in the messages.

A string of a message stays the same object: a violation finds its place by identity, so reading costs nothing. A string
made from another (a match, a slice, a stripped or lowered text) is a Piece that knows its root. No other value has a
place.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.budget import Meter

# The cost of an item of a list or a dictionary, in characters: it is a text of its own, with a place.
_ITEM_CHARS = 200
# Deeper than the proxy's JSON readers accept.
_MAX_DATA_DEPTH = 1000


class Address(str):
    """The address of a value that is not a string itself: a number, or a dictionary whose key was read."""

    __slots__ = ()


class Piece(str):
    """Text derived from ``root``: its character ``i`` stands there at ``shift + i``, somewhere if that is None."""

    __slots__ = ("root", "shift")
    root: str
    shift: int | None

    def __new__(cls, text: str, root: str, shift: int | None) -> "Piece":
        piece = str.__new__(cls, text)
        piece.root = root
        piece.shift = shift
        return piece


class Joined(str):
    """Texts of several places as one: the first ends at ``ends[0]`` and stands at ``addresses[0]``, and so on.

    The first text lacks its first ``skipped`` characters. A text that is not ``exact`` was changed: its characters are
    somewhere within its addresses. ``readings`` are the longer texts that it is a piece of.
    """

    __slots__ = ("addresses", "ends", "exact", "readings", "skipped")
    addresses: tuple[str, ...]
    ends: tuple[int, ...]
    skipped: int
    exact: bool
    readings: tuple["Within", ...]

    def __new__(
        cls, text: str, addresses: tuple[str, ...], ends: tuple[int, ...], skipped: int = 0, exact: bool = True
    ) -> "Joined":
        joined = str.__new__(cls, text)
        joined.addresses = addresses
        joined.ends = ends
        joined.skipped = skipped
        joined.exact = exact
        joined.readings = ()
        return joined

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Travel as the text alone."""
        return str, (str(self),)

    @classmethod
    def of(cls, pieces: Sequence[tuple[str, str]]) -> "Joined":
        """Join ``pieces``, each a text and its address."""
        text = "".join([text for text, _ in pieces])
        return cls(text, tuple(address for _, address in pieces), tuple(accumulate(len(text) for text, _ in pieces)))

    def located(self, start: int, end: int) -> Iterator[str]:
        """Yield the address of each stretch of ``self[start:end]``, with its offsets if ``exact``."""
        number = bisect_right(self.ends, start)
        begins = self.ends[number - 1] if number else 0
        while number < len(self.ends) and (begins < end or start == end == begins):
            first, last = max(start, begins) - begins, min(end, self.ends[number]) - begins
            if first < last or start == end:
                by = 0 if number else self.skipped
                yield f"{self.addresses[number]}:{first + by}-{last + by}" if self.exact else self.addresses[number]
            begins = self.ends[number]
            number += 1

    def part(self, start: int, end: int) -> "Joined":
        """Return ``self[start:end]``, whose characters know where they stand."""
        begins = (0, *self.ends[:-1])
        kept = [number for number, last in enumerate(self.ends) if begins[number] < end and start < last]
        first = kept[0] if kept else 0
        return Joined(
            self[start:end],
            tuple(self.addresses[number] for number in kept),
            tuple(min(self.ends[number], end) - start for number in kept),
            (0 if first else self.skipped) + max(0, start - begins[first]) if kept else 0,
            self.exact,
        )

    def followed_by(self, other: "Joined") -> "Joined":
        """Join both texts; ``other`` must begin where its first text does."""
        ends = (*self.ends, *(len(self) + end for end in other.ends))
        return Joined(str(self) + other, self.addresses + other.addresses, ends, self.skipped)

    def changed(self, change: Callable[[str], str]) -> "Joined":
        """Apply ``change`` to the text, or to each of its pieces if it changes the length."""
        text = change(self)
        if len(text) == len(self):
            return Joined(text, self.addresses, self.ends, self.skipped, self.exact)
        texts = [change(self[start:end]) for start, end in zip((0, *self.ends), self.ends, strict=False)]
        return Joined("".join(texts), self.addresses, tuple(accumulate(map(len, texts))), 0, exact=False)


# A reading, and the start and end of a text in it.
Within = tuple[Joined, int, int]


class Each(list[bool]):
    """The results of a test for the items of a list. As a condition it is true if one of them is."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True in self


class Record(dict[str, Any]):
    """A detector's result with named fields. An unknown field is an error, not None."""

    __slots__ = ()


class MarkedRecord(Record):
    """A record with places in the conversation: each of ``marks`` is a string and a span in it."""

    __slots__ = ("marks",)

    def __init__(self, fields: Mapping[str, Any], marks: Sequence[tuple[str, int, int]]) -> None:
        super().__init__(fields)
        self.marks = tuple(marks)


def cut(text: str, start: int, end: int) -> Piece:
    """Return ``text[start:end]``, which remembers where it stands."""
    if type(text) is Piece:
        return Piece(text[start:end], text.root, None if text.shift is None else text.shift + start)
    return Piece(text[start:end], text, start)


def derived(text: str, origin: str) -> Piece:
    """Return ``text``, made from ``origin`` character by character if the lengths agree, else somewhere in it."""
    same = len(text) == len(origin)
    if type(origin) is Piece:
        return Piece(text, origin.root, origin.shift if same else None)
    return Piece(text, origin, 0 if same else None)


class Content:
    """The content of a message or tool output that is not a plain string: chunks, or data of any shape.

    For text operations (``in``, ``==``, ``len``, ``find``, ``match``, string methods, detectors) chunks count as their
    joined text, and any other value is searched in all its ``texts``. For indexing and iteration content is the value
    itself. ``readings`` are those of its turn if it has no text part.
    """

    __slots__ = ("_text", "_texts", "address", "readings", "value")

    def __init__(self, value: Any, address: str, readings: Sequence["Within"] = ()) -> None:
        self.value = value
        self.address = address
        self.readings = tuple(readings)
        self._text: str | None = None
        self._texts: tuple[str, ...] | None = None

    def __bool__(self) -> bool:
        return bool(self.value)

    @property
    def chunked(self) -> bool:
        """Return whether the value is a list with chunks of content; records of a tool with a type are data."""
        return isinstance(self.value, list) and any(is_chunk(item) and item["type"] in item for item in self.value)

    @property
    def pieces(self) -> list[tuple[str, str]]:
        """Return the text of each text chunk with its address; nothing for other data."""
        if not isinstance(self.value, list):
            return []
        return [
            (item["text"], f"{self.address}.{index}.text")
            for index, item in enumerate(self.value)
            if is_text_chunk(item)
        ]

    @property
    def text(self) -> str:
        """Return the text of all text chunks, always as the same object. For other data, join all its strings."""
        if self._text is None:
            pieces = self.pieces
            if len(pieces) == 1:
                self._text = pieces[0][0]
            elif self.readings:
                self._text = joined = Joined.of(())
                joined.readings = self.readings
            else:
                self._text = _joined(pieces) if pieces or self.chunked else "".join(self.texts)
        return self._text

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the joined text of the chunks, then every other string, key and number, at any depth."""
        if self._texts is None:
            joined = (self.text,) if self.pieces or self.readings else ()
            self._texts = (*joined, *_other_texts(self.value, self.address))
        return self._texts


def is_chunk(item: object) -> bool:
    """Return whether a list item is a typed chunk of content."""
    return isinstance(item, dict) and isinstance(item.get("type"), str)


def is_text_chunk(item: object) -> bool:
    """Return whether a list item is a chunk with part of the message's text, and no ``field`` beside it."""
    if not isinstance(item, dict) or item.get("type") == "image_url" or "field" in item:
        return False
    return isinstance(item.get("type"), str) and isinstance(item.get("text"), str)


def _joined(pieces: Sequence[tuple[str, str]]) -> Joined:
    """Join the texts of one content, with the readings that continue before or after them."""
    joined = Joined.of(pieces)
    linked = [text for text, _ in pieces if type(text) is Joined]
    if linked:
        ends = {id(reading): end for reading, _, end in linked[-1].readings}
        joined.readings = tuple(
            (reading, start, ends[id(reading)])
            for reading, start, _ in linked[0].readings
            if ends[id(reading)] - start < len(reading)
        )
    return joined


def _other_texts(value: Any, address: str) -> Iterator[str]:
    if not isinstance(value, list):
        yield from leaves(value, address)
        return
    for index, item in enumerate(value):
        where = f"{address}.{index}"
        if not is_chunk(item):
            yield from leaves(item, where)
            continue
        # An image's URL is its data; the text of a text chunk is in the joined text.
        known = {"type", "field"} | ({"text"} if is_text_chunk(item) else set())
        known |= {"image_url"} if item["type"] == "image_url" else set()
        for key in item:
            if key in known:
                continue
            if key != "text":
                yield Piece(key, Address(where), None)
            yield from leaves(item[key], f"{where}.{key}")


def leaves(value: Any, address: str) -> Iterator[str]:
    """Yield every string, key and number in JSON-like data, in document order.

    Keys and numbers come as Pieces of an Address.
    """
    if type(value) is str:
        yield value
        return
    stack: list[tuple[Any, str]] = [(value, address)]
    while stack:
        item, where = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from (Piece(key, Address(where), None) for key in item if isinstance(key, str))
            stack.extend((item[key], f"{where}.{key}") for key in reversed(item))
        elif isinstance(item, list | tuple):
            stack.extend((item[index], f"{where}.{index}") for index in range(len(item) - 1, -1, -1))
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield Piece(str(item), Address(where), None)


def count_chars(value: Any, most: int) -> int:
    """Return the cost of searching JSON-like data, in characters of a text with the same cost.

    Counting ends when ``most`` is exceeded: then the value is known to be large.
    """
    if isinstance(value, str):
        return len(value)
    total, walked = 0, [value]
    # The list grows while it is walked.
    for item in walked:
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, (dict, list)):  # not a union, which is created again for each item
            total += len(item) * _ITEM_CHARS
            if total > most:
                return total
            walked += item.values() if isinstance(item, dict) else item
    return total


def word_for(value: object) -> str:
    """Return a value's type as error messages name it."""
    names: dict[type, str] = {int: "number", float: "number", bool: "truth value", type(None): "None"}
    names |= {list: "list", tuple: "list", dict: "dictionary", Content: "content"}
    return "text" if isinstance(value, str) else names.get(type(value), type(value).__name__)


def plain(value: Any, meter: Meter, depth: int = 0) -> Any:
    """Return a value as JSON-able data: events as their dictionaries, pieces as strings."""
    meter.charge(1)
    if depth > _MAX_DATA_DEPTH:
        raise EvaluationError("a value is nested too deeply")
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain(item, meter, depth + 1) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item, meter, depth + 1) for key, item in value.items()}
    if isinstance(value, Content):
        return plain(value.value, meter, depth + 1)
    data = getattr(value, "data", None)
    return data if isinstance(data, dict | list) else str(value)
