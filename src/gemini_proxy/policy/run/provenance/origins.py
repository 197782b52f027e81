"""``untrusted(call)``: find who said a value.

Here are an index of the conversation's texts and fields, and the judgment on a call's arguments.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, Literal

import orjson

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.events import Event
from gemini_proxy.policy.run.operators import items_of
from gemini_proxy.policy.run.provenance.fields import Field, fields_of
from gemini_proxy.policy.run.provenance.folded import (
    Folded,
    Spoken,
    decoded,
    fold,
    spellings_of_date,
    spellings_of_number,
)
from gemini_proxy.policy.run.provenance.labels import Labels, labels_of
from gemini_proxy.policy.run.provenance.restored import Restored, restored_of
from gemini_proxy.policy.run.provenance.shapes import (
    ADDRESSES,
    Shape,
    addresses_in,
    date_of,
    host_of,
    is_document,
    is_identifying,
    is_in_date,
    is_naming,
    is_written,
    named_shape,
    names_in,
    shape_of,
    thing_of,
    words_of,
)
from gemini_proxy.policy.run.ranges import Mark
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.texts import texts_of
from gemini_proxy.policy.run.values import Address, MarkedRecord, Piece, cut, word_for

Origin = Literal["text", "field", "nowhere", "mixed"]

# A value of one word without digits occurs in texts by chance, and so does one shorter than this.
_LEAST: Final = 4
# Longer identifiers are unique; shorter ones are told apart by the kind of thing that they number.
_SHORT_ID: Final = 6
_ADDRESSES_BY_FORM: Final = ("email", "url", "account", "phone")
_FRAGMENT: Final = 16
# A bare output that is one value: one line without spaces, and no longer.
_BARE: Final = 100
_MOST_FIELDS: Final = 20
# Names in one record that the user may have said.
_MOST_NAMES: Final = 50
_NOTHING_RESTORED: Final = Restored({})


@dataclass(frozen=True, slots=True)
class Source:
    """A text of the conversation: of the event at ``position``, and of the output of ``tool`` if it is one.

    Of a field within a text, ``within`` is where it stands there.
    """

    position: int
    text: str
    tool: str = ""
    within: Field | None = None

    def mark(self, start: int, end: int) -> Mark:
        """Return the place of ``text[start:end]``, the whole field's if its text spells it in another way."""
        field = self.within
        if field is None:
            return self.text, start, min(end, len(self.text))
        begin = field.text.find(self.text, field.start, field.end)
        if begin < 0:
            return field.text, field.start, field.end
        return field.text, begin + start, begin + min(end, len(self.text))


@dataclass(frozen=True, slots=True)
class Traced:
    """A value of a call that no trusted source said.

    ``value`` stands in ``leaf`` from ``start`` on, ``path`` is that of the leaf in the arguments.
    """

    path: str
    value: str
    shape: Shape
    leaf: str
    start: int
    source: "Found"


@dataclass(frozen=True, slots=True)
class Found:
    """The source of a value.

    ``share`` is the part of it, from 0 to 1, that occurs in texts of others; ``place`` is the place of that text,
    ``tool`` the tool whose output it is. ``unnamed`` says that a whole field vouches for it, but that the user named
    nothing in the field's record.
    """

    origin: Origin
    share: float
    tool: str = ""
    place: Mark | None = None
    unnamed: bool = False


