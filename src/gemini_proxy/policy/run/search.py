"""Search texts as readers join them: across the seams between the texts of a turn.

A match belongs to the text in which it ends. Within a negation it belongs to every text of the turn: no text of the
turn lacks what readers find there. A reading is searched once per check for each pattern, however many texts it joins.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gemini_proxy.policy.detectors import Finding, Parsed
from gemini_proxy.policy.run.regex import Regex, Span
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.values import Joined, Record, Within

# Looks for the same in another text.
Scan = Callable[[str], Parsed]


class Scanned:
    """The matches of one scan of a reading, by their ends."""

    __slots__ = ("ends", "reading", "starts")

    def __init__(self, reading: Joined, spans: Iterator[Span]) -> None:
        # Kept, so that no other object can get its id.
        self.reading = reading
        self.starts, self.ends = array("q"), array("q")
        for start, end in spans:
            self.starts.append(start)
            self.ends.append(end)

    def ending(self, start: int, end: int) -> range:
        """Return the numbers of the matches that end within, or at the very beginning of the reading."""
        return range(bisect_right(self.ends, start) if start else 0, bisect_right(self.ends, end))


def literally(run: Run, needle: str, text: str, most: int) -> list[Within]:
    """Up to ``most`` occurrences of ``needle`` that end in the text and begin before it."""
    found: dict[tuple[int, int], Within] = {}
    if type(text) is not Joined:
        return []
    if run.negated:
        return _anywhere(run, needle, text)
    if len(needle) < 2:
        return []
    for reading, start, end in text.readings:
        key = ("in", needle, id(reading))
        scanned = run.scans.get(key)
        if scanned is None:
            scanned = run.scans[key] = Scanned(reading, _over_seams(run, needle, reading))
        for number in scanned.ending(start, end):
            first = scanned.starts[number]
            if first < start and len(found) < most:
                found.setdefault((first - start, id(reading)), (reading, first, first + len(needle)))
        run.charge(1)
    return list(found.values())


def _anywhere(run: Run, needle: str, text: Joined) -> list[Within]:
    """Return the first occurrence in a reading of the text, wherever it stands."""
    for reading, _, _ in text.readings:
        key = ("anywhere", needle, id(reading))
        if key not in run.scans:
            run.charge(1 + (len(reading) >> 9))
            run.scans[key] = (reading, reading.find(needle))
        at = run.scans[key][1]
        if at >= 0:
            return [(reading, at, at + len(needle))]
    return []


def _over_seams(run: Run, needle: str, reading: Joined) -> Iterator[Span]:
    """Yield every occurrence with a seam inside, overlapping ones as well."""
    size, at = len(needle), 0
    run.charge(1 + (len(reading) >> 9))
    if len(reading.ends) * size > len(reading) and needle not in reading:
        return
    run.charge(len(reading.ends) * (1 + (size >> 9)))
    for seam in reading.ends[:-1]:
        at = reading.find(needle, max(at, seam - size + 1), seam + size - 1)
        while at >= 0:
            run.charge(1)
            yield at, at + size
            at = reading.find(needle, at + 1, seam + size - 1)
        at = seam


def by_pattern(run: Run, regex: Regex, text: Joined, own: Sequence[Span]) -> list[Within]:
    """Matches in the readings of the text that end in it, but for those of which ``own`` has found something."""
    found: dict[tuple[int, int, str], Within] = {}
    starts, known = [start for start, _ in own], set(own)
    for reading, start, end in text.readings:
        key = (regex, id(reading))
        scanned = run.scans.get(key)
        if scanned is None:
            scanned = run.scans[key] = Scanned(reading, regex.spans(reading, run))
        if run.negated and scanned.starts:
            return [(reading, scanned.starts[0], scanned.ends[0])]
        for number in scanned.ending(start, end):
            run.charge(1)
            first, last = scanned.starts[number] - start, scanned.ends[number] - start
            if first < 0 or not ((first, last) in known or _touches(first, last, own, starts)):
                place = (reading, first + start, last + start)
                found.setdefault((first, last, reading[first + start : last + start]), place)
        run.charge(1)
    return list(found.values())


def _touches(first: int, last: int, own: Sequence[Span], starts: Sequence[int]) -> bool:
    """Return whether something of ``first`` to ``last`` was found; ``own`` is ascending."""
    after = bisect_left(starts, last)
    return any(start <= last and first <= end for start, end in own[max(0, after - 1) : after + 1])


def at_beginning(run: Run, regex: Regex, text: str) -> Within | None:
    """Return the match at the beginning of a reading that ends in the text."""
    if type(text) is not Joined:
        return None
    for reading, start, end in text.readings:
        key = ("match", regex, id(reading))
        if key not in run.scans:
            run.scans[key] = (reading, regex.end_of_match(reading, run))
        last = run.scans[key][1]
        if last is not None and (run.negated or start < last <= end or last == start == 0):
            return reading, 0, last
    return None


def begins_with(run: Run, text: str, prefixes: tuple[str, ...]) -> bool:
    """Return whether a reading of the text begins with one of ``prefixes``, which ends in the text."""
    if type(text) is not Joined:
        return False
    return any(
        (run.negated or start < len(prefix) <= end) and reading.startswith(prefix)
        for reading, start, end in text.readings
        for prefix in prefixes
    )


def ends_with(run: Run, text: str, suffixes: tuple[str, ...]) -> bool:
    """Return whether a reading that the text ends has one of ``suffixes`` at its end."""
    if type(text) is not Joined:
        return False
    return any((run.negated or end == len(reading)) and reading.endswith(suffixes) for reading, _, end in text.readings)


def by_detector(run: Run, key: tuple[Any, ...], scan: Scan, texts: Sequence[str], parsed: Parsed) -> Any:
    """Return ``parsed``'s value with the finds of ``scan`` in readings of ``texts``, and mark them.

    Lists get further items, a truth value becomes true. A record has no places: the last text of a reading gets the
    items of the lists for that reading.
    """
    value, more = parsed.value, []
    own: dict[tuple[int, str], list[Span]] = {}
    for finding in parsed.findings:
        own.setdefault((finding.text, finding.label), []).append((finding.start, finding.end))
    for index, text in enumerate(texts):
        if type(text) is not Joined:
            continue
        seen: set[tuple[int, int, str, str]] = set()
        for reading, start, end in text.readings:
            scanned, found = _detected(run, (*key, id(reading)), scan, reading)
            if isinstance(found.value, Record):
                value = _merged(value, found.value) if run.negated or end == len(reading) else value
                continue
            numbers = range(len(scanned.ends)) if run.negated else scanned.ending(start, end)
            for number in numbers:
                finding = found.findings[number]
                first, last = finding.start - start, finding.end - start
                again = (first, last, finding.label, reading[finding.start : finding.end])
                if again in seen or (first >= 0 and _known(run, own.get((index, finding.label), ()), first, last)):
                    continue
                seen.add(again)
                run.marks.append((reading, finding.start, finding.end))
                more.append(found.value[number])
    if isinstance(value, bool):
        return value or any(more)
    if not isinstance(value, list | tuple):
        return value
    run.items(len(value) + len(more))
    return [*value, *more] if more else value


def _detected(run: Run, key: tuple[Any, ...], scan: Scan, reading: Joined) -> tuple[Scanned, Parsed]:
    known = run.scans.get(key)
    if known is None:
        parsed = scan(reading)
        values = parsed.value if isinstance(parsed.value, list | tuple) else [parsed.value] * len(parsed.findings)
        order = sorted(range(len(parsed.findings)), key=lambda number: parsed.findings[number].end)
        findings = [parsed.findings[number] for number in order]
        if not isinstance(parsed.value, Record):
            parsed = Parsed([values[number] for number in order], findings)
        known = run.scans[key] = (Scanned(reading, _spans(findings)), parsed)
    run.charge(1)
    return known


def _spans(findings: Sequence[Finding]) -> Iterator[Span]:
    return ((finding.start, finding.end) for finding in findings)


def _known(run: Run, own: Sequence[Span], first: int, last: int) -> bool:
    run.charge(len(own) >> 3)
    return any(start <= last and first <= end for start, end in own)


def _merged(value: Mapping[str, Any], more: Mapping[str, Any]) -> Record:
    return Record(
        (name, list(dict.fromkeys((*known, *more[name]))) if isinstance(known, list) else known)
        for name, known in value.items()
    )
