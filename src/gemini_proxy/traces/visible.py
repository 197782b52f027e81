"""Make text of a model, a user or a file safe to show: no control characters, nothing without an encoding."""

import json
from typing import Any

import orjson

# Each control character to one visible one, so that offsets stay right: C0 and DEL to their pictures; C1, the
# bidirectional controls and lone surrogates, which have none, to the replacement character.
VISIBLE = (
    {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
    | {0x7F: 0x2421}
    | {code: 0xFFFD for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F)}
    | {code: 0xFFFD for code in range(0xD800, 0xE000)}
)
ONE_LINE = VISIBLE | {0x09: 0x2409, 0x0A: 0x240A}


def as_json(value: Any) -> str:
    """Return a value as compact JSON; what JSON lacks becomes text."""
    try:
        return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:
        # Integers over 64 bits and lone surrogates, which a JSON document may hold.
        return json.dumps(value, default=str, separators=(",", ":"))


def counted(number: int, what: str) -> str:
    """Return ``1 trace``, ``2 traces``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
