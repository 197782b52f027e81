"""The real google-genai SDK, unmodified, pointed at the proxy."""

from collections.abc import Sequence

import pytest
from google import genai
from google.genai import errors, types

from gemini_proxy.traces.trace import Outcome
from tests.clients.sdk import KEY, QUIET, Connect, recorded
from tests.conftest import StartProxy
from tests.support.proxy import MODEL
from tests.support.upstream import Hang, Reply, ScriptedUpstream, candidate, sse, stream, unary

pytestmark = pytest.mark.filterwarnings(QUIET)

POLICY = """
raise "Dublin detected in the response" if:
    (m: Message)
    m.role == "assistant"
    "Dublin" in m.content

raise "secret in the prompt" if:
    (m: Message)
    m.role == "user"
    "hunter2" in m.content
"""
REQUEST_REFUSED = "[Invariant] The request did not pass the guardrails: secret in the prompt"
RESPONSE_REFUSED = "[Invariant] The response did not pass the guardrails: Dublin detected in the response"
ALLOWED = sse(candidate("Cork "), candidate("it "), candidate("is", "STOP"))
REFUSED = sse(candidate("In "), candidate("Dublin"), candidate(".", "STOP"))

PREFIXES = [
    ("", KEY, None),
    ("/gemini", KEY, None),
    ("/api/v1/gateway/gemini/", KEY, None),
    ("/api/v1/gateway/my-set/gemini", f"{KEY};invariant-auth=inv-1234", "my-set"),
    ("", f"{KEY};invariant-auth=inv-1234", None),
]


def is_refusal(chunk: types.GenerateContentResponse, text: str) -> None:
    """The whole of what Invariant's clients look for in a streamed refusal."""
    assert chunk.text == text
    assert chunk.candidates is not None and len(chunk.candidates) == 1
    assert chunk.candidates[0].finish_reason is types.FinishReason.SAFETY
    assert chunk.prompt_feedback is not None
    assert chunk.prompt_feedback.block_reason is types.BlockedReason.SAFETY
    assert chunk.prompt_feedback.block_reason_message == text


def texts(chunks: Sequence[types.GenerateContentResponse]) -> list[str | None]:
    return [chunk.text for chunk in chunks]


@pytest.mark.parametrize(("prefix", "key", "dataset"), PREFIXES)
async def test_allowed_answers_through_every_base_url(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect, prefix: str, key: str, dataset: str | None
) -> None:
    """Only the base URL changes; the Gemini key arrives upstream, the Invariant key does not."""
    proxy = await start_proxy(policy=POLICY)
    sdk = connect(proxy, prefix, key)
    upstream.reply(unary(candidate("Cork", "STOP")), stream(*ALLOWED))
    assert (await sdk.generate("Where?")).text == "Cork"
    assert texts(await sdk.stream("Where?")) == ["Cork ", "it ", "is"]
    assert [call.target for call in upstream.calls] == [
        f"/v1/models/{MODEL}:generateContent",
        f"/v1/models/{MODEL}:streamGenerateContent?alt=sse",
    ]
    assert {call.headers["x-goog-api-key"] for call in upstream.calls} == {KEY}
    assert not any(b"inv" in call.raw_head for call in upstream.calls)
    assert await recorded(proxy) == 2
    trace = await proxy.trace()
    assert (trace.outcome, trace.dataset) == (Outcome.COMPLETED, dataset)


@pytest.mark.parametrize(("prefix", "key", "dataset"), PREFIXES[:4:3])
async def test_unary_refusals_raise(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect, prefix: str, key: str, dataset: str | None
) -> None:
    """A refused request or response is a ClientError with the rule's words, after one call."""
    proxy = await start_proxy(policy=POLICY)
    sdk = connect(proxy, prefix, key)
    with pytest.raises(errors.ClientError) as refused_request:
        await sdk.generate("it is hunter2")
    assert not upstream.calls
    upstream.reply(unary(candidate("In Dublin", "STOP")))
    with pytest.raises(errors.ClientError) as refused_response:
        await sdk.generate("Where?")
    assert len(upstream.calls) == 1
    assert await recorded(proxy) == 2
    for error, text in ((refused_request.value, REQUEST_REFUSED), (refused_response.value, RESPONSE_REFUSED)):
        assert (error.code, error.status, error.message) == (400, "FAILED_PRECONDITION", text)
        info, found = error.details["error"]["details"]
        assert (info["reason"], info["domain"]) == ("GUARDRAIL_BLOCKED", "gemini-proxy")
        assert found["errors"][0]["args"] == [text.rpartition(": ")[2]]
        assert text in str(error)
    assert (await proxy.trace()).dataset == dataset


