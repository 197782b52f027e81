"""What text methods make of a text that is a piece of readings: the same is made of the readings.

Exact where it can be: letters change case, blanks go from both ends of a reading, and a replacement is made in the
reading as a whole. Of a text that becomes longer or shorter only the pieces are known, not the places in them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any

from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.values import Joined


def lettered(run: Run, text: Joined, change: Callable[[str], str]) -> Joined:
    """``change`` of the case of every letter; it may make one into several."""
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


def stripped(run: Run, text: Joined, chars: str | None) -> Joined:
    """The readings lose what stands at their own ends, so what stood beside a seam stays."""
    made = _strip(text, chars)[0]
    places = []
    for reading, start, end in text.readings:
        whole, first = _once(run, reading, ("strip", chars), lambda whole: _strip(whole, chars))
        start, end = max(0, start - first), min(end - first, len(whole))
        if start < end:
            places.append((whole, start, end))
    made.readings = tuple(places)
    return made


def _strip(text: Joined, chars: str | None) -> tuple[Joined, int]:
    start = len(text) - len(text.lstrip(chars))
    return text.part(start, max(start, len(text.rstrip(chars)))), start


def replaced(run: Run, text: Joined, old: str, new: str) -> Joined:
    """What stood over a seam and was replaced belongs to the later text."""
    made = _replace(run, text, old, new)[0]
    places = []
    for reading, start, end in text.readings:
        whole, moved = _once(run, reading, ("replace", old, new), lambda whole: _replace(run, whole, old, new))
        places.append((whole, moved(start), moved(end)))
    made.readings = tuple(places)
    return made


def _replace(run: Run, text: Joined, old: str, new: str) -> tuple[Joined, Callable[[int], int]]:
    """The text with the replacement, and where a position in it has moved to."""
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
    """What ``make`` makes of a reading, made once a check."""
    known = run.scans.get((*key, id(reading)))
    if known is None:
        run.room(len(reading))
        # With the reading, so that its identity is not given to another.
        known = run.scans[*key, id(reading)] = (reading, make(reading))
    return known[1]
