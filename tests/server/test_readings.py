"""What readers join, through the whole proxy: no part between two halves of a word hides it from rules."""

import aiohttp
import pytest

from tests.conftest import StartProxy
from tests.proxy.responses import Payload
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

WORD = "zzforbiddenzz"
LEFT, RIGHT = {"text": "say zzforb"}, {"text": "iddenzz now"}
IMAGE = {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}
CODE = {"executableCode": {"language": "PYTHON", "code": "print(1)"}}
RESULT = {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}}
CALL = {"functionCall": {"name": "good", "args": {}}}
OUTPUT = {"functionResponse": {"name": "good", "response": {"result": "42"}}}
BETWEEN: dict[str, list[Payload]] = {
    "nothing": [],
    "partMetadata": [{"text": "", "partMetadata": {"a": "b"}}],
    "empty thought": [{"text": "", "thought": True}],
    "worded thought": [{"text": "let me think of something else, at some length", "thought": True}],
    "image": [IMAGE],
    "unknown part": [{"someNewPart": {"says": "hm"}}],
    "code and result": [CODE, RESULT],
    "call": [CALL],
}
SEARCHES = [
    f'"{WORD}" in m.content',
    'any(find("zz[a-z]+zz", m.content))',
    f'match("(?s).*{WORD}", m.content)',
    f'"{WORD.upper()}" in m.content.upper()',
    'has(m.content)',
    f'any("{WORD}" in t for t in text(m))',
    'any(secrets(m))',
]  # fmt: skip
TOKEN = "ghp_" + "a1B2" * 9


def policy(*searches: str, role: str = "assistant") -> str:
    head = f'from invariant.detectors import secrets\nhas(t: str) := "{WORD}" in t\n'
    return head + "\n".join(
        f'raise "rule {number}" if:\n    (m: Message)\n    m.role == "{role}"\n    {search}\n'
        for number, search in enumerate(searches)
    )


def contents(*given: tuple[str, list[Payload]]) -> Payload:
    return {"contents": [{"role": role, "parts": parts} for role, parts in given]}


def marked(part: Payload) -> Payload:
    return part | {"partMetadata": {"a": "b"}}


ASKED, GOING_ON = ("user", [{"text": "hi"}]), ("user", [{"text": "and?"}])
# What a user's part calls a thought is text of the user like any other.
OF_USERS = [name for name in BETWEEN if name not in ("worded thought", "code and result", "call")]
REQUESTS: dict[str, tuple[str, Payload]] = {
    **{f"user: {name}": ("user", contents(("user", [LEFT, *BETWEEN[name], RIGHT]))) for name in OF_USERS},
    **{
        f"model: {name}": ("assistant", contents(ASKED, ("model", [LEFT, *parts, RIGHT]), GOING_ON))
        for name, parts in BETWEEN.items()
    },
    "user: metadata on the second": ("user", contents(("user", [LEFT, marked(RIGHT)]))),
    "two contents of the user": ("user", contents(("user", [LEFT]), ("user", [RIGHT]))),
    "two contents of the model": ("assistant", contents(ASKED, ("model", [LEFT]), ("model", [RIGHT]), GOING_ON)),
    "user, output, user": ("user", contents(("model", [CALL]), ("user", [LEFT, OUTPUT, RIGHT]))),
    "a chat stored in chunks": (
        "assistant",
        contents(ASKED, *(("model", [{"text": text}]) for text in ("z", "zforb", "id", "denz", "z")), GOING_ON),
    ),
}


@pytest.mark.parametrize(("role", "body"), REQUESTS.values(), ids=REQUESTS)
async def test_no_seam_of_a_request_hides_a_word(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, role: str, body: Payload
) -> None:
    """Each search finds it."""
    upstream.reply(stream(*sse(candidate("hm", "STOP"))))
    proxy = await start_proxy(policy=policy(*SEARCHES[:-1], role=role), refusals={"before_stream": "http_400"})
    async with client.post(proxy.stream, json=body) as answer:
        assert answer.status == 400
        told = await answer.text()
    assert [f"rule {number}" in told for number in range(len(SEARCHES) - 1)] == [True] * (len(SEARCHES) - 1)


