"""The traces of a store of a month's exchanges: made up, but with the sizes and frequencies of real ones."""

import itertools
import random
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

from gemini_proxy.traces.trace import Annotation, Outcome, Trace

Name = TypeVar("Name")

OWNER: Final = "developer"
DAYS: Final = 30
DATASETS: Final = {
    "support-agent": 78,
    "coding-agent": 12,
    "research": 7,
    "billing": 1,
    **{f"team-{number}": 0.1 for number in range(20)},
}
KEYS: Final = {"a" * 64: 900, "b" * 64: 99, "c" * 64: 1}
"""The keyed hashes of the keys that exchanges come with."""
LABEL: Final = "false alarm"
LABEL_ONE_IN: Final = 1_000
MODELS: Final = {
    "gemini-2.5-flash": 7_000,
    "gemini-2.5-pro": 2_000,
    "gemini-2.5-flash-lite": 900,
    "gemini-2.0-flash": 99,
    "gemini-3-experimental": 1,
}
OUTCOMES: Final = {
    Outcome.COMPLETED: 9_600,
    Outcome.REFUSED_REQUEST: 120,
    Outcome.REFUSED_RESPONSE: 80,
    Outcome.UPSTREAM_ERROR: 100,
    Outcome.CLIENT_GONE: 99,
    Outcome.FAILED: 1,
}
RULES: Final = {"secrets": 50, "personal-data": 30, "prompt-injection": 15, "exfiltration": 4.9, "canary": 0.1}
# A logging rule that fires on every tenth exchange.
LOGGED: Final = "tone"
RARE_WORD: Final = "xylophone"
RARE_ONE_IN: Final = 20_000
CONVERSATION: Final = "c7"
PHRASE: Final = "please reset my password"
PHRASE_ONE_IN: Final = 500

_SYLLABLES: Final = ("ka", "lo", "mi", "ten", "ra", "vos", "su", "pel", "dor", "ni", "gar", "eth", "on", "is", "ul")
_FREQUENT: Final = tuple("the of and to in is that it for you with on as are this be have please error file".split())


def vocabulary() -> tuple[tuple[str, ...], list[float]]:
    """Twenty thousand words, and how often each comes up, cumulated: Zipf's law."""
    made = ("".join(parts) for count in (2, 3, 4) for parts in itertools.product(_SYLLABLES, repeat=count))
    words = (*_FREQUENT, *itertools.islice(made, 20_000))
    return words, list(itertools.accumulate(1 / (rank + 2) for rank in range(len(words))))


def made_up(count: int, until: float, seed: int = 1, days: float = DAYS) -> Iterator[Trace]:
    """``count`` traces, the same for every run but for their times, which are the ``days`` before ``until``."""
    chance = random.Random(seed)
    words, weights = vocabulary()
    for number in range(count):
        created = until - days * 86_400 * (1 - number / count)
        yield _trace(chance, words, weights, number, created)


def _trace(chance: random.Random, words: tuple[str, ...], weights: list[float], number: int, created: float) -> Trace:
    said = chance.choices(words, cum_weights=weights, k=chance.randrange(120, 320))
    if number % RARE_ONE_IN == 7:
        said[3] = RARE_WORD
    if number % PHRASE_ONE_IN == 11:
        said[5:5] = PHRASE.split()
    outcome, model = _one(chance, OUTCOMES), _one(chance, MODELS)
    duration = chance.lognormvariate(7, 0.8)
    return Trace(
        id=str(uuid.UUID(int=chance.getrandbits(128), version=4)),
        created=created,
        outcome=outcome,
        owner=OWNER,
        dataset=_one(chance, DATASETS),
        model=model,
        stream=number % 3 > 0,
        duration_ms=duration,
        messages=_messages(said, number),
        tenant=_one(chance, KEYS),
        annotations=(*_annotations(chance, outcome), *((_LABELLED,) if number % LABEL_ONE_IN == 13 else ())),
        metadata={**_metadata(model, duration, len(said), outcome), "conversation": f"c{number // 2}"},
    )


def _messages(said: list[str], number: int) -> list[dict[str, Any]]:
    half = len(said) // 2
    call = {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": "look_up", "arguments": {"query": " ".join(said[:4]), "limit": 10}},
    }
    return [
        {"role": "system", "content": "You help the customers of a shop with their orders."},
        {"role": "user", "content": " ".join(said[:half])},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"call_{number}", "content": {"result": " ".join(said[half : half + 20])}},
        {"role": "assistant", "content": " ".join(said[half:])},
    ]


def _annotations(chance: random.Random, outcome: Outcome) -> tuple[Annotation, ...]:
    found = []
    if outcome in (Outcome.REFUSED_REQUEST, Outcome.REFUSED_RESPONSE):
        found.append(_annotation(_one(chance, RULES), "block"))
    if chance.random() < 0.1:
        found.append(_annotation(LOGGED, "log"))
    return tuple(found)


_LABELLED: Final = Annotation(LABEL, "", f"person:{OWNER}", extra={"label": True})


def _annotation(rule: str, action: str) -> Annotation:
    policy = f'raise "{rule} found" if:\n    (m: Message)\n    "{rule}" in m.content\n'
    guardrail = {"id": f"{rule}-1", "name": rule, "content": policy, "action": action}
    return Annotation(f"{rule} found", "messages.1.content:4-40", guardrail=guardrail)


def _metadata(model: str, duration: float, tokens: int, outcome: Outcome) -> dict[str, Any]:
    failed = outcome is Outcome.UPSTREAM_ERROR
    return {
        "upstream_status": 429 if failed else 200,
        **({"upstream_error": {"status": "RESOURCE_EXHAUSTED", "message": "No quota is left."}} if failed else {}),
        "asked": "please look up what the customer of this order wants",
        "via_gateway": True,
        "method": "streamGenerateContent",
        "model": model,
        "usage": {"promptTokenCount": tokens, "candidatesTokenCount": tokens, "totalTokenCount": 2 * tokens},
        "finish_reasons": ["STOP"],
        "latencies_ms": {"upstream_head": duration / 4, "first_byte": duration / 3},
        "coverage": {"mode": "final", "rules": list(RULES), "checked_messages": 5, "verdict": "passed"},
    }


def _one(chance: random.Random, shares: Mapping[Name, float]) -> Name:
    return chance.choices(list(shares), weights=list(shares.values()))[0]
