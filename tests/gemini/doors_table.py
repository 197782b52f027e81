"""The tables of docs/doors.md, made from the table in the code; ``python -m tests.gemini.doors_table`` writes them."""

import re
from pathlib import Path

from gemini_proxy.gemini.doors import DOORS, ROWS

DOCUMENT = Path(__file__).parents[2] / "docs" / "doors.md"
_DOORS = re.compile(r"(?<=<!-- doors -->\n)\n.*?(?=\n<!-- end -->)", re.DOTALL)
_METHODS = re.compile(r"(?<=<!-- methods -->\n)\n.*?(?=\n<!-- end -->)", re.DOTALL)


def doors() -> str:
    """What each door is, what it may be and what it is by default."""
    lines = ["| door | what goes through | may be | default |", "|---|---|---|---|"]
    for door in DOORS.values():
        duties = ", ".join(f"`{duty}`" for duty in door.duties)
        lines.append(f"| `{door.name}` | {door.about} | {duties} | `{door.default}` |")
    return "\n" + "\n".join(lines) + "\n"


def methods() -> str:
    """Every method that is known, with the door that it is behind."""
    lines = ["| door | method | HTTP | paths |", "|---|---|---|---|"]
    for row in ROWS.values():
        http = "WebSocket" if row.transport == "websocket" else row.http
        paths = ", ".join(f"`{path}`" for path in row.paths)
        lines.append(f"| `{row.door}` | {row.method} | {http} | {paths} |")
    return "\n" + "\n".join(lines) + "\n"


def written(text: str) -> str:
    """Return the document with the tables as they are now."""
    return _METHODS.sub(lambda _: methods(), _DOORS.sub(lambda _: doors(), text))


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
