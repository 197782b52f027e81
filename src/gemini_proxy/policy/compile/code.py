"""Build the code of rules: closures over the code of their parts, without a syntax tree."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from gemini_proxy.policy.compile.schedule import Build
from gemini_proxy.policy.compile.scope import VALUE_KINDS
from gemini_proxy.policy.detectors import Detector, Parsed, Parser
from gemini_proxy.policy.detectors.outside import Answer, LabelledSpan, Whole
from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.builtins import find_all, matches
from gemini_proxy.policy.run.events import FIELDS, Event, chunks
from gemini_proxy.policy.run.methods import call_method
from gemini_proxy.policy.run.operators import contains, equal, items_of, ordered
from gemini_proxy.policy.run.regex import Mode, compile_at_run_time
from gemini_proxy.policy.run.run import Code, Frame, Run
from gemini_proxy.policy.run.values import Content, Each, MarkedRecord, Piece, word_for

_NOTHING = Parsed(())


# Lines


def tested(test: Code, following: Code, universal: bool) -> Code:
    if universal:
        return lambda frame: following(frame) if test(frame) else True
    return lambda frame: following(frame) if test(frame) else False


def _over(events: Iterable[Event], slot: int, frame: Frame, following: Code) -> bool:
    run: Run = frame[0]
    marks = run.marks
    before = len(marks)
    for event in events:
        run.left -= 1
        if run.left < 0:
            run.refill()
        frame[slot] = event
        if following(frame):
            return True
        if len(marks) > before:
            del marks[before:]
    return False


def each_event(kind: str, slot: int) -> Build:
    def build(following: Code) -> Code:
        return lambda frame: _over(frame[0].events(kind), slot, frame, following)

    return build


def each_later(left: int, kind: str, slot: int) -> Build:
    def build(following: Code) -> Code:
        def later(frame: Frame) -> bool:
            run: Run = frame[0]
            first = bisect_right(run.positions(kind), frame[left].position)
            return _over(islice(run.events(kind), first, None), slot, frame, following)

        return later

    return build


def each_next(left: int, kind: str, slot: int) -> Build:
    def build(following: Code) -> Code:
        def next_one(frame: Frame) -> bool:
            run: Run = frame[0]
            positions, wanted = run.positions(kind), frame[left].position + 1
            first, last = bisect_left(positions, wanted), bisect_right(positions, wanted)
            return _over(run.events(kind)[first:last], slot, frame, following)

        return next_one

    return build


def in_order(left: int, arrow: str, right: int) -> Code:
    if arrow == "->":
        return lambda frame: frame[left].position < frame[right].position
    return lambda frame: frame[left].position + 1 == frame[right].position


def each_item(source: Code, kind: str, slot: int) -> Build:
    def build(following: Code) -> Code:
        def each(frame: Frame) -> bool:
            run: Run = frame[0]
            marks = run.marks
            before = len(marks)
            items = _select(source(frame), kind, run)
            # The source may have marked more: only the bound item belongs to the binding.
            del marks[before:]
            for item in items:
                run.left -= 1
                if run.left < 0:
                    run.refill()
                frame[slot] = item
                if type(item) is Piece:
                    marks.append((item, 0, len(item)))
                elif type(item) is MarkedRecord:
                    marks.extend(item.marks)
                if following(frame):
                    return True
                del marks[before:]
            return False

        return each

    return build


def _select(value: Any, kind: str, run: Run) -> Iterable[Any]:
    """Return the items of a value that are of a kind; a text is one text, content is its texts or chunks."""
    if kind == "str" and isinstance(value, str):
        return (value,)
    if type(value) is Content and kind == "str":
        return value.texts
    if type(value) is Content and kind in ("TextChunk", "Image"):
        holder = Event("Message", 0, value.address.removesuffix(".content"), {})
        holder.content = value
        return [chunk for chunk in chunks(holder) if chunk.kind == kind]
    items = items_of(value, run)
    if kind in FIELDS:
        return [item for item in items if type(item) is Event and item.kind == kind]
    return _within(items, VALUE_KINDS[kind], run)


def _within(items: Iterable[Any], wanted: type | tuple[type, ...], run: Run) -> list[Any]:
    """Return the items of a type in order, at any depth: also those in lists and objects of other types."""
    found: list[Any] = []
    pending = [iter(items)]
    while pending:
        for item in pending[-1]:
            run.charge(1)
            # True is not a number here, as it is in Python.
            if isinstance(item, wanted) and (type(item) is not bool or wanted is bool):
                found.append(item)
            elif isinstance(item, list | tuple | dict):
                pending.append(iter(item.values() if isinstance(item, dict) else item))
                break
        else:
            pending.pop()
    return found


# Quantifiers


class Count:
    """A count in progress: how many bindings held, and what they marked."""

    def __init__(self, run: Run, least: int | None, most: int | None) -> None:
        self._run = run
        self._least = least
        self._most = most
        self._before = len(run.marks)
        self._count = 0
        self._kept: list[Any] = []

    def add(self, frame: Frame, events: list[int]) -> bool:
        """Count one more binding. Return True if the result is final."""
        self._count += 1
        self._run.items(len(self._kept))
        self._kept.extend(frame[slot] for slot in events if type(frame[slot]) is Event)
        self._kept.extend(self._run.marks[self._before :])
        if self._most is not None:
            return self._count > self._most
        return self._least is not None and self._count >= self._least

    def settle(self) -> bool:
        del self._run.marks[self._before :]
        enough = self._least is None or self._count >= self._least
        held = enough and (self._most is None or self._count <= self._most)
        if held:
            self._run.marks.extend(self._kept)
        return held


def bound(code: Code | None, frame: Frame) -> int | None:
    value = None if code is None else code(frame)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise EvaluationError("the bounds of count must be whole numbers")
    return value


def without_marks(code: Code, *, negated: bool) -> Code:
    def evaluate(frame: Frame) -> bool:
        marks = frame[0].marks
        before = len(marks)
        held = bool(code(frame))
        del marks[before:]
        return held != negated

    return evaluate


# Expressions


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
        # Nothing that was found inside made it true. A text that failed to match as a whole is the reason.
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


def spread(frame: Frame, slots: list[int], item: Any) -> None:
    if len(slots) == 1:
        frame[slots[0]] = item
        return
    if not isinstance(item, list | tuple) or len(item) != len(slots):
        raise EvaluationError(f"an item of the comprehension does not have {len(slots)} parts")
    for slot, part in zip(slots, item, strict=True):
        frame[slot] = part


# Calls


def detector_call(detector: Detector | Parser) -> Callable[[list[str], list[Any], dict[str, Any], Run], Parsed]:
    """Call a detector as parsers are called: its value is the list of its labels."""
    if not isinstance(detector, Detector):
        return detector.parse
    find = detector.detect

    def detect(texts: list[str], args: list[Any], options: dict[str, Any], run: Run) -> Parsed:
        found = find(texts, options, run)
        if found == ():
            return _NOTHING
        findings = run.take(found)
        return Parsed([found.label for found in findings], findings)

    return detect


def marked(run: Run, answer: Answer, wholes: Sequence[Whole]) -> Answer:
    """Drop the labels of an answer that are in other pieces of the text, and mark the places of the rest.

    Within a negation nothing is dropped: a match that readers find in a text counts for each of its pieces.
    """
    if not isinstance(answer, tuple):
        return answer
    kept: list[str | LabelledSpan] = []
    for label in answer:
        if not isinstance(label, LabelledSpan):
            kept.append(label)
            continue
        marks = [(whole.text, label.start, label.end) for whole in wholes if run.negated or whole.holds(label)]
        run.items(1 + len(marks))
        run.marks.extend(marks)
        if marks:
            kept.append(label)
    return tuple(kept)


def method_call(value: Code, name: str, args: list[Code], kwargs: Mapping[str, Code]) -> Code:
    def apply(frame: Frame) -> Any:
        named = {key: code(frame) for key, code in kwargs.items()}
        return call_method(frame[0], value(frame), name, tuple([arg(frame) for arg in args]), named)

    return apply


def computed_pattern(pattern: Code, value: Code, mode: Mode, max_program: int) -> Code:
    """Call find or match with a pattern that is known only during the check, and must be one text."""

    def apply(frame: Frame) -> Any:
        run: Run = frame[0]
        written = pattern(frame)
        if not isinstance(written, str):
            raise EvaluationError(f"a pattern must be a text, not a {word_for(written)}")
        regex = compile_at_run_time(written, mode, run.regexes, run, max_program)
        return (find_all if mode == "find" else matches)(run, regex, value(frame))

    return apply
