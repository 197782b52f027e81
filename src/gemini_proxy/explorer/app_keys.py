"""Typed keys for what the Explorer needs of the application it is part of. The server sets them at its start."""

from collections.abc import Callable
from typing import Final

from aiohttp import web

from gemini_proxy.guardrails.engine import Engine
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.http.fair_lock import FairLock
from gemini_proxy.sections import Explorer, Guardrails, Server
from gemini_proxy.traces.access import Access
from gemini_proxy.traces.catalogue import Catalogue
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Datasets
from gemini_proxy.traces.pinned_tools import PinnedTools
from gemini_proxy.traces.policies import Policies
from gemini_proxy.traces.store import TraceStore

SESSION_COOKIE: Final = "gemini_proxy_session"

SERVER = web.AppKey("SERVER", Server)
EXPLORER = web.AppKey("EXPLORER", Explorer)
GUARDRAILS: web.AppKey[Callable[[], Guardrails]] = web.AppKey("GUARDRAILS")
"""The settings of that section, as they are now."""
FILE_RULES: web.AppKey[Callable[[], GuardrailSet]] = web.AppKey("FILE_RULES")
"""The rules of the policy files, as they are now."""
DATABASE: web.AppKey[Database] = web.AppKey("DATABASE")
READ_DATABASE: web.AppKey[Database] = web.AppKey("READ_DATABASE")
"""For lists, searches and figures, which may lag behind DATABASE by some seconds: a replica if there is one."""
ACCESS = web.AppKey("ACCESS", Access)
TRACES = web.AppKey("TRACES", TraceStore)
CATALOGUE = web.AppKey("CATALOGUE", Catalogue)
DATASETS = web.AppKey("DATASETS", Datasets)
POLICIES = web.AppKey("POLICIES", Policies)
PINNED_TOOLS = web.AppKey("PINNED_TOOLS", PinnedTools)
ENGINE: web.AppKey[Engine] = web.AppKey("ENGINE")
"""Checks for those who ask over the API: never one that lets pass what it cannot check."""
COMPILING = web.AppKey("COMPILING", FairLock)
"""For compiling long policies."""
CHECKING = web.AppKey("CHECKING", FairLock)
"""For long checks in the process that they share."""