@pytest.mark.parametrize(("prefix", "key", "dataset"), PREFIXES[:4:3])
async def test_streamed_refusals_are_a_last_chunk(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect, prefix: str, key: str, dataset: str | None
) -> None:
    """A refused stream ends with one chunk that reads as a safety block; the SDK neither raises nor asks again."""
    proxy = await start_proxy(policy=POLICY)
    sdk = connect(proxy, prefix, key)
    (only,) = await sdk.stream("it is hunter2")
    is_refusal(only, REQUEST_REFUSED)
    assert not upstream.calls
    upstream.reply(stream(*REFUSED))
    *before, last = await sdk.stream("Where?")
    assert texts(before) == ["In ", "Dublin"]
    is_refusal(last, RESPONSE_REFUSED)
    assert len(upstream.calls) == 1
    assert await recorded(proxy) == 2
    trace = await proxy.trace()
    assert (trace.outcome, trace.dataset) == (Outcome.REFUSED_RESPONSE, dataset)


async def test_hold_shows_the_refusal_alone(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect
) -> None:
    """With everything held nothing of a refused answer is seen, and an allowed one is whole."""
    proxy = await start_proxy(policy=POLICY, guardrails={"stream_check": "hold"})
    sdk = connect(proxy)
    upstream.reply(stream(*REFUSED), stream(*ALLOWED))
    (only,) = await sdk.stream("Where?")
    is_refusal(only, RESPONSE_REFUSED)
    assert texts(await sdk.stream("Where?")) == ["Cork ", "it ", "is"]
    assert len(upstream.calls) == 2


async def test_a_continuation_is_not_asked_for_after_a_refusal(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect
) -> None:
    """A stream that offered to be continued and is refused is over: the SDK sends no second request."""
    proxy = await start_proxy(policy=POLICY)
    begun = candidate("In ", continuationToken="dG9rZW4=")
    upstream.reply(stream(*sse(begun, candidate("Dublin"), candidate(".", "STOP"))))
    is_refusal((await connect(proxy).stream("Where?"))[-1], RESPONSE_REFUSED)
    assert len(upstream.calls) == 1
    assert await recorded(proxy) == 1


async def test_refused_before_the_stream_by_status(start_proxy: StartProxy, connect: Connect) -> None:
    """``before_stream = "http_400"`` makes a refused prompt raise on streams as well."""
    proxy = await start_proxy(policy=POLICY, refusals={"before_stream": "http_400"})
    with pytest.raises(errors.ClientError) as raised:
        await connect(proxy).stream("it is hunter2")
    assert (raised.value.code, raised.value.message) == (400, REQUEST_REFUSED)


async def test_a_structured_stream_raises_with_the_reason(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect
) -> None:
    """A stream that asked for a schema is refused by status; without one the refusal is an event. One request each."""
    proxy = await start_proxy(policy=POLICY, guardrails={"stream_check": "hold"})
    sdk = connect(proxy)
    config = types.GenerateContentConfig(response_schema={"type": "OBJECT"}, response_mime_type="application/json")
    upstream.reply(stream(*REFUSED))
    for asked, refused in (("it is hunter2", REQUEST_REFUSED), ("Where?", RESPONSE_REFUSED)):
        with pytest.raises(errors.ClientError) as raised:
            await sdk.stream(asked, config=config)
        assert (raised.value.code, raised.value.message) == (400, refused)
    is_refusal((await sdk.stream("it is hunter2"))[-1], REQUEST_REFUSED)
    assert await recorded(proxy) == 3


async def test_rules_in_a_header(start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect) -> None:
    """A client brings a rule of its own in the SDK's headers; a rule that does not load is an error, not ignored."""
    proxy = await start_proxy(policy=POLICY)
    rule = r'raise "no Cork" if:\n    (m: Message)\n    "Cork" in m.content'
    upstream.reply(unary(candidate("Cork", "STOP")))
    with pytest.raises(errors.ClientError, match="no Cork"):
        await connect(proxy, headers={"Invariant-Guardrails": rule}).generate("Where?")
    with pytest.raises(errors.ClientError) as raised:
        await connect(proxy, headers={"Invariant-Guardrails": "raise if"}).generate("Where?")
    assert (raised.value.code, raised.value.status) == (400, "INVALID_ARGUMENT")
    assert len(upstream.calls) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "INVALID_ARGUMENT", errors.ClientError),
        (429, "RESOURCE_EXHAUSTED", errors.ClientError),
        (503, "UNAVAILABLE", errors.ServerError),
    ],
)
async def test_upstream_errors_keep_their_words(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    connect: Connect,
    status: int,
    code: str,
    kind: type[errors.APIError],
) -> None:
    """What Gemini says when it fails is what the SDK raises, unary and streamed, after one call each."""
    proxy = await start_proxy(policy=POLICY)
    sdk = connect(proxy)
    body = b'{\n  "error": {"code": %d, "message": "said by Gemini", "status": "%b"}\n}\n' % (status, code.encode())
    upstream.reply(Reply([body], status=status, chunked=False))
    for call in (sdk.generate, sdk.stream):
        with pytest.raises(kind) as raised:
            await call("hi")
        assert (raised.value.code, raised.value.status) == (status, code)
        assert raised.value.message == "said by Gemini"
    assert len(upstream.calls) == 2
    assert (await proxy.trace()).outcome is Outcome.UPSTREAM_ERROR


