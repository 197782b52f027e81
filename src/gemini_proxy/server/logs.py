"""Write log lines: for people on a terminal, JSON elsewhere; without keys, control characters or storms."""

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor

from gemini_proxy.errors import origin_of
from gemini_proxy.sections import Logs
from gemini_proxy.traces.redact import redact

_BURST: Final = 20
"""Lines of one kind a second; the rest are only counted: an attacker's requests must not fill a disk."""


class StormFilter(logging.Filter):
    """Let ``_BURST`` lines of one kind (logger and unformatted text) pass a second, and say how many were dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.name, str(record.msg)[:200])
        since, count = self._seen.get(kind, (0.0, 0))
        now = time.monotonic()
        if now - since >= 1.0:
            if count > _BURST:
                record.dropped_alike = count - _BURST
            since, count = now, 0
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[kind] = (since, count + 1)
        return count < _BURST


class _Handler(logging.StreamHandler[Any]):
    """The handler that ``configure_logs`` manages."""


def configure_logs(logs: Logs) -> None:
    """Send every logger, aiohttp's and asyncio's too, through one handler to standard error."""
    handler = _Handler()
    handler.addFilter(StormFilter())
    logging.getLogger().addHandler(handler)
    # Their lines contain raw request bytes and whole headers; our own lines have the facts that matter.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    logging.getLogger("aiohttp.access").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    change_logs(logs)


def change_logs(logs: Logs) -> None:
    """Let other settings hold for the handler, where there is one."""
    root = logging.getLogger()
    handler = next((one for one in root.handlers if isinstance(one, _Handler)), None)
    if handler is None:
        return
    terminal = sys.stderr.isatty()
    as_text = terminal if logs.format == "auto" else logs.format == "text"
    handler.setFormatter(formatter(as_text=as_text, colors=terminal))
    level = logging.getLevelNamesMapping()[logs.level.upper()]
    # The libraries' debug lines contain whole statements, and thus the texts of conversations.
    root.setLevel(max(level, logging.INFO))
    logging.getLogger("gemini_proxy").setLevel(level)


def formatter(*, as_text: bool, colors: bool = False) -> logging.Formatter:
    """Lines for people, or one JSON object each. What a call gives as ``extra`` are fields of the line."""
    shapes: list[Processor] = [structlog.processors.JSONRenderer()]
    if as_text:
        shapes = [_one_line, structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=40)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _with_traceback,
            _without_keys,
            *shapes,
        ],
    )


def _with_traceback(logger: Any, name: str, event: EventDict) -> EventDict:
    error = event.pop("exc_info", None)
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["exception"] = origin_of(error)
    if event.get("logger") == "asyncio":
        # After the first line asyncio shows the objects concerned, and with them the texts of exceptions.
        event["event"] = str(event["event"]).partition("\n")[0]
    return event


def _without_keys(logger: Any, name: str, event: MutableMapping[str, Any]) -> EventDict:
    return {key: redact(value if isinstance(value, int | float | None) else str(value)) for key, value in event.items()}


def _one_line(logger: Any, name: str, event: EventDict) -> EventDict:
    """JSON escapes control characters; on a terminal they would forge lines and more."""
    return {key: _escaped(value) if key != "exception" else value for key, value in event.items()}


def _escaped(value: Any) -> Any:
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in value)
