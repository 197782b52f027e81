"""Pushed traces, each kept once however often it is sent."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from gemini_proxy.explorer.api.endpoints import Call
from gemini_proxy.explorer.api.feed_stream import FEED
from gemini_proxy.explorer.api.push_api import Push, read_push
from gemini_proxy.explorer.app_keys import CATALOGUE, DATASETS, TRACES
from gemini_proxy.http.browser_guard import is_same_origin
from gemini_proxy.traces.errors import RowRejected
from gemini_proxy.traces.rows import TraceRow, encode

Rows = dict[str, TraceRow]
_TRIES: Final = 3
"""How often a push is written anew because another one brought a trace of it in between."""


async def push_trace(call: Call) -> object:
    """``POST /api/v1/push/trace``: the ids of the traces in order; their dataset is made if it is missing.

    At most 1,000 traces and 10,000 annotations. A trace whose metadata has ``gemini_proxy.id`` is kept once: pushed
    again by the same user, be it at the same time, it has the same id and nothing is written.
    """
    body = await call.json()
    # A thread gives the loop its turn while a large push is read and serialised.
    pushed, rows = await asyncio.to_thread(_prepare, body, call.user, _uploader(call))
    await _keep(call, rows, pushed.dataset)
    call.app[FEED].committed()
    return _answer(call, pushed)


def _prepare(body: Mapping[str, Any], user: str, uploader: str) -> tuple[Push, Rows]:
    pushed = read_push(body, user, uploader, time.time())
    return pushed, {trace.id: encode(trace) for trace in pushed.traces}


async def _keep(call: Call, rows: Rows, dataset: str | None) -> None:
    """Write what is not there yet, each once. Raises TooMany for a dataset that cannot be made."""
    for tries_left in reversed(range(_TRIES)):
        present = await call.app[CATALOGUE].present(rows)
        new = [row for key, row in rows.items() if key not in present]
        if new and dataset is not None:
            await call.app[DATASETS].ensure(call.user, dataset)
        try:
            return await call.app[TRACES].write(new)
        except RowRejected:
            if not tries_left or await call.app[CATALOGUE].present(rows) == present:
                raise


def _answer(call: Call, pushed: Push) -> dict[str, object]:
    dataset = {} if pushed.dataset is None else {"dataset": pushed.dataset}
    return {"id": [trace.id for trace in pushed.traces], **dataset, "username": call.user}


def _uploader(call: Call) -> str:
    if call.key:
        return f"Via API ...{call.key[-5:]}"
    return "Via browser" if is_same_origin(call.request) else "Via API"
