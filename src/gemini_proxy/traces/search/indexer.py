"""Update what depends on written traces: the search index and the figures.

Traces that an older version has indexed are indexed again when there is nothing new, the newest first, so that the
filters of today find them. A migration sets the mark from which that goes down.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, func, select, update

from gemini_proxy.traces.clock import is_set_within
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.errors import RowRejected, StoreError, StoreUnavailable
from gemini_proxy.traces.figures import Figures, figures_of
from gemini_proxy.traces.headline import KEY_LENGTH, conversation_of, tools_called, upstream_status
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.schema import annotations, progress, traces
from gemini_proxy.traces.search.index import Entry, add_entries, replace_entries
from gemini_proxy.traces.search.query import Facets, words_of
from gemini_proxy.traces.search.searchable_text import LARGE, MAX_READ, text_of
from gemini_proxy.traces.trace import Outcome
from gemini_proxy.traces.usage import AGAIN, INDEXER, CountedTrace, add_figures, delete_old, indexed

logger = logging.getLogger(__name__)

# What one transaction takes, so that writers wait for it some ten milliseconds and no more.
MAX_TRACES: Final = 128
MAX_BYTES: Final = 1024 * 1024
# Of traces that are indexed again: what the index has of them is removed first, which takes as long as adding them.
MAX_AGAIN: Final = 64
# Metadata that a client made this large is not looked into for tokens and latencies.
_MAX_METADATA: Final = 256 * 1024
# Seconds of rest for each second of work: work that nobody waits for takes at most a twentieth of one processor.
REST: Final = 19.0
# And a fiftieth while the exchanges take more than half of one.
BUSY_REST: Final = 49.0
MAX_REST: Final = 5.0
# How often to look without being woken, for what other processes write, and to remove the oldest of the fine figures.
POLL_SECONDS: Final = 5.0
PRUNE_SECONDS: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class _Taken:
    """A trace as read for the index; ``updated`` tells whether it has changed since."""

    seq: int
    dataset: int
    position: int
    created: float
    updated: float | None
    tenant: str | None
    outcome: str
    model: str | None
    duration_ms: float
    metadata: bytes
    messages: bytes


@dataclass(frozen=True, slots=True)
class _Findings:
    """The rules that annotated traces, by the trace and what they do, read from the annotations ``seen``."""

    seen: frozenset[int] = frozenset()
    rules: Mapping[int, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    def of(self, trace: int) -> Mapping[str, Sequence[str]]:
        return self.rules.get(trace, {})


@dataclass(frozen=True, slots=True)
class _Batch:
    after: int
    taken: Sequence[_Taken]
    found: "_Findings"


class Indexer:
    """Add traces to the search index and to the figures, each once, however many processes share the database.

    ``skipped`` counts those that could not be read, and are in neither. Those of an older version are indexed again.
    """

    def __init__(
        self, database: Database, wake: asyncio.Event, *, believed: Callable[[], float | None] = time.time
    ) -> None:
        """``wake`` is set by the writers of traces.

        ``believed`` returns the Unix time by which old figures are removed, or None while no clock is to be believed.
        """
        self._database = database
        self._wake = wake
        self._believed = believed
        self._most = MAX_TRACES
        self._most_again = MAX_AGAIN
        self._all_again = False
        self._pruned = 0.0
        self.skipped = 0

    async def run(self) -> None:
        """Follow the traces until cancelled, at work for a twentieth of the time: more where a step takes long."""
        rested, used = time.monotonic(), time.process_time()
        while True:
            self._wake.clear()
            started = time.monotonic()
            try:
                more = await self.step()
                await self._prune()
            except StoreError as error:
                logger.warning("search and figures wait: %s", error)
                more = False
            now, cpu = time.monotonic(), time.process_time()
            rest = rest_after(now - started, cpu - used, now - rested)
            rested, used = now, cpu
            await asyncio.sleep(rest)
            if not more:
                await is_set_within(self._wake, POLL_SECONDS)

    async def catch_up(self) -> int:
        """Take in every trace that is there, without a rest; how many steps that was. Raises StoreError."""
        steps = 0
        while await self.step():
            steps += 1
        return steps

    async def step(self) -> bool:
        """Index some traces; return False if there are none. Raises StoreUnavailable.

        Large texts are read outside of the transaction and of the event loop. When another process was faster, or a
        trace has changed since it was read, nothing is written and the next step starts over. After a failure fewer are
        taken, down to one, and where that fails it is left out: not to be met again and again.
        """
        after = await self._database.read(_reached) if self._most == 1 else 0
        try:
            more = await self._take_in() or await self._index_again()
        except StoreUnavailable:
            raise
        except Exception as error:
            if self._most == 1:
                await self._leave_out(after, error)
            self._most = max(1, self._most // 2)
            return True
        self._most = min(MAX_TRACES, 2 * self._most)
        return more

    async def _take_in(self) -> bool:
        batch = await self._database.read(partial(_take, most=self._most))
        if not batch.taken:
            return False
        entries, counted = await asyncio.to_thread(_indexed, batch)
        try:
            await self._database.write(lambda connection: _write(connection, batch, entries, counted))
        except RowRejected as error:
            if self._most > 1:
                raise
            # Where the reason was a trace deleted meanwhile, nothing is written here.
            logger.error("trace %d cannot be searched: %s", batch.taken[0].seq, error)
            await self._database.write(lambda connection: _write(connection, batch, (), counted))
        return True

    async def _index_again(self) -> bool:
        """Index some traces of an older version again; False where none is left. As ``step`` in all else."""
        batch = None if self._all_again else await self._database.read(partial(_take_again, most=self._most_again))
        if batch is None:
            self._all_again = True
            return False
        try:
            entries = await asyncio.to_thread(_entries_again, batch)
            await self._database.write(lambda connection: _write_again(connection, batch, entries))
        except StoreUnavailable:
            raise
        except Exception as error:
            if self._most_again == 1:
                logger.error("trace %d keeps its old index: %s", batch.taken[0].seq, type(error).__name__)
                await self._database.write(lambda connection: _write_again(connection, batch, ()))
            self._most_again = max(1, self._most_again // 2)
        else:
            self._most_again = min(MAX_AGAIN, 2 * self._most_again)
        return True

    async def _leave_out(self, after: int, error: Exception) -> None:
        """Go beyond the first trace after ``after``, unless another process has."""
        left_out = await self._database.write(partial(_pass_over, after=after))
        if left_out is not None:
            self.skipped += 1
            logger.error("trace %d is in neither search nor figures: %s", left_out, type(error).__name__)

    async def _prune(self) -> None:
        due = time.monotonic() - self._pruned > PRUNE_SECONDS or not self._pruned
        if due and (now := self._believed()) is not None:
            self._pruned = time.monotonic()
            await self._database.write(lambda connection: delete_old(connection, now))


def rest_after(worked: float, cpu: float, passed: float) -> float:
    """Return the seconds to rest after so many of work. ``cpu`` is this process's CPU time in ``passed`` seconds."""
    busy = cpu - worked > passed / 2
    return min(MAX_REST, (BUSY_REST if busy else REST) * worked)


