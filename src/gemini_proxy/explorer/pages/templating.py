"""Write values in templates: every text escaped and visible, times and numbers as people read them."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import aiohttp_jinja2
import jinja2
from aiohttp import web
from markupsafe import Markup

from gemini_proxy.explorer.pages.costs import money
from gemini_proxy.explorer.pages.static_files import static_path
from gemini_proxy.traces.visible import ONE_LINE, VISIBLE, counted

_NO_SURROGATES = {code: 0xFFFD for code in range(0xD800, 0xE000)}


class Exact(str):
    """Text that a form gives back as it is: its control characters stay what they are."""


def set_up(app: web.Application) -> None:
    """Give ``app`` the templates of the pages."""
    app[aiohttp_jinja2.APP_KEY] = _environment()


@cache
def _environment() -> jinja2.Environment:
    """Return the environment of the templates, which compiles each once and escapes everything, without exception."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(files("gemini_proxy.explorer.pages") / "templates")),
        autoescape=True,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    environment.filters.update(_FILTERS)
    environment.globals.update(static=static_path, zone=zone, zone_seconds=zone_seconds)
    return environment


def _shown(value: Any) -> Any:
    """Pass every expression of a template through one place that keeps text encodable and readable."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return value.translate(_NO_SURROGATES if isinstance(value, Exact) else VISIBLE)


def one_line(value: str, most: int = 200) -> str:
    """Write ``value`` on one line, cut to ``most`` characters."""
    text = value if len(value) <= most else f"{value[: most - 1]}…"
    return text.translate(ONE_LINE)


def clock(at: float) -> str:
    """Write a Unix time as date and time of this machine."""
    return _moment(at).strftime("%Y-%m-%d %H:%M:%S")


def iso(at: float) -> str:
    """Write a Unix time as ISO 8601, to the millisecond and with the offset of this machine's zone."""
    return _moment(at).isoformat(timespec="milliseconds")


def zone(at: float | None = None) -> str:
    """Name this machine's time zone, at a time or now: the pages' times are in it, wherever their reader is."""
    return _moment(time.time() if at is None else at).strftime("%Z")


def zone_seconds() -> int:
    """Return how far this machine's time is ahead of UTC now, in seconds."""
    return round((_moment(time.time()).utcoffset() or timedelta()).total_seconds())


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at).astimezone()


def grouped(number: float) -> str:
    """Write a number rounded, with its thousands separated: ``12,345``."""
    return f"{number:,.0f}"


def milliseconds(value: float) -> str:
    """Write a duration in milliseconds as ``12 ms``, ``1.2 s`` or ``3.4 min``."""
    if value < 10:
        return f"{value:.1f} ms"
    if value < 1000:
        return f"{value:.0f} ms"
    return f"{value / 1000:.1f} s" if value < 60_000 else f"{value / 60_000:.1f} min"


def spelled_out(text: str) -> str:
    """Write characters that cannot be seen as ``\\uXXXX``; line breaks stay."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\u{ord(char):04x}" for char in text)


def quoted(text: str) -> str:
    """Write a value for a URL. What cannot be encoded leads nowhere."""
    return quote(text.encode(errors="replace"), safe="")


def words(name: str) -> str:
    """Write ``refused request`` for ``refused_request``."""
    return name.replace("_", " ")


_FILTERS: dict[str, Callable[..., str]] = {
    "clock": clock,
    "iso": iso,
    "zone": zone,
    "grouped": grouped,
    "milliseconds": milliseconds,
    "money": money,
    "words": words,
    "line": one_line,
    "exact": Exact,
    "quoted": quoted,
    "counted": counted,
}
