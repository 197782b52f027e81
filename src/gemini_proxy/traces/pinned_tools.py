"""Learn the tools of datasets as they are first declared, and which declarations have differed since."""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Connection, RowMapping, case, delete, select, update

from gemini_proxy.policy import tool_declaration
from gemini_proxy.traces import revision
from gemini_proxy.traces.audit import UNKNOWN, Change, append
from gemini_proxy.traces.database import Database, insert_into
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.schema import datasets, pinned_tools

logger = logging.getLogger(__name__)

MAX_TOOLS: Final = 500
"""Tools of one dataset that are pinned, several times what one agent has: their digests are kept in memory."""
MAX_NAME: Final = 256
"""Characters of a tool's name, twice what Gemini takes. A longer one, or one that does not print, is not pinned."""
MAX_DECLARATION: Final = 65_536
"""Bytes of a declaration that are kept to be shown; of a longer one there is the digest alone."""
_MAX_BODY: Final = 1_048_576
"""Bytes of a request whose tools are learned: reading them takes the event loop a few milliseconds at most."""
_MAX_WAITING: Final = 64
"""Lists of tools that wait to be written, of a megabyte each at most; others are learned from a later exchange."""
_MAX_KNOWN: Final = 4_096
"""Lists of tools of which there is nothing to learn, by their digests: more than applications that share a server."""
_KNOWN_SECONDS: Final = 60.0
"""After so long a list is compared with the database again, which another process may have changed."""
_PAUSE: Final = 0.5
"""Seconds between two transactions: a client whose declarations differ every time costs no more than that."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A tool as declared: ``digest`` is that of its ``text``, JSON, which is empty where it is too long to be kept."""

    digest: str
    text: bytes
    at: float


@dataclass(frozen=True, slots=True)
class PinnedTool:
    """A tool of a dataset as it is pinned, and how it was ``changed``: the last declaration that was another."""

    name: str
    pinned: Declared
    changed: Declared | None


@dataclass(frozen=True, slots=True)
class DeclaredTools:
    """Tools that an exchange declared, by name. Those of one that was not ``allowed`` are compared and not pinned."""

    owner: str
    dataset: str
    tools: Mapping[str, Declared]
    allowed: bool


class PinnedTools:
    """The pinned tools of a database. A change applies to all later requests, in every process on it.

    Every method raises StoreError.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, dataset: Dataset, limit: int = MAX_TOOLS, offset: int = 0) -> list[PinnedTool]:
        """Return at most ``limit`` of a dataset's tools from the ``offset``-th on: the changed ones first, by name."""
        unchanged = case((pinned_tools.c.changed_digest.is_(None), 1), else_=0)
        query = select(pinned_tools).where(pinned_tools.c.dataset == dataset.seq)
        query = query.order_by(unchanged, pinned_tools.c.name).limit(limit).offset(offset)
        return await self._database.read(
            lambda connection: [_tool(row) for row in connection.execute(query).mappings()], owner=dataset.owner
        )

    async def learn(self, seen: DeclaredTools) -> None:
        """Pin the tools that are new to their dataset, and keep the declarations that differ from what is pinned."""
        await self._database.write(lambda connection: _learn(connection, seen))

    async def accept(self, dataset: Dataset, name: str, digest: str, *, by: str = UNKNOWN) -> bool:
        """Pin a tool's changed declaration in the place of the one before. False if that has not this digest."""
        changed = (
            update(pinned_tools)
            .where(
                pinned_tools.c.dataset == dataset.seq,
                pinned_tools.c.name == name,
                pinned_tools.c.changed_digest == digest,
            )
            .values(
                digest=pinned_tools.c.changed_digest,
                text=pinned_tools.c.changed_text,
                at=time.time(),
                changed_digest=None,
                changed_text=None,
                changed_at=None,
            )
        )

        def work(connection: Connection) -> bool:
            query = select(pinned_tools.c.digest).where(
                pinned_tools.c.dataset == dataset.seq, pinned_tools.c.name == name
            )
            before = connection.scalar(query.with_for_update())
            accepted = connection.execute(changed).rowcount > 0
            if accepted:
                revision.advance(connection)
                sides = ({"digest": before}, {"digest": digest})
                append(connection, Change("tool.accepted", _subject(name, dataset), by, dataset.owner, *sides))
            return accepted

        return await self._database.write(work)

    async def forget(self, dataset: Dataset, name: str, *, by: str = UNKNOWN) -> bool:
        """Remove a tool: its next declaration is pinned. False if the dataset has no such one."""
        removed = delete(pinned_tools).where(pinned_tools.c.dataset == dataset.seq, pinned_tools.c.name == name)

        def work(connection: Connection) -> bool:
            digest = connection.scalar(removed.returning(pinned_tools.c.digest))
            if digest is not None:
                revision.advance(connection)
                before = {"digest": digest}
                append(connection, Change("tool.forgotten", _subject(name, dataset), by, dataset.owner, before))
            return digest is not None

        return await self._database.write(work)


def _subject(name: str, dataset: Dataset) -> str:
    return f"tool {name} of {dataset.described}"


