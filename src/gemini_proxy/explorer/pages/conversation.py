"""The conversation of a trace as a page shows it, in bounded size. No I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gemini_proxy.explorer.pages.blocks import BlockReader, Message
from gemini_proxy.explorer.pages.passages import Note, notes
from gemini_proxy.explorer.pages.stored import StoredMessages
from gemini_proxy.explorer.pages.values import message_index
from gemini_proxy.traces.marks import Mark, Marks
from gemini_proxy.traces.trace import Annotation

MESSAGES: Final = 100
"""Messages of one page."""
MARKS: Final = 2_000
"""Annotations of one trace that are drawn; the rest is counted, and in the raw JSON."""
_PLACES: Final = 20
"""Places of one finding that are linked to."""
_TRACED, _ENDS = 20, 5
"""Marks of traced values whose other ends are shown, and how many of those each has."""
_AROUND, _EXCERPT = 30, 120
"""Characters beside the other end of a value, and of it."""


@dataclass(frozen=True, slots=True)
class TracedEnd:
    """The other end of a marked value: ``words`` says how it is connected, ``text`` what stands there.

    ``number`` is that of its mark, and ``page`` the message that the page with it begins at; -1 for none.
    """

    words: str
    number: int
    page: int
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule said of the trace.

    ``places`` are the numbers of its marks, each with the message that the page with it begins at; -1 for none.
    """

    note: Note
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """The messages from ``first`` on that fit a page, of ``total``; ``elsewhere`` are marks of no text on it.

    ``ends`` has the other ends of traced values by the numbers of their marks.
    """

    messages: tuple[Message, ...]
    first: int
    total: int
    findings: tuple[Finding, ...]
    elsewhere: tuple[Note, ...]
    uncounted: int
    ends: Mapping[int, tuple[TracedEnd, ...]]

    @property
    def end(self) -> int:
        return self.first + len(self.messages)

    @property
    def before(self) -> int:
        """Where the page before this one begins."""
        return max(0, self.first - MESSAGES)

    @property
    def last(self) -> int:
        """Where the page with the last messages begins."""
        return max(0, self.total - MESSAGES)


def conversation_page(document: bytes, annotations: Sequence[Annotation], first: int = 0) -> ConversationPage:
    """One page of a trace's conversation, from message ``first`` on; ``document`` is the JSON list of its messages.

    Raises StoreError for a document that is none.
    """
    messages = StoredMessages(document)
    total = len(messages)
    first = max(0, min(first, total - 1))
    marks = Marks(annotations[:MARKS])
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
        tuple(_finding(note, pages, here) for note in notes(marks.all)),
        notes(lost),
        max(0, len(annotations) - MARKS),
        _ends(messages, marks, pages, here),
    )


def _ends(
    messages: StoredMessages, marks: Marks, pages: Mapping[int, int | None], here: range
) -> dict[int, tuple[TracedEnd, ...]]:
    """The other ends of the first traced values."""
    traced = [mark for mark in marks.all if mark.value_end is not None][:_TRACED]
    texts = {mark.number: _excerpt(messages, mark) for mark in traced}
    found: dict[int, tuple[TracedEnd, ...]] = {}
    for mark in traced:
        words = "came from" if mark.value_end == "call" else "goes to"
        found[mark.number] = tuple(
            TracedEnd(words, other.number, _page(pages[other.number], here), texts.get(other.number, ""))
            for other in marks.other_ends(mark)[:_ENDS]
        )
    return found


def _excerpt(messages: StoredMessages, mark: Mark) -> str:
    """What is marked, with a little of what stands around it; "" where there is no text."""
    text = messages.text_at(mark.path)
    if text is None or (span := mark.span(text)) is None:
        return ""
    start, end = max(0, span[0] - _AROUND), min(span[1], span[0] + _EXCERPT) + _AROUND
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"


def _message_of(mark: Mark, total: int) -> int | None:
    index = message_index(mark.path)
    return index if index is not None and index < total else None


def _lost(message: int | None, here: range) -> bool:
    return message is None or message in here


def _finding(note: Note, pages: Mapping[int, int | None], here: range) -> Finding:
    return Finding(note, tuple((number, _page(pages[number], here)) for number in note.numbers[:_PLACES]))


def _page(message: int | None, here: range) -> int:
    return -1 if message is None else here.start if message in here else message
