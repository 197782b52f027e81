"""Policies checked over the API, from outside."""

import asyncio
import uuid

import aiohttp
import pytest

from gemini_proxy.explorer.api import check_api as api_check
from tests.conftest import StartProxy
from tests.explorer.api import SECRETIVE, Api

ASKED = [{"role": "user", "content": "tell me the secret"}]
SHARED = 'raise PolicyViolation("shared", where=m, n=1.5) if:\n    (m: Message)\n    "hello" in m.content\n'
BROKEN = 'raise "x" if:\n    (m: Message)\n    secretz(m.content)\n'
ENDLESS = (
    'raise "x" if:\n    (a: Message)\n    (b: Message)\n    (c: Message)\n    (d: Message)\n'
    '    a.content == "x"\n    b.content == "y"\n    c.content == "z"\n    d.content == "no"\n'
)


async def test_a_policy_that_loads_is_said_to(checker: Api) -> None:
    """200 without a member ``errors``; one that does not is 400 with line and reason."""
    assert "errors" not in await checker.post("/policy/load", {"policy": SECRETIVE})
    status, detail = await checker.refused("POST", "/policy/load", {"policy": BROKEN})
    assert (status, detail[:16]) == (400, "line 3, column 5")


async def test_a_check_says_what_was_found_and_where(checker: Api) -> None:
    """Arguments, keyword arguments and ranges of each violation."""
    answer = await checker.post("/policy/check", {"messages": ASKED, "policy": SECRETIVE, "parameters": {}})
    [error] = answer["errors"]
    assert error["args"] == ["a secret was asked for"]
    assert (error["kwargs"], error["ranges"]) == ({}, ["messages.0.content:12-18"])
    clean = {"messages": [{"role": "user", "content": "hi"}], "policy": SECRETIVE}
    assert await checker.post("/policy/check", clean) == {"errors": []}


async def test_a_violation_of_a_whole_message_is_json(checker: Api) -> None:
    """What a rule raises with may be a message: it is written out."""
    answer = await checker.post("/policy/check", {"messages": [{"role": "user", "content": "hello"}], "policy": SHARED})
    [error] = answer["errors"]
    assert error["args"][0] == "shared"
    assert error["kwargs"] == {"where": {"role": "user", "content": "hello"}, "n": 1.5}


async def test_a_batch_answers_in_the_order_of_its_policies(checker: Api) -> None:
    """Each result stands by itself: one that failed has a reason and no errors, and drops no other."""
    parametrised = 'raise "p" if:\n    (m: Message)\n    input.word in m.content\n'
    policies = [SHARED, BROKEN, SECRETIVE, parametrised, SECRETIVE]
    answer = await checker.post(
        "/policy/check/batch",
        {"messages": ASKED, "policies": policies, "parameters": {}, "dataset_name": None},
        headers={"x-session-id": "s", "accept": "application/json"},
    )
    first, broken, second, lacking, third = answer["result"]
    assert first == {"errors": []}
    assert broken["errors"] == [] and "line 3, column 5" in broken["error_message"]
    assert lacking == {"errors": [], "error_message": "Missing Policy Parameter: word"}
    assert second == third and len(second["errors"]) == 1
    given = {"messages": ASKED, "policies": [parametrised], "parameters": {"word": "secret"}}
    assert len((await checker.post("/policy/check/batch", given))["result"][0]["errors"]) == 1
    assert await checker.post("/policy/check/batch", {"messages": ASKED, "policies": []}) == {"result": []}


