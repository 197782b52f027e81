"""``count`` and ``forall`` over a block of lines."""

from typing import Any

from gemini_proxy.policy.compile.line_code import LineCompiler
from gemini_proxy.policy.compile.scope import Scope
from gemini_proxy.policy.errors import EvaluationError
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.events import Event
from gemini_proxy.policy.run.run import Code, Frame, Run

_MAX_NESTED = 4


class QuantifierCompiler(LineCompiler):
    """Adds quantifiers to lines."""

    _nested = 0

    def quantifier(self, line: syntax.Quantifier, scope: Scope) -> Code:
        imported = self.context.imported.get(line.name)
        if imported is None or imported.role != "quantifier":
            self.context.unknown(line, line.name, scope.slots)
        self._nested += 1
        if self._nested > _MAX_NESTED:
            self.context.fail(line, f"quantifiers nested more than {_MAX_NESTED} deep", fault="excess")
        inner = scope.inner()
        if imported.name == "forall":
            code = self._forall(line, inner)
        else:
            code = self._count(line, scope, inner)
        scope.size = inner.size
        self._nested -= 1
        return _without_marks(code, negated=True) if line.negated else code

    def _forall(self, line: syntax.Quantifier, inner: Scope) -> Code:
        if line.kwargs:
            self.context.fail(line, "forall takes no bounds")
        counterexample = self.block(line.body, inner, lambda frame: False, universal=True)
        return _without_marks(counterexample, negated=True)

    def _count(self, line: syntax.Quantifier, scope: Scope, inner: Scope) -> Code:
        least, most = self._bounds(line, scope)
        state = inner.bind("count ")
        outer = set(scope.slots.values())

        def found(frame: Frame) -> bool:
            tally: _Tally = frame[state]
            return tally.add(frame, events)

        body = self.block(line.body, inner, found)
        events = [slot for name, slot in inner.slots.items() if name in inner.kinds and slot not in outer]

        def count(frame: Frame) -> bool:
            run: Run = frame[0]
            tally = frame[state] = _Tally(run, _bound(least, frame), _bound(most, frame))
            body(frame)
            return tally.settle()

        return count

    def _bounds(self, line: syntax.Quantifier, scope: Scope) -> tuple[Code | None, Code | None]:
        bounds = dict(line.kwargs)
        for name in bounds:
            if name not in ("min", "max"):
                self.context.fail(line, f'count has no bound "{name}"', "count(min=2, max=5):", fault="unknown")
        if not bounds:
            self.context.fail(line, "count needs min= or max=")
        codes = {name: self.code(value, scope) for name, value in bounds.items()}
        return codes.get("min"), codes.get("max")


class _Tally:
    """One counting: how many bindings held, and what they marked."""

    def __init__(self, run: Run, least: int | None, most: int | None) -> None:
        self._run = run
        self._least = least
        self._most = most
        self._before = len(run.marks)
        self._count = 0
        self._kept: list[Any] = []

    def add(self, frame: Frame, events: list[int]) -> bool:
        """One more; True when the answer cannot change any more."""
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


def _bound(code: Code | None, frame: Frame) -> int | None:
    value = None if code is None else code(frame)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise EvaluationError("the bounds of count are whole numbers")
    return value


def _without_marks(code: Code, *, negated: bool) -> Code:
    def evaluate(frame: Frame) -> bool:
        marks = frame[0].marks
        before = len(marks)
        held = bool(code(frame))
        del marks[before:]
        return held != negated

    return evaluate
