"""Turn the messages of a trace into what a page shows of them, in bounded size. No I/O."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from gemini_proxy.explorer.pages.annotated_text import AnnotatedText, Note, annotate_text, notes
from gemini_proxy.explorer.pages.stored_messages import StoredMessages, decoded_arguments, message_index
from gemini_proxy.traces.annotation_ranges import AnnotationRange, AnnotationRanges
from gemini_proxy.traces.trace import Annotation
from gemini_proxy.traces.visible import as_json

_VALUES, _CHARACTERS, _IMAGES = 3_000, 600_000, 6_000_000
"""Limits of one page: values with an address, characters of text, characters of image data."""
_MARKS_OF_A_VALUE: Final = 40
"""Marks on one value that count as another value."""
_IMAGE: Final = 3_000_000
"""The largest single image that is shown, in characters of its base64."""
_DEEP: Final = 12
"""Steps of indentation; deeper values are indented no further."""
_DATA_URL = re.compile(r"data:image/(png|jpeg|gif|webp);base64,([A-Za-z0-9+/_=\s-]*)", re.IGNORECASE)
_MIME = re.compile(r"data:([^;,]{0,100})")
_ROLES: Final = frozenset({"system", "user", "assistant", "tool", "tools"})
_SHOWN_APART: Final = frozenset({"role", "content", "tool_calls", "tools", "thought", "candidate"})
_TEXT_CHUNK: Final = frozenset({"type", "text", "field"})
_FIELD: Final = 60
"""The longest name of a field that is shown as a label; a longer one is shown as a value."""

T = TypeVar("T")
Kind = Literal["text", "call", "output", "data", "image", "file", "tools", "tool"]


@dataclass(frozen=True, slots=True)
class Line:
    """One value of a structure, or, if ``value`` is None, the name of those below it. ``kind`` is the value's type."""

    depth: int
    name: str
    value: AnnotatedText | None
    kind: Literal["string", "other", "group"] = "string"

    @property
    def block(self) -> bool:
        """Return whether the value needs lines of its own."""
        return self.value is not None and (self.value.length > 100 or "\n" in self.value.text)


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a message. ``about`` says what is shown if that is not obvious; ``image`` is a ``data:`` URI."""

    kind: Kind
    about: str = ""
    name: AnnotatedText | None = None
    lines: tuple[Line, ...] = ()
    image: str = ""
    notes: tuple[Note, ...] = ()

    @property
    def marked(self) -> bool:
        return bool(self.all_notes) or any(
            piece.style for line in self.lines if line.value for piece in line.value.runs
        )

    @property
    def all_notes(self) -> tuple[Note, ...]:
        values = [self.name, *(line.value for line in self.lines)]
        return (*self.notes, *(note for value in values if value is not None for note in value.notes))


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its speaker and its content. ``cut`` says that it was shortened.

    ``field`` names the source field of a text outside text parts; ``provider`` says that Gemini's servers ran the call
    themselves.
    """

    index: int
    role: str
    known_role: bool
    thought: bool
    candidate: str
    blocks: tuple[Block, ...]
    cut: bool
    field: str = ""
    provider: bool = False

    @property
    def marked(self) -> bool:
        return any(block.marked for block in self.blocks)