class ConversationIndex:
    """The texts of a conversation, by speaker. Linear in their size.

    It grows with the conversation, and keeps only texts. Outputs are parsed at the first search in them. The sources of
    an event are numbered from ``_first_of`` on.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.chars = 0
        """Characters that are kept."""
        self.seen: list[_Seen] = []
        self.sources: dict[int, Source] = {}
        self.said = Spoken()
        self.heard = Spoken()
        self.asked = Folded()
        """The user's texts, which ``said`` has among others."""
        self.fields: dict[str, list[tuple[int, Field]]] = {}
        self._listened = 0
        self._clear: dict[tuple[int, str, bool], tuple[str, bytes]] = {}

    def is_of(self, seen: "Sequence[_Seen]") -> bool:
        """Return whether the events indexed so far are the first of these."""
        count = len(self.seen)
        return count <= len(seen) and (not count or self.seen[-1] == seen[count - 1]) and self.seen == seen[:count]

    def is_clear(self, call: Event, name: str, arguments: bytes, fields: bool) -> bool:
        """Return whether the call's arguments under ``name`` were traced before without anything untrusted."""
        return self._clear.get((call.position, name, fields)) == (call.data["function"]["name"], arguments)

    def clear(self, call: Event, name: str, arguments: bytes, fields: bool) -> None:
        """Remember that nothing is untrusted in the arguments: it depends on what was said before the call alone."""
        self._clear[call.position, name, fields] = call.data["function"]["name"], arguments
        self.chars += len(arguments)

    def add(self, event: Event, seen: "_Seen", meter: Meter) -> None:
        """Index an event that comes after all others, unless it is an output that anyone may have written."""
        if event.kind != "ToolOutput":
            number = _first_of(event.position)
            for text in _choices(event.data) if event.kind == "Tool" else texts_of(event):
                meter.charge(1 + (len(text) >> 5))
                self._add(self.said, Source(event.position, text), number)
                self.chars += len(text)
                if event.kind == "Message" and event.data.get("role") == "user":
                    self.asked.add(text, number)
                number += 1
            return
        self.chars += len(seen[-1]) if isinstance(seen[-1], str | bytes) else 0
        if self.labels.is_trusted(seen[2]):
            self.add_output(event, self.said, meter)

    def listen(self, events: Sequence[Event], meter: Meter) -> None:
        """Index the outputs among ``events`` that are not yet. The first of these are those that were added."""
        while self._listened < len(self.seen):
            event = events[self._listened]
            if event.kind == "ToolOutput" and not self.labels.is_trusted(self.seen[self._listened][2]):
                self.add_output(event, self.heard, meter)
            self._listened += 1

    def add_output(self, event: Event, spoken: Spoken, meter: Meter) -> None:
        """Index an output, all of it or nothing."""
        tool = tool_of(event)
        fields = None if is_document(tool) else fields_of(event.content, f"{event.address}.content", meter)
        number = _first_of(event.position)
        if fields is None:
            texts = list(texts_of(event))
            meter.charge(sum(1 + (len(text) >> 5) for text in texts))
            for index, text in enumerate(texts):
                self._add(spoken, Source(event.position, text, tool), number + index)
            if len(texts) == 1 and _is_bare(texts[0]) and not is_document(tool):
                self._add_field(Field("", texts[0].strip(), texts[0], 0, len(texts[0])), number)
            return
        meter.charge(sum(1 + (len(field.value) >> 5) for field in fields))
        for index, field in enumerate(fields):
            self._add(spoken, Source(event.position, field.value, tool, field), number + index)
            self._add_field(field, number + index)

    def _add(self, spoken: Spoken, source: Source, number: int) -> None:
        self.sources[number] = source
        spoken.add(source.text, number)

    def _add_field(self, field: Field, number: int) -> None:
        """Know the field by its value, by another spelling of it, and a date and time by the date."""
        keys = {fold(field.value), *spellings_of_number(field.value)}
        if (date := date_of(field.value)) is not None:
            keys.add("{:04}{:02}{:02}".format(*date))
        for key in keys:
            known = self.fields.setdefault(key, [])
            if len(known) < _MOST_FIELDS:
                known.append((number, field))


def _first_of(position: int) -> int:
    """Return the number of the first source of the event at ``position``."""
    return position << 32


