"""Lines of rules to closures: each step's code calls the code of what follows it, once for every binding."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from gemini_proxy.policy.compile.calls import CallCompiler
from gemini_proxy.policy.compile.scope import VALUE_KINDS, Scope, nearest
from gemini_proxy.policy.compile.steps import Build, Step, is_safe, schedule
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.events import FIELDS, Event, chunks
from gemini_proxy.policy.run.operators import items_of
from gemini_proxy.policy.run.run import Code, Frame, Run
from gemini_proxy.policy.run.values import Content, MarkedRecord, Piece

_MAX_BINDINGS = 12
_ARROWS = {"->": "before", "~>": "immediately before"}


class LineCompiler(CallCompiler):
    """Adds lines and blocks. Code of a block answers True when its ``final`` asked to stop."""

    def block(self, lines: Sequence[syntax.Line], scope: Scope, final: Code, *, universal: bool = False) -> Code:
        """All lines hold: ``final`` runs once for each binding for which they do, until it answers True.

        With ``universal``, a test that does not hold stops the block with True; steps then keep their order.
        """
        steps = [step for line in lines for step in self._steps(line, scope)]
        if sum(step.build is not None for step in steps) > _MAX_BINDINGS:
            self.context.fail(
                lines[0], f"more than {_MAX_BINDINGS} variables are declared in one block", fault="excess"
            )
        self.context.check_slots(lines[0], scope)
        code = final
        for step in reversed(steps if universal else schedule(steps)):
            if step.build is not None:
                code = step.build(code)
            elif step.test is not None:
                code = _tested(step.test, code, universal and step.gives is None)
        return code

    def _steps(self, line: syntax.Line, scope: Scope) -> list[Step]:
        if isinstance(line, syntax.Declaration):
            return [self._declare(line, scope)] if not self._is_again(line, scope) else []
        if isinstance(line, syntax.Flow):
            return self._flow(line, scope)
        if isinstance(line, syntax.Assignment):
            return [self._assign(line, scope)]
        if isinstance(line, syntax.Quantifier):
            needs = self._needs(line, scope)
            return [Step(needs, None, False, test=self.quantifier(line, scope))]
        needs = self._needs(line, scope)
        test = self.code(line.value, scope)
        return [Step(needs, None, self._safe(line.value, scope), test=test)]

    def quantifier(self, line: syntax.Quantifier, scope: Scope) -> Code:
        raise NotImplementedError

    def _needs(self, node: syntax.Node, scope: Scope) -> frozenset[int]:
        return frozenset(scope.slots[name] for name in syntax.names_in(node) if name in scope.slots)

    def _safe(self, node: syntax.Expr, scope: Scope) -> bool:
        return is_safe(node, frozenset(self.context.constants), scope.kinds)

    # Declarations

    def _is_again(self, line: syntax.Declaration, scope: Scope) -> bool:
        """A declaration of a variable that is bound already means that variable."""
        if line.source is not None or line.name not in scope.slots:
            return False
        if scope.kinds.get(line.name) != line.kind:
            self.context.fail(line, f'"{line.name}" is declared already, as something else')
        return True

    def _kind(self, line: syntax.Declaration) -> str:
        kind = line.kind
        imported = self.context.imported.get(kind)
        if imported is not None and imported.role == "kind":
            kind = imported.name
        if kind not in FIELDS and kind not in VALUE_KINDS:
            self.context.fail(line, f'unknown type "{kind}"', nearest(kind, (*FIELDS, *VALUE_KINDS)), fault="unknown")
        return kind

    def _declare(self, line: syntax.Declaration, scope: Scope) -> Step:
        kind = self._kind(line)
        if line.source is not None:
            needs = self._needs(line.source, scope)
            source, safe = self.code(line.source, scope), self._safe(line.source, scope)
            slot = scope.bind(line.name, kind if kind in FIELDS else None)
            return Step(needs, slot, safe, build=_each_item(source, kind, slot))
        if kind not in FIELDS:
            self.context.fail(line, f"({line.name}: {kind}) needs a list to go over", f"({line.name}: {kind}) in ...")
        slot = scope.bind(line.name, kind)
        return Step(frozenset(), slot, True, build=_each_event(kind, slot), binds_event=True)

    def _assign(self, line: syntax.Assignment, scope: Scope) -> Step:
        needs = self._needs(line.value, scope)
        term = self.compile(line.value, scope)
        slot = scope.bind(line.name, term.kind)
        code = term.code

        def assign(frame: Frame) -> bool:
            frame[slot] = code(frame)
            return True

        return Step(needs, slot, False, test=assign)

    # Flows

    def _flow(self, line: syntax.Flow, scope: Scope) -> list[Step]:
        steps: list[Step] = []
        left = self._link(line.links[0], scope, steps)
        for arrow, link in zip(line.arrows, line.links[1:], strict=True):
            if isinstance(link, syntax.Declaration) and not self._is_again(link, scope):
                steps.append(self._follow(left, arrow, link, scope))
                left = scope.slots[link.name]
            else:
                right = self._link(link, scope, steps)
                steps.append(Step(frozenset((left, right)), None, True, test=_in_order(left, arrow, right)))
                left = right
        return steps

    def _link(self, link: syntax.Declaration | syntax.Name, scope: Scope, steps: list[Step]) -> int:
        if isinstance(link, syntax.Declaration):
            if not self._is_again(link, scope):
                self._check_flow_kind(link)
                steps.append(self._declare(link, scope))
            return scope.slots[link.name]
        if link.name not in scope.slots:
            self.context.unknown(link, link.name, scope.slots)
        if link.name not in scope.kinds or scope.kinds[link.name] not in FIELDS:
            self.context.fail(link, f'"{link.name}" is not an event, so it is not before or after anything')
        return scope.slots[link.name]

    def _check_flow_kind(self, link: syntax.Declaration) -> None:
        if link.source is not None or self._kind(link) not in FIELDS or link.kind == "Input":
            self.context.fail(link, "a flow goes between events", f"({link.name}: ToolCall) -> (other: ToolCall)")

    def _follow(self, left: int, arrow: str, link: syntax.Declaration, scope: Scope) -> Step:
        self._check_flow_kind(link)
        kind = self._kind(link)
        slot = scope.bind(link.name, kind)
        build = _each_later(left, kind, slot) if arrow == "->" else _each_next(left, kind, slot)
        return Step(frozenset((left,)), slot, True, build=build, binds_event=True)


def _tested(test: Code, following: Code, universal: bool) -> Code:
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


def _each_event(kind: str, slot: int) -> Build:
    def build(following: Code) -> Code:
        return lambda frame: _over(frame[0].events(kind), slot, frame, following)

    return build


def _each_later(left: int, kind: str, slot: int) -> Build:
    def build(following: Code) -> Code:
        def later(frame: Frame) -> bool:
            run: Run = frame[0]
            first = bisect_right(run.positions(kind), frame[left].position)
            return _over(islice(run.events(kind), first, None), slot, frame, following)

        return later

    return build


def _each_next(left: int, kind: str, slot: int) -> Build:
    def build(following: Code) -> Code:
        def next_one(frame: Frame) -> bool:
            run: Run = frame[0]
            positions, wanted = run.positions(kind), frame[left].position + 1
            first, last = bisect_left(positions, wanted), bisect_right(positions, wanted)
            return _over(run.events(kind)[first:last], slot, frame, following)

        return next_one

    return build


def _in_order(left: int, arrow: str, right: int) -> Code:
    if arrow == "->":
        return lambda frame: frame[left].position < frame[right].position
    return lambda frame: frame[left].position + 1 == frame[right].position


def _each_item(source: Code, kind: str, slot: int) -> Build:
    def build(following: Code) -> Code:
        def each(frame: Frame) -> bool:
            run: Run = frame[0]
            marks = run.marks
            before = len(marks)
            items = _select(source(frame), kind, run)
            # Of all that the source found, only the item that is bound belongs to the binding.
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
    """The items of a value that are of a kind; a text is one text, content is its texts or chunks."""
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
    """The items of a type, and those inside lists and objects that are not of it themselves, in order, at any depth."""
    found: list[Any] = []
    pending = [iter(items)]
    while pending:
        for item in pending[-1]:
            run.charge(1)
            # True is no number, though Python says so.
            if isinstance(item, wanted) and (type(item) is not bool or wanted is bool):
                found.append(item)
            elif isinstance(item, list | tuple | dict):
                pending.append(iter(item.values() if isinstance(item, dict) else item))
                break
        else:
            pending.pop()
    return found
