"""What a model, a user or a file said, on a terminal: text, never markup and never a control sequence."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

# Each control character to one visible one, so that offsets stay right: C0 and DEL to their pictures; C1, the
# bidirectional controls and lone surrogates, which have none, to the replacement character.
VISIBLE = (
    {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
    | {0x7F: 0x2421}
    | {code: 0xFFFD for code in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F)}
    | {code: 0xFFFD for code in range(0xD800, 0xE000)}
)
ONE_LINE = VISIBLE | {0x09: 0x2409, 0x0A: 0x240A}


def terminal(*, stderr: bool = False) -> Console:
    """A console that takes text as it is."""
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=False, stderr=stderr)


def line(value: object, style: str = "") -> Text:
    """Any value as one line of visible text."""
    return Text((value if isinstance(value, str) else as_json(value)).translate(ONE_LINE), style)


def counted(number: int, what: str) -> str:
    """``1 trace``, ``2 traces``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def as_json(value: Any) -> str:
    """A value as compact JSON; what JSON lacks becomes text."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def local_time(created: float) -> str:
    """A Unix time as date and time here."""
    return datetime.fromtimestamp(created).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Every value in a message that is neither a mapping nor a list, with its address, the role left out."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not (name == "role" and path.count(".") == 1):
                yield from leaves(item, f"{path}.{name}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}.{index}")
    elif value is not None:
        yield path, value if isinstance(value, str) else as_json(value)
