"""A dataset's tools: as they are pinned, what they were declared as since, and the accepting of that."""

from typing import Any, Final

from gemini_proxy.errors import NotFound
from gemini_proxy.explorer.api.dataset_api import dataset_by_id, dataset_by_name
from gemini_proxy.explorer.api.endpoints import Call
from gemini_proxy.explorer.api.models import iso, member
from gemini_proxy.explorer.app_keys import PINNED_TOOLS
from gemini_proxy.traces.pinned_tools import MAX_TOOLS, Declared, PinnedTool
from gemini_proxy.traces.rows import load

_LISTED: Final = 100
"""Tools in one response: their declarations may be long."""
NO_TOOL: Final = "Tool not found"
NO_CHANGE: Final = "The tool is not declared like that now"


async def listed(call: Call) -> object:
    """``GET /api/v1/dataset/byuser/{user}/{dataset}/tools?limit=&offset=``: the changed ones first, by name.

    ``limit`` is at most 100, and that where it is not given.
    """
    limit, offset = call.number("limit", _LISTED, _LISTED), call.number("offset", 0, MAX_TOOLS)
    found = await call.app[PINNED_TOOLS].of(await dataset_by_name(call), limit, offset)
    return {"tools": [_tool_json(tool) for tool in found]}


async def accept(call: Call) -> object:
    """``POST /api/v1/dataset/{dataset_id}/tools/accept``: pin the changed declaration of ``name``.

    ``digest`` is that of the declaration that was looked at: 404 where the last changed one is another by now.
    """
    dataset = await dataset_by_id(call)
    given = await call.json()
    name, digest = (member(given, key, str, f"{key} must be a string") for key in ("name", "digest"))
    if not await call.app[PINNED_TOOLS].accept(dataset, name, digest):
        raise NotFound(NO_CHANGE)
    return {"message": "Accepted"}


async def forget(call: Call) -> object:
    """``POST /api/v1/dataset/{dataset_id}/tools/forget``: remove ``name``; how it is declared next is pinned."""
    dataset = await dataset_by_id(call)
    name = member(await call.json(), "name", str, "name must be a string")
    if not await call.app[PINNED_TOOLS].forget(dataset, name):
        raise NotFound(NO_TOOL)
    return {"message": "Forgotten"}


def _tool_json(tool: PinnedTool) -> dict[str, Any]:
    return {
        "name": tool.name,
        "pinned": _declared_json(tool.pinned),
        "changed": None if tool.changed is None else _declared_json(tool.changed),
    }


def _declared_json(declared: Declared) -> dict[str, Any]:
    """``declaration`` is null where it was too long to be kept."""
    declaration = load(declared.text) if declared.text else None
    return {"digest": declared.digest, "declaration": declaration, "time": iso(declared.at)}
