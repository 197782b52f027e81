"""Try a policy on a batch of traces in a worker process, which imports this module and little else."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from gemini_proxy.guardrails.plugins import load_policy
from gemini_proxy.traces.backtest import Backtest, FlaggedTrace
from gemini_proxy.traces.trace import Trace


def try_batch(
    text: str,
    batch: Sequence[Trace],
    parameters: Mapping[str, Any],
    thoughts: str,
    seconds: float,
    left: float,
) -> tuple[int, list[FlaggedTrace]]:
    """Return how many traces were checked within ``left`` seconds, and those of them that the policy flags."""
    backtest = Backtest(load_policy(text, "policy"), parameters, thoughts, seconds)
    until = time.perf_counter() + left
    flagged: list[FlaggedTrace] = []
    for done, trace in enumerate(batch):
        if time.perf_counter() > until:
            return done, flagged
        if (found := backtest.run(trace)) is not None:
            flagged.append(found)
    return len(batch), flagged
