"""Apply operators, attributes and indexes to values. Missing data is None, and a test of None is false."""

from typing import Any

from gemini_proxy.policy.errors import BudgetExceeded, EvaluationError
from gemini_proxy.policy.run.events import Event
from gemini_proxy.policy.run.regex import Regex
from gemini_proxy.policy.run.run import Run
from gemini_proxy.policy.run.search import literally
from gemini_proxy.policy.run.texts import searched_texts
from gemini_proxy.policy.run.values import Content, Each, MarkedRecord, Piece, Record, cut, word_for

# About 1,200 digits: arithmetic on message data needs fewer, and the time grows with their square.
_MAX_BITS = 4096
_MAX_MARKS_PER_TEST = 100
_LONG = 4096


def attribute(value: Any, name: str) -> Any:
    """Return ``value.name``: a field of an event or a key of a dictionary, None if it is missing."""
    kind = type(value)
    if kind is dict:
        return value.get(name)
    if kind is Event:
        return value.field(name)
    if value is None:
        return None
    if kind is Content:
        return attribute(value.value, name)
    if kind is Record or kind is MarkedRecord:
        if name not in value:
            raise EvaluationError(f'no field "{name}"; there are {", ".join(value)}')
        return value[name]
    raise EvaluationError(f'{word_for(value)} has no field "{name}"')


def index(value: Any, key: Any) -> Any:
    """Return ``value[key]``, None if there is no such item."""
    if type(value) is Content:
        value = value.value
    if value is None:
        return None
    if isinstance(value, dict):
        return value.get(key) if isinstance(key, str | int | float) else None
    if not isinstance(value, str | list | tuple) or not isinstance(key, int):
        raise EvaluationError(f"{word_for(value)} cannot be indexed by {word_for(key)}")
    if not -len(value) <= key < len(value):
        return None
    if isinstance(value, str):
        at = key % len(value)
        return cut(value, at, at + 1)
    return value[key]


def slice_of(value: Any, start: Any, stop: Any, run: Run) -> Any:
    """Return ``value[start:stop]`` of a text or a list."""
    if type(value) is Content:
        value = value.value
    if value is None:
        return None
    bounds_fit = all(bound is None or isinstance(bound, int) for bound in (start, stop))
    if not isinstance(value, str | list | tuple) or not bounds_fit:
        raise EvaluationError(f"{word_for(value)} cannot be sliced")
    first, last, _ = slice(start, stop).indices(len(value))
    if isinstance(value, str):
        run.room(max(0, last - first))
        return cut(value, first, max(first, last))
    run.items(max(0, last - first))
    return list(value[first:last])


def contains(run: Run, needle: Any, hay: Any) -> bool | Each:
    """Implement ``needle in hay``: a literal substring, or a member. Mark up to a hundred occurrences.

    A list is compared item by item.
    """
    if type(needle) is list or type(needle) is tuple:
        run.items(len(needle))
        return Each(bool(contains(run, item, hay)) for item in needle)
    if isinstance(hay, str):
        if not isinstance(needle, str):
            if needle is None:
                return False
            raise EvaluationError(f"in cannot look for a {word_for(needle)} in a text")
        run.charge(len(hay) >> 9)
        return (needle in hay and _mark_all(run, needle, hay)) | _is_across(run, needle, hay)
    if hay is None:
        return False
    kind = type(hay)
    if kind is Content or kind is Event:
        return _in_texts(run, needle, hay)
    if isinstance(hay, dict):
        return isinstance(needle, str | int | float) and needle in hay
    if kind is list or kind is tuple:
        run.charge(len(hay) >> 3)
        return any(equal(run, needle, item) for item in hay)
    raise EvaluationError(f"in cannot look into a {word_for(hay)}")


def contains_known(run: Run, needle: str, finder: Regex, hay: Any) -> bool | Each:
    """Implement ``contains`` for a text known at load: RE2 searches long texts ten times faster than ``str``."""
    if isinstance(hay, str) and len(hay) > _LONG and not finder.test(hay, run):
        return _is_across(run, needle, hay)
    return contains(run, needle, hay)


def _in_texts(run: Run, needle: Any, hay: Content | Event) -> bool:
    if isinstance(needle, str):
        found = [contains(run, needle, text) for text in searched_texts(hay)]
        return True in found
    return type(hay) is Content and isinstance(hay.value, list | dict) and bool(contains(run, needle, hay.value))


def _is_across(run: Run, needle: str, hay: str) -> bool:
    """Return whether readers find the needle where the text continues what stands before it."""
    places = literally(run, needle, hay, _MAX_MARKS_PER_TEST)
    run.marks.extend(places)
    return bool(places)


def _mark_all(run: Run, needle: str, hay: str) -> bool:
    if not needle:
        return True
    at = hay.find(needle)
    for _ in range(_MAX_MARKS_PER_TEST):
        run.marks.append((hay, at, at + len(needle)))
        at = hay.find(needle, at + len(needle))
        if at < 0:
            break
        run.charge(1)
    return True


