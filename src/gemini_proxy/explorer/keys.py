"""Typed keys for what the Explorer needs of the application it is part of. The server sets them at its start."""

from dataclasses import dataclass
from typing import Final, Literal

from aiohttp import web

from gemini_proxy.guardrails.engine import Engine
from gemini_proxy.traces.access import Access
from gemini_proxy.traces.catalogue import Catalogue
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Datasets
from gemini_proxy.traces.policies import Policies
from gemini_proxy.traces.store import TraceStore

SESSION_COOKIE: Final = "gemini_proxy_session"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the configuration says of the Explorer and of the server around it.

    ``hosts`` are the names, beside this machine's own, that it answers to. ``request_timeout`` in seconds.
    """

    access: Literal["open", "keys"] = "open"
    hosts: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    max_request_bytes: int = 104_857_600
    request_timeout: float = 60.0


SETTINGS = web.AppKey("SETTINGS", Settings)
DATABASE: web.AppKey[Database] = web.AppKey("DATABASE")
ACCESS = web.AppKey("ACCESS", Access)
TRACES = web.AppKey("TRACES", TraceStore)
CATALOGUE = web.AppKey("CATALOGUE", Catalogue)
DATASETS = web.AppKey("DATASETS", Datasets)
POLICIES = web.AppKey("POLICIES", Policies)
ENGINE: web.AppKey[Engine] = web.AppKey("ENGINE")
"""Checks for those who ask over the API: never one that lets pass what it cannot check."""
