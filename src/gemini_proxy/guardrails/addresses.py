"""Addresses into the messages of an exchange (``messages.2.content:10-25``), and the values that they point at."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_OFFSETS: Final = re.compile(r"(.*):(\d+)-(\d+)", re.DOTALL)


def without_offsets(address: str) -> tuple[str, tuple[int, int] | None]:
    """Return an address without its offsets, and the offsets; None where it has none."""
    match = _OFFSETS.fullmatch(address)
    return (address, None) if match is None else (match[1], (int(match[2]), int(match[3])))


def message_of(address: str) -> int | None:
    """Return the index of the message that an address points into; None where it points into none."""
    index = address.partition(":")[0].split(".")[1:2]
    return int(index[0]) if index and index[0].isdecimal() else None


def renumbered(address: str, by: int) -> str:
    """Return an address into a message that stands ``by`` places further on."""
    index = message_of(address)
    return address if index is None else address.replace(f".{index}", f".{index + by}", 1)


def value_at(messages: Sequence[Mapping[str, Any]], address: str) -> Any:
    """Return the value at an address without offsets, None if there is none.

    Names of fields may hold dots. For an address into JSON text that stands for an object, return that text.
    """
    value: Any = messages
    path = address.partition(".")[2]
    while path and not isinstance(value, str):
        if isinstance(value, Mapping):
            names = [name for name in value if path == name or path.startswith(f"{name}.")]
            if not names:
                return None
            name = max(names, key=len)
            value, path = value[name], path[len(name) + 1 :]
        elif isinstance(value, Sequence):
            index, _, path = path.partition(".")
            if not index.isdecimal() or int(index) >= len(value):
                return None
            value = value[int(index)]
        else:
            return None
    return value
