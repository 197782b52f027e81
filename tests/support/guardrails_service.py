"""A server of the Guardrails contract on a real socket: it checks with our own language, and fails as a test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDict

from gemini_proxy.policy import Budget, Conversation, compile_policy


@dataclass(frozen=True)
class Asked:
    """One call as it arrived."""

    path: str
    headers: CIMultiDict[str]
    json: Any

    @property
    def key(self) -> str:
        return self.headers["Authorization"].removeprefix("Bearer ")


@dataclass
class GuardrailsService:
    """``keys`` are those it accepts, None for any; ``status`` is what it answers with instead of checking.

    ``unable`` are words in policies that it says it cannot check. With ``gate`` it answers when that is set.
    """

    url: str = ""
    keys: set[str] | None = None
    status: int = 200
    unable: tuple[str, ...] = ()
    gate: asyncio.Event | None = None
    calls: list[Asked] = field(default_factory=list)
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def checks(self) -> list[Asked]:
        return [call for call in self.calls if call.path.endswith("/check/batch")]

    @property
    def loads(self) -> list[Asked]:
        return [call for call in self.calls if call.path.endswith("/load")]

    async def until(self, right: Callable[[], bool]) -> None:
        """Wait for calls until ``right`` says so."""
        async with asyncio.timeout(5), self._arrived:
            await self._arrived.wait_for(right)

    async def answer(self, request: web.Request) -> web.Response:
        asked = Asked(request.path, CIMultiDict(request.headers), orjson.loads(await request.read()))
        async with self._arrived:
            self.calls.append(asked)
            self._arrived.notify_all()
        if self.gate is not None:
            await self.gate.wait()
        if self.keys is not None and asked.key not in self.keys:
            return web.json_response({"detail": "You must provide a valid API key."}, status=401)
        if self.status != 200:
            return web.json_response({"detail": f"no, {asked.key}"}, status=self.status)
        if asked.path.endswith("/load"):
            return web.json_response({})
        return web.json_response({"result": [self._result(text, asked.json) for text in asked.json["policies"]]})

    def _result(self, policy: str, asked: Any) -> dict[str, Any]:
        if any(word in policy for word in self.unable):
            return {"errors": [], "error_message": f"cannot check for {self.unable}"}
        compiled = compile_policy(policy, "policy")
        found = compiled.check(Conversation.of(asked["messages"]), asked["parameters"], Budget(seconds=5.0))
        return {
            "errors": [
                {"key": "k", "args": list(one.args), "kwargs": dict(one.kwargs), "ranges": list(one.ranges)}
                for one in found
            ]
        }


@contextlib.asynccontextmanager
async def guardrails_service() -> AsyncIterator[GuardrailsService]:
    service = GuardrailsService()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/api/v1/policy/check/batch", service.answer)
    app.router.add_post("/api/v1/policy/load", service.answer)
    async with TestServer(app) as server:
        service.url = str(server.make_url("")).rstrip("/")
        yield service
