"""Delete refused interactions at Google, where they could otherwise be read or continued."""

import asyncio
import logging
from typing import Final

from aiohttp import web

from gemini_proxy.errors import UpstreamError
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.upstream import UpstreamClient
from gemini_proxy.server.app_keys import TASKS, UPSTREAM
from gemini_proxy.traces.handles import Kind

log = logging.getLogger(__name__)

_PAUSES: Final = (0.0, 0.5, 5.0, 30.0)
"""Seconds before each attempt to delete."""


def delete_refused(request: web.Request, exchange: Exchange) -> None:
    """Begin to delete the interactions of an exchange that were refused, beside all else."""
    for made in exchange.made:
        if made.kind is Kind.INTERACTION and made.refused:
            target = f"/{exchange.call.version}/{made.name}"
            work = _delete(request.app[UPSTREAM], target, exchange)
            request.app[TASKS].spawn(work, "delete a refused interaction")


async def _delete(upstream: UpstreamClient, target: str, exchange: Exchange) -> None:
    """Delete an interaction, again after a while where that fails: it may be under way still."""
    reason = ""
    try:
        for pause in _PAUSES:
            await asyncio.sleep(pause)
            if not (reason := await _try(upstream, target, exchange)):
                return
    except asyncio.CancelledError:
        _say(exchange, "the server has stopped")
        raise
    _say(exchange, reason)


async def _try(upstream: UpstreamClient, target: str, exchange: Exchange) -> str:
    """Ask for a deletion once. Return what was in its way, "" if nothing was."""
    try:
        response = await upstream.open("DELETE", target, exchange.headers, None)
    except UpstreamError as error:
        return error.message
    response.close()
    return f"status {response.status}" if response.status >= 400 and response.status != 404 else ""


def _say(exchange: Exchange, reason: str) -> None:
    log.warning("a refused interaction stays at Google", extra={"trace_id": exchange.id, "reason": reason})
