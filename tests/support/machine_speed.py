"""How fast the machine is now, for tests that bound CPU time."""

import time
from typing import Final

_USUAL: Final = 0.010
"""CPU seconds of the yardstick on a machine on which bounds hold as they are written."""


def allowed(seconds: float) -> float:
    """Return a bound on CPU time for this machine: more than ``seconds`` only if a yardstick is slower than usual."""
    return seconds * max(1.0, min(_yardstick() for _ in range(3)) / _USUAL)


def _yardstick() -> float:
    started = time.thread_time()
    total = 0
    for number in range(200_000):
        total += number % 7
    return time.thread_time() - started