def equal(run: Run, left: Any, right: Any) -> bool:
    """Implement ``==``: content equals the text of its chunks, events are equal if their data is."""
    if type(left) is str and type(right) is str:
        if len(left) > 1023 and len(right) > 1023:
            run.charge(min(len(left), len(right)) >> 10)
        return left == right
    if type(left) is Content or type(right) is Content:
        left, right = _uncontent(left, right), _uncontent(right, left)
    if type(left) is Event:
        left = left.data
    if type(right) is Event:
        right = right.data
    if isinstance(left, list | tuple | dict) and isinstance(right, list | tuple | dict):
        if len(left) != len(right):
            return False
        run.charge(1 + len(left))
        if isinstance(left, list | tuple) and isinstance(right, list | tuple):
            return all(equal(run, one, other) for one, other in zip(left, right, strict=True))
    elif isinstance(left, str) and isinstance(right, str):
        run.charge(min(len(left), len(right)) >> 10)
    return bool(left == right)


def _uncontent(value: Any, other: Any) -> Any:
    if type(value) is not Content:
        return value
    return value.text if isinstance(other, str) else value.value


def _operand(value: Any) -> Any:
    """Return the text of content made of chunks, and the value of other content."""
    if type(value) is not Content:
        return value
    return value.text if value.chunked else value.value


def ordered(left: Any, right: Any, operator: str) -> bool:
    """Implement ``<`` and the like between numbers or between texts; None is neither above nor below anything."""
    if left is None or right is None:
        return False
    left, right = _operand(left), _operand(right)
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    if not numbers and not (isinstance(left, str) and isinstance(right, str)):
        raise EvaluationError(f"{word_for(left)} {operator} {word_for(right)} has no order")
    if operator == "<":
        return bool(left < right)
    if operator == "<=":
        return bool(left <= right)
    return bool(left > right) if operator == ">" else bool(left >= right)


def arithmetic(run: Run, operator: str, left: Any, right: Any) -> Any:
    """Compute ``+ - * / // % **`` of numbers; ``+`` joins texts and lists, ``*`` repeats them. Chunks are text."""
    if isinstance(left, int | float) and isinstance(right, int | float):
        return _numbers(operator, left, right)
    left, right = _operand(left), _operand(right)
    if operator == "+" and isinstance(left, str) and isinstance(right, str):
        run.room(len(left) + len(right))
        return left + right
    if operator == "+" and isinstance(left, list | tuple) and isinstance(right, list | tuple):
        run.items(len(left) + len(right))
        return [*left, *right]
    if operator == "*" and isinstance(left, str | list | tuple) and isinstance(right, int):
        size = len(left) * max(0, right)
        if isinstance(left, str):
            run.room(size)
            return str(left) * right
        run.items(size)
        return list(left) * right
    raise EvaluationError(f"{word_for(left)} {operator} {word_for(right)} is not defined")


def _numbers(operator: str, left: int | float, right: int | float) -> int | float:
    if operator == "**":
        return _power(left, right)
    if operator == "+":
        result: int | float = left + right
    elif operator == "-":
        result = left - right
    elif operator == "*":
        result = left * right
    elif right == 0:
        raise EvaluationError("division by zero")
    elif operator == "/":
        result = left / right
    else:
        result = left // right if operator == "//" else left % right
    return _bounded(result)


def _power(left: int | float, right: int | float) -> int | float:
    if isinstance(left, int) and isinstance(right, int) and abs(right) * max(1, left.bit_length()) > _MAX_BITS:
        raise BudgetExceeded("a number has more than 4096 bits")
    result = left**right
    if isinstance(result, complex):
        raise EvaluationError("a negative number has no real root")
    return _bounded(result)


def _bounded(result: int | float) -> int | float:
    if isinstance(result, int) and result.bit_length() > _MAX_BITS:
        raise BudgetExceeded("a number has more than 4096 bits")
    return result


def negated(value: Any) -> int | float:
    """Return ``-value``."""
    if isinstance(value, int | float):
        return -value
    raise EvaluationError(f"-{word_for(value)} is not defined")


def items_of(value: Any, run: Run) -> Any:
    """Return what a comprehension or a list function iterates: items, keys, characters; nothing for None."""
    if type(value) is Content:
        value = value.value
    if value is None:
        return ()
    if isinstance(value, str):
        run.items(len(value))
        run.charge(len(value))
        return [Piece(char, value, at) if type(value) is not Piece else cut(value, at, at + 1)
                for at, char in enumerate(value)]  # fmt: skip
    if isinstance(value, dict):
        return list(value)
    if isinstance(value, list | tuple):
        return value
    raise EvaluationError(f"{word_for(value)} has no items")
