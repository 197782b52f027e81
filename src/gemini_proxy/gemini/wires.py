"""Find the wire of a guarded door, by the name that the table of doors has for it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from gemini_proxy.gemini.batches import BATCH, RESULTS
from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.decisions import DECISIONS
from gemini_proxy.gemini.generate_wire import GENERATE
from gemini_proxy.gemini.interactions.wire import INTERACTIONS
from gemini_proxy.gemini.live.wire import LIVE
from gemini_proxy.gemini.openai.wire import OPENAI
from gemini_proxy.gemini.parts import Unchecked
from gemini_proxy.gemini.predictions import PREDICTIONS
from gemini_proxy.gemini.request import GeminiRequest, request_without_settings
from gemini_proxy.gemini.wire import Wire

WIRES: Final[Mapping[str, Wire]] = MappingProxyType(
    {
        "batch": BATCH,
        "batch_results": RESULTS,
        "decisions": DECISIONS,
        "predictions": PREDICTIONS,
        "generate": GENERATE,
        "interactions": INTERACTIONS,
        "live": LIVE,
        "openai": OPENAI,
    }
)


def wire_of(call: ModelCall) -> Wire:
    """Return what reads the call."""
    return WIRES[call.row.wire]


def wire_of_path(path: str) -> Wire:
    """Return the wire for errors to a client of ``path``, if the path is not a call."""
    return OPENAI if "/openai/" in path else GENERATE


def read_request(call: ModelCall, body: bytes) -> GeminiRequest:
    """Read ``body`` as ``call`` means it. Raises BadRequest if it cannot be read, or can be read two ways."""
    return wire_of(call).read_request(call, body)


def passed_request(call: ModelCall) -> GeminiRequest:
    """Return what rules and traces see of a call that the configuration lets through unread: that it is unchecked."""
    reason = f'what goes through the door "{call.row.door}", which is open'
    return request_without_settings(unchecked=[Unchecked("request", reason)])
