"""Define typed keys for what the Explorer needs of its application, and set them with ``setup``."""

from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from gemini_proxy.config import Config
from gemini_proxy.guardrails.engine import Engine
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.http.fair_lock import FairLock
from gemini_proxy.sections import Explorer, Guardrails, Limits, Price, Server
from gemini_proxy.traces.access import AccessControl
from gemini_proxy.traces.approvals import Approvals
from gemini_proxy.traces.audit import AuditLog
from gemini_proxy.traces.catalogue import Catalogue
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.dataset_rules import DatasetRules
from gemini_proxy.traces.datasets import Datasets
from gemini_proxy.traces.feed import Feed
from gemini_proxy.traces.masked_values import MaskedValues
from gemini_proxy.traces.pinned_tools import PinnedTools
from gemini_proxy.traces.policies import Policies, PolicyVersions
from gemini_proxy.traces.shadows import Shadows
from gemini_proxy.traces.store import TraceStore

SESSION_COOKIE: Final = "gemini_proxy_session"

SERVER = web.AppKey("SERVER", Server)
EXPLORER = web.AppKey("EXPLORER", Explorer)
GUARDRAILS: web.AppKey[Callable[[], Guardrails]] = web.AppKey("GUARDRAILS")
"""The settings of that section, as they are now."""
LIMITS: web.AppKey[Callable[[], Limits]] = web.AppKey("LIMITS")
"""The current limits of one client."""
PRICES: web.AppKey[Callable[[], Mapping[str, Price]]] = web.AppKey("PRICES")
"""The current prices of models."""
FILE_RULES: web.AppKey[Callable[[], GuardrailSet]] = web.AppKey("FILE_RULES")
"""The rules of the policy files, as they are now."""
DATASET_RULES = web.AppKey("DATASET_RULES", DatasetRules)
"""The rules of datasets, compiled for use by exchanges."""
DATABASE: web.AppKey[Database] = web.AppKey("DATABASE")
READ_DATABASE: web.AppKey[Database] = web.AppKey("READ_DATABASE")
"""For lists, searches and figures: the replica if there is one, which may lag some seconds behind DATABASE."""
ACCESS = web.AppKey("ACCESS", AccessControl)
TRACES = web.AppKey("TRACES", TraceStore)
CATALOGUE = web.AppKey("CATALOGUE", Catalogue)
DATASETS = web.AppKey("DATASETS", Datasets)
POLICIES = web.AppKey("POLICIES", Policies)
POLICY_VERSIONS = web.AppKey("POLICY_VERSIONS", PolicyVersions)
SHADOWS = web.AppKey("SHADOWS", Shadows)
PINNED_TOOLS = web.AppKey("PINNED_TOOLS", PinnedTools)
APPROVALS = web.AppKey("APPROVALS", Approvals)
MASKED_VALUES: web.AppKey[Callable[[], MaskedValues | None]] = web.AppKey("MASKED_VALUES")
"""The store of masked values; None if they are not kept."""
AUDIT = web.AppKey("AUDIT", AuditLog)
ENGINE: web.AppKey[Engine] = web.AppKey("ENGINE")
"""Checks for calls of the API. It never lets pass what it cannot check."""
COMPILING = web.AppKey("COMPILING", FairLock)
"""For compiling long policies."""
CHECKING = web.AppKey("CHECKING", FairLock)
"""For long checks in the process that they share."""

FEED = web.AppKey("FEED", Feed)


def setup(
    app: web.Application,
    config: Config,
    store: TraceStore,
    access: AccessControl,
    engine: Engine,
    feed: Feed,
    file_rules: Callable[[], GuardrailSet],
    guardrails: Callable[[], Guardrails],
) -> None:
    """Set the keys of ``app`` once the store is open.

    ``engine`` must never allow what it cannot check. ``file_rules`` returns the current rules of the policy files, and
    ``guardrails`` the current settings.
    """
    database = store.database
    app[SERVER], app[EXPLORER] = config.server, config.explorer
    app[FILE_RULES], app[GUARDRAILS] = file_rules, guardrails
    app[DATABASE] = database
    app[ACCESS] = access
    app[TRACES] = store
    app[CATALOGUE] = Catalogue(database)
    app[DATASETS] = Datasets(database)
    app[POLICIES] = Policies(database)
    app[POLICY_VERSIONS] = PolicyVersions(database)
    app[SHADOWS] = Shadows(database)
    app[PINNED_TOOLS] = PinnedTools(database)
    app[APPROVALS] = Approvals(database)
    app[AUDIT] = AuditLog(database)
    app[ENGINE] = engine
    app[FEED] = feed
    app[COMPILING], app[CHECKING] = FairLock(), FairLock()
