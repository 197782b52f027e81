"""Limit what one check spends: steps, time and the size of the values it builds."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import TypeVar

from gemini_proxy.policy.errors import BudgetExceeded

# Steps between two looks at the clock. A step is at most about a microsecond, so a deadline is noticed
# within a millisecond.
_SLICE = 1000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one check.

    ``steps``: one per loop turn or call, plus one per 128 characters looked at by a regular expression.
    ``deadline``: a moment of ``time.perf_counter``; ``seconds``: the same, counted from the check's start; the
    earlier one holds. ``longest_search``: seconds that one search of a regular expression, which nothing interrupts,
    may take at worst; None for the time to the deadline. ``max_chars`` and ``max_items``: the longest string and list
    a rule may build; ``max_total_chars``: all strings of the check together.
    """

    steps: int = 5_000_000
    deadline: float | None = None
    seconds: float | None = None
    longest_search: float | None = None
    max_chars: int = 20_000_000
    max_total_chars: int = 200_000_000
    max_items: int = 100_000

    def ends(self) -> float | None:
        """Return the deadline of a check that starts now."""
        if self.seconds is None:
            return self.deadline
        ends = perf_counter() + self.seconds
        return ends if self.deadline is None else min(ends, self.deadline)


class Meter:
    """The rest of a budget. Charge before doing the work: ``charge`` raises BudgetExceeded.

    ``sliced`` says that texts are pieces of longer ones. What a detector would reject at a closer look may be cut, so
    it must report that as well.
    """

    __slots__ = ("_chars", "_rest", "deadline", "left", "longest_search", "max_chars", "max_items", "sliced")

    def __init__(self, budget: Budget) -> None:
        self.left = 0
        self._rest = budget.steps
        self.deadline = budget.ends()
        self.longest_search = budget.longest_search
        self.max_chars = budget.max_chars
        self.max_items = budget.max_items
        self._chars = budget.max_total_chars
        self.sliced = False

    def charge(self, steps: int) -> None:
        """Take ``steps``; loops that are hot do the subtraction themselves and call ``refill`` below zero."""
        self.left -= steps
        if self.left < 0:
            self.refill()

    def refill(self) -> None:
        """Settle the overdraft, look at the clock and grant the next slice."""
        self._rest += self.left
        if self._rest < 0:
            raise BudgetExceeded("the check exceeds its step budget")
        if self.deadline is not None and perf_counter() > self.deadline:
            raise BudgetExceeded("the check timed out")
        self.left = min(_SLICE, self._rest)
        self._rest -= self.left

    def room(self, chars: int) -> None:
        """Refuse to build a string longer than the bound, and pay for its copy."""
        if chars > self.max_chars:
            raise BudgetExceeded(f"a text of {chars} characters exceeds the limit of {self.max_chars}")
        self._chars -= chars
        if self._chars < 0:
            raise BudgetExceeded("the texts of the check together have too many characters")
        self.charge(chars >> 9)

    def items(self, count: int) -> None:
        """Refuse to build a list longer than the bound, and pay for it."""
        if count > self.max_items:
            raise BudgetExceeded(f"a list of {count} items exceeds the limit of {self.max_items}")
        self.charge(count >> 4)

    def take(self, items: Iterable[T]) -> list[T]:
        """Return the items as a list, which must not exceed the limit."""
        taken = list(islice(items, self.max_items + 1))
        self.items(len(taken))
        return taken

    def seconds_left(self) -> float | None:
        """Return the seconds to the deadline, or None without one."""
        return None if self.deadline is None else self.deadline - perf_counter()
