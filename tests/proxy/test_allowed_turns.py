"""Rules with ``scope="new"``: what passed once in a conversation is left alone, and nothing else is."""

from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from google import genai
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.guardrails.turn_digests import answered, turn_ends
from gemini_proxy.policy import Conversation, compile_policy
from tests.clients.sdk import QUIET
from tests.conftest import StartProxy
from tests.proxy.test_history import NEXT, SORRY, Turn, status
from tests.server.test_lifecycle import NO_SECRET
from tests.support.proxy import MODEL, Proxy
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

TOWN = """
raise PolicyViolation("a town", scope="new") if:
    (m: Message)
    "Dublin" in m.content

raise "checked" if:
    (m: Message)
    m.role == "user"
"""
NEW_SECRET = NO_SECRET.replace('raise "secret in the prompt"', 'raise PolicyViolation("a secret", scope="new")')
ASKED, SAID = ("user", "Where is Trinity College?"), ("model", "In Dublin, of course.")


async def towns(proxy: Proxy, client: aiohttp.ClientSession, *turns: Turn, prefix: str = "") -> list[str]:
    """Send a chat. Return where its trace has a town once its logging rules have run."""
    assert await status(client, proxy, *turns, prefix=prefix) == 200
    trace = await proxy.eventually(lambda trace: trace.annotations)
    return [str(one.address).partition(":")[0] for one in trace.annotations if one.content == "a town"]


async def test_what_passed_in_this_conversation_is_left_alone(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    client.headers["x-goog-api-key"] = "AIzaTestKey;invariant-auth=inv-1"
    proxy = await start_proxy(log_policy=TOWN)
    upstream.reply(unary(candidate(SAID[1], "STOP")))
    assert await towns(proxy, client, ASKED) == ["messages.1.content"]
    upstream.reply(unary(candidate("fine", "STOP")))
    assert await towns(proxy, client, ASKED, SAID, NEXT) == []
    assert (await proxy.trace()).metadata["allowed_before"] == 2
    pieces = (("model", "In Dub"), ("model", "lin, of course."))
    assert await towns(proxy, client, ASKED, *pieces, NEXT) == []
    # What the client sends last is new, whoever's turn it says it is.
    assert await towns(proxy, client, ASKED, SAID) == ["messages.1.content"]
    again = ("user", "Dublin?")
    assert await towns(proxy, client, ASKED, SAID, again) == ["messages.2.content.0.text"]
    # What was said otherwise, elsewhere, or in another order was never here.
    for other in ((("user", "Where?"), SAID), (ASKED, ("model", "In Dublin.")), (NEXT, SORRY, ASKED, SAID)):
        assert await towns(proxy, client, *other, NEXT) == [f"messages.{len(other) - 1}.content"]
    assert await towns(proxy, client, ASKED, SAID, NEXT, prefix="/api/v1/gateway/shop/gemini") == ["messages.1.content"]
    # A rule that came later sees all of it once.
    later = await start_proxy(log_policy=f"# later{TOWN}")
    assert await towns(later, client, ASKED, SAID, NEXT) == ["messages.1.content"]
    assert await towns(later, client, ASKED, SAID, NEXT, ("model", "fine"), NEXT) == []


async def test_nothing_refused_or_masked_passes_for_allowed(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    upstream.reply(unary(candidate("no", "STOP")))
    blocking = await start_proxy(policy=NEW_SECRET)
    told = ("user", "my password is hunter2, keep it")
    assert await status(client, blocking, told, SORRY, NEXT) == 400
    assert await status(client, blocking, told) == 400
    # It heals in each turn, for what heals was not allowed.
    assert await status(client, blocking, told, SORRY, NEXT) == 200
    assert await status(client, blocking, told, SORRY, NEXT, SORRY, NEXT) == 200
    assert (await blocking.trace()).metadata["allowed_before"] == 0
    masking = await start_proxy(mask_policy=NEW_SECRET, log_policy=TOWN)
    assert await status(client, masking, told) == 200
    assert await status(client, masking, told, SORRY, NEXT) == 200
    assert (await masking.trace()).metadata["allowed_before"] == 2
    assert not any(b"hunter2" in call.body for call in upstream.calls)


@pytest.mark.filterwarnings(QUIET)
async def test_a_chat_of_the_sdk_is_known_again(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """It keeps a streamed answer as one content for each event, without what stands in other fields."""
    proxy = await start_proxy(policy=NEW_SECRET)
    upstream.reply(stream(*sse(candidate("It is "), candidate("fine"), candidate("", "STOP"))))
    options = types.HttpOptions(base_url=proxy.url)
    async with genai.Client(api_key="AIzaTestKey", http_options=options).aio as sdk:
        talk = sdk.chats.create(model=MODEL)
        for number in range(3):
            async for _ in await talk.send_message_stream(f"question {number}"):
                pass
            trace = await proxy.trace()
            assert trace.metadata["allowed_before"] == trace.metadata["request_messages"] - 1


Said = list[dict[str, Any]]
TEXTS = st.sampled_from(["a", "b", "ab", "ba"])
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}


def model(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def last_digest(messages: Sequence[dict[str, Any]]) -> str:
    return list(turn_ends(messages))[-1][1]


@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=3), st.data())
def test_a_digest_tells_what_was_said_and_not_how_it_was_cut(
    turns: list[tuple[str, list[str]]], data: st.DataObject
) -> None:
    whole = [message for asked, pieces in turns for message in (user(asked), model("".join(pieces)))]
    cut = [message for asked, pieces in turns for message in (user(asked), *map(model, pieces), model(""))]
    assert [digest for _, digest in turn_ends(whole)] == [digest for _, digest in turn_ends(cut)]
    assert [count for count, _ in turn_ends(whole)] == list(range(2, len(whole) + 1, 2))
    changed = list(whole)
    place = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["other words", "left out", "other role", "more"]))
    if kind == "other words":
        changed[place] = (user if place % 2 == 0 else model)("another")
    elif kind == "left out":
        del changed[place]
        changed.append(model("c"))
    elif kind == "other role":
        changed[place] = {**changed[place], "role": "system"}
        changed.append(model(""))
    else:
        changed.insert(place, {"tools": [{"name": "f"}]})
    assert last_digest(whole) not in [digest for _, digest in turn_ends(changed)]


