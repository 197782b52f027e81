"""Decide which alerts to send where, and when: values, no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

Kind = Literal["approval_waiting", "refusals", "upstream_errors", "unrecorded_traces", "budget_spent"]
Format = Literal["json", "slack"]

BUCKETS: Final = 60
"""Parts of a window that are counted apart: its beginning is so exact."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """One entry of ``[[alerts]]``: the events to send to ``url``. Times are in seconds.

    A message is due when ``threshold`` notices with the same key came within ``window``; for one key there is at most
    one message in ``silence``. ``guardrails`` limits the reported guardrails; empty means all.
    """

    name: str
    on: frozenset[Kind]
    url: str = field(repr=False)
    format: Format = "json"
    signing_secret: bytes | None = field(default=None, repr=False)
    guardrails: frozenset[str] = frozenset()
    threshold: int = 1
    window: float = 300.0
    silence: float = 300.0

    def wants(self, kind: Kind, key: str) -> bool:
        """Return whether notices of ``kind`` with ``key`` are told."""
        by_guardrail = kind in ("approval_waiting", "refusals") and self.guardrails
        return kind in self.on and (not by_guardrail or key in self.guardrails)

    def threshold_of(self, kind: Kind) -> int:
        """Return how many notices of ``kind`` make a message: a person is asked for every approval."""
        return 1 if kind == "approval_waiting" else self.threshold


@dataclass(frozen=True, slots=True)
class Notice:
    """``count`` events of one kind at about the same time. ``key`` is what they have in common, such as the guardrail.

    ``example`` describes the last of them, without anything that a client or a model said.
    """

    kind: Kind
    key: str
    count: int
    at: float
    example: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gathered:
    """The events that one alert has gathered of one kind and key.

    ``buckets`` count the notices of the window by when they came; ``total`` is all since the last message, the first
    at ``since``. ``crossed`` says that they reached the threshold, so that a message is due after ``silent_until``.
    """

    buckets: tuple[tuple[float, int], ...] = ()
    total: int = 0
    since: float = 0.0
    crossed: bool = False
    silent_until: float = 0.0
    example: Mapping[str, Any] = field(default_factory=dict)

    def add(self, notice: Notice, rule: AlertRule) -> "Gathered":
        """Return this with a notice more."""
        width = rule.window / BUCKETS
        start = notice.at - notice.at % width
        counts = {at: count for at, count in self.buckets if abs(notice.at - at) < rule.window}
        counts[start] = counts.get(start, 0) + notice.count
        crossed = self.crossed or sum(counts.values()) >= rule.threshold_of(notice.kind)
        return replace(
            self,
            buckets=tuple(sorted(counts.items())),
            total=self.total + notice.count,
            since=min(self.since, notice.at) if self.total else notice.at,
            crossed=crossed,
            example=notice.example or self.example,
        )

    def is_due(self, now: float, rule: AlertRule) -> bool:
        """Return whether a message is to be sent now.

        A silence longer than the rule's was begun before the clock was set back: it is over.
        """
        return self.crossed and not now < self.silent_until <= now + rule.silence

    def told(self, now: float, rule: AlertRule) -> "Gathered":
        """Return this after its message: nothing gathered, and silence."""
        return Gathered(silent_until=now + rule.silence)


@dataclass(frozen=True, slots=True)
class AlertMessage:
    """A message that waits to be sent: ``count`` notices from ``since`` on.

    ``id`` stays the same when it is sent again; ``attempts`` includes this one; ``expires`` is the time to give it up.
    Times are in Unix seconds.
    """

    seq: int
    id: str
    alert: str
    kind: Kind
    key: str
    count: int
    since: float
    created: float
    expires: float
    attempts: int
    example: Mapping[str, Any]
