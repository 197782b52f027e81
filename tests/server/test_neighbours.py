"""What one client's policies cost is that client's alone."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gemini_proxy.policy import Budget, BudgetExceeded, Conversation, compile_policy
from tests.support.proxy import prompt, proxy_before
from tests.support.upstream import ScriptedUpstream, candidate, unary

WORD = 'raise "no" if:\n    (m: Message)\n    "forbidden" in m.content\n'
ENDLESS = (
    'raise "x" if:\n    (a: Message)\n    (b: Message)\n    (c: Message)\n    (d: Message)\n'
    "    a.content == b.content + c.content + d.content\n"
)
UNBREAKABLE = 'raise "x" if:\n    (m: Message)\n    find("(?:a?){400}(?:a){400}b", m.content)\n'
LARGE = 'raise "x" if:\n    (m: Message)\n    find("(?:a?){800}(?:a){800}b", m.content)\n'


def chat(messages: int) -> dict[str, Any]:
    turns = ({"role": ("user", "model")[at % 2], "parts": [{"text": f"message {at}"}]} for at in range(messages))
    return {"contents": list(turns)}


def image() -> dict[str, Any]:
    body = prompt("what is this?")
    data = base64.b64encode(bytes(600_000)).decode()
    body["contents"][0]["parts"].append({"inlineData": {"mimeType": "image/png", "data": data}})
    return body


def headers(key: str, policy: str | None = None) -> dict[str, str]:
    escaped = {} if policy is None else {"Invariant-Guardrails": policy.encode("unicode_escape").decode()}
    return {"x-goog-api-key": key, **escaped}


async def post(session: aiohttp.ClientSession, url: str, body: object, headers: dict[str, str]) -> tuple[int, str]:
    async with session.post(url, json=body, headers=headers) as answer:
        return answer.status, await answer.text()


async def test_policies_that_run_long_refuse_no_neighbour(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Eight others with long chats and large images have their answers, whatever the attacker's checks still do."""
    upstream.reply(unary(candidate("hello", "STOP")))
    async with (
        proxy_before(upstream.url, tmp_path, policy=WORD, guardrails={"timeout": 60.0}) as proxy,
        aiohttp.ClientSession() as session,
    ):
        url = proxy.method()
        attacks = [
            asyncio.create_task(post(session, url, chat(300), headers("attacker", f"{ENDLESS}# {at}\n")))
            for at in range(6)
        ]
        # The call is made beside the check: where it has come, a check is under way.
        await upstream.called.wait()
        bodies = [chat(1_200), image()] * 4
        asked = [post(session, url, body, headers(f"neighbour-{at}")) for at, body in enumerate(bodies)]
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 8
        assert not any(attack.done() for attack in attacks), "nobody had to wait for the end of an attack"
        for attack in attacks:
            attack.cancel()


async def test_a_header_that_runs_long_switches_no_rule_off(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """With ``unavailable = "allow"`` too: the operator's rules were checked, and say no."""
    upstream.reply(unary(candidate("hello", "STOP")))
    guardrails = {"timeout": 1.0, "unavailable": "allow"}
    async with (
        proxy_before(upstream.url, tmp_path, policy=WORD, guardrails=guardrails) as proxy,
        aiohttp.ClientSession() as session,
    ):
        body = chat(300)
        body["contents"][0]["parts"][0]["text"] = "forbidden"
        status, text = await post(session, proxy.method(), body, headers("attacker", ENDLESS))
        assert (status, "did not pass" in text) == (400, True)


async def test_the_loop_lives_while_a_search_cannot_be_interrupted(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """Others are answered meanwhile, and the one whose search it is gets no verdict."""
    upstream.reply(unary(candidate("hello", "STOP")))
    async with (
        proxy_before(upstream.url, tmp_path, guardrails={"timeout": 6.0}) as proxy,
        aiohttp.ClientSession() as session,
    ):
        body = prompt("a" * 500_000)
        attack = asyncio.create_task(post(session, proxy.method(), body, headers("attacker", UNBREAKABLE)))
        answered = 0
        while not attack.done():
            async with session.get(f"{proxy.url}/healthz") as answer:
                answered += answer.status == 200
        assert answered > 10
        assert (await attack)[0] == 400


async def test_a_header_may_not_carry_the_largest_patterns(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """What an operator may write, and a client may not; nor may a rule of theirs compute it."""
    compile_policy(LARGE)
    upstream.reply(unary(candidate("hello", "STOP")))
    computed = LARGE.replace('"(?:a?){800}(?:a){800}b"', '"(?:a?){800}(?:a){800}" + m.role')
    async with proxy_before(upstream.url, tmp_path) as proxy, aiohttp.ClientSession() as session:
        for policy in (LARGE, computed):
            status, text = await post(session, proxy.method(), prompt("x"), headers("k", policy))
            assert (status, "too large" in text) == (400, True)


@pytest.mark.parametrize(("pattern", "quick"), [("[a-z]+@[a-z]+[.]com", True), ("(?:a?){400}(?:a){400}b", False)])
def test_a_search_is_not_begun_that_may_outlast_its_limit(pattern: str, quick: bool) -> None:
    """By program size times text, whatever the text would really take."""
    policy = compile_policy(f'raise "x" if:\n    (m: Message)\n    find("{pattern}", m.content)\n')
    conversation = Conversation.of([{"role": "user", "content": "b" * 20_000}])
    budget = Budget(longest_search=0.02)
    if quick:
        assert policy.check(conversation, budget=budget) == ()
        return
    with pytest.raises(BudgetExceeded):
        policy.check(conversation, budget=budget)