async def test_errors_of_the_proxy_are_the_sdks_errors(start_proxy: StartProxy, connect: Connect) -> None:
    """A dataset without an Invariant key is refused in words that the SDK passes on."""
    proxy = await start_proxy()
    with pytest.raises(errors.ClientError) as raised:
        await connect(proxy, "/api/v1/gateway/my-set/gemini").generate("hi")
    assert (raised.value.code, raised.value.message) == (400, "Missing invariant api key")


async def test_upstream_that_dies_is_an_error(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect
) -> None:
    """No head from upstream is a ServerError that says so."""
    proxy = await start_proxy(upstream={"read_timeout": 0.1})
    upstream.reply(Reply(before_head=Hang()))
    with pytest.raises(errors.ServerError) as raised:
        await connect(proxy).generate("hi")
    assert raised.value.code == 504
    assert "silent" in str(raised.value.message) or "time" in str(raised.value.message)


async def test_chat_goes_on_after_refusals(
    start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect
) -> None:
    """Refused turns, raised or streamed, leave a chat that can be carried on, with the refusal in its history."""
    proxy = await start_proxy(policy='raise "Dublin" if:\n    (m: Message)\n    "In Dublin" in m.content\n')
    chat = connect(proxy).chat()
    refused = "[Invariant] The response did not pass the guardrails: Dublin"
    upstream.reply(
        unary(candidate("Hello", "STOP")),
        unary(candidate("In Dublin", "STOP")),
        stream(*sse(candidate("In Dublin", "STOP"))),
        stream(*ALLOWED),
    )
    assert (await chat.send("hi")).text == "Hello"
    with pytest.raises(errors.ClientError, match="Dublin"):
        await chat.send("Where?")
    (only,) = await chat.send_streaming("Where?")
    is_refusal(only, refused)
    assert texts(await chat.send_streaming("Where else?")) == ["Cork ", "it ", "is"]
    said = chat.said()
    assert said[:4] == [("user", "hi"), ("model", "Hello"), ("user", "Where?"), ("model", refused)]
    assert said[4] == ("user", "Where else?")
    assert "".join(text for role, text in said[5:] if role == "model") == "Cork it is"
    assert len(upstream.calls) == 4
    sent = [content["parts"][0]["text"] for content in upstream.calls[3].json["contents"]]
    assert sent == ["hi", "Hello", "Where?", refused, "Where else?"]
    assert await recorded(proxy) == 4


async def test_counting_and_embedding(start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect) -> None:
    """Calls that generate nothing pass, and their prompts are checked all the same."""
    proxy = await start_proxy(policy=POLICY)
    sdk = connect(proxy)
    upstream.reply(unary({"totalTokens": 3}), unary({"embeddings": [{"values": [0.5, 1.0]}]}))
    assert (await sdk.count_tokens("one two three")).total_tokens == 3
    embeddings = (await sdk.embed("a text")).embeddings
    assert embeddings is not None and embeddings[0].values == [0.5, 1.0]
    for call in (sdk.count_tokens, sdk.embed):
        with pytest.raises(errors.ClientError) as raised:
            await call("it is hunter2")
        assert (raised.value.code, raised.value.message) == (400, REQUEST_REFUSED)
    assert len(upstream.calls) == 2


async def test_models(start_proxy: StartProxy, upstream: ScriptedUpstream, connect: Connect) -> None:
    """Models are listed, page by page, and described."""
    proxy = await start_proxy(policy=POLICY)
    sdk = connect(proxy)
    upstream.reply(
        unary({"models": [{"name": "models/a"}], "nextPageToken": "n"}),
        unary({"models": [{"name": "models/b"}]}),
        unary({"name": f"models/{MODEL}", "displayName": "Flash"}),
    )
    assert await sdk.models() == ["models/a", "models/b"]
    assert (await sdk.model(MODEL)).display_name == "Flash"
    assert "pageToken=n" in upstream.calls[1].target
    assert upstream.calls[2].target == f"/v1/models/{MODEL}"


async def test_a_streamed_chat_is_read_as_one_answer_from_its_second_turn_on(
    start_proxy: StartProxy, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK keeps a streamed answer as one content a chunk: rules find in the history what its chunks make."""
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    proxy = await start_proxy(policy=None)
    chunks = sse(candidate("zz"), candidate("forb"), candidate("idden"), candidate("zz", "STOP"))
    upstream.reply(stream(*chunks))
    client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=proxy.url))
    chat = client.aio.chats.create(model=MODEL)
    async for _ in await chat.send_message_stream("say it"):
        pass
    assert len([turn for turn in chat.get_history() if turn.role == "model"]) == 4
    word = 'raise "the word" if:\n    (m: Message)\n    m.role == "assistant"\n    "zzforbiddenzz" in m.content\n'
    guarded = await start_proxy(policy=word)
    second = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=guarded.url))
    going_on = second.aio.chats.create(model=MODEL, history=[*chat.get_history()])
    told = [chunk.text async for chunk in await going_on.send_message_stream("and again")]
    assert told == ["[Invariant] The request did not pass the guardrails: the word"]
    await client.aio.aclose()
    await second.aio.aclose()