class BlockReader:
    """Read messages one after the other until the page is full."""

    def __init__(self, marks: AnnotationRanges) -> None:
        self.known: set[int] = set()
        self._marks = marks
        self._values, self._characters, self._image_data = _VALUES, _CHARACTERS, _IMAGES
        self._cut = False

    @property
    def spent(self) -> bool:
        return self._values <= 0 or self._characters <= 0

    def message(self, index: int, message: Any, *, whole: bool = True) -> Message:
        """Read one message. ``whole`` is False if it is only the beginning of what was said."""
        address = f"messages.{index}"
        self._cut = not whole
        if not isinstance(message, Mapping):
            data = self._data("data", "", message, address)
            return Message(index, "message", False, False, "", (data,), self._cut)
        said_role = message.get("role")
        tools = "tools" in message and said_role is None
        role = "tools" if tools else _plain(said_role)
        blocks = tuple(self._blocks(message, address, role))
        candidate, field = _plain(message.get("candidate")), self._field(message, address)
        thought, provider = message.get("thought") is True, message.get("provider") is True
        return Message(index, role, role in _ROLES, thought, candidate, blocks, self._cut, field, provider)

    def _until_spent(self, items: Iterable[T]) -> Iterator[T]:
        for item in items:
            if self.spent:
                self._cut = True
                return
            # The text of images does not count.
            self._values -= 1
            yield item

    def _blocks(self, message: Mapping[str, Any], address: str, role: str) -> Iterator[Block]:
        rest = {name: value for name, value in message.items() if name not in _SHOWN_APART}
        if self._field(message, address):
            del rest["field"]
        if message.get("provider") is True:
            del rest["provider"]
        if role == "tool":
            # Traces of earlier versions have the name under "name".
            key = "tool_name" if "tool_name" in rest else "name"
            name, call = rest.pop(key, None), rest.pop("tool_call_id", None)
            # Read first, so that a note on the whole message is beside the output.
            content = list(self._content(message.get("content"), f"{address}.content", bare=True))
            yield self._named("output", f"answers {_plain(call)}" if call else "", name, (), address, key)
            yield from content
        elif "content" in message:
            yield from self._content(message["content"], f"{address}.content", bare=not message.get("tool_calls"))
        if isinstance(calls := message.get("tool_calls"), list):
            for place, call in self._until_spent(enumerate(calls)):
                yield self._call(call, f"{address}.tool_calls.{place}")
        elif "tool_calls" in message:
            rest["tool_calls"] = message["tool_calls"]
        if isinstance(tools := message.get("tools"), list):
            for place, tool in self._until_spent(enumerate(tools)):
                yield self._tool(tool, f"{address}.tools.{place}")
        elif "tools" in message:
            rest["tools"] = message["tools"]
        for name, value in self._until_spent(rest.items()):
            yield self._data("data", name, value, f"{address}.{name}")

    def _field(self, value: Mapping[str, Any], address: str) -> str:
        """Return the field that the text of a message or chunk is from, if it can be shown as a label."""
        field = value.get("field")
        if not isinstance(field, str) or len(field) > _FIELD or self._marks.on(f"{address}.field"):
            return ""
        return field

    def _content(self, content: Any, address: str, *, bare: bool) -> Iterator[Block]:
        if isinstance(content, list):
            for place, chunk in self._until_spent(enumerate(content)):
                yield self._chunk(chunk, f"{address}.{place}")
        elif isinstance(content, str):
            if content or bare or self._marks.on(address):
                yield Block("text", lines=(self._text(content, address),))
        elif content is not None:
            yield self._data("data", "", content, address)

    def _chunk(self, chunk: Any, address: str) -> Block:
        if not isinstance(chunk, Mapping):
            return self._data("text" if isinstance(chunk, str) else "data", "", chunk, address)
        field = self._field(chunk, address)
        known = _TEXT_CHUNK if field else _TEXT_CHUNK - {"field"}
        if isinstance(text := chunk.get("text"), str) and chunk.keys() <= known:
            return Block("text", field, lines=(self._text(text, f"{address}.text"),))
        if isinstance(image := chunk.get("image_url"), Mapping) and isinstance(url := image.get("url"), str):
            return self._image(chunk, url, address)
        if isinstance(file := chunk.get("file"), Mapping):
            return self._file(file, address)
        return self._data("data", "", chunk, address)

    def _image(self, chunk: Mapping[str, Any], url: str, address: str) -> Block:
        rest = {name: value for name, value in chunk.items() if name not in ("type", "image_url")}
        lines = [line for name, value in rest.items() for line in self._lines(value, f"{address}.{name}", name)]
        noted = self._noted(f"{address}.image_url.url")
        if not url.startswith("data:"):
            # A page never fetches an address that a model or a user names.
            lines = [self._text(url, f"{address}.image_url.url", "address"), *lines]
            return Block("image", "at a URL", None, tuple(lines), "", noted)
        image = self._shown_image(url)
        about = f"{_mime(url)}, {_size(url)}" + ("" if image else ", not shown")
        return Block("image", about, None, tuple(lines), image, noted)

    def _shown_image(self, url: str) -> str:
        found = _DATA_URL.fullmatch(url) if len(url) <= min(_IMAGE, self._image_data) else None
        if found is None:
            return ""
        self._image_data -= len(url)
        data = "".join(found[2].split()).replace("-", "+").replace("_", "/").rstrip("=")
        return f"data:image/{found[1].lower()};base64,{data}{'=' * (-len(data) % 4)}"

    def _file(self, file: Mapping[str, Any], address: str) -> Block:
        data = file.get("data")
        fields = {name: value for name, value in file.items() if name != "data" or not isinstance(value, str)}
        lines = [line for name, value in fields.items() for line in self._lines(value, f"{address}.file.{name}", name)]
        about = f"{_size(data)}, not shown" if isinstance(data, str) else "behind a URI"
        return Block("file", about, None, tuple(lines), "", self._noted(f"{address}.file.data"))

    def _call(self, call: Any, address: str) -> Block:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            return self._data("call", "", call, address)
        known = {"id", "type", "function"}
        rest = {name: value for name, value in call.items() if name not in known}
        rest |= {f"function.{name}": value for name, value in function.items() if name not in ("name", "arguments")}
        path = f"{address}.function.arguments"
        lines = [*self._lines(self._arguments(function.get("arguments"), path), path, "")]
        for name, value in rest.items():
            lines += self._lines(value, f"{address}.{name}", name)
        return self._named("call", _plain(call.get("id")), function.get("name"), tuple(lines), f"{address}.function")

    def _arguments(self, arguments: Any, address: str) -> Any:
        """Return the object in arguments that are JSON text; the text itself if a rule annotated a range of it."""
        if any(mark.ranged for mark in self._marks.on(address)):
            return arguments
        return decoded_arguments(arguments)

    def _tool(self, tool: Any, address: str) -> Block:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        within, path = (function, f"{address}.function") if isinstance(function, Mapping) else (tool, address)
        if not isinstance(within, Mapping):
            return self._data("tool", "", tool, address)
        rest = {name: value for name, value in within.items() if name not in ("name", "type")}
        lines = [line for name, value in rest.items() for line in self._lines(value, f"{path}.{name}", name)]
        return self._named("tool", "", within.get("name"), tuple(lines), path)

    def _named(
        self, kind: Kind, about: str, name: Any, lines: tuple[Line, ...], address: str, key: str = "name"
    ) -> Block:
        value = self._value(_plain(name), f"{address}.{key}") if name is not None else None
        return Block(kind, about, value, lines, "", self._noted(address))

    def _data(self, kind: Kind, name: str, value: Any, address: str) -> Block:
        return Block(kind, lines=tuple(self._lines(value, address, name)), notes=self._noted(address))

    def _lines(self, value: Any, address: str, name: str) -> list[Line]:
        found: list[Line] = []
        # A structure without a name is not indented.
        outer = 0 if name else -1
        for part in _values(value, address):
            if self.spent:
                self._cut = True
                break
            depth, label = min(max(0, part.depth + outer), _DEEP), name if part.address == address else part.name
            if part.text is not None:
                kind: Literal["string", "other"] = "other" if part.literal else "string"
                found.append(Line(depth, label, self._value(part.text, part.address), kind))
            elif label:
                self._values -= 1
                found.append(Line(depth, label, None, "group"))
        return found

    def _text(self, text: str, address: str, name: str = "") -> Line:
        return Line(0, name, self._value(text, address))

    def _value(self, text: str, address: str) -> AnnotatedText:
        marks = self._marks.on(address)
        annotated = annotate_text(text, address, marks, self.known)
        self.known.update(number for note in annotated.notes for number in note.numbers)
        # A thousand marks on one value are as much work as a thousand values.
        self._values -= 1 + len(marks) // _MARKS_OF_A_VALUE
        self._characters -= len(annotated.text)
        return annotated

    def _noted(self, address: str) -> tuple[Note, ...]:
        """Return the notes of annotations on something that is not shown as text."""
        marks = [mark for mark in self._marks.on(address) if mark.number not in self.known]
        self.known.update(mark.number for mark in marks)
        return notes(marks)


