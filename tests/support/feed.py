"""What the tests of the feed share: synthetic traces, a source that holds them, and a reader of its events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.feed import Feed
from gemini_proxy.traces.trace import Outcome, TraceSummary

SOON = 20.0
"""Seconds after which something that should happen at once will not happen."""


@dataclass(frozen=True)
class Event:
    """One event of a stream as a browser would dispatch it."""

    id: str
    kind: str
    data: Any

    @property
    def seq(self) -> int:
        return int(self.id)


def events(stream: bytes) -> list[Event]:
    """Read a stream by the standard's rules; the text must be whole events."""
    assert stream.endswith(b"\n\n")
    found, last_id = [], ""
    for block in stream.decode().removesuffix("\n\n").split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
        last_id = fields.get("id", [last_id])[-1]
        if "data" in fields:
            found.append(Event(last_id, fields["event"][-1], orjson.loads("\n".join(fields["data"]))))
    return found


def summary(seq: int, **fields: Any) -> TraceSummary:
    values: dict[str, Any] = {
        "seq": seq,
        "position": seq,
        "id": f"00000000-0000-4000-8000-{seq:012}",
        "created": 1_700_000_000.0 + seq,
        "owner": "ann",
        "dataset": "demo",
        "model": "gemini-2.5-flash",
        "outcome": Outcome.COMPLETED,
        "stream": True,
        "duration_ms": 12.5,
        "rule": None,
    }
    return TraceSummary(**{**values, **fields})


@dataclass
class Traces:
    """A database of synthetic traces; while ``broken`` it does not answer."""

    found: list[TraceSummary] = field(default_factory=list)
    broken: bool = False
    asked: int = 0

    def add(self, count: int, **fields: Any) -> None:
        first = self.found[-1].seq + 1 if self.found else 1
        self.found += [summary(seq, **fields) for seq in range(first, first + count)]

    async def since(self, seq: int, limit: int) -> list[TraceSummary]:
        self._answer()
        start = next((place for place, one in enumerate(self.found) if one.seq > seq), len(self.found))
        return self.found[start : start + limit]

    async def newest_seq(self) -> int:
        self._answer()
        return self.found[-1].seq if self.found else 0

    async def has_after(self, seq: int) -> bool:
        self._answer()
        return bool(self.found) and self.found[-1].seq > seq

    async def seq_before(self, seq: int, count: int) -> int:
        return max(0, seq - count)

    async def most_between(self, after: int, to: int) -> int:
        return to - after

    def _answer(self) -> None:
        self.asked += 1
        if self.broken:
            raise StoreError("the database is locked")


@contextlib.asynccontextmanager
async def following(feed: Feed) -> AsyncIterator[Feed]:
    """Run a feed."""
    running = asyncio.create_task(feed.run())
    try:
        yield feed
    finally:
        feed.close()
        await asyncio.wait_for(running, SOON)


class Watch:
    """A watcher and what it has heard, positions left out."""

    def __init__(self, chunks: AsyncGenerator[bytes, None]) -> None:
        self.chunks = chunks
        self.heard: list[Event] = []
        self.reached = 0

    async def read(self) -> list[Event]:
        """The next chunk."""
        found = events(await asyncio.wait_for(anext(self.chunks), SOON))
        self.reached = max((event.seq for event in found), default=self.reached)
        self.heard += [event for event in found if event.kind != "position"]
        return found

    async def until(self, count: int) -> list[Event]:
        """Read until that many events were heard."""
        while len(self.heard) < count:
            await self.read()
        return self.heard

    @property
    def numbers(self) -> list[int]:
        return [event.seq for event in self.heard if event.kind == "exchange"]


@contextlib.asynccontextmanager
async def watching(chunks: AsyncGenerator[bytes, None]) -> AsyncIterator[Watch]:
    """A watcher that has joined."""
    async with contextlib.aclosing(chunks):
        watch = Watch(chunks)
        await watch.read()
        yield watch