class ToolLearner:
    """Learn the tools that exchanges declare in one task, ``run()``, without keeping an exchange waiting."""

    def __init__(self, pins: PinnedTools) -> None:
        self._pins = pins
        self._waiting: dict[bytes, DeclaredTools] = {}
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._wake = asyncio.Event()

    def see(
        self,
        owner: str,
        dataset: str,
        messages: Sequence[Mapping[str, Any]],
        stored: Sequence[Mapping[str, Any]],
        size: int,
        *,
        allowed: bool,
        pinned: Mapping[str, str] | None = None,
    ) -> None:
        """Take note of the tools in ``messages``, of a request of ``size`` bytes.

        ``stored`` are the same messages without secrets: a declaration with a secret is not pinned. ``pinned`` are the
        digests that the exchange was checked with, None if they were not read.
        """
        if size > _MAX_BODY or len(self._waiting) >= _MAX_WAITING:
            return
        texts = dict(_declarations(messages, stored))
        if not texts:
            return
        key = _key((owner, dataset, allowed), texts.values())
        forgotten = allowed and pinned is not None and len(pinned) < MAX_TOOLS and not texts.keys() <= pinned.keys()
        if key in self._waiting or (not forgotten and self._known.get(key, 0.0) > time.monotonic()):
            return
        now = time.time()
        tools = {
            name: Declared(hashlib.sha256(text).hexdigest(), text if len(text) <= MAX_DECLARATION else b"", now)
            for name, text in texts.items()
        }
        self._waiting[key] = DeclaredTools(owner, dataset, tools, allowed)
        self._wake.set()

    async def run(self) -> None:
        """Write what was seen, until cancelled. What the database does not take is seen again in a later exchange."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            taken, self._waiting = self._waiting, {}
            try:
                # Each in its own transaction, so that traces wait for one at most.
                for key, seen in taken.items():
                    await self._pins.learn(seen)
                    self._remember(key)
            except StoreError as error:
                logger.warning("declared tools were not kept: %s", error)
            await asyncio.sleep(_PAUSE)

    def _remember(self, key: bytes) -> None:
        self._known[key] = time.monotonic() + _KNOWN_SECONDS
        self._known.move_to_end(key)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)


def pinned_digests(connection: Connection, dataset: int) -> dict[str, str]:
    """Return the digests of a dataset's tools by their names."""
    query = select(pinned_tools.c.name, pinned_tools.c.digest).where(pinned_tools.c.dataset == dataset)
    return {name: digest for name, digest in connection.execute(query)}


def _declarations(
    messages: Sequence[Mapping[str, Any]], stored: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, bytes]]:
    """Yield the declarations of tools by name; of a repeated name the first one, as rules take it."""
    seen: set[str] = set()
    for message, bare in zip(messages, stored, strict=False):
        if "tools" not in message:
            continue
        for tool, kept in zip(message.get("tools") or (), bare.get("tools") or (), strict=False):
            name = tool["name"]
            if name in seen or not 0 < len(name) <= MAX_NAME or not name.isprintable():
                continue
            seen.add(name)
            if tool is kept or tool == kept:
                yield name, tool_declaration(kept)


def _key(of: tuple[object, ...], texts: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256(orjson.dumps(of))
    for text in texts:
        digest.update(len(text).to_bytes(8, "big"))
        digest.update(text)
    return digest.digest()


def _learn(connection: Connection, seen: DeclaredTools) -> None:
    where = datasets.c.owner == seen.owner, datasets.c.name == seen.dataset
    dataset = connection.scalar(select(datasets.c.seq).where(*where))
    if dataset is None:
        return
    columns = pinned_tools.c.name, pinned_tools.c.digest, pinned_tools.c.changed_digest
    kept = connection.execute(select(*columns).where(pinned_tools.c.dataset == dataset))
    known = {name: digests for name, *digests in kept}
    # Always in the same order, so that two transactions cannot wait for each other.
    for name, declared in sorted(seen.tools.items()):
        if name in known and declared.digest not in known[name]:
            _keep_change(connection, dataset, name, declared)
    new = [name for name in sorted(seen.tools) if name not in known] if seen.allowed else []
    if new := new[: max(0, MAX_TOOLS - len(known))]:
        _pin(connection, dataset, {name: seen.tools[name] for name in new})
        revision.advance(connection)


def _pin(connection: Connection, dataset: int, tools: Mapping[str, Declared]) -> None:
    """Pin tools, but those that another process has pinned meanwhile."""
    rows = [
        {"dataset": dataset, "name": name, "digest": tool.digest, "text": tool.text, "at": tool.at}
        for name, tool in tools.items()
    ]
    connection.execute(insert_into(pinned_tools, connection.dialect.name).on_conflict_do_nothing(), rows)


def _keep_change(connection: Connection, dataset: int, name: str, declared: Declared) -> None:
    row = {"changed_digest": declared.digest, "changed_text": declared.text, "changed_at": declared.at}
    where = pinned_tools.c.dataset == dataset, pinned_tools.c.name == name, pinned_tools.c.digest != declared.digest
    connection.execute(update(pinned_tools).where(*where).values(row))


def _tool(row: RowMapping) -> PinnedTool:
    changed = Declared(row["changed_digest"], row["changed_text"] or b"", row["changed_at"])
    return PinnedTool(
        row["name"],
        Declared(row["digest"], row["text"], row["at"]),
        changed if row["changed_digest"] is not None else None,
    )
