"""Define the methods of texts and dictionaries. Other values have none.

A method on a text that is a piece of readings also changes the readings, as exactly as possible: letters change case,
blanks are stripped from both ends of a reading, and a replacement is made in the whole reading. If a text becomes
longer or shorter, only its pieces are known, not the places within them.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.builtins import as_text, substitute
from gemini_proxy.policy.run.operators import items_of
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.search import begins_with, ends_with
from gemini_proxy.policy.run.texts import images_of
from gemini_proxy.policy.run.values import Content, Joined, cut, derived, word_for

_WORDS = re.compile(r"\S+")
_LINE_END = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def _case(change: Callable[[str], str]) -> Callable[..., str]:
    def changed(run: Run, text: str) -> str:
        run.room(len(text))
        run.charge(len(text) >> 6)
        return _lettered(run, text, change) if type(text) is Joined else derived(change(text), text)

    return changed


def _strip(run: Run, text: str, chars: str | None = None) -> str:
    run.room(len(text))
    if type(text) is Joined:
        return _stripped(run, text, chars)
    start = len(text) - len(text.lstrip(chars))
    return cut(text, start, max(start, len(text.rstrip(chars))))


def _split(run: Run, text: str, separator: str | None = None) -> list[str]:
    run.charge(len(text) >> 5)
    if separator is None:
        return run.take(cut(text, match.start(), match.end()) for match in _WORDS.finditer(text))
    if not separator:
        raise EvaluationError("split(...) needs a separator that is not empty")
    run.items(text.count(separator) + 1)
    pieces: list[str] = []
    at = 0
    for part in text.split(separator):
        pieces.append(cut(text, at, at + len(part)))
        at += len(part) + len(separator)
    return pieces


def _splitlines(run: Run, text: str) -> list[str]:
    run.charge(len(text) >> 5)
    return run.take(_lines(text))


def _lines(text: str) -> Iterator[str]:
    at = 0
    for end in _LINE_END.finditer(text):
        yield cut(text, at, end.start())
        at = end.end()
    if at < len(text):
        yield cut(text, at, len(text))


def _join(run: Run, text: str, parts: Any) -> str:
    shown = [as_text(run, part) for part in items_of(parts, run)]
    run.items(len(shown))
    run.room(sum(map(len, shown)) + len(text) * len(shown))
    return text.join(shown)


def _replace(run: Run, text: str, old: str, new: str) -> str:
    run.charge(len(text) >> 6)
    count = text.count(old)
    run.room(len(text) + count * max(0, len(new) - len(old)))
    return _replaced(run, text, old, new) if type(text) is Joined and old else text.replace(old, new)


def _prefix(run: Run, text: str, prefix: Any) -> bool:
    prefixes = _affixes(prefix)
    return text.startswith(prefixes) or begins_with(run, text, prefixes)


def _suffix(run: Run, text: str, suffix: Any) -> bool:
    suffixes = _affixes(suffix)
    return text.endswith(suffixes) or ends_with(run, text, suffixes)


def _affixes(affix: Any) -> tuple[str, ...]:
    if isinstance(affix, list | tuple) and all(isinstance(item, str) for item in affix):
        return tuple(affix)
    if isinstance(affix, str):
        return (affix,)
    raise EvaluationError(f"a text does not begin or end with a {word_for(affix)}")


_TEXT: Mapping[str, Callable[..., Any]] = {
    "strip": _strip, "lower": _case(str.lower), "upper": _case(str.upper), "split": _split, "splitlines": _splitlines,
    "join": _join, "replace": _replace, "startswith": _prefix, "endswith": _suffix,
}  # fmt: skip
# The fewest and most arguments of each method.
ARITY: Mapping[str, tuple[int, int]] = {
    "strip": (0, 1), "lower": (0, 0), "upper": (0, 0), "split": (0, 1), "splitlines": (0, 0), "join": (1, 1),
    "replace": (2, 2), "startswith": (1, 1), "endswith": (1, 1), "format": (0, 100),
    "keys": (0, 0), "values": (0, 0), "items": (0, 0), "get": (1, 2), "text": (0, 0), "image": (0, 0),
}  # fmt: skip


def call_method(run: Run, value: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call ``value.name(args)``. Return None for a missing value; raise EvaluationError for other receivers."""
    if value is None:
        return None
    if isinstance(value, str):
        return _text_method(run, value, name, args, kwargs)
    if type(value) is Content:
        return _content_method(run, value, name, args)
    if isinstance(value, dict) and name in ("get", "keys", "values", "items"):
        return _dict_method(run, value, name, args)
    raise EvaluationError(f"{word_for(value)} has no method {name}(...)")