class Origins:
    """Trace the values of a conversation's calls by an index over its ``events``. Charges ``meter``.

    A value of ``restored`` has the source of its placeholder.
    """

    def __init__(
        self, index: ConversationIndex, events: Sequence[Event], meter: Meter, fields: bool, restored: Restored
    ) -> None:
        """Make an index. ``fields`` says whether a whole field of an output vouches for an address."""
        self._vouching = fields
        self._restored = restored
        self._index = index
        self._events = events
        self._meter = meter
        self._current: dict[int, dict[int, Source]] = {}
        self._records: dict[int, dict[int, list[Field]]] = {}
        self._named: dict[tuple[int, int, int], bool] = {}

    def untrusted(self, arguments: Any, name: str, call: Event) -> Iterator[Traced]:
        """Yield the values of a call's ``arguments`` that no trusted source said before it.

        ``arguments`` are all, or those under ``name``. Those that are ``unnamed`` are among them.
        """
        limit = _first_of(call.position)
        tool = call.data["function"]["name"]
        # Restored values differ from check to check, so results for the same arguments cannot be reused.
        as_json = b"" if self._restored else _written(arguments)
        if as_json and self._index.is_clear(call, name, as_json, self._vouching):
            return
        clear = True
        for path, key, value in leaves_of(arguments, name):
            if self._index.labels.is_free(tool, path):
                continue
            self._meter.charge(4 + (len(value) >> 3) + len(self._restored))
            # Most values are the user's own words. But an id may coincide with the day of a date that they said.
            if self._index.said.says(self._restored.hide(value), limit, self._meter) and named_shape(key) != "id":
                continue
            for traced in self._judge(path, key, value, limit):
                clear = False
                yield traced
        if clear and as_json:
            self._index.clear(call, name, as_json, self._vouching)

    def _judge(self, path: str, name: str, value: str, limit: int) -> Iterator[Traced]:
        shape = shape_of(value, name)
        if shape == "number" or not value.strip():
            return
        inner = list(addresses_in(value)) if shape in ADDRESSES or shape in ("word", "message", "text") else []
        if shape in ADDRESSES and not inner:
            inner = [(shape, 0, len(value))]
        for kind, start, end in inner:
            found = self._address(value[start:end], kind, name, limit)
            if found is not None:
                yield Traced(path, value[start:end], kind, value, start, found)
        if shape in ADDRESSES:
            return
        found = self._text(value, limit) if shape == "text" else self._plain(value, shape, limit)
        if found is not None:
            yield Traced(path, value, shape, value, 0, found)

    def _address(self, value: str, shape: Shape, name: str, limit: int) -> Found | None:
        value = self._restored.hide(value)
        if shape != "id" and self._index.said.says(value, limit, self._meter):
            return None
        forms = _forms(value)
        if not forms[0]:
            return None
        if shape == "url":
            forms.append(fold(host_of(value)))
        said = self._any(self._index.said, forms, limit, whole=True)
        if shape == "url":
            forms.pop()
        thing = thing_of(name) if shape == "id" else ""
        called = [f"{word}{form}" for form in forms for word in ("id", thing) if word] if shape == "id" else []
        named = self._any(self._heard, called, limit, whole=True)
        # A date that the user gave does not count as an id if a text uses it as one.
        meant = named is None or self._any(self._index.said, called, limit) is not None
        if said is not None and (meant or not self._is_day(said)):
            return None
        written = unnamed = None
        for number, field in self._known(forms, limit):
            vouches = self._vouching and _fits(shape, thing, value, field, self._index.sources[number].tool)
            written = number, 0, len(field.value)
            if vouches and not named:
                if self._is_named(number, field, limit):
                    return None
                unnamed = written
        if unnamed is not None:
            return replace(self._at("field", 1.0, unnamed), unnamed=True)
        place = self._any(self._heard, forms, limit) or named
        if place is not None and (written is None or place[0] != written[0]):
            return self._at("text", 1.0, place)
        if written is not None:
            return self._at("field", 1.0, written)
        # A short number that occurs in no text has no source: the model may have counted.
        counted = shape == "id" and len(value) < _SHORT_ID and value.isdigit()
        return None if counted else Found("nowhere", 0.0)

    def _is_named(self, number: int, field: Field, limit: int) -> bool:
        """Return whether the user said, before ``limit``, of which thing the field is; a bare value is of none."""
        if not field.record:
            return True
        position = self._index.sources[number].position
        known = self._named.get((position, field.record, limit))
        if known is None:
            fields = self._records_of(position)[field.record]
            names = (name for each in fields for name in names_in(each.value))
            known = any(self._index.asked.says(name, limit, self._meter) for name in islice(names, _MOST_NAMES))
            self._named[position, field.record, limit] = known
        return known

    def _records_of(self, position: int) -> dict[int, list[Field]]:
        """Return the fields of the output at ``position`` by their records."""
        if position not in self._records:
            found: dict[int, list[Field]] = {}
            number = _first_of(position)
            while (source := self._index.sources.get(number)) is not None:
                self._meter.charge(1)
                if source.within is not None:
                    found.setdefault(source.within.record, []).append(source.within)
                number += 1
            self._records[position] = found
        return self._records[position]

    def _is_day(self, place: "_At") -> bool:
        number, start, end = place
        return is_in_date(self._index.sources[number].text, start, end)

    def _plain(self, value: str, shape: Shape, limit: int) -> Found | None:
        value = self._restored.hide(value)
        if self._index.said.says(value, limit, self._meter):
            return None
        date = date_of(value)
        forms = [*spellings_of_date(*date)] if date is not None else _forms(value)
        if date is None and (len(forms[0]) < _LEAST or value.isalpha()):
            return None
        if self._any(self._index.said, forms, limit) is not None or next(self._known(forms, limit), None) is not None:
            return None
        place = self._any(self._heard, forms, limit)
        return None if place is None else self._at("text", 1.0, place)

    def _text(self, value: str, limit: int) -> Found | None:
        """Trace a long text by its fragments: sentences and lines."""
        total = known = 0
        first = None
        for fragment in _fragments(self._restored.hide(value)):
            form = fold(fragment)
            total += len(form)
            if len(form) < _FRAGMENT or self._index.said.says(fragment, limit, self._meter):
                continue
            if self._any(self._index.said, [form], limit) is not None:
                continue
            place = self._any(self._heard, [form], limit)
            if place is not None:
                known += len(form)
                first = first or place
        if first is None:
            return None
        return self._at("text" if known == total else "mixed", known / total, first)

    def _any(self, spoken: Spoken, forms: Sequence[str], limit: int, *, whole: bool | None = None) -> "_At | None":
        for form in forms:
            found = spoken.find(form, limit, self._meter, whole=whole)
            if found is not None:
                return found
        return None

    @property
    def _heard(self) -> Spoken:
        """Return the texts of outputs, after reading them."""
        self._index.listen(self._events, self._meter)
        return self._index.heard

    def _known(self, forms: Sequence[str], limit: int) -> Iterator[tuple[int, Field]]:
        self._index.listen(self._events, self._meter)
        for form in forms:
            for number, field in self._index.fields.get(form, ()):
                if number < limit:
                    yield number, field

    def _at(self, origin: Origin, share: float, place: "_At") -> Found:
        number, start, end = place
        source = self._as_it_is_now(number)
        return Found(origin, share, source.tool, source.mark(start, end))

    def _as_it_is_now(self, number: int) -> Source:
        """Return the source in the conversation that is checked now: marks need its very strings."""
        position = self._index.sources[number].position
        if position not in self._current:
            alone = ConversationIndex(self._index.labels)
            event = next(event for event in self._events if event.position == position)
            alone.add_output(event, alone.heard, self._meter)
            self._current[position] = alone.sources
        return self._current[position][number]


