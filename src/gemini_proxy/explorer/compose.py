"""Gives the Explorer what it needs of the server that it is part of."""

from collections.abc import Callable

from aiohttp import web

from gemini_proxy.config import Config
from gemini_proxy.explorer.api.feed_stream import FEED
from gemini_proxy.explorer.app_keys import (
    ACCESS,
    CATALOGUE,
    CHECKING,
    COMPILING,
    DATABASE,
    DATASETS,
    ENGINE,
    EXPLORER,
    FILE_RULES,
    GUARDRAILS,
    PINNED_TOOLS,
    POLICIES,
    SERVER,
    TRACES,
)
from gemini_proxy.guardrails.engine import Engine
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.http.fair_lock import FairLock
from gemini_proxy.sections import Guardrails
from gemini_proxy.traces.access import Access
from gemini_proxy.traces.catalogue import Catalogue
from gemini_proxy.traces.datasets import Datasets
from gemini_proxy.traces.feed import Feed
from gemini_proxy.traces.pinned_tools import PinnedTools
from gemini_proxy.traces.policies import Policies
from gemini_proxy.traces.store import TraceStore


def compose(
    app: web.Application,
    config: Config,
    store: TraceStore,
    access: Access,
    engine: Engine,
    feed: Feed,
    file_rules: Callable[[], GuardrailSet],
    guardrails: Callable[[], Guardrails],
) -> None:
    """Set the keys of ``app`` when the store is open.

    ``engine`` must never let pass what it cannot check; ``file_rules`` gives the rules of the policy files and
    ``guardrails`` the settings as they are when called.
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
    app[PINNED_TOOLS] = PinnedTools(database)
    app[ENGINE] = engine
    app[FEED] = feed
    app[COMPILING], app[CHECKING] = FairLock(), FairLock()
