"""Find the rules in force for a dataset: its enabled policies, and the files' of any action that none of them has."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from sqlalchemy import Connection, select

from gemini_proxy.errors import BadRequest, Unavailable
from gemini_proxy.guardrails.rules import Guardrail, GuardrailSet, ToolFacts, compile_guardrail
from gemini_proxy.policy import PolicyError
from gemini_proxy.traces import revision
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import UNNAMED, labels_of, require_room
from gemini_proxy.traces.errors import TooMany
from gemini_proxy.traces.pinned_tools import pinned_digests
from gemini_proxy.traces.policies import StoredPolicy, stored
from gemini_proxy.traces.revision import Revisions, Snapshots
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.schema import datasets
from gemini_proxy.traces.shadows import StoredShadow, running

_KEPT: Final = 256
"""Datasets whose rules stay compiled: more than are in use at a time on one machine."""


class DatasetRules:
    """Compile a dataset's policies when they have changed."""

    def __init__(self, database: Database, revisions: Revisions) -> None:
        self._database = database
        self._rules = Snapshots(revisions, self._load, _KEPT)

    async def of(self, owner: str, dataset: str, files: GuardrailSet) -> GuardrailSet:
        """Return the rules for a request to the dataset now; ``files`` are the rules of the policy files.

        Raises StoreError; BadRequest for a missing dataset that cannot be created because the owner has too many; and
        Unavailable for a policy that no longer loads, such as one whose detector was uninstalled: better no response
        than an unchecked one.
        """
        return (await self._rules.now((owner, dataset))).beside(files)

    async def _load(self, key: tuple[str, str]) -> tuple[int, "_OwnRules"]:
        try:
            seen, found = await self._database.read(revision.stamped(lambda connection: _stored(connection, *key)))
        except TooMany as error:
            raise BadRequest(f"{error}") from None
        policies, tools, shadows = found
        compiled = await _compiled(policy for policy in policies if policy.enabled)
        by_id = {guardrail.id: guardrail for guardrail in compiled.all}
        beside = tuple(shadow.beside(by_id.get(shadow.policy)) for shadow in shadows)
        return seen, _OwnRules(replace(compiled, tools=tools, shadows=beside))


class _OwnRules:
    """A dataset's own rules, which are the same for many requests, and so are those that they stand beside."""

    __slots__ = ("_all", "_files", "_own")

    def __init__(self, own: GuardrailSet) -> None:
        self._own = own
        self._files: GuardrailSet | None = None
        self._all = own

    def beside(self, files: GuardrailSet) -> GuardrailSet:
        """Return the rules with those of ``files`` of any action that none of them has."""
        if files is not self._files:
            own, rest = self._own, files.without(self._own.actions)
            self._files, self._all = files, GuardrailSet.of((*own.all, *rest.all), own.tools, own.shadows)
        return self._all


def files_in_force(policies: Iterable[StoredPolicy], files: GuardrailSet) -> GuardrailSet:
    """Return what holds of the files' rules for a dataset with these policies."""
    return files.without({policy.action for policy in policies if policy.enabled})


def _stored(
    connection: Connection, owner: str, dataset: str
) -> tuple[list[StoredPolicy], ToolFacts, list[StoredShadow]]:
    query = select(datasets.c.seq, datasets.c.metadata).where(datasets.c.owner == owner, datasets.c.name == dataset)
    found = connection.execute(query).first()
    if found is None:
        # The first trace creates it.
        if dataset != UNNAMED:
            require_room(connection, owner)
        return [], ToolFacts(), []
    seq, metadata = found
    facts = ToolFacts(labels_of(load(metadata)), pinned_digests(connection, seq))
    return stored(connection, seq), facts, running(connection, seq)


async def _compiled(policies: Iterable[StoredPolicy]) -> GuardrailSet:
    return GuardrailSet.of([await _guardrail(policy) for policy in policies])


async def _guardrail(policy: StoredPolicy) -> Guardrail:
    try:
        loaded = await compile_guardrail(policy.name, policy.content, policy.action)
    except PolicyError:
        raise Unavailable(f"The dataset's policy {policy.name} does not load: its dataset cannot be used") from None
    return Guardrail(policy.id, policy.name, policy.action, loaded.policy)
