"""A pytest plug-in for the stock engine's own tests: what policies they check on which conversations, and what came.

Runs under the interpreter that has invariant-ai, and imports nothing of ours. Each check is a line of JSON in the file
that ``STOCK_CHECKS`` names: the ``policy``, the ``messages``, the ``parameters``, how many messages are ``past``, and
how many ``errors`` there were, None where the check raised.
"""

import functools
import importlib
import json
import os
from typing import Any


def pytest_configure() -> None:
    """Patch the stock engine's policies. Loaded by name: type checkers of this project do not see them."""
    policies: Any = importlib.import_module("invariant.analyzer.policy")
    stock = policies.LocalPolicy
    parse = policies.parse

    def remembering(text: str, *args: Any, **kwargs: Any) -> Any:
        root = parse(text, *args, **kwargs)
        root.written = text
        return root

    policies.parse = remembering
    stock.a_analyze = _recorded(stock.a_analyze, lambda messages, *_: ([], messages))
    stock.a_analyze_pending = _recorded(stock.a_analyze_pending, lambda past, pending, *_: (past, pending))


def _recorded(check: Any, split: Any) -> Any:
    @functools.wraps(check)
    async def recorded(policy: Any, *args: Any, **kwargs: Any) -> Any:
        past, pending = split(*args)
        parameters = {key: value for key, value in kwargs.items() if key not in ("raise_unhandled", "function_cache")}
        line = {
            "policy": getattr(policy.policy_root, "written", None), "messages": [*past, *pending],
            "parameters": parameters, "past": len(past), "errors": None,
        }  # fmt: skip
        try:
            result = await check(policy, *args, **kwargs)
            line["errors"] = len(result.errors)
        finally:
            _write(line)
        return result

    return recorded


def _write(line: dict[str, Any]) -> None:
    with open(os.environ["STOCK_CHECKS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(line, default=repr) + "\n")
