"""Predicates: named conditions with parameters, compiled when first called, so that recursion shows at load."""

from collections.abc import Callable
from typing import Any

from gemini_proxy.policy.compile.scope import Context
from gemini_proxy.policy.parse import syntax
from gemini_proxy.policy.run.run import Run

# Predicates that call predicates: each level costs a few Python frames at run time.
_MAX_CHAIN = 12

Body = Callable[[Run, list[Any]], Any]


class CompiledPredicate:
    """``compile`` is called by every call site at load; ``apply`` only after it."""

    def __init__(self, node: syntax.Predicate, build: "Callable[[syntax.Predicate], Body]") -> None:
        self.name = node.name
        self.parameters = node.parameters
        self.node = node
        self._build = build
        self._body: Body | None = None
        self._open = False
        self.chain = 0

    def compile(self, context: Context, caller: syntax.Node) -> None:
        if self._open:
            context.fail(caller, f'"{self.name}" calls itself; predicates cannot be recursive')
        if self._body is None:
            self._open = True
            context.predicate_depth += 1
            if context.predicate_depth > _MAX_CHAIN:
                context.fail(caller, f"predicates call one another more than {_MAX_CHAIN} deep", fault="excess")
            self._body = self._build(self.node)
            context.predicate_depth -= 1
            self._open = False

    def apply(self, run: Run, args: list[Any]) -> Any:
        assert self._body is not None
        return self._body(run, args)
