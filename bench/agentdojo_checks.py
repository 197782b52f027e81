"""Two ways to have a conversation of AgentDojo checked: by the engine, or through gemini-proxy as an agent's requests.

The agent sends what was said so far, and the scripted model behind the proxy answers with the next call of the
conversation. Each policy file with each set of labels has a proxy process of its own.
"""

import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.cli.process import write_config

from bench.processes import ProcessError, module, serving
from gemini_proxy.policy import Conversation, Policy, compile_policy
from gemini_proxy.sections import Limits

_POLICIES: Final = Path(__file__).parents[1] / "policies"
_SHOWN: Final = 500
"""Characters of an unexpected response that are shown."""

Message = Mapping[str, Any]
Labels = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Run:
    """A conversation under a policy file with labels of tools. Calls before the message ``start`` do not count."""

    policy: str
    labels: Labels
    messages: Sequence[Message]
    start: int = 0
    tools: Sequence[Mapping[str, Any]] = ()


class Checker(Protocol):
    """One of the two ways."""

    async def refuses(self, run: Run) -> bool:
        """Return whether a call of the run that counts is refused. Raises ProcessError if there is no verdict."""
        ...

    def __str__(self) -> str:
        """Say which way it is, and how much was asked."""
        ...


class Direct:
    """The engine in this process."""

    def __init__(self) -> None:
        self._policies: dict[str, Policy] = {}
        self._checks = 0

    async def refuses(self, run: Run) -> bool:
        if run.policy not in self._policies:
            file = _POLICIES / run.policy
            self._policies[run.policy] = compile_policy(file.read_text(), str(file))
        self._checks += 1
        violations = self._policies[run.policy].check(Conversation.of(run.messages), {"tool_labels": run.labels})
        indices = _refused_calls(address for violation in violations for address in violation.ranges)
        return any(index >= run.start for index in indices)

    def __str__(self) -> str:
        return f"by the engine, without the proxy: {self._checks} checks"


class ThroughProxy:
    """Proxy processes, which are started when they are first needed, and an agent that asks them."""

    def __init__(
        self, folder: Path, stack: contextlib.ExitStack, model: "ScriptedModel", upstream: int, *, stream: bool
    ) -> None:
        self._folder = folder
        self._stack = stack
        self._model = model
        self._upstream = upstream
        self._method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        self._session = aiohttp.ClientSession(headers={"x-goog-api-key": "agentdojo"})
        self._ports: dict[str, int] = {}
        self._requests = self._refused = 0

    async def refuses(self, run: Run) -> bool:
        """Ask once for each call that counts, up to the first refusal."""
        port = self._port(run)
        with self._model.playing(run.messages) as name:
            url = f"http://127.0.0.1:{port}/v1beta/models/{name}:{self._method}"
            for place, message in enumerate(run.messages):
                if place < run.start or "tool_calls" not in message:
                    continue
                indices = await self._ask(url, _request(run.messages[:place], run.tools), _turn(message))
                if indices is not None:
                    # Declarations are a message before the others.
                    return any(index - bool(run.tools) >= run.start for index in indices)
        return False

    async def close(self) -> None:
        await self._session.close()

    def __str__(self) -> str:
        return (
            f"through the proxy, {self._method.partition('?')[0]}: {self._requests} requests, {self._refused} refused, "
            f"{len(self._ports)} proxy processes"
        )

    def _port(self, run: Run) -> int:
        key = json.dumps([run.policy, run.labels], sort_keys=True)
        if key not in self._ports:
            folder = self._folder / str(len(self._ports))
            folder.mkdir()
            sections: dict[str, Mapping[str, object]] = {
                "server": {"listen": ["127.0.0.1:0"]},
                "upstream": {"base_url": f"http://127.0.0.1:{self._upstream}"},
                "limits": dict.fromkeys(Limits.model_fields, 0),
                "guardrails": {"policies": [str(_POLICIES / run.policy)]},
                "guardrails.parameters.tool_labels": run.labels,
            }
            config = write_config(folder, "config.toml", **sections)
            argv = module("gemini_proxy", "--config", str(config), "serve")
            self._ports[key] = self._stack.enter_context(serving(argv, folder / "proxy.log")).port
        return self._ports[key]

    async def _ask(self, url: str, body: Mapping[str, Any], expected: Mapping[str, Any]) -> set[int] | None:
        """The indices of the messages whose calls are refused; None if the model's turn comes through."""
        self._requests += 1
        async with self._session.post(url, json=body) as response:
            text = await response.text()
        answer = json.loads(text.removeprefix("data: "))
        if response.status == 200 and answer["candidates"][0]["content"] == expected:
            return None
        errors = _refusal_errors(response.status, answer)
        if errors is None:
            raise ProcessError(f"HTTP {response.status} is neither the model's turn nor a refusal: {text[:_SHOWN]}")
        self._refused += 1
        return _refused_calls(address for error in errors for address in error["ranges"])