def reindex(connection: Connection, seq: int, messages: bytes) -> None:
    """Put what a trace now says into the search index, in the transaction that changed its messages (given as JSON).

    A trace that the indexer has not come to yet is left to it.
    """
    if indexed(connection) < seq:
        return
    columns = (traces.c[key] for key in ("dataset", "tenant", "outcome", "model", "metadata"))
    row = connection.execute(select(*columns).where(traces.c.seq == seq)).one()
    facets = _facets(row.dataset, row.outcome, row.model, row.tenant, _metadata(row.metadata), _tools(messages))
    replace_entries(connection, [Entry(seq, words_of(text_of(messages[:MAX_READ])), facets)])


def _reached(connection: Connection) -> int:
    return connection.execute(select(progress.c.seq).where(progress.c.name == INDEXER)).scalar() or 0


def _pass_over(connection: Connection, after: int) -> int | None:
    """Take the first trace after ``after`` for indexed: its number; None where the indexer is elsewhere by now."""
    if indexed(connection) != after:
        return None
    first: int | None = connection.scalar(select(func.min(traces.c.seq)).where(traces.c.seq > after))
    if first is not None:
        connection.execute(update(progress).where(progress.c.name == INDEXER).values(seq=first))
    return first


def _take(connection: Connection, most: int) -> _Batch:
    after = _reached(connection)
    sizes = select(traces.c.seq, func.length(traces.c.messages)).where(traces.c.seq > after)
    numbers = _fitting((row[0], row[1]) for row in connection.execute(sizes.order_by(traces.c.seq).limit(most)))
    if not numbers:
        return _Batch(after, (), _Findings())
    return _Batch(after, _read(connection, numbers), _findings(connection, annotations.c.trace.in_(numbers)))


