"""Write traces for export: whole as JSON, one in a line, or the lines of a list as CSV. No I/O."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from gemini_proxy.traces.headline import headline_of, question_of
from gemini_proxy.traces.rows import dump
from gemini_proxy.traces.trace import Trace, trace_json

_COLUMNS: Final = (
    "id created dataset model outcome status guardrail message asked upstream_message duration_ms conversation".split()
)
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
"""First characters that make a spreadsheet read a cell as a formula."""


@dataclass(frozen=True, slots=True)
class Exporter:
    """A form of export: what stands before the first trace, and how one is written."""

    extension: str
    content_type: str
    head: bytes
    line: Callable[[Trace], bytes]


def _json_line(trace: Trace) -> bytes:
    """Write a whole trace as one line of JSON."""
    return dump(trace_json(trace)) + b"\n"


def _csv_line(trace: Trace) -> bytes:
    """Write what a list shows of a trace as one line of CSV."""
    line = headline_of(trace.metadata, question_of(trace.messages))
    first = trace.annotations[0] if trace.annotations else None
    conversation = trace.metadata.get("conversation")
    return _csv(
        trace.id,
        datetime.fromtimestamp(trace.created, UTC).isoformat(timespec="milliseconds"),
        trace.dataset or "",
        trace.model or "",
        trace.outcome.value,
        "" if line.status is None else str(line.status),
        str(first.guardrail.get("name", "")) if first else "",
        first.content if first else "",
        line.asked,
        line.failure,
        f"{trace.duration_ms:.1f}",
        conversation if isinstance(conversation, str) else "",
    )


def _csv(*cells: str) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerow([f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells])
    return file.getvalue().encode(errors="replace")


FORMATS: Final = {
    "jsonl": Exporter("jsonl", "application/x-ndjson", b"", _json_line),
    "csv": Exporter("csv", "text/csv; charset=utf-8", _csv(*_COLUMNS), _csv_line),
}
