"""Two ways to have a conversation of AgentDojo checked: by the engine, or through gemini-proxy as an agent's requests.

The agent sends what was said so far, and the scripted model behind the proxy answers with the next call of the
conversation. Each policy file with each set of labels has a proxy process of its own.
"""

import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence, Set
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
_PATIENCE: Final = 60.0
"""Seconds that a check may take: without a verdict there is no report, however busy the machine is."""
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
        """Ask for each call that counts, up to the first that is refused.

        Calls before them that the proxy objects to are left out of what the agent sends, as they are when it is
        refused them.
        """
        port = self._port(run)
        left_out: set[int] = set()
        for place, message in enumerate(run.messages):
            if place < run.start or "tool_calls" not in message:
                continue
            while indices := await self._objected(port, run, place, left_out):
                if max(indices) >= run.start:
                    return True
                left_out |= indices | {index + 1 for index in indices if run.messages[index + 1]["role"] == "tool"}
        return False

    async def _objected(self, port: int, run: Run, place: int, left_out: Set[int]) -> set[int]:
        """The places of the calls that are refused where the model makes the calls at ``place``."""
        sent = [index for index in range(place) if index not in left_out]
        body = _request([run.messages[index] for index in sent], run.tools)
        indices = await self._ask(port, body, _turn(run.messages[place]))
        # Declarations are a message before the others.
        return {[*sent, place][index - bool(run.tools)] for index in indices}

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
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            sections: dict[str, Mapping[str, object]] = {
                "server": {"listen": ["127.0.0.1:0"]},
                "upstream": {"base_url": f"http://127.0.0.1:{self._upstream}"},
                "limits": dict.fromkeys(Limits.model_fields, 0),
                "guardrails": {"policies": [str(_POLICIES / run.policy)], "timeout": _PATIENCE},
                "guardrails.parameters.tool_labels": run.labels,
            }
            config = write_config(folder, "config.toml", **sections)
            argv = module("gemini_proxy", "--config", str(config), "serve")
            self._ports[key] = self._stack.enter_context(serving(argv, folder / "proxy.log")).port
        return self._ports[key]

    async def _ask(self, port: int, body: Mapping[str, Any], turn: Mapping[str, Any]) -> set[int]:
        """The indices of the messages whose calls are refused; none if the model's turn comes through."""
        self._requests += 1
        with self._model.saying(turn) as name:
            url = f"http://127.0.0.1:{port}/v1beta/models/{name}:{self._method}"
            async with self._session.post(url, json=body) as response:
                text = await response.text()
        answer = json.loads(text.removeprefix("data: "))
        if response.status == 200 and answer["candidates"][0]["content"] == turn:
            return set()
        errors = _refusal_errors(response.status, answer)
        indices = _refused_calls(address for error in errors for address in error["ranges"])
        if not indices:
            raise ProcessError(f"HTTP {response.status} is neither the model's turn nor a refusal: {text[:_SHOWN]}")
        self._refused += 1
        return indices


class ScriptedModel:
    """A Gemini API that says what it was given for the name of the model."""

    def __init__(self) -> None:
        self._turns: dict[str, Mapping[str, Any]] = {}
        self._numbers = count()

    @contextlib.contextmanager
    def saying(self, turn: Mapping[str, Any]) -> Iterator[str]:
        """The name of a model that says this."""
        name = f"agentdojo-{next(self._numbers)}"
        self._turns[name] = turn
        try:
            yield name
        finally:
            del self._turns[name]

    async def answer(self, request: web.Request) -> web.Response:
        name, _, method = request.match_info["call"].partition(":")
        if name not in self._turns:
            # The request was refused meanwhile.
            raise web.HTTPNotFound
        candidate = {"content": self._turns[name], "finishReason": "STOP", "index": 0}
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


def _refusal_errors(status: int, answer: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The violations that a refusal of the guardrails names.

    There are none where there was no verdict, and in any other response.
    """
    errors: Sequence[Mapping[str, Any]] = ()
    if status == 400:
        details = {detail["@type"].rpartition(".")[2]: detail for detail in answer["error"].get("details", ())}
        if details.get("ErrorInfo", {}).get("reason") == "GUARDRAIL_BLOCKED":
            errors = details["GuardrailErrors"]["errors"]
    elif status == 200 and answer["candidates"][0]["finishReason"] == "SAFETY":
        errors = answer["guardrails"]["errors"]
    return errors


def _refused_calls(addresses: Iterable[str]) -> set[int]:
    """The indices of the messages with a call at one of these addresses."""
    return {int(parts[1]) for parts in (address.split(".") for address in addresses) if "tool_calls" in parts}
