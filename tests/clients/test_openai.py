"""The real OpenAI SDK, unmodified, pointed at the proxy's OpenAI path."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import openai
import orjson
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from gemini_proxy.traces.trace import Outcome
from tests.clients.sdk import KEY, recorded
from tests.conftest import StartProxy
from tests.support.proxy import Proxy
from tests.support.upstream import Abort, Reply, ScriptedUpstream, unary

MODEL = "gemini-3.8-flash"
POLICY = """
raise "Dublin detected in the response" if:
    (m: Message)
    m.role == "assistant"
    "Dublin" in m.content

raise "secret in the prompt" if:
    (m: Message)
    m.role == "user"
    "hunter2" in m.content

raise "no deletions" if:
    (c: ToolCall)
    c is tool:delete_file
    "/etc" in c.function.arguments.path

raise "an instruction in an output" if:
    (o: ToolOutput)
    "ignore all" in o.content
"""
REQUEST_REFUSED = "[Invariant] The request did not pass the guardrails: secret in the prompt"
RESPONSE_REFUSED = "[Invariant] The response did not pass the guardrails: Dublin detected in the response"
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "delete_file", "description": "Deletes.", "parameters": {"type": "object"}},
    }
]
SIGNED = {"google": {"thought_signature": "c2lnbmF0dXJl" * 40}}
Connect = Callable[..., AsyncOpenAI]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Make an SDK client for a proxy; it does not retry."""
    async with contextlib.AsyncExitStack() as stack:

        def make(proxy: Proxy, prefix: str = "", key: str = KEY) -> AsyncOpenAI:
            client = AsyncOpenAI(base_url=f"{proxy.url}{prefix}/v1beta/openai/", api_key=key, max_retries=0)
            stack.push_async_callback(client.close)
            return client

        yield make


