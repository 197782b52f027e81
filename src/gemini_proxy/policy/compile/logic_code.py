"""Code of not, and, or and comparisons, and what becomes of the marks of what did not hold."""

from collections.abc import Callable
from typing import Any

from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.operators import contains, equal, ordered
from gemini_proxy.policy.run.run import Code, Frame, Run
from gemini_proxy.policy.run.values import Each


def negation(code: Code) -> Code:
    def negate(frame: Frame) -> bool:
        run = frame[0]
        marks = run.marks
        before = len(marks)
        run.negated = not run.negated
        held = code(frame)
        run.negated = not run.negated
        if held:
            return False
        # What was found inside did not make it true; what failed to match as a whole is the reason for not.
        if len(marks) > before:
            marks[before:] = [mark for mark in marks[before:] if type(mark) is tuple and mark[1] < 0]
        return True

    return negate


def conjunction(codes: list[Code]) -> Code:
    if len(codes) == 2:
        left, right = codes
        return lambda frame: left(frame) and right(frame)

    def conjoin(frame: Frame) -> Any:
        value: Any = True
        for code in codes:
            value = code(frame)
            if not value:
                return value
        return value

    return conjoin


def disjunction(codes: list[Code]) -> Code:
    def disjoin(frame: Frame) -> Any:
        marks = frame[0].marks
        before = len(marks)
        value: Any = False
        for code in codes:
            value = code(frame)
            if value:
                return value
            if len(marks) > before:
                marks[before:] = [mark for mark in marks[before:] if type(mark) is tuple and mark[1] < 0]
        return value

    return disjoin


def comparator(operator: syntax.Comparator) -> Callable[[Any, Any, Any], bool | Each]:
    if operator == "==" or operator == "is":
        return equal
    if operator == "!=" or operator == "is not":
        return lambda run, left, right: not equal(run, left, right)
    if operator == "in":
        return contains
    if operator == "not in":
        return _is_absent
    return lambda run, left, right: ordered(left, right, operator)


def _is_absent(run: Run, needle: Any, hay: Any) -> bool:
    run.negated = not run.negated
    found = contains(run, needle, hay)
    run.negated = not run.negated
    return not found
