"""Log lines: JSON on standard error, control characters escaped, keys taken out, and no storm of the same line."""

import logging
import time
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

from gemini_proxy.traces.redact import redact

_BURST: Final = 20
"""Lines of one kind a second; the rest are only counted: an attacker's requests must not fill a disk."""


class StormFilter(logging.Filter):
    """Lets ``_BURST`` lines of one kind (logger and unformatted text) pass a second, and says how many it dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = (record.name, str(record.msg)[:200])
        since, count = self._seen.get(kind, (0.0, 0))
        now = time.monotonic()
        if now - since >= 1.0:
            if count > _BURST:
                record.dropped = count - _BURST
            since, count = now, 0
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[kind] = (since, count + 1)
        return count < _BURST


def _without_keys(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: redact(value) if isinstance(value, str) else value for key, value in event.items()}


def _dropped(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if (record := event.get("_record")) is not None and (dropped := getattr(record, "dropped", 0)):
        event["dropped_alike"] = dropped
    return event


def configure_logs(level: str = "INFO") -> None:
    """Send every logger, aiohttp's and asyncio's too, through one handler."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            _dropped,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _without_keys,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    handler.addFilter(StormFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Their lines carry raw request bytes and whole headers; what matters of them is said in our own.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    logging.getLogger("aiohttp.access").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