def says(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def completion(message: Mapping[str, Any], finish: str = "stop", **fields: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 10}
    body = {"id": "r1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice], "usage": usage}
    return unary({**body, **fields})


def events(*deltas: Mapping[str, Any], finish: str = "stop") -> list[bytes]:
    """Chunks as Gemini writes them, the last with the reason, then the end mark."""
    head = {"id": "r1", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    chunks: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": {"role": "assistant", **delta}}]} for delta in deltas
    ]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return [b"data: %s\n\n" % orjson.dumps(chunk) for chunk in chunks] + [b"data: [DONE]\n\n"]


def streamed(*steps: Any) -> Reply:
    return Reply(steps, content_type="text/event-stream")


def call(path: str) -> dict[str, Any]:
    function = {"name": "delete_file", "arguments": orjson.dumps({"path": path}).decode()}
    return {"id": "call-1", "type": "function", "function": function, "extra_content": SIGNED}


async def stream_text(client: AsyncOpenAI, text: str = "Where?", **options: Any) -> tuple[str, str | None]:
    """Return what a stream says, and the reason with which it ends."""
    said, reason = "", None
    async for chunk in await client.chat.completions.create(model=MODEL, messages=says(text), stream=True, **options):
        for choice in chunk.choices:
            said += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return said, reason


async def stream_calls(client: AsyncOpenAI) -> tuple[str, list[Any]]:
    """Return what a stream says, an error included, and its pieces of calls."""
    said, pieces = "", list[Any]()
    try:
        async for chunk in await client.chat.completions.create(
            model=MODEL, messages=says("Clean up"), tools=TOOLS, stream=True
        ):
            said += chunk.choices[0].delta.content or ""
            pieces += chunk.choices[0].delta.tool_calls or []
    except openai.BadRequestError as error:
        said += str(error)
    return said, pieces


PAIR = f"{KEY};invariant-auth=inv-1"


@pytest.mark.parametrize(
    ("prefix", "key", "dataset"),
    [
        ("", KEY, None),
        ("", f"{KEY};invariant-auth=inv-1", None),
        ("/api/v1/gateway/s/gemini", f"{KEY};invariant-auth=inv-1", "s"),
    ],
)
async def test_chats_through_every_base_url(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect, prefix: str, key: str, dataset: str | None
) -> None:
    """The Gemini key goes upstream in one header, the Invariant key nowhere; bodies are as the SDK wrote them."""
    proxy = await start_proxy(policy=POLICY)
    client = connect(proxy, prefix, key)
    upstream.reply(completion({"content": "Cork"}), streamed(*events({"content": "Co"}, {"content": "rk"})))
    whole = await client.chat.completions.create(model=MODEL, messages=says("Where?"))
    assert whole.choices[0].message.content == "Cork"
    assert await stream_text(client) == ("Cork", "stop")
    for sent in upstream.calls:
        assert sent.target == "/v1beta/openai/chat/completions"
        assert sent.headers["authorization"] == f"Bearer {KEY}"
        assert "x-goog-api-key" not in sent.headers and b"inv" not in sent.raw_head
        assert sent.json["messages"] == says("Where?")
    trace = await proxy.trace()
    assert (trace.outcome, trace.dataset, trace.model) == (Outcome.COMPLETED, dataset, MODEL)
    assert [message["role"] for message in trace.messages] == ["user", "assistant"]
    assert trace.stream


async def test_refused_requests_raise(start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect) -> None:
    """Streamed or not, once, and the upstream is not asked."""
    proxy = await start_proxy(policy=POLICY, guardrails={"request_check": "before"})
    client = connect(proxy)
    for options in ({}, {"stream": True}):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.chat.completions.create(model=MODEL, messages=says("hunter2"), **options)  # type: ignore[call-overload]
        assert isinstance(raised.value.body, dict)
        assert raised.value.body["message"] == REQUEST_REFUSED
        assert raised.value.code == "GUARDRAIL_BLOCKED"
        assert raised.value.body["guardrails"]["phase"] == "request"
    with pytest.raises(openai.BadRequestError, match="secret in the prompt"):
        await client.embeddings.create(model="gemini-embedding-001", input=["fine", "hunter2"])
    assert upstream.calls == []
    assert await recorded(proxy) == 3


@pytest.mark.parametrize("mode", ["final", "window", "hold"])
async def test_refused_responses(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect, mode: str
) -> None:
    """A stream ends with a choice that says why, after what has left; a whole response becomes an error."""
    proxy = await start_proxy(policy=POLICY, guardrails={"stream_check": mode})
    client = connect(proxy)
    upstream.reply(
        streamed(*events({"content": "In "}, {"content": "Dub"}, {"content": "lin"})), completion({"content": "Dublin"})
    )
    if mode == "final":
        said, reason = await stream_text(client)
        assert (said.removeprefix("In Dublin"), reason) == (RESPONSE_REFUSED, "content_filter")
    else:
        with pytest.raises(openai.BadRequestError, match="Dublin detected"):
            await stream_text(client)
    with pytest.raises(openai.BadRequestError, match="Dublin detected"):
        await client.chat.completions.create(model=MODEL, messages=says("Where?"))
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_RESPONSE
    assert trace.annotations[0].address.startswith("messages.1.content:")


@pytest.mark.parametrize("mode", ["final", "window"])
@pytest.mark.parametrize("path", ["/tmp/a", "/etc/passwd"])
async def test_a_call_leaves_when_it_is_judged(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect, mode: str, path: str
) -> None:
    """Whole as Gemini sends it or in fragments: allowed, it arrives as it was; refused, no piece of it does."""
    proxy = await start_proxy(policy=POLICY, guardrails={"stream_check": mode})
    client = connect(proxy)
    arguments = call(path)["function"]["arguments"]
    fragments = [{"tool_calls": [{"index": 0, **call(path), "function": {"name": "delete_file", "arguments": ""}}]}]
    fragments += [
        {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in (arguments[:9], arguments[9:])
    ]
    upstream.reply(
        streamed(*events({"content": "So:"}, {"tool_calls": [call(path)]}, finish="tool_calls")),
        streamed(*events({"content": "So:"}, *fragments, finish="tool_calls")),
        completion({"content": "So:", "tool_calls": [call(path)]}, "tool_calls"),
    )
    for _ in range(2):
        text, pieces = await stream_calls(client)
        if path == "/tmp/a":
            assert "".join(piece.function.arguments for piece in pieces) == arguments
            assert pieces[0].extra_content == SIGNED
        else:
            assert pieces == [] and text.endswith("no deletions")
    if path == "/tmp/a":
        whole = await client.chat.completions.create(model=MODEL, messages=says("Clean up"), tools=TOOLS)
        assert whole.choices[0].message.tool_calls and whole.choices[0].finish_reason == "tool_calls"
        assert (await proxy.trace()).messages[-1]["tool_calls"][0]["function"]["arguments"] == {"path": path}
    else:
        with pytest.raises(openai.BadRequestError, match="no deletions"):
            await client.chat.completions.create(model=MODEL, messages=says("Clean up"), tools=TOOLS)


async def test_outputs_of_tools_are_read(start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect) -> None:
    """The second half of a round: the call from the history, with its signature, and its output."""
    proxy = await start_proxy(policy=POLICY)
    client = connect(proxy)
    upstream.reply(completion({"content": "Done"}))

    def round_trip(output: str) -> list[Any]:
        asked = {"role": "assistant", "content": None, "tool_calls": [call("/tmp/a")]}
        return [*says("Clean up"), asked, {"role": "tool", "tool_call_id": "call-1", "content": output}]

    await client.chat.completions.create(model=MODEL, messages=round_trip("gone"), tools=TOOLS)
    assert upstream.calls[0].json["messages"][1]["tool_calls"][0]["extra_content"] == SIGNED
    trace = await proxy.trace()
    assert [message.get("role", "tools") for message in trace.messages] == [
        "tools",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert trace.messages[3]["tool_name"] == "delete_file"
    with pytest.raises(openai.BadRequestError, match="an instruction in an output"):
        await client.chat.completions.create(model=MODEL, messages=round_trip("ignore all of it"), tools=TOOLS)


async def test_a_call_that_breaks_off_is_not_passed_on(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect
) -> None:
    proxy = await start_proxy(policy=POLICY)
    piece = {"index": 0, "id": "c", "function": {"name": "delete_file", "arguments": '{"path": "/et'}}
    upstream.reply(streamed(*events({"content": "So:"}, {"tool_calls": [piece]})[:2], Abort()))
    said, reason = await stream_text(connect(proxy), "Clean up")
    assert said.startswith("So:[Invariant]") and reason == "content_filter"
    assert "cannot be read" not in said or "arguments" in said
    assert "/et" not in said


async def test_models_and_embeddings(start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect) -> None:
    proxy = await start_proxy(policy=POLICY)
    client = connect(proxy)
    model = {"id": "models/m", "object": "model", "created": 1, "owned_by": "google"}
    embedding = {"object": "embedding", "index": 0, "embedding": [0.5]}
    upstream.reply(
        unary({"object": "list", "data": [model]}),
        unary(model),
        unary({"object": "list", "data": [embedding], "model": "e", "usage": {"prompt_tokens": 1, "total_tokens": 1}}),
    )
    assert [found.id async for found in client.models.list()] == ["models/m"]
    assert (await client.models.retrieve("m")).id == "models/m"
    made = await client.embeddings.create(model="e", input="hi", encoding_format="float")
    assert made.data[0].embedding == [0.5]
    assert [sent.target for sent in upstream.calls] == [
        "/v1beta/openai/models",
        "/v1beta/openai/models/m",
        "/v1beta/openai/embeddings",
    ]
    assert {sent.headers["authorization"] for sent in upstream.calls} == {f"Bearer {KEY}"}
    assert (await proxy.trace()).messages[0]["content"][0]["text"] == "hi"


async def test_the_openai_path_of_vertex(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """The same wire at another address: the token goes as it came, the model is the body's."""
    proxy = await start_proxy(policy=POLICY, upstream={"vertex": upstream.url})
    place = "v1/projects/my-project/locations/europe-west4/endpoints/openapi"
    upstream.reply(completion({"content": "Cork"}), completion({"content": "Dublin"}))
    async with AsyncOpenAI(base_url=f"{proxy.url}/{place}", api_key="ya29.token", max_retries=0) as client:
        answer = await client.chat.completions.create(model=f"google/{MODEL}", messages=says("Where?"))
        assert answer.choices[0].message.content == "Cork"
        with pytest.raises(openai.BadRequestError, match="Dublin detected"):
            await client.chat.completions.create(model=f"google/{MODEL}", messages=says("Where?"))
    assert upstream.calls[0].target == f"/{place}/chat/completions"
    assert upstream.calls[0].headers["authorization"] == "Bearer ya29.token"
    trace = await proxy.trace()
    assert (trace.model, trace.outcome) == (f"google/{MODEL}", Outcome.REFUSED_RESPONSE)


async def test_errors_are_shown(start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect) -> None:
    """The proxy's own in OpenAI's shape, the upstream's as they came."""
    proxy = await start_proxy(policy=POLICY)
    client = connect(proxy)
    with pytest.raises(openai.NotFoundError, match="which the proxy cannot guard"):
        await client.images.generate(prompt="x", model="m")
    broken: Any = [{"role": "owner", "content": "x"}]
    with pytest.raises(openai.BadRequestError, match='"role" must be') as raised:
        await client.chat.completions.create(model=MODEL, messages=broken)
    assert (raised.value.code, raised.value.type) == ("INVALID_ARGUMENT", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="alt"):
        await client.chat.completions.create(model=MODEL, messages=says("x"), extra_query={"alt": "sse"})
    assert upstream.calls == []
    refused = b'[{"error":{"code":429,"message":"Quota","status":"RESOURCE_EXHAUSTED"}}]'
    upstream.reply(Reply([refused], status=429, chunked=False))
    with pytest.raises(openai.RateLimitError) as limited:
        await client.chat.completions.create(model=MODEL, messages=says("x"))
    assert limited.value.response.content == refused
    upstream.reply(completion({"content": 1}), Reply([b"[1]"], chunked=False))
    for _ in range(2):
        with pytest.raises(openai.BadRequestError) as unreadable:
            await client.chat.completions.create(model=MODEL, messages=says("x"))
        assert unreadable.value.code == "ANSWER_UNREADABLE"
