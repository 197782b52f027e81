"""Return the strings of a value that text tests and detectors look at."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from gemini_proxy.policy.run.events import Event, chunks
from gemini_proxy.policy.run.values import Address, Content, leaves

_MADE_UP = re.compile(r"call_\d{1,9}")
"""An id that links a call and its outputs where the client gave none."""
# This many texts, with no more than this many characters, are first searched as one.
_SEVERAL: Final = 4
_MOST_CHARS: Final = 8_000


def searched_texts(value: Any) -> Sequence[str]:
    """Return the texts to search: those of ``texts_of``, and names and ids of calls and outputs.

    Tests for something missing (``match``, ``text``) do not use them: a name could satisfy the test.
    """
    if type(value) is Event and value.kind in ("ToolCall", "ToolOutput"):
        return [*texts_of(value), *_names(value)]
    if type(value) is list or type(value) is tuple:
        return [text for item in value for text in searched_texts(item)]
    return texts_of(value)


def _names(event: Event) -> Iterator[str]:
    data = event.data
    called = data["function"].get("name") if event.kind == "ToolCall" else data.get("tool_name")
    for text in (called, data.get("name"), data.get("id"), data.get("tool_call_id")):
        if isinstance(text, str) and not _MADE_UP.fullmatch(text):
            yield text


def texts_of(value: Any) -> Sequence[str]:
    """Return the strings of a value in order; None and truth values have none.

    A text yields itself, content its texts, a message or output its content, a call its arguments, a declaration all of
    its text. Lists and dictionaries yield every string, key and number at any depth.
    """
    if isinstance(value, str):
        return (value,)
    kind = type(value)
    if kind is Content:
        texts: tuple[str, ...] = value.texts
        return texts
    if kind is Event:
        return _event_texts(value)
    if value is None or kind is bool:
        return ()
    if kind is list or kind is tuple:
        return [text for item in value for text in texts_of(item)]
    return [text for text in leaves(value, "")]


def _event_texts(event: Event) -> Sequence[str]:
    if event.kind in ("Message", "ToolOutput"):
        return texts_of(event.content)
    if event.kind == "TextChunk":
        return (event.data["text"],)
    if event.kind == "Image":
        return ()
    if event.texts is None:
        if event.kind == "ToolCall":
            arguments = event.data["function"]["arguments"]
            event.texts = tuple(leaves(arguments, Address(f"{event.address}.function.arguments")))
        else:
            event.texts = tuple(leaves(event.data, event.address))
    return event.texts


def images_of(value: Any) -> list[str]:
    """Return the URLs of the images in a value: of image chunks, and texts that are image data URLs."""
    if isinstance(value, str):
        return [value] if value.startswith("data:image/") else []
    if isinstance(value, list | tuple):
        return [url for item in value for url in images_of(item)]
    if isinstance(value, Content):
        holder = Event("Message", 0, value.address.removesuffix(".content"), {})
        holder.content = value
        return _image_chunks(holder)
    if isinstance(value, Event):
        if value.kind == "Image":
            return [_url(value)]
        if isinstance(value.content, str):
            return images_of(value.content)
        return _image_chunks(value) if value.content is not None else []
    return []


def _image_chunks(holder: Event) -> list[str]:
    return [_url(chunk) for chunk in chunks(holder) if chunk.kind == "Image"]


def _url(image: Event) -> str:
    source = image.data.get("image_url")
    url = source.get("url") if isinstance(source, dict) else source
    return url if isinstance(url, str) else ""


def in_lines(texts: Sequence[str]) -> str | None:
    """Return several short texts as the lines of one; None for few or long ones.

    A pattern that is not found there is in none of them, unless it asks for a text's beginning or end.
    """
    if len(texts) < _SEVERAL or len(texts) > _MOST_CHARS or sum(map(len, texts)) > _MOST_CHARS:
        return None
    return "\n".join(texts)