@dataclass(frozen=True, slots=True)
class _Value:
    """``text`` is None for a structure whose values follow; ``literal`` marks what is not text: a number, true, {}."""

    address: str
    depth: int
    name: str
    text: str | None
    literal: bool = False


def _values(value: Any, address: str) -> Iterator[_Value]:
    """Yield ``value`` and everything below it, in order."""
    stack: list[tuple[str, int, str, Any]] = [(address, 0, "", value)]
    while stack:
        path, depth, name, item = stack.pop()
        if isinstance(item, Mapping) and item:
            yield _Value(path, depth, name, None)
            inner = [(f"{path}.{key}", depth + 1, str(key), below) for key, below in item.items()]
            stack.extend(reversed(inner))
        elif isinstance(item, list) and item:
            yield _Value(path, depth, name, None)
            stack.extend((f"{path}.{at}", depth + 1, f"{at}", item[at]) for at in range(len(item) - 1, -1, -1))
        elif isinstance(item, str):
            yield _Value(path, depth, name, item)
        else:
            yield _Value(path, depth, name, as_json(item), literal=True)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else as_json(value)


def _mime(url: str) -> str:
    match = _MIME.match(url)
    return match[1] if match and match[1] else "unknown type"


def _size(data: str) -> str:
    """Write the approximate size of the data in a base64 text, as ``12 kB`` or ``1.2 MB``."""
    size = len(data) * 3 / 4
    return f"{size / 1_000_000:.1f} MB" if size >= 1_000_000 else f"{max(1, round(size / 1000))} kB"


