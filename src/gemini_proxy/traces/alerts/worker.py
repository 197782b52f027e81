"""Gather and send alerts, in one process for all that share the database, until they arrive or are given up."""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, Protocol

from gemini_proxy.traces.alerts.outbox import AlertOutbox
from gemini_proxy.traces.alerts.rules import AlertMessage, AlertRule
from gemini_proxy.traces.clock import Clock, SystemClock
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.push.answers import Answer, Failed, Failure, Rejected
from gemini_proxy.traces.push.worker import pause

logger = logging.getLogger(__name__)

_PERIOD: Final = 1.0
"""Seconds between two looks for messages to send."""
_IDLE_PERIOD: Final = 10.0
"""The same while there is no alert rule."""
_BATCH: Final = 50
_LEASE: Final = 120.0
"""Seconds that taken messages are this process's alone: more than one round of sending takes."""
_ROUND: Final = 60.0
"""Seconds after which a round sends nothing more: the rest is left to the next one."""


class Sender(Protocol):
    """A receiver of messages."""

    async def send(self, message: AlertMessage, rule: AlertRule) -> Answer:
        """Send a message once; within some seconds, and without raising."""
        ...


class AlertWorker:
    """Gather and send alerts from ``run()``. ``rules()`` returns those in force.

    A message is tried until it is accepted, with growing pauses, for a day at most; one about approvals until the last
    of them has expired. It is sent twice if this process ends between the response and the removal of the message. The
    counters, by the name of the alert, and ``last_errors`` belong to this process.
    """

    def __init__(
        self,
        outbox: AlertOutbox,
        sender: Sender,
        rules: Callable[[], Sequence[AlertRule]],
        *,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._rules = rules
        self._clock = clock or SystemClock()
        self._jitter = jitter
        self.sent: Counter[str] = Counter()
        self.given_up: Counter[str] = Counter()
        self.failures: Counter[tuple[str, Failure]] = Counter()
        self.last_errors: dict[str, Failure] = {}

    @property
    def outbox(self) -> AlertOutbox:
        """Return the messages that wait, of all processes."""
        return self._outbox

    @property
    def rules(self) -> Sequence[AlertRule]:
        """Return the rules in force."""
        return self._rules()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                while await self._outbox.gather(self._rules(), self._clock.time()):
                    pass
                await self._send_due()
            except StoreError as error:
                logger.warning("alerts wait: %s", error)
            await self._clock.sleep(_PERIOD if self._rules() else _IDLE_PERIOD)

    async def _send_due(self) -> None:
        """Send what is due: the messages of one alert one by one, so that a receiver that hangs delays no other."""
        taken = await self._outbox.take(_BATCH, self._clock.time(), _LEASE)
        until = self._clock.time() + _ROUND
        async with asyncio.TaskGroup() as group:
            for name, messages in groupby(sorted(taken, key=attrgetter("alert", "seq")), attrgetter("alert")):
                group.create_task(self._send_all(name, list(messages), until))

    async def _send_all(self, name: str, messages: Sequence[AlertMessage], until: float) -> None:
        rule = next((rule for rule in self._rules() if rule.name == name), None)
        failed: Failed | None = None
        for message in messages:
            now = self._clock.time()
            if rule is None or message.expires <= now:
                await self._give_up(message, "it is not in the configuration" if rule is None else "it has expired")
            elif failed is not None or now > until:
                await self._postpone(message, self._pause(message, failed), tried=False)
            else:
                answer = await self._sender.send(message, rule)
                failed = answer if isinstance(answer, Failed) else None
                await self._answered(message, answer)

    async def _answered(self, message: AlertMessage, answer: Answer) -> None:
        name = message.alert
        if isinstance(answer, Failed):
            if name not in self.last_errors:
                logger.warning("the alert %s is not delivered: %s", name, answer.reason)
            self.failures[name, answer.reason] += 1
            self.last_errors[name] = answer.reason
            await self._postpone(message, self._pause(message, answer))
        elif isinstance(answer, Rejected):
            await self._give_up(message, f"HTTP {answer.status}")
        else:
            if self.last_errors.pop(name, None) is not None:
                logger.warning("the alert %s is delivered again", name)
            self.sent[name] += 1
            await self._finish(message)

    def _pause(self, message: AlertMessage, failed: Failed | None) -> float:
        return pause(message.attempts, self._jitter(), failed.retry_after) if failed else 0.0

    async def _give_up(self, message: AlertMessage, why: str) -> None:
        logger.error("a message of the alert %s is given up: %s", message.alert, why)
        self.given_up[message.alert] += 1
        await self._finish(message)

    async def _finish(self, message: AlertMessage) -> None:
        """Remove a message, however long the database does not let us: what is delivered must not be sent again."""
        while True:
            try:
                return await self._outbox.finish(message)
            except StoreError as error:
                logger.warning("a message of the alert %s cannot be marked as done: %s", message.alert, error)
                await self._clock.sleep(1.0)

    async def _postpone(self, message: AlertMessage, seconds: float, *, tried: bool = True) -> None:
        try:
            await self._outbox.postpone(message, self._clock.time() + seconds, tried=tried)
        except StoreError as error:
            logger.warning("a message of the alert %s waits for the end of its lease: %s", message.alert, error)
