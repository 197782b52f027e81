"""The rules that hold for a dataset: those of its policies that are enabled, compiled."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, select

from gemini_proxy.errors import Unavailable
from gemini_proxy.guardrails.rules import Guardrail, RuleSet, compile_guardrail
from gemini_proxy.policy import PolicyError
from gemini_proxy.traces import revision
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.policies import StoredPolicy, stored
from gemini_proxy.traces.schema import datasets
from gemini_proxy.traces.snapshot import Revisions

_KEPT: Final = 256
"""Datasets whose rules stay compiled: more than are in use at a time on one machine."""


class DatasetRules:
    """Compiles a dataset's policies when they have changed."""

    def __init__(self, database: Database, revisions: Revisions) -> None:
        self._database = database
        self._revisions = revisions
        self._kept: OrderedDict[tuple[str, str], tuple[int, RuleSet | None]] = OrderedDict()

    async def of(self, owner: str, dataset: str) -> RuleSet | None:
        """What holds for a request to the dataset that comes now; None where no policy of it is enabled.

        Raises StoreError; and Unavailable for a policy that does not load any more, such as one whose detector was
        uninstalled: rather no answer than one that is not checked.
        """
        seen = await self._revisions.now()
        kept = self._kept.get((owner, dataset))
        if kept is None or kept[0] != seen:
            kept = await self._load(owner, dataset)
            self._kept[owner, dataset] = kept
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end((owner, dataset))
        return kept[1]

    async def _load(self, owner: str, dataset: str) -> tuple[int, RuleSet | None]:
        def work(connection: Connection) -> tuple[int, list[StoredPolicy]]:
            # The revision first: what changes between the two is read again next time.
            seen = revision.current(connection)
            found = connection.scalar(
                select(datasets.c.seq).where(datasets.c.owner == owner, datasets.c.name == dataset)
            )
            return seen, stored(connection, found) if found is not None else []

        seen, policies = await self._database.read(work)
        return seen, await _compiled([policy for policy in policies if policy.enabled])


async def _compiled(policies: Sequence[StoredPolicy]) -> RuleSet | None:
    if not policies:
        return None
    rules = [await _guardrail(policy) for policy in policies]
    return RuleSet(
        tuple(rule for rule in rules if rule.action == "block"), tuple(rule for rule in rules if rule.action == "log")
    )


async def _guardrail(policy: StoredPolicy) -> Guardrail:
    try:
        loaded = await compile_guardrail(policy.name, policy.content, policy.action)
    except PolicyError:
        raise Unavailable(f"The dataset's policy {policy.name} does not load: its dataset cannot be used.") from None
    return Guardrail(policy.id, policy.name, policy.action, loaded.policy)