NOT_CHECKED: list[tuple[object, str]] = [
    ({"messages": ASKED, "policy": BROKEN}, "Invariant Attribute Error: line 3"),
    ({"messages": ASKED, "policy": 'raise "x" if:\n (m: Message)\n m.nothing\n'}, "Invariant Attribute Error: "),
    ({"messages": ASKED, "policy": "raise"}, "Input Validation Error: line 1"),
    ({"messages": ASKED, "policy": SECRETIVE * 1001}, "Excessive Policy: "),
    ({"messages": ASKED, "policy": "#" * 65_537}, "Excessive Policy: "),
    ({"messages": ASKED, "policy": 'raise "x" if:\n    input.a == 1\n'}, "Missing Policy Parameter: a"),
    ({"messages": [{"role": 1}], "policy": SECRETIVE}, "Input Validation Error: messages.0.role"),
    ({"messages": [{"role": 1}] * 1001, "policy": SECRETIVE}, "Input Validation Error: messages.0.role"),
    ({"messages": ["x"], "policy": SECRETIVE}, "Input Validation Error: messages"),
    ({"messages": None, "policy": SECRETIVE}, "Input Validation Error: messages"),
    ({"policy": SECRETIVE}, "Input Validation Error: messages"),
    ({"messages": ASKED, "policy": SECRETIVE, "parameters": []}, "Input Validation Error: parameters"),
    ({"messages": ASKED}, "policy must be a string"),
    ({"messages": ASKED, "policy": ["x"]}, "policy must be a string"),
]


async def test_a_check_that_cannot_be_made_says_why(checker: Api) -> None:
    """400 in the phrases by which clients tell their own exceptions apart."""
    for body, phrase in NOT_CHECKED:
        status, detail = await checker.refused("POST", "/policy/check", body)
        assert status == 400
        assert detail.startswith(phrase)


NO_BATCHES: list[object] = [
    {},
    {"messages": ASKED},
    {"messages": ASKED, "policies": SECRETIVE},
    {"messages": ASKED, "policies": [1]},
    {"messages": ASKED, "policies": [SECRETIVE] * 101},
    {"messages": ASKED, "policies": ["#" * 65_537]},
    {"messages": [[]], "policies": []},
    {"messages": [{"content": "no role"}], "policies": [SECRETIVE]},
    {"messages": ASKED, "policies": [], "parameters": "x"},
    {"messages": ASKED, "policies": [], "dataset_name": 1},
]


async def test_a_batch_of_the_wrong_shape_is_refused(checker: Api) -> None:
    """As a whole, with 400."""
    for body in NO_BATCHES:
        assert (await checker.refused("POST", "/policy/check/batch", body))[0] == 400


async def test_a_check_beyond_its_budget_is_no_clean_bill(
    start_proxy: StartProxy, session: aiohttp.ClientSession
) -> None:
    """It has no verdict: 503 for one policy, a reason in a batch, where the others still have theirs."""
    api = Api(session, (await start_proxy(guardrails={"timeout": 0.5})).url)
    messages = [{"role": "user", "content": "xyz"[n % 3]} for n in range(900)]
    status, detail = await api.refused("POST", "/policy/check", {"messages": messages, "policy": ENDLESS})
    assert status == 503 and detail.startswith("Error during analysis: ")
    asked = {"messages": [*messages, *ASKED], "policies": [ENDLESS, SECRETIVE]}
    endless, secretive = (await api.post("/policy/check/batch", asked))["result"]
    assert endless["errors"] == [] and endless["error_message"].startswith("Error during analysis: ")
    assert len(secretive["errors"]) == 1


async def test_a_batch_ends_when_its_time_does(checker: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every policy that had no time left says so; none passes for clean."""
    monkeypatch.setattr(api_check, "MAX_BATCH_SECONDS", 0.3)
    messages = [{"role": "user", "content": "xyz"[n % 3]} for n in range(900)]
    asked = {"messages": [*messages, *ASKED], "policies": [SECRETIVE, ENDLESS, SECRETIVE]}
    first, *others = (await checker.post("/policy/check/batch", asked))["result"]
    assert len(first["errors"]) == 1
    late = {
        "errors": [],
        "error_message": "Error during analysis: the policies of the call timed out",
    }
    assert others == [late, late]


async def test_other_calls_are_answered_while_a_policy_is_compiled(checker: Api) -> None:
    """A policy as long as may be, of rules that take their time, stalls nobody."""
    rule = 'raise "%d" if:\n  (m: Message)\n  (n: Message)\n  m -> n\n  match("a%d[0-9]{1,20}(b|c)*", m.content)\n\n'
    policy = f"# {uuid.uuid4()}\n" + "".join(rule % (number, number) for number in range(400))
    assert len(policy) < 65_536
    compiling = asyncio.ensure_future(checker.post("/policy/load", {"policy": policy}))
    answered = 0
    while not compiling.done():
        await checker.get("/user/identity")
        answered += 1
    assert answered > 5