class OriginsCache:
    """Indices of the latest conversations: the next check of one adds only new texts and examines only new calls.

    For one thread. ``most`` bounds the conversations, ``chars`` the characters of all their texts together.
    """

    def __init__(self, most: int = 8, chars: int = 500_000) -> None:
        self._most = most
        self._chars = chars
        self._indices: list[ConversationIndex] = []

    def origins(
        self,
        events: Sequence[Event],
        labels: Labels,
        meter: Meter,
        *,
        fields: bool = True,
        restored: Restored = _NOTHING_RESTORED,
    ) -> Origins:
        """Return what traces values by these messages, outputs and declarations. Raises BudgetExceeded."""
        events = [event for event in events if event.kind != "Message" or event.data.get("role") != "assistant"]
        meter.charge(1 + len(events))
        seen = [_seen(event) for event in events]
        index = next((each for each in self._indices if each.labels == labels and each.is_of(seen)), None)
        if index is None:
            index = ConversationIndex(labels)
        else:
            self._indices.remove(index)
        # An index that fails half-way is not put back.
        for number in range(len(index.seen), len(events)):
            index.add(events[number], seen[number], meter)
        index.seen = seen
        self._indices.insert(0, index)
        while len(self._indices) > self._most or sum(each.chars for each in self._indices) > self._chars:
            self._indices.pop()
        return Origins(index, events, meter, fields, restored)


