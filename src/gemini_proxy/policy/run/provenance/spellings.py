"""Other spellings of a date and of a number, folded."""

import re
from collections.abc import Iterator
from typing import Final

MONTHS: Final = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
_MONTH = "|".join(f"{name}|{name[:3]}" for name in MONTHS)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_RANGE = re.compile(
    rf"\b({_DAY}) ?(?:to|-|–|until|till|through|and) ?(?:the )?({_DAY}) (?:of )?({_MONTH})\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?(\d{1,3}(?:[,' ]\d{3})+|\d+)(?:\.(\d*))?")


def spellings_of_date(year: int, month: int, day: int) -> list[str]:
    """Return how a date is written: as in ISO 8601 first, then with the month's name or number."""
    if not 1 <= month <= len(MONTHS):
        return [f"{year:04}{month:02}{day:02}"]
    name, ordinal = MONTHS[month - 1], _ordinal(day)
    found = [f"{year:04}{month:02}{day:02}", f"{day:02}{month:02}{year:04}", f"{month:02}{day:02}{year:04}"]
    for called in dict.fromkeys((name, name[:3])):
        for number in (str(day), ordinal):
            found.extend((f"{called}{number}", f"{number}{called}", f"{number}of{called}", f"{called}the{number}"))
    return found


def days_of_ranges(text: str) -> Iterator[str]:
    """Yield the first day of each range that names its month once: ``1 May`` of "the 1st to the 5th of May"."""
    for match in _RANGE.finditer(text):
        yield f"{match[1]} {match[3]}"


def _ordinal(day: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th") if day not in (11, 12, 13) else "th"
    return f"{day}{ending}"


def spellings_of_number(value: str) -> list[str]:
    """Return a number without thousands separators, with and without zeros after the point."""
    match = _NUMBER.fullmatch(value)
    if match is None:
        return []
    whole, behind = re.sub(r"\D", "", match[1]), (match[2] or "").rstrip("0")
    return [whole + behind] if behind else [whole, f"{whole}0", f"{whole}00"]