def _text_method(run: Run, value: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if name == "format":
        return substitute(run, value, args, kwargs)
    method = _TEXT.get(name)
    if method is None:
        raise EvaluationError(f"a text has no method {name}(...)")
    if name in ("strip", "split", "replace") and not all(isinstance(arg, str) for arg in args):
        raise EvaluationError(f"{name}(...) needs texts")
    return method(run, value, *args)


def _content_method(run: Run, value: Content, name: str, args: tuple[Any, ...]) -> Any:
    if name == "text":
        return list(value.texts)
    if name == "image":
        return images_of(value)
    if isinstance(value.value, dict) and name in ("get", "keys", "values", "items"):
        return _dict_method(run, value.value, name, args)
    results = [_text_method(run, text, name, args, {}) for text in value.texts]
    if name in ("startswith", "endswith"):
        return any(results)
    if name in ("split", "splitlines"):
        return [piece for pieces in results for piece in pieces]
    return Content(results, value.address)


def _dict_method(run: Run, value: dict[Any, Any], name: str, args: tuple[Any, ...]) -> Any:
    if name == "get":
        key = args[0]
        found = value.get(key) if isinstance(key, str | int | float) else None
        missing = not isinstance(key, str | int | float) or key not in value
        return args[1] if missing and len(args) > 1 else found
    run.items(len(value))
    if name == "keys":
        return list(value)
    return list(value.values()) if name == "values" else [list(item) for item in value.items()]


# Pieces of readings


def _lettered(run: Run, text: Joined, change: Callable[[str], str]) -> Joined:
    """Apply ``change`` to the case of every letter; it may turn one into several."""
    made = text.changed(change)
    places = []
    for reading, start, end in text.readings:
        whole = _once(run, reading, (change,), lambda whole: whole.changed(change))
        if len(whole) != len(reading):
            run.charge(len(reading) >> 6)
            start = len(change(reading[:start]))
            end = start + len(made)
        places.append((whole, start, end))
    made.readings = tuple(places)
    return made


def _stripped(run: Run, text: Joined, chars: str | None) -> Joined:
    """Strip the text and the ends of its readings, so that what stood beside a seam stays."""
    made = _stripped_ends(text, chars)[0]
    places = []
    for reading, start, end in text.readings:
        whole, first = _once(run, reading, ("strip", chars), lambda whole: _stripped_ends(whole, chars))
        start, end = max(0, start - first), min(end - first, len(whole))
        if start < end:
            places.append((whole, start, end))
    made.readings = tuple(places)
    return made


def _stripped_ends(text: Joined, chars: str | None) -> tuple[Joined, int]:
    start = len(text) - len(text.lstrip(chars))
    return text.part(start, max(start, len(text.rstrip(chars)))), start


def _replaced(run: Run, text: Joined, old: str, new: str) -> Joined:
    """Replace in the text and its readings; what stood over a seam belongs to the later text."""
    made = _replaced_once(run, text, old, new)[0]
    places = []
    for reading, start, end in text.readings:
        whole, moved = _once(run, reading, ("replace", old, new), lambda whole: _replaced_once(run, whole, old, new))
        places.append((whole, moved(start), moved(end)))
    made.readings = tuple(places)
    return made


def _replaced_once(run: Run, text: Joined, old: str, new: str) -> tuple[Joined, Callable[[int], int]]:
    """Return the text with the replacement, and a function from old positions to new ones."""
    starts = []
    at = text.find(old)
    while at >= 0:
        starts.append(at)
        at = text.find(old, at + len(old))
    run.charge(1 + len(starts) + (len(text) >> 6))
    run.room(len(text) + len(starts) * max(0, len(new) - len(old)))
    grows = len(new) - len(old)

    def moved(position: int) -> int:
        done = bisect_right(starts, position - len(old))
        begun = bisect_left(starts, position)
        return (starts[done] if done < begun else position) + done * grows

    ends = tuple(moved(end) for end in text.ends)
    return Joined(text.replace(old, new), text.addresses, ends, text.skipped, text.exact and not starts), moved


def _once(run: Run, reading: Joined, key: tuple[Any, ...], make: Callable[[Joined], Any]) -> Any:
    """Return what ``make`` makes of a reading, made once a check."""
    known = run.scans.get((*key, id(reading)))
    if known is None:
        run.room(len(reading))
        # Keep the reading as well, so that no other object can get its id.
        known = run.scans[*key, id(reading)] = (reading, make(reading))
    return known[1]
