"""Find the part of a conversation that was allowed before, for rules that check only new content."""

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Final

import orjson

from gemini_proxy.gemini.messages import Message
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.guardrails.turn_digests import answered, turn_ends
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.masker import names_of
from gemini_proxy.proxy.tasks import off_loop
from gemini_proxy.sections import Guardrails
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.known_digests import KnownDigests
from gemini_proxy.traces.trace import Outcome

log = logging.getLogger(__name__)

_VERSION: Final = version("gemini-proxy")
"""Part of each digest, because detectors of another version may find more."""
_MOST_TURNS: Final = 64
"""The newest model turns that a history is recognized by; a client that goes back further starts over."""


class AllowedTurns:
    """Find and remember which turns of conversations were allowed. ``known`` keeps the digests.

    They are for exchanges of which a rule checks only new content (``GuardrailSet.narrows``). Content counts as allowed
    only in the same place: after the same messages, from the beginning on, up to the end of a turn of the model. The
    client's last messages are always new. A digest is valid for one owner, dataset and set of such rules, so that a new
    rule sees everything.
    """

    def __init__(self, guardrails: Guardrails, known: KnownDigests) -> None:
        self._guardrails = guardrails
        self._known = known
        # Other engines check the whole conversation, whatever a rule says.
        self._used = guardrails.engine == "native"

    async def find(self, exchange: Exchange) -> None:
        """Set how many messages of the request were allowed before."""
        if not self._used:
            return
        exchange.asked = messages = exchange.checked_request.messages
        by_digest = await off_loop(exchange.size, self._ends, exchange, messages)
        try:
            known = await self._known.known(by_digest) if by_digest else frozenset[str]()
        except StoreError as error:
            log.warning("earlier allowed turns cannot be read, so all turns count as new: %s", error)
            return
        exchange.allowed = max((by_digest[digest] for digest in known), default=0)

    async def remember(self, exchange: Exchange) -> None:
        """Store digests of the turns allowed now, so that a history that repeats them is recognized.

        Content that was refused before and is masked in a history does not count as allowed.
        """
        if not self._used or exchange.asked is None:
            return
        if exchange.outcome is not Outcome.COMPLETED or not exchange.response_messages:
            return
        if any(violation.healed for violation in exchange.violations):
            return
        digests = await off_loop(exchange.size, self._answered, exchange, exchange.asked)
        try:
            await self._known.remember(digests)
        except StoreError as error:
            log.warning("allowed turns cannot be stored, so they count as new in the next request: %s", error)

    def _ends(self, exchange: Exchange, messages: Sequence[Message]) -> dict[str, int]:
        """Return the ends of the model's turns in a history, each by its digest."""
        ends = [(count, digest) for count, digest in turn_ends(messages) if count < len(messages)]
        keyed = self._keyed(exchange)
        return {keyed(digest): count for count, digest in ends[-_MOST_TURNS:]}

    def _answered(self, exchange: Exchange, messages: Sequence[Message]) -> list[str]:
        return list(map(self._keyed(exchange), answered(messages, exchange.response_messages)))

    def _keyed(self, exchange: Exchange) -> Callable[[str], str]:
        """Return the part that ties a digest to the exchange's owner, dataset and rules."""
        # Traces hold the texts themselves, so a digest without a key of its own reveals nothing more.
        names = names_of(self._guardrails, exchange, b"gemini-proxy")
        rules = self._rules(exchange.rules)
        return lambda digest: names.digest(f"{rules}\0{digest}")

    def _rules(self, rules: GuardrailSet) -> str:
        """Return all inputs of the rules that check only new content."""
        narrow = [guardrail for guardrail in rules.all if guardrail.policy.narrows]
        read = frozenset(name for guardrail in narrow for name in guardrail.policy.parameters)
        compares = any("tool_changed" in guardrail.policy.called for guardrail in narrow)
        facts = (
            _VERSION,
            self._guardrails.thoughts,
            sorted(f"{guardrail.action} {guardrail.policy.text}" for guardrail in narrow),
            {name: value for name, value in self._guardrails.parameters.items() if name in read},
            rules.tools.labels,
            rules.tools.pinned if compares else {},
        )
        return orjson.dumps(facts, default=str, option=orjson.OPT_SORT_KEYS).decode()
