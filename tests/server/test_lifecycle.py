"""An exchange from outside: what the client gets, what the upstream is asked, what the trace says."""

import asyncio

import aiohttp
import orjson
import pytest

from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.support.proxy import prompt
from tests.support.upstream import Abort, Hang, Reply, ScriptedUpstream, call_part, candidate, sse, stream, unary

NO_DUBLIN = """
raise "Dublin detected in the response" if:
    (m: Message)
    m.role == "assistant"
    "Dublin" in m.content
"""
NO_SECRET = """
raise "secret in the prompt" if:
    (m: Message)
    m.role == "user"
    "hunter2" in m.content
"""
NO_FORBIDDEN_WORD = """
raise "a forbidden word" if:
    (m: Message)
    "zzforbiddenzz" in m.content
"""
NO_DELETE = """
raise "no deletions" if:
    (c: ToolCall)
    c is tool:delete_file
"""
EVENTS = sse(candidate("Hel"), candidate("lo "), candidate("there", "STOP", finishMessage="x"))


async def read(response: aiohttp.ClientResponse) -> bytes:
    return await response.read()


async def test_unary_answer_passes_untouched(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """An allowed answer is the upstream's bytes, the request body the client's."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    reply = unary(candidate("Cork", "STOP"), headers={"x-upstream": "yes", "set-cookie": "a=b"})
    upstream.reply(reply)
    body = b'{ "contents" : [ {"parts":[{"text":"Where?"}]} ] }'
    async with client.post(proxy.method(), data=body, headers={"content-type": "application/json"}) as response:
        assert response.status == 200
        assert await response.read() == reply.steps[0]
        assert response.headers["x-upstream"] == "yes"
        assert "set-cookie" not in response.headers
        assert "verdict=passed" in response.headers["x-gemini-proxy-guardrails"]
    assert upstream.calls[0].body == body
    assert upstream.calls[0].target == "/v1beta/models/gemini-2.5-flash:generateContent"
    trace = await proxy.trace()
    assert trace.outcome is Outcome.COMPLETED
    assert [message["content"] for message in trace.messages] == [[{"type": "text", "text": "Where?"}], "Cork"]


async def test_events_arrive_one_by_one(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The upstream sends its second event only when the client has the first."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    first_seen, second_seen = asyncio.Event(), asyncio.Event()
    upstream.reply(stream(EVENTS[0], first_seen, EVENTS[1], second_seen, EVENTS[2]))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert response.headers["x-accel-buffering"] == "no"
        assert await response.content.readany() == EVENTS[0]
        first_seen.set()
        assert await response.content.readany() == EVENTS[1]
        second_seen.set()
        assert await response.read() == EVENTS[2]


async def test_streamed_refusal_ends_the_stream(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """What is refused at the end is replaced by one event that every client shows; the body ends cleanly."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    events = sse(candidate("In "), candidate("Dublin", "STOP"))
    upstream.reply(stream(*events))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        body = await response.read()
    assert body.startswith(events[0])
    refusal = orjson.loads(body[len(events[0]) :].removeprefix(b"data: "))
    text = "[Invariant] The response did not pass the guardrails: Dublin detected in the response"
    assert refusal["candidates"][0]["content"]["parts"] == [{"text": text}]
    assert refusal["candidates"][0]["finishReason"] == "SAFETY"
    assert refusal["promptFeedback"]["block_reason"] == "SAFETY"
    assert b'Dublin"' not in body
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_RESPONSE
    assert [annotation.address for annotation in trace.annotations] == ["messages.1.content:3-9"]
    assert trace.annotations[0].guardrail["name"] == "test policy"


@pytest.mark.parametrize("request_check", ["before", "overlap"])
async def test_refused_request_is_not_answered(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, request_check: str
) -> None:
    """A refused prompt gets HTTP 400 with the rule's words, and leaves a trace with its range."""
    proxy = await start_proxy(policy=NO_SECRET, guardrails={"request_check": request_check})
    upstream.reply(unary(candidate("never", "STOP")))
    async with client.post(proxy.method(), json=prompt("it is hunter2")) as response:
        error = (await response.json())["error"]
    assert (response.status, error["status"]) == (400, "FAILED_PRECONDITION")
    assert error["message"] == "[Invariant] The request did not pass the guardrails: secret in the prompt"
    assert [detail["@type"].rpartition("/")[2] for detail in error["details"]] == [
        "google.rpc.ErrorInfo",
        "gemini_proxy.GuardrailErrors",
    ]
    assert error["details"][1]["errors"][0]["ranges"] == ["messages.0.content.0.text:6-13"]
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_REQUEST
    assert trace.annotations[0].address == "messages.0.content.0.text:6-13"
    assert trace.messages == [{"role": "user", "content": [{"type": "text", "text": "it is hunter2"}]}], "no answer"


async def test_refused_streamed_request_is_one_event(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=NO_SECRET)
    async with client.post(proxy.stream, json=prompt("hunter2")) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        body = await response.read()
    assert body.count(b"data: ") == 1 and body.endswith(b"\r\n\r\n")
    assert orjson.loads(body.removeprefix(b"data: "))["candidates"][0]["finishReason"] == "SAFETY"
    assert not upstream.calls


async def test_refused_streamed_request_as_http_400(start_proxy: StartProxy, client: aiohttp.ClientSession) -> None:
    proxy = await start_proxy(policy=NO_SECRET, refusals={"before_stream": "http_400"})
    async with client.post(proxy.stream, json=prompt("hunter2")) as response:
        assert response.status == 400
        assert "secret in the prompt" in (await response.json())["error"]["message"]


STRUCTURED = [
    {"responseMimeType": "application/json"},
    {"response_mime_type": "text/x.enum"},
    {"responseSchema": {"type": "OBJECT"}},
    {"response_schema": {"type": "OBJECT"}},
    {"responseJsonSchema": {"type": "object"}},
    {"response_json_schema": {"type": "object"}},
    {"_responseJsonSchema": {"type": "object"}},
    {"responseFormat": [{"text": {"schema": {"type": "object"}}}]},
    {"response_format": {"text": {"mime_type": "application/json"}}},
]
PLAIN = [
    {"responseMimeType": "text/plain"},
    {"responseMimeType": "TEXT/plain; charset=utf-8"},
    {"responseMimeType": "", "responseSchema": None},
    {"responseFormat": [{"text": {"mimeType": "text/plain"}}, {"audio": {"mimeType": "audio/wav"}}]},
    {"temperature": 0.5},
]


@pytest.mark.parametrize("spelling", ["generationConfig", "generation_config"])
@pytest.mark.parametrize(
    ("settings", "structured"), [*((one, True) for one in STRUCTURED), *((one, False) for one in PLAIN)]
)
async def test_a_structured_stream_is_refused_by_status_where_no_byte_has_left(
    start_proxy: StartProxy, client: aiohttp.ClientSession, settings: dict[str, object], structured: bool, spelling: str
) -> None:
    """Clients parse such a stream's text, and would show a refusal's event as a fault of theirs."""
    proxy = await start_proxy(policy=NO_SECRET)
    async with client.post(proxy.stream, json={**prompt("hunter2"), spelling: settings}) as response:
        assert response.status == (400 if structured else 200)
        assert "verdict=refused" in response.headers["x-gemini-proxy-guardrails"]
        assert b"secret in the prompt" in await response.read()
    assert (await proxy.trace()).outcome is Outcome.REFUSED_REQUEST


@pytest.mark.parametrize(
    ("before_stream", "structured", "status"),
    [("auto", True, 400), ("auto", False, 200), ("event", True, 200), ("http_400", False, 400)],
)
async def test_a_held_answer_is_refused_as_configured(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    before_stream: str,
    structured: bool,
    status: int,
) -> None:
    """With ``hold`` no byte of a refused answer has left either."""
    proxy = await start_proxy(
        policy=NO_DUBLIN, guardrails={"stream_check": "hold"}, refusals={"before_stream": before_stream}
    )
    upstream.reply(stream(*sse(candidate('{"city": "Dub'), candidate('lin"}', "STOP"))))
    body = {**prompt("Where?"), **({"generationConfig": STRUCTURED[0]} if structured else {})}
    async with client.post(proxy.stream, json=body) as response:
        assert response.status == status
        assert b"Dublin detected in the response" in await response.read()


async def test_a_structured_stream_that_has_begun_ends_with_an_event(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A status cannot be taken back."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    events = sse(candidate('{"city": "Dub'), candidate('lin"}', "STOP"))
    upstream.reply(stream(*events))
    async with client.post(proxy.stream, json={**prompt("?"), "generationConfig": STRUCTURED[0]}) as response:
        assert response.status == 200
        body = await response.read()
    assert body.startswith(events[0]) and b'"finishReason":"SAFETY"' in body


@pytest.mark.parametrize("feedback", ["compat", "none", "native"])
async def test_refusal_in_an_array(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, feedback: str
) -> None:
    """Without alt=sse the answer is a JSON array, and stays one when it is refused; nothing follows the bracket."""
    proxy = await start_proxy(policy=NO_DUBLIN, refusals={"feedback": feedback})
    elements = [candidate("In "), candidate("Dublin", "STOP")]
    upstream.reply(Reply([b"[" + orjson.dumps(elements[0]), b"\n,\r\n" + orjson.dumps(elements[1]), b"\n]"]))
    async with client.post(proxy.method("streamGenerateContent"), json=prompt("Where?")) as response:
        body = await response.read()
    assert body.startswith(b"[{") and body.endswith(b"\n]")
    answer = orjson.loads(body)
    assert answer[0] == elements[0]
    assert answer[1]["candidates"][0]["finishReason"] == "SAFETY"
    assert "promptFeedback" not in answer[1]


async def test_first_element_of_an_array_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=NO_DUBLIN)
    upstream.reply(Reply([b"[" + orjson.dumps(candidate("Dublin", "STOP")) + b"\n]"]))
    async with client.post(proxy.method("streamGenerateContent"), json=prompt("Where?")) as response:
        answer = orjson.loads(await response.read())
    assert len(answer) == 1
    assert answer[0]["candidates"][0]["finishReason"] == "SAFETY"


@pytest.mark.parametrize(
    ("feedback", "keys"),
    [
        ("compat", {"block_reason", "block_reason_message", "safetyRatings"}),
        ("none", set()),
        ("native", {"blockReason", "blockReasonMessage", "safetyRatings"}),
    ],
)
async def test_prompt_feedback_follows_the_configuration(
    start_proxy: StartProxy, client: aiohttp.ClientSession, feedback: str, keys: set[str]
) -> None:
    proxy = await start_proxy(policy=NO_SECRET, refusals={"feedback": feedback, "prefix": "[Wall]"})
    async with client.post(proxy.stream, json=prompt("hunter2")) as response:
        event = orjson.loads((await response.read()).removeprefix(b"data: "))
    assert set(event.get("promptFeedback", {})) == keys
    assert event["candidates"][0]["finishMessage"].startswith("[Wall] The request did not pass the guardrails")


async def test_function_call_waits_for_its_verdict(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A refused function call never leaves, though the stream goes on upstream."""
    proxy = await start_proxy(policy=NO_DELETE)
    events = sse(candidate("Sure. "), call_part("delete_file", path="/"), candidate("Done", "STOP"))
    upstream.reply(stream(events[0], events[1], Hang()))
    async with client.post(proxy.stream, json=prompt("go")) as response:
        body = await response.read()
    assert body.startswith(events[0])
    assert b"functionCall" not in body
    assert b"no deletions" in body
    await asyncio.wait_for(upstream.closed_by_caller.wait(), 5)


async def test_a_stream_goes_on_after_function_calls(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Also where each event comes alone, and is cut, while the client has all that came before."""
    proxy = await start_proxy(policy=NO_DELETE)
    events = sse(candidate("One"), call_part("read_file", path="/"), call_part("read_file"), candidate("Two", "STOP"))
    pieces = [piece for event in events for piece in (event[:9], event[9:])]
    gates = [asyncio.Event() for _ in pieces]
    # The head of the response comes with its first event.
    gates[0].set()
    upstream.reply(stream(*[step for gate, piece in zip(gates, pieces, strict=True) for step in (piece, gate)]))
    async with client.post(proxy.stream, json=prompt("go")) as response:
        received = b""
        for number, gate in enumerate(gates):
            if number % 2 and number < len(gates) - 1:
                while not received.endswith(pieces[number]):
                    more = await response.content.readany()
                    assert more, "the stream has ended"
                    received += more
            gate.set()
        assert received + await response.read() == b"".join(events)


async def test_allowed_function_call_goes_on_at_once(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """An allowed call is not kept until the end of the stream."""
    proxy = await start_proxy(policy=NO_DELETE)
    events = sse(call_part("read_file", path="/"), candidate("Done", "STOP"))
    seen = asyncio.Event()
    upstream.reply(stream(events[0], seen, events[1]))
    async with client.post(proxy.stream, json=prompt("go")) as response:
        assert await response.content.readany() == events[0]
        seen.set()
        assert await response.read() == events[1]


async def test_a_call_is_not_refused_for_what_the_answer_has_yet_to_say(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A rule that later text may satisfy withholds the call, and decides at the end."""
    policy = 'raise "no disclaimer" if:\n    (m: Message)\n    m.role == "assistant"\n    not ("careful" in m.content)'
    proxy = await start_proxy(policy=policy)
    for last in ("be careful", "be quick"):
        events = sse(call_part("read_file", path="/"), candidate(last, "STOP"))
        upstream.reply(stream(*events))
        async with client.post(proxy.stream, json=prompt("go")) as response:
            body = await response.read()
        assert (body == b"".join(events)) is (last == "be careful")
        assert (b"no disclaimer" in body) is (last == "be quick")


async def test_hold_lets_nothing_leave_before_the_verdict(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=NO_DUBLIN, guardrails={"stream_check": "hold"})
    upstream.reply(stream(*sse(candidate("In "), candidate("Dublin"), candidate(".", "STOP"))))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        body = await response.read()
    assert body.count(b"data: ") == 1
    assert b"did not pass" in body
    upstream.reply(stream(*EVENTS))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        assert await response.read() == b"".join(EVENTS)


async def test_text_split_over_events_is_found(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=NO_DUBLIN)
    upstream.reply(stream(*sse(candidate("Du"), candidate("bl"), candidate("in", "STOP"))))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        assert b"did not pass" in await response.read()


async def test_no_finish_reason_is_checked_all_the_same(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The final check runs whether or not a finish reason came."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    upstream.reply(stream(*sse(candidate("Dublin"))))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        assert b"did not pass" in await response.read()
    assert (await proxy.trace()).outcome is Outcome.REFUSED_RESPONSE


@pytest.mark.parametrize("query", ["?alt=sse", ""])
async def test_upstream_error_passes_unchanged(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, query: str
) -> None:
    """Status and body of an upstream error reach the client as they are, on streams too."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    body = b'{\n  "error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}\n}\n'
    upstream.reply(Reply([body], status=429, headers={"retry-after": "34"}, chunked=False))
    async with client.post(proxy.method("streamGenerateContent", query), json=prompt("hi")) as response:
        assert (response.status, await response.read()) == (429, body)
        assert response.headers["retry-after"] == "34"
    assert (await proxy.trace()).outcome is Outcome.UPSTREAM_ERROR


async def test_error_after_events_passes_unchanged(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Google ends a failing stream with bare JSON; clients read it as it is."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    tail = b'{\n  "error": {\n    "code": 499,\n    "message": "cancelled",\n    "status": "CANCELLED"\n  }\n}\n'
    upstream.reply(stream(EVENTS[0], tail))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert await response.read() == EVENTS[0] + tail
    assert (await proxy.trace()).outcome is Outcome.UPSTREAM_ERROR


async def test_upstream_death_is_a_broken_body(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A stream that breaks off upstream breaks off for the client; it is never a short success."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    seen = asyncio.Event()
    upstream.reply(stream(EVENTS[0], seen, Abort()))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert await response.content.readany() == EVENTS[0]
        seen.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert (await proxy.trace()).outcome is Outcome.UPSTREAM_CUT


async def test_unary_answer_that_breaks_off_is_an_error(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(policy=NO_DUBLIN)
    upstream.reply(Reply([b'{"candidates": [', Abort()]))
    async with client.post(proxy.method(), json=prompt("hi")) as response:
        assert response.status == 502
        assert (await response.json())["error"]["status"] == "UNAVAILABLE"
    assert (await proxy.trace()).outcome is Outcome.UPSTREAM_CUT


@pytest.mark.parametrize("garbage", [b"data: {broken\r\n\r\n", b"<html>oops</html>\n\n", b"data: [1]\n\n"])
async def test_unreadable_answer_is_refused(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, garbage: bytes
) -> None:
    """What cannot be read cannot be checked, and is not passed on; with or without rules."""
    proxy = await start_proxy()
    upstream.reply(stream(EVENTS[0], garbage, EVENTS[2]))
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        body = await response.read()
    assert garbage not in body
    assert b'"finishReason":"SAFETY"' in body
    assert (await proxy.trace()).outcome is Outcome.REFUSED_RESPONSE


async def test_client_that_leaves_ends_the_upstream_call(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A client that goes away is noticed though nobody writes; the call upstream ends and the trace says so."""
    proxy = await start_proxy(policy=NO_DUBLIN)
    upstream.reply(stream(EVENTS[0], Hang()))
    response = await client.post(proxy.stream, json=prompt("hi"))
    assert await response.content.readany() == EVENTS[0]
    response.close()
    await asyncio.wait_for(upstream.closed_by_caller.wait(), 1)
    trace = await proxy.eventually(lambda trace: True)
    assert trace.outcome is Outcome.CLIENT_GONE
    assert trace.messages[1]["content"] == "Hel"


async def test_upstream_that_cannot_be_reached(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy()
    await upstream.stop()
    async with client.post(proxy.stream, json=prompt("hi")) as response:
        assert response.status == 502
        assert (await response.json())["error"]["code"] == 502
    assert (await proxy.trace()).outcome is Outcome.UPSTREAM_ERROR


async def test_upstream_that_falls_silent(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    proxy = await start_proxy(upstream={"read_timeout": 0.2})
    upstream.reply(Reply(before_head=Hang()))
    async with client.post(proxy.method(), json=prompt("hi")) as response:
        assert response.status == 504
        assert (await response.json())["error"]["status"] == "DEADLINE_EXCEEDED"


async def test_a_refusal_in_the_history_is_checked_like_any_text(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A chat sends our refusal back as the model's words; what a rule finds in them counts as anywhere else.

    With ``history = "mask"`` it is masked, in the words of the refusal as well: see tests/proxy/test_history.py.
    """
    proxy = await start_proxy(policy=NO_DUBLIN, guardrails={"stream_check": "hold", "history": "refuse"})
    upstream.reply(stream(*sse(candidate("Dublin", "STOP"))))
    async with client.post(proxy.stream, json=prompt("Where?")) as response:
        event = orjson.loads((await response.read()).removeprefix(b"data: "))
    said = event["candidates"][0]["content"]
    history = [*prompt("Where?")["contents"], said, *prompt("Why not?")["contents"]]
    async with client.post(proxy.method(), json={"contents": history}) as response:
        assert response.status == 400
        assert "verdict=refused" in response.headers["x-gemini-proxy-guardrails"]
    trace = await proxy.trace()
    assert trace.outcome is Outcome.REFUSED_REQUEST
    assert trace.messages[1]["content"] == said["parts"][0]["text"]


@pytest.mark.parametrize("kind", ["request", "response"])
async def test_no_header_hides_text_from_the_rules(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, kind: str
) -> None:
    """A client's own rule and a sentence that reads like its refusal take nothing out of the operator's sight."""
    proxy = await start_proxy(policy=NO_FORBIDDEN_WORD)
    headers = {"Invariant-Guardrails": 'raise "zzforbiddenzz" if:\\n    (m: Message)\\n    m.role == "nobody"'}
    said = {"role": "model", "parts": [{"text": f"[Invariant] The {kind} did not pass the guardrails: zzforbiddenzz"}]}
    upstream.reply(unary(candidate("never", "STOP")))
    async with client.post(
        proxy.method(), json={"contents": [said, *prompt("Go on")["contents"]]}, headers=headers
    ) as response:
        assert response.status == 400
        assert "verdict=refused" in response.headers["x-gemini-proxy-guardrails"]
    assert (await proxy.trace()).annotations[0].guardrail["name"] == "test policy"