class ScriptedModel:
    """A Gemini API that answers with the next turn of a conversation, which the model's name says."""

    def __init__(self) -> None:
        self._turns: dict[str, list[Mapping[str, Any]]] = {}
        self._numbers = count()

    @contextlib.contextmanager
    def playing(self, messages: Sequence[Message]) -> Iterator[str]:
        """The name of the model that says what the model says in the conversation."""
        name = f"agentdojo-{next(self._numbers)}"
        self._turns[name] = [_turn(message) for message in messages if "tool_calls" in message]
        try:
            yield name
        finally:
            del self._turns[name]

    async def answer(self, request: web.Request) -> web.Response:
        name, _, method = request.match_info["call"].partition(":")
        said = sum(content["role"] == "model" for content in (await request.json())["contents"])
        candidate = {"content": self._turns[name][said], "finishReason": "STOP", "index": 0}
        answer = json.dumps({"candidates": [candidate], "modelVersion": name})
        if method == "generateContent":
            return web.Response(text=answer, content_type="application/json")
        return web.Response(text=f"data: {answer}\r\n\r\n", content_type="text/event-stream")


@contextlib.asynccontextmanager
async def through_proxy(*, stream: bool = False) -> AsyncIterator[ThroughProxy]:
    """Run the scripted model, and the proxies before it until the end. ``stream``: the agent has answers streamed."""
    model = ScriptedModel()
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1beta/models/{call}", model.answer)
    async with TestServer(app) as upstream:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            assert upstream.port is not None
            checker = ThroughProxy(folder, stack, model, upstream.port, stream=stream)
            try:
                yield checker
            finally:
                await checker.close()


def _request(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What an agent sends when all of this was said."""
    contents: list[Mapping[str, Any]] = []
    names: dict[str, str] = {}
    name = ""
    for message in messages:
        if message["role"] == "user":
            contents.append({"role": "user", "parts": [{"text": message["content"]}]})
        elif "tool_calls" in message:
            contents.append(_turn(message))
            for call in message["tool_calls"]:
                name = call["function"]["name"]
                names[call.get("id", "")] = name
        elif message["role"] == "tool":
            given = message.get("tool_call_id", "")
            response = {"name": names.get(given, name), "response": {"result": message["content"]}}
            contents.append({"role": "user", "parts": [{"functionResponse": _with_id(given, response)}]})
    declared = [
        {"name": tool["name"], "description": tool["description"], "parametersJsonSchema": tool["inputSchema"]}
        for tool in tools
    ]
    return {"contents": contents, **({"tools": [{"functionDeclarations": declared}]} if declared else {})}


def _turn(message: Message) -> Mapping[str, Any]:
    """The model's calls as Gemini says them."""
    calls = [
        _with_id(call.get("id", ""), {"name": call["function"]["name"], "args": call["function"]["arguments"]})
        for call in message["tool_calls"]
    ]
    return {"role": "model", "parts": [{"functionCall": call} for call in calls]}


def _with_id(given: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"id": given, **value} if given else value


def _refusal_errors(status: int, answer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """The violations that a refusal of the guardrails names; None for any other response.

    A refusal without violations is none of a policy: there was no verdict, or content that no rule can read.
    """
    errors: Sequence[Mapping[str, Any]] = ()
    if status == 400:
        details = {detail["@type"].rpartition(".")[2]: detail for detail in answer["error"].get("details", ())}
        if details.get("ErrorInfo", {}).get("reason") == "GUARDRAIL_BLOCKED":
            errors = details["GuardrailErrors"]["errors"]
    elif status == 200 and answer["candidates"][0]["finishReason"] == "SAFETY":
        errors = answer["guardrails"]["errors"]
    return errors or None


def _refused_calls(addresses: Iterable[str]) -> set[int]:
    """The indices of the messages with a call at one of these addresses."""
    return {int(parts[1]) for parts in (address.split(".") for address in addresses) if "tool_calls" in parts}
