"""Which recorded traces a policy is tried on: so many of the last, or all."""

from collections.abc import AsyncIterator

from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Trace

# Summaries read at once: to count traces, and to go through them, which holds whole traces one at a time.
_COUNTED, _PAGE = 5_000, 200


async def count(store: TraceStore, dataset: str | None, last: int | None) -> int:
    """How many traces ``recorded`` will give, if none is added or deleted meanwhile."""
    total = 0
    before: int | None = None
    while last is None or total < last:
        page = await store.recent(_COUNTED, dataset=dataset, before=before)
        total += len(page)
        if len(page) < _COUNTED:
            break
        before = page[-1].seq
    return total if last is None else min(total, last)


async def recorded(store: TraceStore, dataset: str | None, last: int | None) -> AsyncIterator[Trace]:
    """The last traces, the newest first, or all, the oldest first, which takes a tenth of the time a trace."""
    if last is None:
        async for trace in store.export(dataset):
            yield trace
        return
    before: int | None = None
    while last > 0:
        limit = min(_PAGE, last)
        page = await store.recent(limit, dataset=dataset, before=before)
        for summary in page:
            # Retention may delete one between the two queries.
            if (found := await store.get(summary.id)) is not None:
                yield found
        if len(page) < limit:
            return
        before = page[-1].seq
        last -= limit