MESSAGES: Final = 100
"""Messages of one page."""
MARKS: Final = 2_000
"""Annotations of one trace that are drawn; the rest is counted, and in the raw JSON."""
_PLACES: Final = 20
"""Ranges of one note that are linked to."""
_TRACED, _ENDS = 20, 5
"""Marks of traced values whose other ends are shown, and the number of ends for each."""
_AROUND, _EXCERPT = 30, 120
"""Characters beside and within the other end of a value in an excerpt."""


@dataclass(frozen=True, slots=True)
class TracedEnd:
    """The other end of a traced value: ``words`` describes the connection, ``text`` is the text at that end.

    ``number`` is that of its annotation; ``page`` is the first message of the page with it, or -1.
    """

    words: str
    number: int
    page: int
    text: str


@dataclass(frozen=True, slots=True)
class LinkedNote:
    """A rule's message about the trace, with links.

    ``ranges`` are the numbers of its marks, each with the first message of the page with it, or -1.
    """

    note: Note
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """The messages from ``first`` on that fit a page, of ``total``.

    ``elsewhere`` has the notes on texts outside the page; ``ends`` has the other ends of traced values by the numbers
    of their annotations.
    """

    messages: tuple[Message, ...]
    first: int
    total: int
    notes: tuple[LinkedNote, ...]
    elsewhere: tuple[Note, ...]
    uncounted: int
    ends: Mapping[int, tuple[TracedEnd, ...]]

    @property
    def end(self) -> int:
        return self.first + len(self.messages)

    @property
    def before(self) -> int:
        """Return the first message of the previous page."""
        return max(0, self.first - MESSAGES)

    @property
    def last(self) -> int:
        """Return the first message of the last page."""
        return max(0, self.total - MESSAGES)


def conversation_page(document: bytes, annotations: Sequence[Annotation], first: int = 0) -> ConversationPage:
    """Return one page of a trace's conversation, from message ``first`` on. ``document`` is the JSON list of its
    messages.

    Raise StoreError for a document that is not such a list.
    """
    messages = StoredMessages(document)
    total = len(messages)
    first = max(0, min(first, total - 1))
    marks = AnnotationRanges(annotations[:MARKS])
    reader = BlockReader(marks)
    shown: list[Message] = []
    for index in range(first, min(total, first + MESSAGES)):
        if reader.spent:
            break
        reading = messages.read(index)
        shown.append(reader.message(index, reading.value, whole=reading.whole))
    here = range(first, first + len(shown))
    pages = {mark.number: _message_of(mark, total) for mark in marks.all}
    lost = [mark for mark in marks.all if mark.number not in reader.known and _lost(pages[mark.number], here)]
    return ConversationPage(
        tuple(shown),
        first,
        total,
        tuple(_linked(note, pages, here) for note in notes(marks.all)),
        notes(lost),
        max(0, len(annotations) - MARKS),
        _ends(messages, marks, pages, here),
    )


def _ends(
    messages: StoredMessages, marks: AnnotationRanges, pages: Mapping[int, int | None], here: range
) -> dict[int, tuple[TracedEnd, ...]]:
    """Return the other ends of the first traced values."""
    traced = [mark for mark in marks.all if mark.value_end is not None][:_TRACED]
    texts = {mark.number: _excerpt(messages, mark) for mark in traced}
    ends: dict[int, tuple[TracedEnd, ...]] = {}
    for mark in traced:
        words = "came from" if mark.value_end == "call" else "goes to"
        ends[mark.number] = tuple(
            TracedEnd(words, other.number, _page(pages[other.number], here), texts.get(other.number, ""))
            for other in marks.other_ends(mark)[:_ENDS]
        )
    return ends


def _excerpt(messages: StoredMessages, mark: AnnotationRange) -> str:
    """Return the annotated text with a little of its context; "" if there is no text."""
    text = messages.text_at(mark.path)
    if text is None or (span := mark.span(text)) is None:
        return ""
    start, end = max(0, span[0] - _AROUND), min(span[1], span[0] + _EXCERPT) + _AROUND
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"


def _message_of(mark: AnnotationRange, total: int) -> int | None:
    index = message_index(mark.path)
    return index if index is not None and index < total else None


def _lost(message: int | None, here: range) -> bool:
    return message is None or message in here


def _linked(note: Note, pages: Mapping[int, int | None], here: range) -> LinkedNote:
    return LinkedNote(note, tuple((number, _page(pages[number], here)) for number in note.numbers[:_PLACES]))


def _page(message: int | None, here: range) -> int:
    return -1 if message is None else here.start if message in here else message
