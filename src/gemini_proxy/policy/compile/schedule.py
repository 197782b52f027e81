"""Order the lines of a rule, as steps.

A step binds a variable or tests something. Before another event is bound, all tests that cannot raise and whose
variables are bound come first, and so do lists that depend only on bound variables. A flow rule then looks only at
pairs that can still match.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.run import Code

# Builds the code of a step from the code of the next one.
Build = Callable[[Code], Code]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step. ``needs`` are the slots it reads, ``gives`` the slot it binds; a test has ``test`` instead of ``build``.

    ``safe`` steps raise nothing but BudgetExceeded; ``binds_event`` steps iterate over events.
    """

    needs: frozenset[int]
    gives: int | None
    safe: bool
    build: Build | None = None
    test: Code | None = None
    binds_event: bool = False


def schedule(steps: list[Step]) -> list[Step]:
    """Put steps into the order to take them; the relative order of steps that can raise does not change."""
    pending = list(steps)
    bound: set[int] = set()
    local = {step.gives for step in steps if step.gives is not None}
    order: list[Step] = []
    while pending:
        chosen = _next(pending, bound, local)
        pending.remove(chosen)
        order.append(chosen)
        if chosen.gives is not None:
            bound.add(chosen.gives)
    return order


def _next(pending: list[Step], bound: set[int], local: set[int]) -> Step:
    first = pending[0]
    if not first.binds_event or not bound:
        return first
    return _ready_test(pending, bound, local) or _ready_list(pending, bound, local) or first


def _ready_test(pending: list[Step], bound: set[int], local: set[int]) -> Step | None:
    for step in pending:
        if step.test is not None and step.safe and step.needs & local <= bound:
            return step
    return None


def _ready_list(pending: list[Step], bound: set[int], local: set[int]) -> Step | None:
    for step in pending:
        if step.build is not None and step.safe and not step.binds_event and step.needs & local <= bound:
            return step
    return None


_SAFE_CALLS = frozenset(("find", "any", "all", "text", "image", "print"))
_COUNTS = frozenset(("len",))


def is_safe(node: syntax.Node, constants: frozenset[str], kinds: dict[str, str]) -> bool:
    """Return whether an expression never raises EvaluationError, so that it can be evaluated early."""
    if isinstance(node, syntax.Constant | syntax.Name):
        return True
    if isinstance(node, syntax.Attribute):
        return _is_safe_field(node, kinds)
    if isinstance(node, syntax.Is):
        return is_safe(node.value, constants, kinds)
    if isinstance(node, syntax.Unary):
        return node.operator == "not" and is_safe(node.operand, constants, kinds)
    if isinstance(node, syntax.Logical):
        return all(is_safe(operand, constants, kinds) for operand in node.operands)
    if isinstance(node, syntax.Comparison):
        return _is_safe_comparison(node, constants, kinds)
    if isinstance(node, syntax.Sequence):
        return all(is_safe(item, constants, kinds) for item in node.items)
    return isinstance(node, syntax.Call) and _is_safe_call(node, constants, kinds)


def _is_safe_field(node: syntax.Attribute, kinds: dict[str, str]) -> bool:
    """Fields of events that are known to be events, and one level of a call's arguments."""
    path = []
    value: syntax.Expr = node
    while isinstance(value, syntax.Attribute):
        path.append(value.name)
        value = value.value
    if not isinstance(value, syntax.Name) or value.name not in kinds:
        return False
    path.reverse()
    return len(path) == 1 or (path[0] == "function" and len(path) <= 3)


def _is_safe_comparison(node: syntax.Comparison, constants: frozenset[str], kinds: dict[str, str]) -> bool:
    operands = [node.first, *(operand for _, operand in node.rest)]
    if not all(_is_count(operand) or is_safe(operand, constants, kinds) for operand in operands):
        return False
    operators = {operator for operator, _ in node.rest}
    if operators <= {"==", "!=", "is", "is not"}:
        return True
    if operators <= {"in", "not in"}:
        return isinstance(node.rest[0][1], syntax.Sequence)
    return operators <= {"<", "<=", ">", ">="} and all(_is_count(operand) for operand in operands)


def _is_count(node: syntax.Expr) -> bool:
    if isinstance(node, syntax.Constant):
        return isinstance(node.value, int | float)
    if not isinstance(node, syntax.Call) or not isinstance(node.function, syntax.Name):
        return False
    inner = node.args[0] if len(node.args) == 1 else None
    lists = isinstance(inner, syntax.Call) and isinstance(inner.function, syntax.Name)
    return node.function.name in _COUNTS and lists and is_safe(inner, frozenset(), {}) if inner else False


def _is_safe_call(node: syntax.Call, constants: frozenset[str], kinds: dict[str, str]) -> bool:
    if not isinstance(node.function, syntax.Name) or node.function.name not in _SAFE_CALLS:
        return False
    args = node.args
    if node.function.name == "find" and args:
        fixed = isinstance(args[0], syntax.Constant) or isinstance(args[0], syntax.Name) and args[0].name in constants
        return fixed and all(is_safe(arg, constants, kinds) for arg in args[1:])
    if node.function.name in ("any", "all") and args:
        return isinstance(args[0], syntax.Call) and is_safe(args[0], constants, kinds)
    return all(is_safe(arg, constants, kinds) for arg in args)