def untrusted(run: Run, value: Any, trusted: Any = None, shapes: Any = None, fields: Any = True) -> list[MarkedRecord]:
    """Return the values of a call or an argument that neither the user nor anyone trusted said before it.

    ``trusted`` are names of tools whose outputs are trusted, beside those that are labeled so; ``shapes`` are the
    shapes that are asked for, all by default. Without ``fields`` a whole field of an output vouches for no address;
    with "named" it does only if its record is one that the user named. A value is marked in the call and at its source.
    """
    if value is None:
        return []
    call, name, arguments = _of_call(run, value)
    added = () if trusted is None else tuple(items_of(trusted, run))
    key = ("untrusted", added, bool(fields), id(arguments))
    traced = run.scans.get(key)
    if traced is None:
        traced = run.scans[key] = list(_origins(run, added, bool(fields)).untrusted(arguments, name, call))
    if not traced:
        run.charge(1)
        return []
    wanted = None if shapes is None else items_of(shapes, run)
    records = [
        record_of(run, trace, call)
        for trace in traced
        if (wanted is None or trace.shape in wanted) and (fields == "named" or not trace.source.unnamed)
    ]
    run.items(len(records))
    run.marks.extend(mark for record in records for mark in record.marks)
    return records


def _origins(run: Run, trusted: tuple[Any, ...], fields: bool) -> Origins:
    """Return what traces the conversation's values if these tools are trusted as well, made once a check."""
    key = ("origins", trusted, fields)
    if key not in run.scans:
        events = [event for kind in ("Message", "ToolOutput", "Tool") for event in run.events(kind)]
        events.sort(key=lambda event: event.position)
        run.scans[key] = _kept().origins(events, labels_of(run, trusted), run, fields=fields, restored=restored_of(run))
    found: Origins = run.scans[key]
    return found


_THREAD = threading.local()


def _kept() -> OriginsCache:
    """Return this thread's indices: a check runs in one thread from beginning to end."""
    if not hasattr(_THREAD, "kept"):
        _THREAD.kept = OriginsCache()
    kept: OriginsCache = _THREAD.kept
    return kept


def _of_call(run: Run, value: Any) -> tuple[Event, str, Any]:
    """Return the call, the name of the argument if the value is one, and the arguments."""
    if isinstance(value, Event) and value.kind == "ToolCall":
        return value, "", value.data["function"]["arguments"]
    if isinstance(value, dict | list | str):
        key = ("arguments",)
        if key not in run.scans:
            run.scans[key] = dict(_arguments(run))
        known = run.scans[key].get(id(value))
        if known is not None:
            return *known, value
    raise EvaluationError(f"untrusted(...) needs a tool call or one of its arguments, not a {word_for(value)}")


