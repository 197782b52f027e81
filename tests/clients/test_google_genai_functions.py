"""Function calling with the real google-genai SDK: what is refused is never run."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.genai import errors, types

from tests.clients.sdk import QUIET, Connect, Sdk, recorded
from tests.conftest import StartProxy
from tests.support.upstream import Reply, ScriptedUpstream, call_part, candidate, sse, stream, unary

pytestmark = pytest.mark.filterwarnings(QUIET)

NO_DELETE = """
raise PolicyViolation("no deletions", path=c.function.arguments.path) if:
    (c: ToolCall)
    c is tool:delete_file
"""
NO_LEAK = """
raise "leaked" if:
    (o: ToolOutput)
    "hunter2" in o.content
"""
REFUSED = "[Invariant] The response did not pass the guardrails: no deletions"
DECLARED = [
    types.Tool(
        function_declarations=[
            types.FunctionDeclaration(name=name, description=name, parameters_json_schema={"type": "object"})
            for name in ("read_file", "delete_file")
        ]
    )
]


class Files:
    """Two real functions for the SDK to call by itself, and what became of them."""

    def __init__(self, content: str = "nothing much") -> None:
        self.ran: list[str] = []
        self._content = content

    @property
    def config(self) -> types.GenerateContentConfig:
        def read_file(path: str) -> str:
            """Read a file."""
            self.ran.append(f"read {path}")
            return self._content

        def delete_file(path: str) -> str:
            """Delete a file."""
            self.ran.append(f"delete {path}")
            return "gone"

        tools: list[Any] = [read_file, delete_file]
        return types.GenerateContentConfig(tools=tools)


def called(response: types.GenerateContentResponse) -> list[str | None]:
    return [call.name for call in response.function_calls or ()]


async def test_calls_made_by_hand(start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect) -> None:
    """An allowed call reaches the caller and its result the model; a refused call is an error without the call."""
    proxy = await start_proxy(policy=NO_DELETE)
    sdk = connect(proxy)
    config = types.GenerateContentConfig(tools=list(DECLARED))
    upstream.reply(
        unary(call_part("read_file", "STOP", path="/a")),
        unary(candidate("It says nothing.", "STOP")),
        unary(call_part("delete_file", "STOP", path="/a")),
    )
    asked = types.UserContent("What is in it?")
    first = await sdk.generate([asked], config=config)
    assert called(first) == ["read_file"]
    assert first.candidates is not None and first.candidates[0].content is not None
    result = types.Part.from_function_response(name="read_file", response={"result": "nothing"})
    second = await sdk.generate([asked, first.candidates[0].content, types.UserContent([result])], config=config)
    assert second.text == "It says nothing."
    with pytest.raises(errors.ClientError, match="no deletions"):
        await sdk.generate("Delete it", config=config)
    assert len(upstream.calls) == await recorded(proxy) == 3
    trace = await proxy.trace()
    assert trace.annotations[0].address == f"messages.{len(trace.messages) - 1}.tool_calls.0"


async def test_streamed_calls_made_by_hand(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect
) -> None:
    """A refused call in a stream never arrives; in its place comes the refusal."""
    proxy = await start_proxy(policy=NO_DELETE)
    sdk = connect(proxy)
    config = types.GenerateContentConfig(tools=list(DECLARED))
    upstream.reply(
        stream(*sse(candidate("Sure. "), call_part("read_file", path="/a"), candidate("Done", "STOP"))),
        stream(*sse(candidate("Sure. "), call_part("delete_file", path="/a"), candidate("Done", "STOP"))),
    )
    assert [called(chunk) for chunk in await sdk.stream("go", config=config)] == [[], ["read_file"], []]
    chunks = await sdk.stream("go", config=config)
    assert [chunk.text for chunk in chunks] == ["Sure. ", REFUSED]
    assert not any(called(chunk) for chunk in chunks)
    assert len(upstream.calls) == 2


async def _unary(sdk: Sdk, config: types.GenerateContentConfig) -> str:
    try:
        return str((await sdk.generate("go", config=config)).text)
    except errors.ClientError as error:
        return str(error.message)


async def _streamed(sdk: Sdk, config: types.GenerateContentConfig) -> str:
    return "".join(part.text or "" for part in _parts(await sdk.stream("go", config=config)))


def _parts(chunks: list[types.GenerateContentResponse]) -> Iterator[types.Part]:
    for chunk in chunks:
        for found in chunk.candidates or ():
            yield from (found.content.parts if found.content else None) or ()


def _as_unary(payload: dict[str, Any]) -> Reply:
    return unary(payload)


def _as_stream(payload: dict[str, Any]) -> Reply:
    return stream(*sse(payload))


WAYS = pytest.mark.parametrize(
    ("ask", "framed"), [(_unary, _as_unary), (_streamed, _as_stream)], ids=["unary", "streamed"]
)
Ask = Callable[[Sdk, types.GenerateContentConfig], Any]
Framed = Callable[[dict[str, Any]], Reply]


@WAYS
async def test_an_allowed_call_is_run_by_the_sdk(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect, ask: Ask, framed: Framed
) -> None:
    """Automatic function calling works through the proxy: the function runs once and its result goes to the model."""
    proxy = await start_proxy(policy=NO_DELETE)
    files = Files()
    upstream.reply(framed(call_part("read_file", "STOP", path="/a")), framed(candidate("It says nothing.", "STOP")))
    assert await ask(connect(proxy), files.config) == "It says nothing."
    assert files.ran == ["read /a"]
    assert upstream.calls[1].json["contents"][-1]["parts"][0]["functionResponse"]["name"] == "read_file"
    assert len(upstream.calls) == await recorded(proxy) == 2


@WAYS
async def test_a_refused_call_is_never_run_by_the_sdk(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect, ask: Ask, framed: Framed
) -> None:
    """Automatic function calling gets no call to run, and asks no second time."""
    proxy = await start_proxy(policy=NO_DELETE)
    files = Files()
    upstream.reply(framed(call_part("delete_file", "STOP", path="/a")), framed(candidate("Gone.", "STOP")))
    assert await ask(connect(proxy), files.config) == REFUSED
    assert files.ran == []
    assert len(upstream.calls) == await recorded(proxy) == 1


@WAYS
async def test_a_refused_result_does_not_reach_the_model(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect, ask: Ask, framed: Framed
) -> None:
    """What a function returned is checked before the model gets it."""
    proxy = await start_proxy(policy=NO_LEAK)
    files = Files(content="the word is hunter2")
    upstream.reply(framed(call_part("read_file", "STOP", path="/a")), framed(candidate("Thanks.", "STOP")))
    answer = await ask(connect(proxy), files.config)
    assert answer == "[Invariant] The request did not pass the guardrails: leaked"
    assert files.ran == ["read /a"]
    assert len(upstream.calls) == 1
    assert await recorded(proxy) == 2