POLICY = compile_policy(TOWN.replace("Dublin", "a"))
EXCHANGES = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9), TEXTS, st.lists(TEXTS, min_size=1, max_size=2)),
    min_size=2,
    max_size=5,
)


@given(EXCHANGES)
def test_what_was_not_here_before_is_always_found(exchanges: list[tuple[int, int, str, list[str]]]) -> None:
    """Each exchange goes on from an earlier one, or from what a client makes of it: less, more, or something else."""
    known: set[str] = set()
    allowed: list[list[dict[str, Any]]] = [[]]
    for number, change, asked, answer in exchanges:
        history = list(allowed[number % len(allowed)])
        place = change % (len(history) + 1)
        if change > 4:
            history[place : place + change % 2 + 1] = [model(asked)] if change % 3 else []
        request = [*history, user(asked)]
        ends = {digest: count for count, digest in turn_ends(request) if count < len(request)}
        here = max((ends[digest] for digest in known & ends.keys()), default=0)
        before = [count for count in ends.values() if any(_same(request[:count], one) for one in allowed)]
        assert here == max(before, default=0)
        conversation = Conversation.of(request)
        every, counted = POLICY.check(conversation), POLICY.check(conversation, allowed=here)
        new = [one for one in every if one.message == "checked" or int(one.ranges[0].split(".")[1]) >= here]
        assert list(counted) == new
        known.update(answered(request, [model(text) for text in answer]))
        allowed.append([*request, *map(model, answer)])


def _same(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> bool:
    """Whether two conversations say the same, however turns of the model are cut."""

    def said(messages: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
        turns: list[tuple[str, str]] = []
        for message in messages:
            role, content = message["role"], message["content"]
            text = content if role == "assistant" else content[0]["text"]
            goes_on = bool(turns) and turns[-1][0] == role == "assistant"
            turns = [*turns[:-1], (role, turns[-1][1] + text)] if goes_on else [*turns, (role, text)]
        return turns

    return said(one) == said(other)


def test_a_response_is_known_in_each_form_that_clients_keep() -> None:
    request = [user("hi")]
    thought = {"role": "assistant", "content": "hm", "thought": True}
    ran = {"role": "tool", "tool_name": "google_search", "content": "found", "provider": True}
    field = {"role": "assistant", "content": "done", "field": "finishMessage"}
    response = [ran, thought, model("a"), CALL, field]
    candidates = [*({**message, "candidate": 0} for message in response), {**model("b"), "candidate": 1}]
    digests = answered(request, candidates)
    for kept in (response, response[:4], response[1:4], [ran, *response[2:4]], response[2:4], [model("b")]):
        assert last_digest([*request, *kept]) in digests
    for other in ([*response[2:4], model("a")], [CALL, model("a")], [thought], [model("ab")]):
        assert last_digest([*request, *other]) not in digests
