"""Define typed keys for what the application and its requests carry."""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from gemini_proxy.config import Config
from gemini_proxy.errors import ProxyError
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.guardrails.asking import Asking
from gemini_proxy.proxy.authentication import Authentication
from gemini_proxy.proxy.credentials import Credentials
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.exchange_metrics import ExchangeMetrics
from gemini_proxy.proxy.pipeline import Pipeline
from gemini_proxy.proxy.tasks import Tasks
from gemini_proxy.proxy.uploads import Upload, Uploads
from gemini_proxy.proxy.upstream import UpstreamClient, VertexUpstreams
from gemini_proxy.server.limiter import Limiter
from gemini_proxy.server.listening import Share
from gemini_proxy.server.process import Memory
from gemini_proxy.server.reload import Reloads, Setups
from gemini_proxy.server.shared_metrics import SharedMetrics
from gemini_proxy.server.siblings import Siblings
from gemini_proxy.server.storage import Storage
from gemini_proxy.server.telemetry import ExchangeTelemetry
from gemini_proxy.traces.alerts.notebook import Notebook


@dataclass(slots=True)
class State:
    """The server's state: exchanges in flight, and whether shutdown has begun."""

    in_flight: int = 0
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """This process among those of the server: its number from 1 on, and how many there are.

    ``metrics`` are the shared metrics, ``share`` is this process's share of the connections, ``siblings`` are the other
    processes, to which it passes requests. All are None if there is only one process.
    """

    number: int = 1
    processes: int = 1
    metrics: SharedMetrics | None = None
    share: Share | None = None
    siblings: Siblings | None = None


@dataclass(frozen=True, slots=True)
class ExplorerSite:
    """Tell calls of the Explorer's API from requests for its pages, and write an error in the form of either."""

    is_api: Callable[[web.Request], bool]
    error_response: Callable[[web.Request, ProxyError], web.Response]


ASKING = web.AppKey("ASKING", Asking)
CONFIG = web.AppKey("CONFIG", Config)
"""As at the start: for keys that only a restart changes."""
SETUPS = web.AppKey("SETUPS", Setups)
RELOADS = web.AppKey("RELOADS", Reloads)
EXPLORER_SITE = web.AppKey("EXPLORER_SITE", ExplorerSite)
STATE = web.AppKey("STATE", State)
GROUP = web.AppKey("GROUP", Group)
TELEMETRY: web.AppKey[ExchangeTelemetry | None] = web.AppKey("TELEMETRY")
"""None if OpenTelemetry is off."""
NOTEBOOK = web.AppKey("NOTEBOOK", Notebook)
MEMORY = web.AppKey("MEMORY", Memory)
STORAGE = web.AppKey("STORAGE", Storage)
EXCHANGE_METRICS = web.AppKey("EXCHANGE_METRICS", ExchangeMetrics)
TASKS = web.AppKey("TASKS", Tasks)
LIMITER = web.AppKey("LIMITER", Limiter)
AUTHENTICATION = web.AppKey("AUTHENTICATION", Authentication)
UPSTREAM = web.AppKey("UPSTREAM", UpstreamClient)
VERTEX = web.AppKey("VERTEX", VertexUpstreams)

UPLOADS = web.AppKey("UPLOADS", Uploads)

CALL = web.RequestKey("CALL", ModelCall)
CREDENTIALS = web.RequestKey("CREDENTIALS", Credentials)
OWNER = web.RequestKey("OWNER", str)
ADDRESS = web.RequestKey("ADDRESS", str)
"""The client's, as ``Peers.client`` tells it."""
EXCHANGE = web.RequestKey("EXCHANGE", Exchange)
UPLOAD = web.RequestKey("UPLOAD", Upload)
"""The upload that a request continues."""
KEY_TAKEN = web.RequestKey("KEY_TAKEN", bool)
"""True if the upstream has taken the client's key, though the answer is the proxy's own."""
PIPELINE = web.RequestKey("PIPELINE", Pipeline)
"""Of the setup with which the exchange began."""