@pytest.mark.parametrize("negation", [f'not ("{WORD}" in m.content)', f'not any(find("{WORD}", m))'])
async def test_a_negation_is_not_fooled_by_a_seam(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, negation: str
) -> None:
    """The word that has to be there is there, for the model that reads it."""
    proxy = await start_proxy(policy=policy(negation))
    upstream.reply(unary({"candidates": [{"content": {"parts": [{"text": "and "}, IMAGE, RIGHT]}}]}))
    async with client.post(proxy.method(), json=contents(("user", [{"text": "hi"}]))) as answer:
        assert answer.status == 400
    upstream.reply(unary({"candidates": [{"content": {"parts": [LEFT, {"text": "", "thought": True}, RIGHT]}}]}))
    async with client.post(proxy.method(), json=contents(("user", [{"text": "hi"}]))) as answer:
        assert answer.status == 200


def one(part: Payload, index: int = 0) -> Payload:
    return {"candidates": [{"index": index, "content": {"role": "model", "parts": [part]}}]}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
@pytest.mark.parametrize("mode", ["unary", "final", "window", "hold"])
async def test_no_seam_of_a_response_hides_a_word(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    between: list[Payload],
    mode: str,
) -> None:
    """Every search refuses; in ``window`` and ``hold`` none of the word has left."""
    parts = [{"text": "Well. " * 20}, LEFT, *between, RIGHT, {"text": " So much for that." * 10}]
    asked = contents(("user", [{"text": "hi"}]))
    checked = {"window_overlap": 40, "unseen_content": "allow"}
    if mode in ("unary", "final"):
        proxy = await start_proxy(policy=policy(*SEARCHES[:4]), guardrails={"stream_check": "final", **checked})
        if mode == "unary":
            upstream.reply(unary({"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]}))
        else:
            upstream.reply(stream(*sse(*[one(part) for part in parts], candidate("", "STOP"))))
        async with client.post(proxy.method() if mode == "unary" else proxy.stream, json=asked) as answer:
            told = await answer.text()
        assert answer.status == (400 if mode == "unary" else 200)
        assert [number for number in range(4) if f"rule {number}" in told] == [0, 1, 2, 3]
        return
    # One that refuses as the response passes ends it for the others.
    for search in SEARCHES[:4]:
        proxy = await start_proxy(policy=policy(search), guardrails={"stream_check": mode, **checked})
        upstream.reply(stream(*sse(*[one(part) for part in parts], candidate("", "STOP"))))
        async with client.post(proxy.stream, json=asked) as answer:
            told = await answer.text()
        assert "rule 0" in told and "zzforb" not in told


@pytest.mark.parametrize("mode", ["final", "window", "hold"])
async def test_a_key_in_two_halves_is_found(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, mode: str
) -> None:
    proxy = await start_proxy(policy=policy(SEARCHES[-1]), guardrails={"stream_check": mode})
    halves: list[Payload] = [
        {"text": f"it is {TOKEN[:15]}"},
        {"text": "hm", "thought": True},
        {"text": f"{TOKEN[15:]} ok"},
    ]
    upstream.reply(stream(*sse(*[one(part) for part in halves], candidate("", "STOP"))))
    async with client.post(proxy.stream, json=contents(("user", [{"text": "hi"}]))) as answer:
        assert "rule 0" in await answer.text()
    trace = await proxy.trace()
    assert {found.address.rpartition(":")[0] for found in trace.annotations} >= {
        "messages.1.content", "messages.3.content"
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["final", "window", "hold"])
async def test_a_prefilled_answer_is_read_on(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, mode: str
) -> None:
    """The request ends in the model's turn; each candidate goes on with it, and none with another."""
    proxy = await start_proxy(policy=policy(SEARCHES[0]), guardrails={"stream_check": mode, "window_overlap": 40})
    body = contents(("user", [{"text": "hi"}]), ("model", [LEFT]))
    upstream.reply(stream(*sse(one({"text": "not so"}), one(RIGHT, 1), candidate("", "STOP"))))
    async with client.post(proxy.stream, json=body) as answer:
        assert "rule 0" in await answer.text()
    apart = [one(LEFT), one(RIGHT, 1), candidate("", "STOP")]
    upstream.reply(stream(*sse(*apart)))
    async with client.post(proxy.stream, json=contents(("user", [{"text": "hi"}]))) as answer:
        assert "rule 0" not in await answer.text()
