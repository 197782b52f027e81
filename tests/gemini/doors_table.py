"""The tables of docs/doors.md, made from the table in the code; ``python -m tests.gemini.doors_table`` writes them."""

import re
from pathlib import Path

from gemini_proxy.gemini.doors import DOORS, ROWS

DOCUMENT = Path(__file__).parents[2] / "docs" / "doors.md"
_TABLE = re.compile(r"(<!-- (doors|methods) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


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
    tables = {"doors": doors, "methods": methods}
    return _TABLE.sub(lambda found: f"{found[1]}{tables[found[2]]()}\n{found[3]}", text)


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
