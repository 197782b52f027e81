"""Serve the API's routes for a dataset's pinned tools: list them, accept a changed declaration, forget a tool."""

from typing import Final

from gemini_proxy.errors import NotFound
from gemini_proxy.explorer.api.dataset_api import dataset_by_id, dataset_by_name
from gemini_proxy.explorer.api.endpoints import ApiCall
from gemini_proxy.explorer.api.request_bodies import ToolAcceptance, ToolRemoval
from gemini_proxy.explorer.api.response_bodies import MessageView, ToolsView, tool_view
from gemini_proxy.explorer.app_keys import PINNED_TOOLS
from gemini_proxy.traces.pinned_tools import MAX_TOOLS

MAX_TOOLS_LISTED: Final = 100
"""Tools in one response: their declarations may be long."""
NO_TOOL: Final = "Tool not found"
NO_CHANGE: Final = "The tool's declaration has changed again"


async def list_tools(call: ApiCall) -> ToolsView:
    """List a dataset's tools, the changed ones first, then by name."""
    limit, offset = call.number("limit", MAX_TOOLS_LISTED, MAX_TOOLS_LISTED), call.number("offset", 0, MAX_TOOLS)
    tools = await call.app[PINNED_TOOLS].of(await dataset_by_name(call), limit, offset)
    return {"tools": [tool_view(tool) for tool in tools]}


async def accept_tool(call: ApiCall) -> MessageView:
    """Pin the changed declaration of a tool.

    404 if the latest changed declaration no longer has this digest.
    """
    call.require_operator()
    dataset = await dataset_by_id(call)
    accepted = await call.body(ToolAcceptance)
    if not await call.app[PINNED_TOOLS].accept(dataset, accepted.name, accepted.digest, by=call.identity.named):
        raise NotFound(NO_CHANGE)
    return {"message": "Accepted"}


async def forget_tool(call: ApiCall) -> MessageView:
    """Remove a tool, so that its next declaration is pinned."""
    call.require_operator()
    dataset = await dataset_by_id(call)
    removed = await call.body(ToolRemoval)
    if not await call.app[PINNED_TOOLS].forget(dataset, removed.name, by=call.identity.named):
        raise NotFound(NO_TOOL)
    return {"message": "Forgotten"}
