"""Pin tools: compute the digest of a declaration, and compare it with the pinned one in ``tool_changed(tool)``.

A server can change the declaration of a tool after somebody has reviewed it. The engine keeps no state: the digests
come with each check, in the parameter ``pinned_tools``.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import orjson

from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.run.events import Event
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.values import MarkedRecord, count_chars, word_for

PINS_PARAMETER: Final = "pinned_tools"
"""The parameter of a policy that has the digests by the names of tools."""
_MANY_CHARS: Final = 100_000_000


def tool_declaration(tool: Mapping[str, Any]) -> bytes:
    """Return what is pinned of a tool as JSON with sorted keys: name, description, parameters, and hints."""
    schema = tool.get("inputSchema" if "inputSchema" in tool else "parameters")
    said = {"name": tool.get("name"), "description": tool.get("description"), "parameters": schema}
    if "annotations" in tool:
        said["annotations"] = tool["annotations"]
    try:
        return orjson.dumps(said, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # Integers over 64 bits and lone surrogates, which JSON can hold.
        return json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def tool_digest(tool: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a tool's declaration, in hexadecimal digits."""
    return hashlib.sha256(tool_declaration(tool)).hexdigest()


def pinned(parameters: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the digests among a policy's parameters. Raises EvaluationError for another form."""
    digests = parameters.get(PINS_PARAMETER) or {}
    if not isinstance(digests, Mapping) or not all(isinstance(value, str) for value in digests.values()):
        raise EvaluationError(f"{PINS_PARAMETER} must map names of tools to digests")
    return digests


def readable_pins(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters if the digests among them can be read. Raises ValueError saying what is expected."""
    try:
        pinned(parameters)
    except EvaluationError as error:
        raise ValueError(error.reason) from None
    return parameters


def tool_changed(run: Run, tool: Any) -> list[MarkedRecord]:
    """Return a record with name and digests if a tool's declaration differs from the pinned one, else nothing.

    A tool that the parameter lacks is pinned by the conversation's first declaration of its name.
    """
    if not isinstance(tool, Event) or tool.kind != "Tool":
        raise EvaluationError(f"tool_changed(...) needs a tool, not a {word_for(tool)}")
    name = tool.data["name"]
    kept = pinned(run.parameters).get(name)
    if kept is None:
        kept = _digest(run, _first(run, name))
    declared = _digest(run, tool)
    if kept == declared:
        return []
    return [MarkedRecord({"name": name, "pinned": kept, "declared": declared}, ())]


def _first(run: Run, name: str) -> Event:
    """Return the conversation's first declaration of a tool that it declares."""
    key = ("first declarations",)
    if key not in run.scans:
        tools = run.events("Tool")
        run.charge(1 + len(tools))
        run.scans[key] = {tool.data["name"]: tool for tool in reversed(tools)}
    found: Event = run.scans[key][name]
    return found


def _digest(run: Run, tool: Event) -> str:
    key = ("digest", tool.position)
    if key not in run.scans:
        run.charge(10 + (count_chars(tool.data, _MANY_CHARS) >> 6))
        run.scans[key] = tool_digest(tool.data)
    found: str = run.scans[key]
    return found
