"""Define guardrails, which are policies with a name and an action, and the set of them that an exchange goes by."""

import asyncio
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, cast

from gemini_proxy.gemini.refusal import Refusal
from gemini_proxy.guardrails.plugins import load_policy, loaded_policy
from gemini_proxy.policy import LABELS_PARAMETER as LABELS
from gemini_proxy.policy import (
    MAX_PROGRAM,
    Conversation,
    EvaluationError,
    Policy,
    PolicyWarning,
    joined_labels,
)
from gemini_proxy.policy import PINS_PARAMETER as PINNED

Action = Literal["block", "ask", "mask", "log"]
_STRENGTHS: Mapping[object, int] = MappingProxyType({"log": 0, "mask": 1, "ask": 2, "block": 3})

HEADER_NAME = "Invariant-Guardrails"
MAX_HEADER_PROGRAM = 2_000
"""Instructions of a regular expression in a request header: a fifth of an operator's limit, and several times what
published policies need."""
BRIEF_POLICY = 500
"""Characters up to which any policy compiles in a few milliseconds."""


_NO_PARAMETERS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A policy in force and the action on its violations.

    ``block`` refuses, ``ask`` has a person decide, ``mask`` hides the match from the model, ``log`` only annotates the
    trace. A rule of the policy may ask for a stronger action than the guardrail's, never for a weaker one. A
    ``foreign`` guardrail came with the request, and only its sender bears its cost. ``modified`` is the Unix time of
    the last change to its file, None without a file.
    """

    id: str
    name: str
    action: Action
    policy: Policy = field(repr=False)
    foreign: bool = False
    modified: float | None = field(default=None, compare=False)
    actions: frozenset[Action] = field(init=False, repr=False, compare=False)
    """Every action that a violation of it may have."""

    def __post_init__(self) -> None:
        # Computed once: sets of guardrails are made for each exchange with a dataset.
        actions = frozenset(stronger(self.action, rule.action) for rule in self.policy.rules)
        object.__setattr__(self, "actions", actions or frozenset({self.action}))

    @property
    def described(self) -> dict[str, str]:
        """Return the guardrail as annotations and refusals name it."""
        return {"id": self.id, "name": self.name, "content": self.policy.text, "action": self.action}

    @property
    def loaded(self) -> str:
        """Return the guardrail as the audit log keeps that it was loaded: its action, and the SHA-256 of its text."""
        return f"{self.action} {hashlib.sha256(self.policy.text.encode(errors='surrogatepass')).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Shadow:
    """A policy that runs beside the guardrail ``in_force``, which it may replace, and decides nothing.

    ``in_force`` is None for a policy that would be new. A shadow is compiled when it runs, so one that does not load
    harms no exchange. ``seq`` numbers the comparison, which begins again when either side changes.
    """

    seq: int
    policy: str
    name: str
    content: str
    action: Action
    share: int
    in_force: Guardrail | None = None

    def takes(self, conversation: str) -> bool:
        """Return whether a conversation is in the ``share`` percent that are compared.

        A larger share contains all conversations of a smaller one.
        """
        digest = hashlib.sha256(f"{self.policy} {conversation}".encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") * 100 < self.share << 64


@dataclass(frozen=True, slots=True)
class ToolFacts:
    """Facts about a dataset's tools, by name: the ``labels`` that its owner set, and the ``pinned`` digests."""

    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pinned: Mapping[str, str] = field(default_factory=dict)

    def within(self, configured: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the ``configured`` parameters, with the facts about tools in ``messages`` added.

        The configuration's labels stay, and its digests take precedence over pinned ones.
        """
        added: dict[str, Any] = {}
        if self.labels:
            added[LABELS] = joined_labels(configured.get(LABELS) or {}, self.labels)
        if self.pinned:
            declared = (tool["name"] for message in messages for tool in message.get("tools") or ())
            kept = {name: self.pinned[name] for name in declared if name in self.pinned}
            added[PINNED] = {**kept, **(configured.get(PINNED) or {})}
        return {**configured, **added} if added else configured


_NO_FACTS = ToolFacts()


@dataclass(frozen=True, slots=True)
class GuardrailSet:
    """The guardrails of one exchange, by action, and the data on its dataset's tools that they may use."""

    blocking: tuple[Guardrail, ...] = ()
    logging: tuple[Guardrail, ...] = ()
    tools: ToolFacts = _NO_FACTS
    masking: tuple[Guardrail, ...] = ()
    asking: tuple[Guardrail, ...] = ()
    shadows: tuple[Shadow, ...] = ()
    """Policies to compare with those in force once the exchange is recorded."""
    deciding: tuple[Guardrail, ...] = field(init=False, repr=False, compare=False)
    """Guardrails that are checked before any part of a request or response leaves."""
    deciding_names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Their names, for the coverage of every exchange."""
    annotating: tuple[Guardrail, ...] = field(init=False, repr=False, compare=False)
    """Guardrails that are checked once the exchange is recorded: they only annotate."""
    masks: bool = field(init=False, repr=False, compare=False)
    """True if a guardrail may mask."""
    overlaps: bool = field(init=False, repr=False, compare=False)
    """True if a request may go upstream during its check, because the check can only refuse it."""
    compares_tools: bool = field(init=False, repr=False, compare=False)
    """True if a policy checks tools for changes."""
    narrows: bool = field(init=False, repr=False, compare=False)
    """True if a rule checks only new content."""

    def __post_init__(self) -> None:
        stronger_rules = tuple(guardrail for guardrail in self.logging if guardrail.actions != {"log"})
        deciding = (*self.blocking, *self.asking, *self.masking, *stronger_rules)
        object.__setattr__(self, "deciding", deciding)
        object.__setattr__(self, "deciding_names", tuple(guardrail.name for guardrail in deciding))
        annotating = tuple(guardrail for guardrail in self.logging if guardrail not in stronger_rules)
        object.__setattr__(self, "annotating", annotating)
        actions = frozenset(action for guardrail in deciding for action in guardrail.actions)
        object.__setattr__(self, "masks", "mask" in actions)
        object.__setattr__(self, "overlaps", not actions & {"mask", "ask"})
        compares_tools = any("tool_changed" in guardrail.policy.called for guardrail in self.all)
        object.__setattr__(self, "compares_tools", compares_tools)
        object.__setattr__(self, "narrows", any(guardrail.policy.narrows for guardrail in self.all))

    @classmethod
    def of(
        cls, guardrails: Iterable[Guardrail], tools: ToolFacts = _NO_FACTS, shadows: tuple[Shadow, ...] = ()
    ) -> "GuardrailSet":
        """Sort guardrails by their action."""
        by_action: dict[Action, list[Guardrail]] = {"block": [], "ask": [], "mask": [], "log": []}
        for one in guardrails:
            by_action[one.action].append(one)
        block, ask, mask, log = (tuple(some) for some in by_action.values())
        return cls(block, log, tools, mask, ask, shadows)

    @property
    def all(self) -> tuple[Guardrail, ...]:
        """Return every guardrail, the strongest actions first."""
        return (*self.blocking, *self.asking, *self.masking, *self.logging)

    @property
    def actions(self) -> frozenset[Action]:
        """Return the actions that some guardrail here has."""
        return frozenset(guardrail.action for guardrail in self.all)

    def without(self, actions: Collection[Action]) -> "GuardrailSet":
        """Return the set without the guardrails of ``actions``, in whose place others come."""
        kept = (guardrail for guardrail in self.all if guardrail.action not in actions)
        return GuardrailSet.of(kept, self.tools, self.shadows)

    @property
    def digest(self) -> str:
        """Return a digest of the guardrails here that decide, the same on every machine."""
        named = sorted(f"{guardrail.id} {guardrail.action}" for guardrail in self.deciding)
        return hashlib.sha256("\n".join(named).encode()).hexdigest() if named else ""


def stronger(action: Action, other: object) -> Action:
    """Return the stronger of two actions; ``action`` where ``other`` is none."""
    return cast("Action", other) if _STRENGTHS.get(other, -1) > _STRENGTHS[action] else action


def strongest(actions: Iterable[Action]) -> Action | None:
    """Return the strongest of some actions; None where there are none."""
    return max(actions, key=_STRENGTHS.__getitem__, default=None)


def guardrail(name: str, text: str, action: Action, *, foreign: bool = False, asks: bool = False) -> Guardrail:
    """Compile ``text`` into a guardrail whose id is that of its content; ``asks`` as in ``load_policy``.

    Raises PolicyError.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    policy = load_policy(text, name, MAX_HEADER_PROGRAM if foreign else MAX_PROGRAM, asks=asks)
    return Guardrail(digest, name, action, policy, foreign)


def is_brief(name: str, text: str, max_program: int = MAX_PROGRAM) -> bool:
    """Return whether a policy compiles at once: it is short, or compiled already."""
    return len(text) <= BRIEF_POLICY or loaded_policy(text, name, max_program) is not None


_COMPILER = ThreadPoolExecutor(1, "policy-compiler")


async def compile_guardrail(name: str, text: str, action: Action) -> Guardrail:
    """Compile a policy that a user stored, a long one in a thread. Raises PolicyError.

    A thread lets the event loop run every few milliseconds. Long policies are compiled one at a time: several threads
    would leave the loop only a fraction of the processor. They have their own thread, so that waiting policies do not
    delay other work in threads. A policy that its sender repeats is compiled once.
    """
    if is_brief(name, text):
        return guardrail(name, text, action)
    return await asyncio.get_running_loop().run_in_executor(_COMPILER, guardrail, name, text, action)


def parameters_missing(rules: Sequence[Guardrail], configured: dict[str, Any]) -> list[str]:
    """Return ``policy: input.name`` for each parameter that a policy reads and ``configured`` lacks."""
    return [f"{rule.name}: input.{name}" for rule in rules for name in sorted(rule.policy.parameters - set(configured))]


def echo_warnings(policy: Policy, prefix: str, parameters: Mapping[str, Any] = _NO_PARAMETERS) -> list[PolicyWarning]:
    """Warn of each rule whose refusal, sent back in a chat's history, would make a rule of ``policy`` fire again.

    ``prefix`` is ``refusals.prefix``. Messages that depend on the match are not tried, nor are policies that read a
    parameter missing from ``parameters``.
    """
    return [
        PolicyWarning(rule.line, 1, "its refusal would refuse the rest of the chat")
        for rule in policy.rules
        if rule.message and any(_is_refused(policy, said, parameters) for said in _refusals(rule.message, prefix))
    ]


def _refusals(message: str, prefix: str) -> tuple[str, str]:
    return Refusal("request", (message,), prefix=prefix).text, Refusal("response", (message,), prefix=prefix).text


def _is_refused(policy: Policy, said: str, parameters: Mapping[str, Any]) -> bool:
    """Return whether ``policy`` fires on a turn of the model that says ``said``. False if a check gives no verdict."""
    try:
        return bool(policy.check(Conversation.of([{"role": "assistant", "content": said}]), parameters))
    except EvaluationError:
        return False


def nothing_checked(files: GuardrailSet, engine: str) -> str:
    """Say why no exchange is checked before it goes on; "" if the policy files have rules that check.

    The text says that datasets may have rules of their own, unless the engine is off.
    """
    if engine == "off":
        return 'Nothing is checked: guardrails.engine is "off"'
    if not files.deciding:
        return (
            "No policy file blocks, asks or masks (guardrails.policies): "
            "only rules of a dataset or a client check an exchange"
        )
    return ""
