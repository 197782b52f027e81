"""The proxy as ``bench.loop_lag`` measures it: says how long its loop was held up, and by what.

Speaks lines of JSON: ``{"port": n}`` once it listens; then for each line read, what was measured since the last one.
"""

import asyncio
import gc
import json
import sys
import tempfile
import threading
import time
import traceback
from asyncio import events
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gemini_proxy.config import Config
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.http.listen_addresses import ListenAddress
from gemini_proxy.server.app import create_app
from gemini_proxy.server.runner import running

_BEAT: Final = 0.002
_LOOK_AFTER: Final = 0.008
"""Seconds that a callback has to run before its stack is looked at."""
_OWN: Final = "/gemini_proxy/"


@dataclass(slots=True)
class Watch:
    """``lag``: the longest the loop was late, in seconds; ``cpu``: the longest of its own work in one callback;
    ``collector``: the longest of that which was Python's garbage collector."""

    lag: float = 0.0
    cpu: float = 0.0
    collector: float = 0.0
    worst: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    begun: float = 0.0
    stack: str = ""

    def taken(self) -> dict[str, Any]:
        """What was measured, and a fresh start."""
        found = {
            "lag": self.lag,
            "cpu": self.cpu,
            "collector": self.collector,
            "worst": self.worst,
            "seen": self.seen.most_common(6),
        }
        self.lag, self.cpu, self.collector, self.worst = 0.0, 0.0, 0.0, ""
        self.seen.clear()
        return found


def time_callbacks(watch: Watch) -> None:
    """Measure each callback of the loop in CPU time of its thread, and look at the stack of those that take long."""
    plain = events.Handle._run

    def timed(handle: Any) -> None:
        watch.stack = ""
        before = time.thread_time()
        watch.begun = time.perf_counter()
        plain(handle)
        watch.begun = 0.0
        spent = time.thread_time() - before
        if spent > watch.cpu:
            watch.cpu, watch.worst = spent, watch.stack or repr(handle)[:200]

    setattr(events.Handle, "_run", timed)  # noqa: B010
    threading.Thread(target=_look, args=(watch, threading.get_ident()), daemon=True).start()


def time_collector(watch: Watch) -> None:
    """Measure each collection."""
    begun = [0.0]

    def collected(phase: str, info: object) -> None:
        if phase == "start":
            begun[0] = time.thread_time()
        else:
            watch.collector = max(watch.collector, time.thread_time() - begun[0])

    gc.callbacks.append(collected)


def _look(watch: Watch, thread: int) -> None:
    while True:
        time.sleep(_LOOK_AFTER / 2)
        begun = watch.begun
        if begun and time.perf_counter() - begun > _LOOK_AFTER:
            frame = sys._current_frames().get(thread)
            watch.stack = _where(traceback.extract_stack(frame)) if frame else ""
            watch.seen[watch.stack] += 1


def _where(stack: traceback.StackSummary) -> str:
    """The innermost function, and the innermost four of ours that led to it."""
    own = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in stack if _OWN in frame.filename]
    return " > ".join([*own[-4:], f"[{stack[-1].name}]"])


async def _beat(watch: Watch) -> None:
    while True:
        due = time.perf_counter() + _BEAT
        await asyncio.sleep(_BEAT)
        watch.lag = max(watch.lag, time.perf_counter() - due)


async def main(upstream: str, stream_check: str) -> None:
    """Serve until the input ends."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        sections = {
            "upstream": {"base_url": upstream},
            "guardrails": {"stream_check": stream_check, "timeout": 1.0},
            "traces": {"database": f"sqlite:///{folder}/traces.db"},
        }
        app = create_app(Config.model_validate(sections), GuardrailSet())
        async with running(app, [ListenAddress("127.0.0.1", 0)], 1.0) as bound, asyncio.TaskGroup() as group:
            time_callbacks(watch)
            time_collector(watch)
            beat = group.create_task(_beat(watch))
            print(json.dumps({"port": int(bound[0].rpartition(":")[2])}), flush=True)
            while await asyncio.to_thread(sys.stdin.readline):
                print(json.dumps(watch.taken()), flush=True)
            beat.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