def _take_again(connection: Connection, most: int) -> _Batch | None:
    """Read the newest traces that are still as an older version has indexed them; None where there is no mark."""
    mark = connection.scalar(select(progress.c.seq).where(progress.c.name == AGAIN))
    if mark is None:
        return None
    sizes = select(traces.c.seq, func.length(traces.c.messages)).where(traces.c.seq < mark)
    newest = sizes.order_by(traces.c.seq.desc()).limit(most)
    numbers = _fitting((row[0], row[1]) for row in connection.execute(newest))
    return _Batch(mark, _read(connection, numbers) if numbers else (), _Findings())


def _read(connection: Connection, numbers: Sequence[int]) -> list[_Taken]:
    columns = (
        traces.c[key] for key in ("seq", "dataset", "position", "created", "updated", "tenant", "outcome", "model")
    )
    query = select(
        *columns, traces.c.duration_ms, traces.c.metadata, func.substr(traces.c.messages, 1, MAX_READ).label("messages")
    ).where(traces.c.seq.in_(numbers))
    return [_Taken(*row) for row in connection.execute(query.order_by(traces.c.seq))]


def _fitting(sizes: Iterable[tuple[int, int]]) -> list[int]:
    """Return the first numbers, whose sizes together stay below MAX_BYTES; one in any case."""
    numbers: list[int] = []
    left = MAX_BYTES
    for seq, size in sizes:
        if numbers and size > left:
            break
        numbers.append(seq)
        left -= size
    return numbers


def _findings(connection: Connection, which: ColumnElement[bool]) -> _Findings:
    columns = (annotations.c[key] for key in ("seq", "trace", "rule", "guardrail"))
    seen: set[int] = set()
    rules: dict[int, dict[str, list[str]]] = {}
    # Each holds the whole rule, and most are of a few rules.
    actions: dict[bytes, str] = {}
    for seq, trace, rule, guardrail in connection.execute(select(*columns).where(which)):
        seen.add(seq)
        if guardrail not in actions:
            actions[guardrail] = str(load(guardrail).get("action"))
        rules.setdefault(trace, {}).setdefault(actions[guardrail], []).append(rule)
    return _Findings(frozenset(seen), rules)


def _logged_since(connection: Connection, batch: _Batch) -> Mapping[int, Sequence[str]]:
    """Return what logging rules have found since the batch was read: from now on they count it themselves."""
    numbers = [trace.seq for trace in batch.taken]
    present = connection.scalars(select(annotations.c.seq).where(annotations.c.trace.in_(numbers)))
    new = set(present) - batch.found.seen
    found = _findings(connection, annotations.c.seq.in_(new)) if new else _Findings()
    return {trace: rules["log"] for trace, rules in found.rules.items() if "log" in rules}


def _indexed(batch: _Batch) -> tuple[list[Entry], list[CountedTrace]]:
    entries: list[Entry] = []
    counted: list[CountedTrace] = []
    for trace in batch.taken:
        metadata, tools = _metadata(trace.metadata), _tools(trace.messages)
        facets = _facets(trace.dataset, trace.outcome, trace.model, trace.tenant, metadata, tools)
        entries.append(Entry(trace.seq, words_of(text_of(trace.messages)), facets))
        found = batch.found.of(trace.seq)
        figures = figures_of(trace.outcome, metadata, trace.duration_ms, found, trace.model, tools)
        counted.append(CountedTrace(trace.dataset, trace.position, trace.created, figures))
    return entries, counted


