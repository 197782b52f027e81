"""The stock engine in a process of its own, spoken to in lines of JSON.

Runs under the interpreter that has invariant-ai, and imports nothing of ours. Commands, one a line, one answer each:

``{"do": "load", "name": n, "text": t}``       ``{"ok": true, "seconds": s}`` or ``{"error": class, "reason": text}``
``{"do": "check", "names": [..], "messages": m, "parameters": p}``   ``{"outcomes": [outcome, ..]}``
``{"do": "time", "name": n, "messages": m, "parameters": p, "seconds": s}``   ``{"samples": [seconds, ..]}`` or an error

An outcome is ``{"errors": n, "ranges": [[address, ..], ..]}`` or ``{"error": class, "reason": text}``. Seconds are
of the CPU. Patched: the stack of interpreters belongs to its task, the cap on evaluations is out of reach, the function
cache has no locks and lives for one check, a missing extra is an error instead of an exit, nothing connects anywhere.
"""

import asyncio
import importlib
import json
import os
import sys
import time
import traceback
import warnings
from typing import Any

# Read by the stock engine at each evaluation.
os.environ["INVARIANT_MAX_ITERATIONS"] = str(10**9)
_REASON = 300
_MOST_SAMPLES = 2000
_PLACES = "/invariant/"


class Stock:
    """What is used of invariant-ai, patched. Loaded by name: type checkers of this project do not see it."""

    def __init__(self) -> None:
        importlib.import_module("invariant.analyzer.extras").set_extras_strategy(False)
        self.evaluation: Any = importlib.import_module("invariant.analyzer.runtime.evaluation")
        self.caches: Any = importlib.import_module("invariant.analyzer.runtime.function_cache")
        self.policies: Any = importlib.import_module("invariant.analyzer").LocalPolicy
        self._scope_stack()
        self.caches.FunctionCache.acall = _unlocked(self.caches.call_either_way)

    def _scope_stack(self) -> None:
        stack = self.evaluation.INTERPRETER_STACK

        def enter(interpreter: Any) -> Any:
            outer = stack.get()
            if outer:
                interpreter.parent = outer[-1]
            interpreter.token = stack.set([*outer, interpreter])
            return interpreter

        def leave(interpreter: Any, *error: object) -> None:
            stack.reset(interpreter.token)

        self.evaluation.Interpreter.__enter__ = enter
        self.evaluation.Interpreter.__exit__ = leave


def _unlocked(call: Any) -> Any:
    async def acall(cache: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(function, "__invariant_cache__"):
            return await call(function, *args, **kwargs)
        key = cache.call_key(function, args, kwargs)
        if key not in cache.cache:
            cache.cache[key] = await call(function, *args, **kwargs)
        return cache.cache[key]

    return acall


class Worker:
    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._loaded: dict[str, Any] = {}

    async def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["do"] == "load":
            return self._load(command["name"], command["text"])
        messages, parameters = command["messages"], command["parameters"]
        if command["do"] == "check":
            return {"outcomes": [await self._check(name, messages, parameters) for name in command["names"]]}
        return await self._time(command["name"], messages, parameters, command["seconds"])

    def _load(self, name: str, text: str) -> dict[str, Any]:
        started = time.thread_time()
        try:
            self._loaded[name] = self._stock.policies.from_string(text)
        except Exception as error:
            return _failure(error)
        return {"ok": True, "seconds": time.thread_time() - started}

    async def _analyze(self, name: str, messages: Any, parameters: dict[str, Any]) -> Any:
        cache = self._stock.caches.FunctionCache()
        return await self._loaded[name].a_analyze(messages, function_cache=cache, **parameters)

    async def _check(self, name: str, messages: Any, parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            result = await self._analyze(name, messages, parameters)
            return {
                "errors": len(result.errors),
                "ranges": [sorted({place.to_address() for place in error.ranges}) for error in result.errors],
            }
        except Exception as error:
            return _failure(error)

    async def _time(self, name: str, messages: Any, parameters: dict[str, Any], seconds: float) -> dict[str, Any]:
        """CPU seconds of each check, as many as begin within ``seconds``; a first one goes unmeasured."""
        samples: list[float] = []
        await self._check(name, messages, parameters)
        begun = time.perf_counter()
        while not samples or (time.perf_counter() - begun < seconds and len(samples) < _MOST_SAMPLES):
            started = time.thread_time()
            try:
                await self._analyze(name, messages, parameters)
            except Exception as error:
                return _failure(error)
            samples.append(time.thread_time() - started)
        return {"samples": samples}


def _failure(error: Exception) -> dict[str, Any]:
    """The class, the words, and the function of the stock engine in which it was raised."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if _PLACES in frame.filename]
    place = places[-1].name if places else ""
    return {"error": type(error).__name__, "reason": str(error)[:_REASON], "place": place}


def _refuse_connections(event: str, args: object) -> None:
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise ConnectionRefusedError("the oracle has no network")


def main() -> None:
    """Answer until the input ends. What the stock engine prints goes to the error stream."""
    sys.addaudithook(_refuse_connections)
    answers, sys.stdout = sys.stdout, sys.stderr
    warnings.simplefilter("ignore")
    worker = Worker(Stock())
    print(json.dumps({"ready": True}), file=answers, flush=True)
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            print(json.dumps(runner.run(worker.answer(json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
