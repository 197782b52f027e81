"""Deletes refused interactions at Google, where they could be read again, or gone on from."""

import logging

from aiohttp import web

from gemini_proxy.errors import UpstreamError
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.upstream import Upstream
from gemini_proxy.server.app_keys import TASKS, UPSTREAM
from gemini_proxy.traces.handles import Kind

log = logging.getLogger(__name__)


def delete_refused(request: web.Request, exchange: Exchange) -> None:
    """Begin to delete the interactions of an exchange that were refused, beside all else."""
    for made in exchange.made:
        if made.kind is Kind.INTERACTION and made.refused:
            target = f"/{exchange.call.version}/{made.name}"
            work = _delete(request.app[UPSTREAM], target, exchange)
            request.app[TASKS].spawn(work, "delete a refused interaction")


async def _delete(upstream: Upstream, target: str, exchange: Exchange) -> None:
    try:
        response = await upstream.open("DELETE", target, exchange.headers, None)
        response.close()
    except UpstreamError as error:
        _say(exchange, error.message)
    else:
        if response.status >= 400 and response.status != 404:
            _say(exchange, f"status {response.status}")


def _say(exchange: Exchange, reason: str) -> None:
    log.warning("a refused interaction stays at Google", extra={"trace_id": exchange.id, "reason": reason})