def _entries_again(batch: _Batch) -> list[Entry]:
    """Return the entries that have what an older version's lack."""
    entries = []
    for trace in batch.taken:
        messages = _messages(trace.messages)
        metadata = dict(_metadata(trace.metadata))
        # One without a turn of the model may be a count of tokens, which is an exchange of no conversation.
        if trace.outcome != Outcome.PUSHED.value and any(message.get("role") == "assistant" for message in messages):
            metadata.setdefault("conversation", conversation_of(messages))
        facets = _facets(trace.dataset, trace.outcome, trace.model, trace.tenant, metadata, tools_called(messages))
        if facets.selective:
            entries.append(Entry(trace.seq, words_of(text_of(trace.messages)), facets))
    return entries


def _metadata(document: bytes) -> Mapping[str, Any]:
    try:
        metadata: Any = load(document) if len(document) <= _MAX_METADATA else {}
    except RecursionError:
        metadata = {}
    return metadata if isinstance(metadata, Mapping) else {}


def _tools(messages: bytes) -> Sequence[str]:
    """Return the tools that a trace called; of one whose messages are very long, none."""
    return tools_called(_messages(messages)) if b'"tool_calls"' in messages else ()


def _messages(document: bytes) -> Sequence[Mapping[str, Any]]:
    """Return a trace's messages; of one with very long ones, none."""
    try:
        found = load(document) if len(document) <= LARGE else ()
    except RecursionError:
        found = ()
    return [message for message in found if isinstance(message, Mapping)]


def _facets(
    dataset: int, outcome: str, model: str | None, tenant: str | None, metadata: Mapping[str, Any], tools: Sequence[str]
) -> Facets:
    conversation = metadata.get("conversation")
    return Facets(
        dataset,
        outcome,
        model,
        upstream_status(metadata),
        tools,
        tenant[:KEY_LENGTH] if tenant else None,
        conversation if isinstance(conversation, str) else None,
    )


def _write(connection: Connection, batch: _Batch, entries: Sequence[Entry], counted: Sequence[CountedTrace]) -> None:
    """Add what a batch comes to, unless another process has, or something in it is not as it was read."""
    if indexed(connection) != batch.after or not _are_as_read(connection, batch.taken):
        return
    add_entries(connection, entries)
    logged = _logged_since(connection, batch)
    if logged:
        more = (Figures(logged=dict.fromkeys(logged.get(trace.seq, ()), 1)) for trace in batch.taken)
        counted = [replace(one, figures=one.figures + added) for one, added in zip(counted, more, strict=True)]
    add_figures(connection, counted)
    connection.execute(update(progress).where(progress.c.name == INDEXER).values(seq=batch.taken[-1].seq))


def _write_again(connection: Connection, batch: _Batch, entries: Sequence[Entry]) -> None:
    """Replace a batch's entries in the index, and move the mark below it; remove the mark if nothing is left.

    Nothing is written if another process was faster, or if a trace has changed since it was read.
    """
    # Who indexes moves either mark: what is below this one is not indexed for the first time meanwhile.
    indexed(connection)
    marked = progress.c.name == AGAIN
    if connection.scalar(select(progress.c.seq).where(marked).with_for_update()) != batch.after:
        return
    if not batch.taken:
        connection.execute(delete(progress).where(marked))
    elif _are_as_read(connection, batch.taken):
        replace_entries(connection, entries)
        connection.execute(update(progress).where(marked).values(seq=batch.taken[0].seq))


def _are_as_read(connection: Connection, taken: Sequence[_Taken]) -> bool:
    """Return whether traces are still there and have not changed; none is deleted until the transaction ends."""
    present = select(traces.c.seq, traces.c.updated).where(traces.c.seq.in_([trace.seq for trace in taken]))
    held = present.with_for_update(read=True, key_share=True)
    return {row[0]: row[1] for row in connection.execute(held)} == {trace.seq: trace.updated for trace in taken}
