"""The proxy as a user runs it: the real application on a real port."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from gemini_proxy.config import Config
from gemini_proxy.guardrails.engine import Engine
from gemini_proxy.guardrails.rules import GuardrailSet, guardrail
from gemini_proxy.http.listen_addresses import ListenAddress
from gemini_proxy.server.app import create_app
from gemini_proxy.server.app_keys import STORAGE
from gemini_proxy.server.runner import running
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Trace
from tests.support.sqlite import make_database

MODEL = "gemini-2.5-flash"


@dataclass(frozen=True)
class Proxy:
    url: str
    app: web.Application
    database: str

    def method(self, name: str = "generateContent", query: str = "", prefix: str = "") -> str:
        return f"{self.url}{prefix}/v1beta/models/{MODEL}:{name}{query}"

    @property
    def stream(self) -> str:
        return self.method("streamGenerateContent", "?alt=sse")

    @property
    def store(self) -> TraceStore:
        return self.app[STORAGE].store

    async def trace(self) -> Trace:
        """The newest trace."""
        newest = (await self.store.recent(1))[0]
        found = await self.store.get(newest.id)
        assert found is not None
        return found

    async def eventually(self, right: Callable[[Trace], object]) -> Trace:
        """The newest trace once ``right`` says so: for what is written after the client has its answer."""
        async with asyncio.timeout(10):
            while True:
                if await self.store.recent(1) and right(trace := await self.trace()):
                    return trace


@contextlib.asynccontextmanager
async def proxy_before(
    base_url: str,
    folder: Path,
    *,
    policy: str | None = None,
    log_policy: str | None = None,
    mask_policy: str | None = None,
    ask_policy: str | None = None,
    grace: float = 5.0,
    engine: Engine | None = None,
    clock: Callable[[], float] = time.time,
    **sections: Mapping[str, Any],
) -> AsyncIterator[Proxy]:
    """Run the proxy before the upstream at ``base_url``; ``sections`` are those of the configuration."""
    database = str(sections.get("traces", {}).get("database") or make_database(folder / "traces.db"))
    values = {**sections, "upstream": {"base_url": base_url, **sections.get("upstream", {})}}
    values["traces"] = {**sections.get("traces", {}), "database": database}
    app = create_app(
        Config.model_validate(values), rules(policy, log_policy, mask_policy, ask_policy), engine, clock=clock
    )
    async with running(app, [ListenAddress("127.0.0.1", 0)], grace) as bound:
        yield Proxy(f"http://{bound[0]}", app, database)


def rules(
    policy: str | None, log_policy: str | None = None, mask_policy: str | None = None, ask_policy: str | None = None
) -> GuardrailSet:
    return GuardrailSet(
        (guardrail("test policy", policy, "block", asks=True),) if policy else (),
        (guardrail("test log policy", log_policy, "log", asks=True),) if log_policy else (),
        masking=(guardrail("test mask policy", mask_policy, "mask", asks=True),) if mask_policy else (),
        asking=(guardrail("test ask policy", ask_policy, "ask", asks=True),) if ask_policy else (),
    )


def prompt(text: str) -> dict[str, Any]:
    """A request body that says ``text``."""
    return {"contents": [{"role": "user", "parts": [{"text": text}]}]}


def asked(trace: Trace) -> str:
    """What the first message of a trace says, a user's."""
    return str(trace.messages[0]["content"][0]["text"])