def _arguments(run: Run) -> Iterator[tuple[int, tuple[Event, str]]]:
    """Yield every call and argument by the identity of its value, the first of one identity last."""
    for call in reversed(run.events("ToolCall")):
        arguments = call.data["function"]["arguments"]
        run.charge(1 + len(arguments))
        yield from ((id(item), (call, name)) for name, item in arguments.items())
        yield id(arguments), (call, "")


def record_of(run: Run, found: Traced, call: Event) -> MarkedRecord:
    run.charge(2)
    # A number has no string object of its own: its root is its path.
    if type(found.leaf) is Piece and isinstance(found.leaf.root, Address):
        marks: list[Mark] = [(Address(f"{call.address}.function.arguments.{found.path}"), -1, -1)]
        value = found.value
    else:
        marks = [(found.leaf, found.start, found.start + len(found.value))]
        value = cut(found.leaf, found.start, found.start + len(found.value))
    source = found.source
    if source.place is not None:
        marks.append(source.place)
    fields = {
        "path": found.path, "value": value, "shape": found.shape, "origin": source.origin, "share": source.share,
        "tool": source.tool,
    }  # fmt: skip
    return MarkedRecord(fields, marks)


# The properties of an event that an index depends on: its position, its tool and its texts.
_Seen = tuple[str, int, str, str | bytes | object]
_At = tuple[int, int, int]


def _seen(event: Event) -> _Seen:
    content = event.data if event.kind == "Tool" else event.data.get("content")
    said = content if type(content) is str else _written(content) or object()
    return event.kind, event.position, tool_of(event), said


def tool_of(event: Event) -> str:
    name: str = event.call.data["function"]["name"] if event.call is not None else ""
    return name


def _written(value: Any) -> bytes:
    """Return the value as JSON, so that equal ones also have equal types. Empty for what JSON does not have."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return b""


def _choices(declaration: Any) -> Iterator[str]:
    """Return the values that a tool's parameters are declared to choose from."""
    stack = [declaration]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            choices = item.get("enum")
            yield from (choice for choice in choices if isinstance(choice, str)) if isinstance(choices, list) else ()
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _forms(value: str) -> list[str]:
    return list(dict.fromkeys([fold(value), *map(fold, decoded(value)), *spellings_of_number(value)]))


def _fits(shape: Shape, thing: str, value: str, field: Field, tool: str) -> bool:
    """Return whether a field with the value vouches for it: people do not write in it, and it is that thing's id."""
    if is_written(field.key) or (shape in _ADDRESSES_BY_FORM and is_naming(field.key)):
        return False
    if shape != "id" or not thing or len(value) > _SHORT_ID:
        return True
    of_key = words_of(field.key)
    if any(word.startswith(thing) for word in of_key):
        return True
    return is_identifying(field.key) and any(word.startswith(thing) for word in words_of(tool))


def _is_bare(text: str) -> bool:
    return len(text) <= _BARE and len(text.split()) == 1


def _fragments(value: str) -> Iterator[str]:
    for line in value.splitlines():
        yield from line.split(". ")


def leaves_of(arguments: Any, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield path, name and text of every value: the name is that of the nearest key."""
    # Drop the first dot of a path within all arguments: an empty key has a dot of its own.
    cut = 0 if name else 1
    stack: list[tuple[str, str, Any]] = [(name, name, arguments)]
    while stack:
        path, name, item = stack.pop()
        begin = f"{path}."
        if isinstance(item, dict):
            stack.extend((f"{begin}{key}", str(key), inner) for key, inner in reversed(item.items()))
        elif isinstance(item, list | tuple):
            stack.extend((f"{begin}{index}", name, item[index]) for index in range(len(item) - 1, -1, -1))
        elif isinstance(item, str):
            yield path[cut:], name, item
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield path[cut:], name, Piece(str(item), Address(path[cut:]), None)
