"""The client of a guardrails service, before a server that answers byte for byte what a test says."""

import asyncio
import gzip
import logging
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.errors import EngineUnavailable, ProxyError, Unauthenticated
from gemini_proxy.guardrails.engine import Check, FailOpenEngine
from gemini_proxy.guardrails.remote import MAX_RESPONSE, RELOAD_SECONDS, RemoteEngine
from gemini_proxy.guardrails.remote_responses import ServiceResponse, read_verdict
from gemini_proxy.guardrails.rules import Guardrail, guardrail
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.policy.policy import MAX_VIOLATIONS
from gemini_proxy.policy.run.ranges import MAX_RANGES
from tests.support.upstream import Abort, Hang, Reply, ScriptedUpstream, Step

KEY = "inv-CANARY0123456789"
FIRST, SECOND = (
    guardrail(name, f'raise "{name}" if:\n    (m: Message)\n    "{name}" in m.content\n', "block")
    for name in ("first", "second")
)
MESSAGES = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "first"})


@pytest.fixture
async def service() -> AsyncIterator[ScriptedUpstream]:
    server = ScriptedUpstream()
    await server.start()
    yield server
    await server.stop()


def engine(service: ScriptedUpstream, timeout: float = 5.0, key: str | None = KEY) -> RemoteEngine:
    return RemoteEngine(service.url, key, timeout)


def check(*guardrails: Guardrail, **options: Any) -> Check:
    return Check(guardrails or (FIRST, SECOND), MESSAGES, {"limit": 3}, **options)


async def judged(asked: RemoteEngine | FailOpenEngine, what: Check) -> Verdict:
    verdict = asked.check(what)
    return await verdict if isinstance(verdict, Awaitable) else verdict


async def answered(service: ScriptedUpstream, *replies: Reply, patience: float = 5.0, **options: Any) -> Verdict:
    service.reply(*replies)
    async with engine(service, patience) as remote:
        return await judged(remote, check(**options))


def body(*results: Any) -> bytes:
    return orjson.dumps({"result": results})


def says(*results: Any, **reply: Any) -> Reply:
    return Reply([body(*results)], **reply)


def error(*args: Any, **rest: Any) -> dict[str, Any]:
    return {"args": list(args), "ranges": ["messages.1.content:0-5"], **rest}


CLEAN: dict[str, Any] = {"errors": []}


async def test_one_call_asks_all(service: ScriptedUpstream) -> None:
    """Messages, policies in order, parameters and dataset go out once, with the key and the exchange's session."""
    await answered(service, says(CLEAN, CLEAN), key="inv-mine", dataset="agents", session="one")
    (call,) = service.calls
    assert (call.method, call.target) == ("POST", "/api/v1/policy/check/batch")
    assert call.json == {
        "messages": list(MESSAGES),
        "policies": [FIRST.policy.text, SECOND.policy.text],
        "parameters": {"limit": 3},
        "dataset_name": "agents",
    }
    assert call.headers["authorization"] == "Bearer inv-mine"
    assert call.headers["accept"] == "application/json"
    assert call.headers["x-session-id"] == "one"


async def test_own_key_and_session_where_the_check_has_none(service: ScriptedUpstream) -> None:
    service.reply(says(CLEAN, CLEAN))
    async with engine(service) as remote:
        for _ in range(2):
            await judged(remote, check())
    assert {call.headers["authorization"] for call in service.calls} == {f"Bearer {KEY}"}
    assert len({call.headers["x-session-id"] for call in service.calls}) == 1
    assert service.calls[0].json["dataset_name"] is None


async def test_results_go_by_order(service: ScriptedUpstream) -> None:
    """The n-th result is the n-th guardrail's; nothing is known of what would stay in a longer answer."""
    both = error("two", 2, kwargs={"n": 1}, key="(0, 1)")
    verdict = await answered(service, says({"errors": []}, {"errors": [error("one"), both]}))
    ranges = ("messages.1.content:0-5",)
    assert verdict.violations == (
        Violation(("one",), {}, ranges, SECOND, stays=False),
        Violation(("two", 2), {"n": 1}, ranges, SECOND, stays=False),
    )
    assert verdict.milliseconds > 0 and not verdict.unchecked


async def test_nothing_to_ask(service: ScriptedUpstream) -> None:
    """Without a guardrail nobody is asked."""
    async with engine(service) as remote:
        assert await judged(remote, Check((), MESSAGES)) == Verdict()
        assert remote.open_session(Check((), MESSAGES), 256) is None
    assert not service.calls


async def test_large_conversations_arrive_whole(service: ScriptedUpstream) -> None:
    text = "x" * 3_000_000
    service.reply(says(CLEAN))
    async with engine(service) as remote:
        await judged(remote, Check((FIRST,), [{"role": "user", "content": text}]))
    assert service.calls[0].json["messages"][0]["content"] == text


@pytest.mark.parametrize("said", ["out of memory", ""])
async def test_error_message_alone_is_no_verdict(service: ScriptedUpstream, said: str) -> None:
    """A policy that could not be checked is not one that passed, whatever the others say."""
    with pytest.raises(EngineUnavailable, match=f"second: {said}"):
        await answered(service, says(CLEAN, {"errors": [], "error_message": said}))


async def test_error_message_beside_violations(service: ScriptedUpstream) -> None:
    """The violations refuse, and what could not be checked is still named."""
    verdict = await answered(service, says({"errors": [error("one")]}, {"error_message": "out of memory"}))
    assert [violation.guardrail for violation in verdict.violations] == [FIRST]
    assert verdict.unchecked == "second: out of memory"


async def test_error_message_and_violations_of_one_policy(service: ScriptedUpstream) -> None:
    verdict = await answered(service, says({"errors": [error("one")], "error_message": "and more"}, CLEAN))
    assert len(verdict.violations) == 1 and verdict.unchecked == "first: and more"


async def test_null_is_no_error_message(service: ScriptedUpstream) -> None:
    passed: dict[str, Any] = {"errors": [], "error_message": None}
    verdict = await answered(service, says(passed, passed))
    assert not verdict.violations and not verdict.unchecked


@pytest.mark.parametrize(
    "results",
    [
        [],
        [CLEAN],
        [CLEAN, CLEAN, CLEAN],
        [CLEAN, None],
        [CLEAN, []],
        [CLEAN, {}],
        [CLEAN, {"errors": None}],
        [CLEAN, {"errors": {}}],
        [CLEAN, {"errors": [], "error_message": 5}],
        [CLEAN, {"errors": [], "error_message": ["no"]}],
        [CLEAN, {"errors": ["one"]}],
        [CLEAN, {"errors": [{}]}],
        [CLEAN, {"errors": [{"args": ["a"]}]}],
        [CLEAN, {"errors": [{"args": "a", "ranges": []}]}],
        [CLEAN, {"errors": [{"args": ["a"], "ranges": "messages.0"}]}],
        [CLEAN, {"errors": [{"args": ["a"], "ranges": [0]}]}],
        [CLEAN, {"errors": [{"args": ["a"], "ranges": [], "kwargs": ["k"]}]}],
        [CLEAN, {"errors": [{"args": ["a"], "ranges": [], "kwargs": None}]}],
    ],
)
async def test_another_shape_is_no_verdict(service: ScriptedUpstream, results: list[Any]) -> None:
    """Results that are not one for each policy, or hold another type anywhere, mean nothing."""
    with pytest.raises(EngineUnavailable, match="cannot be read"):
        await answered(service, says(*results))


@pytest.mark.parametrize(
    "garbage", [b"", b"[]", b"null", b"{}", b'{"result": {}}', b"<html>", b"\xff", b'{"result": [', b"[" * 100_000]
)
async def test_garbage_is_no_verdict(service: ScriptedUpstream, garbage: bytes) -> None:
    with pytest.raises(EngineUnavailable, match="cannot be read"):
        await answered(service, Reply([garbage], chunked=False))


SCALARS = st.none() | st.integers(0, 9) | st.sampled_from(["", "x"])
LISTS = SCALARS | st.lists(SCALARS, max_size=2)
ERRORS = st.fixed_dictionaries({}, optional={"args": LISTS, "ranges": LISTS, "kwargs": SCALARS | st.just({"n": 1})})
RESULTS = st.fixed_dictionaries(
    {}, optional={"errors": SCALARS | st.lists(SCALARS | ERRORS, max_size=2), "error_message": SCALARS}
)


@given(SCALARS | st.fixed_dictionaries({}, optional={"result": SCALARS | st.lists(SCALARS | RESULTS, max_size=2)}))
def test_an_answer_is_read_whole_or_refused(value: Any) -> None:
    """Whatever JSON comes: each error is a violation and each error_message is named, or there is no verdict."""
    try:
        verdict = read_verdict(ServiceResponse(200, orjson.dumps(value), KEY), (FIRST,), 0.0)
    except EngineUnavailable:
        return
    (result,) = value["result"]
    assert len(verdict.violations) == len(result.get("errors", ()))
    assert bool(verdict.unchecked) == (result.get("error_message") is not None)


@pytest.mark.parametrize("status", [201, 204, 301, 307, 400, 403, 404, 429, 500, 503])
async def test_other_statuses_are_no_verdict(service: ScriptedUpstream, status: int) -> None:
    """Anything but 200 is none, a redirect included, which is not followed."""
    steps = [] if status == 204 else [body(CLEAN, CLEAN)]
    reply = Reply(steps, status=status, headers={"location": f"{service.url}/elsewhere"}, chunked=False)
    with pytest.raises(EngineUnavailable, match="redirect" if status in (301, 307) else str(status)):
        await answered(service, reply)
    assert len(service.calls) == 1


async def test_the_reason_of_an_error_is_passed_on(service: ScriptedUpstream) -> None:
    """As far as it goes: bounded, and without the key it may repeat."""
    detail = f"Missing Policy Parameter: limit ({KEY}) {'x' * 5000}"
    with pytest.raises(EngineUnavailable, match="HTTP 400: Missing Policy Parameter: limit") as raised:
        await answered(service, Reply([orjson.dumps({"detail": detail})], status=400))
    assert KEY not in raised.value.message and len(raised.value.message) < 500


async def test_error_messages_are_bounded_and_hold_no_key(service: ScriptedUpstream) -> None:
    said = {"errors": [], "error_message": f"{KEY} {'x' * 5000}"}
    with pytest.raises(EngineUnavailable) as raised:
        await answered(service, says(said, CLEAN))
    assert KEY not in raised.value.message and len(raised.value.message) < 500


async def test_a_key_that_the_service_repeats_goes_nowhere(service: ScriptedUpstream) -> None:
    """Not into a refusal that clients see, nor into a trace."""
    said = error(f"no {KEY}", {"deep": [KEY]}, kwargs={KEY: f"<{KEY}>"}, ranges=[f"messages.0.{KEY}"])
    (violation,) = (await answered(service, says({"errors": [said]}, CLEAN))).violations
    assert KEY not in repr(violation)
    assert violation.message == "no ***" and violation.kwargs == {"***": "<***>"}


def test_a_key_of_a_few_characters_takes_no_place_away() -> None:
    """It stands in every address by chance."""
    body = orjson.dumps({"result": [{"errors": [error("found", ranges=["messages.0.content:0-3"])]}]})
    verdict = read_verdict(ServiceResponse(200, body, "0"), [FIRST], 1.0)
    assert verdict.violations[0].ranges == ("messages.0.content:0-3",)


async def test_a_flood_of_violations_is_read_in_part(service: ScriptedUpstream) -> None:
    """It refuses all the same, and takes no longer than our own engine's would."""
    one = error("one", ranges=["messages.0"] * (MAX_RANGES + 5))
    many = {"errors": [one, *[error("more")] * 40_000], "error_message": "and more"}
    verdict = await answered(service, says(many, {"errors": [error("two")]}))
    assert [violation.guardrail for violation in verdict.violations] == [*[FIRST] * MAX_VIOLATIONS, SECOND]
    assert len(verdict.violations[0].ranges) == MAX_RANGES
    assert verdict.unchecked == "first: and more"


async def test_what_is_nested_too_deep_is_no_verdict(service: ScriptedUpstream) -> None:
    """Walks over it stay within the stack."""
    for depth, refused in ((60, False), (500, True)):
        nested = orjson.loads("[" * depth + "]" * depth)
        raw = b'{"result": [{"errors": [{"args": [%s], "ranges": []}]}, {"errors": []}]}'
        service.reply(Reply([raw % ("[" * depth + "]" * depth).encode()]))
        async with engine(service) as remote:
            if refused:
                with pytest.raises(EngineUnavailable, match="too deep"):
                    await judged(remote, check())
            else:
                assert (await judged(remote, check())).violations[0].args == (nested,)


async def test_an_answer_is_not_inflated(service: ScriptedUpstream) -> None:
    """A compressed one was not asked for: whatever it would grow to, it is not JSON."""
    for bomb in (gzip.compress(body(CLEAN, CLEAN)), gzip.compress(b" " * 50_000_000, 1)):
        with pytest.raises(EngineUnavailable, match="cannot be read"):
            await answered(service, Reply([bomb], headers={"content-encoding": "gzip"}, chunked=False))


OK_HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "head",
    [
        OK_HEAD + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        OK_HEAD + b"x: y\r\n" * 5_000 + b"\r\n",
        OK_HEAD + b"content-length: -1\r\n\r\n",
        OK_HEAD + b"content-length: many\r\n\r\n",
        OK_HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
        OK_HEAD + b"transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n",
        OK_HEAD + b"\x00: y\r\n\r\n",
        b"HTTP/1.1 99999 OK\r\n\r\n",
        b"HTTP/1.1 102 Wait\r\n\r\n" * 5_000,
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n",
        b"\x16\x03\x01",
    ],
)
async def test_heads_that_mean_harm(service: ScriptedUpstream, head: bytes) -> None:
    """Whatever comes in place of an answer's head is no verdict, and nothing else."""
    with pytest.raises(EngineUnavailable):
        await answered(service, Reply([Abort()], before_head=head), patience=0.5)


@pytest.mark.parametrize("rest", [Hang(), b" " * (MAX_RESPONSE + 1), Abort()], ids=["silent", "too large", "cut"])
async def test_a_key_that_is_not_accepted_is_told_by_the_status_alone(service: ScriptedUpstream, rest: Step) -> None:
    """What follows it does not turn a refused key into a check that may be missing."""
    service.reply(Reply([b"{", rest], status=401))
    async with engine(service, 1.0) as remote:
        with pytest.raises(Unauthenticated):
            await judged(FailOpenEngine(remote), check())


async def test_a_key_that_is_not_accepted(service: ScriptedUpstream) -> None:
    """401 is the caller's fault: it is told so, and unavailable = "allow" does not let it pass."""
    service.reply(Reply([b'{"detail": "You must provide a valid API key."}'], status=401))
    async with engine(service) as remote:
        for asked in (remote, FailOpenEngine(remote)):
            with pytest.raises(Unauthenticated, match="did not accept the API key"):
                await judged(asked, check())


@pytest.mark.parametrize("key", [None, "", "inv-ü", "inv\r\nx: y", "inv\x00"])
async def test_a_key_that_cannot_be_sent(service: ScriptedUpstream, key: str | None) -> None:
    """Without a key, or with one that no header can carry, the service is not asked."""
    async with engine(service, key=key) as remote:
        with pytest.raises(Unauthenticated, match="key"):
            await judged(FailOpenEngine(remote), check())
    assert not service.calls


@pytest.mark.parametrize(
    "reply",
    [
        Reply(before_head=Hang()),
        Reply([b'{"result": ', Hang()]),
        Reply(before_head=asyncio.Event()),
    ],
    ids=["before the head", "in the body", "kept open"],
)
async def test_silence_ends_in_time(service: ScriptedUpstream, reply: Reply) -> None:
    with pytest.raises(EngineUnavailable, match="in time"):
        await answered(service, reply, patience=0.1)


async def test_dripping_does_not_extend_the_time(service: ScriptedUpstream) -> None:
    """The time is for the whole call, not for each piece."""

    async def drip() -> None:
        while True:
            for event in events:
                event.set()
                await asyncio.sleep(0.01)

    events = [asyncio.Event() for _ in range(200)]
    steps: list[Step] = [step for event in events for step in (b" ", event)]
    async with asyncio.TaskGroup() as group:
        dripping = group.create_task(drip())
        with pytest.raises(EngineUnavailable, match="in time"):
            await answered(service, Reply(steps), patience=0.2)
        dripping.cancel()
    assert 1 < service.sent < 200


@pytest.mark.parametrize(
    "reply",
    [
        Reply([body(CLEAN, CLEAN), Abort()]),
        Reply([Abort()], before_head=b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" + body(CLEAN, CLEAN)),
    ],
    ids=["in chunks", "with a length"],
)
async def test_a_cut_answer_is_no_verdict(service: ScriptedUpstream, reply: Reply) -> None:
    """Even one that was whole JSON when it broke off."""
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await answered(service, reply)


async def test_bytes_that_are_no_http(service: ScriptedUpstream) -> None:
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await answered(service, Reply(before_head=b"HTTP/7 nonsense\r\n\r\n"))


async def test_nobody_listens() -> None:
    """The refusal names no address and no key."""
    async with RemoteEngine("http://127.0.0.1:1", KEY, 5.0) as remote:
        with pytest.raises(EngineUnavailable, match="cannot be reached") as raised:
            await judged(remote, check())
    assert KEY not in raised.value.message and "127.0.0.1" not in raised.value.message


async def test_an_endless_answer_is_not_kept(service: ScriptedUpstream) -> None:
    steps: list[Step] = [*[b" " * (MAX_RESPONSE // 4)] * 5, Hang()]
    with pytest.raises(EngineUnavailable, match="larger"):
        await answered(service, Reply(steps))
    async with asyncio.timeout(5):
        await service.closed_by_caller.wait()


async def test_a_kept_connection_that_closed_is_replaced(service: ScriptedUpstream) -> None:
    """Closed as it was used, without a byte: asked once more on a new connection, and no third time."""
    service.reply(says(CLEAN, CLEAN), Reply(before_head=Abort()), says({"errors": [error("one")]}, CLEAN))
    async with engine(service) as remote:
        assert not (await judged(remote, check())).violations
        assert len((await judged(remote, check())).violations) == 1
        service.reply(Reply(before_head=Abort()))
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await judged(remote, check())
    assert len(service.calls) == 5


async def test_other_failures_are_not_tried_again(service: ScriptedUpstream) -> None:
    with pytest.raises(EngineUnavailable):
        await answered(service, Reply(status=503))
    assert len(service.calls) == 1


async def test_failing_open(service: ScriptedUpstream) -> None:
    """What the service cannot say passes where the configuration lets it, and is named; what it refuses does not."""
    service.reply(Reply(status=500), says({"errors": [error("one")]}, {"error_message": "broken"}))
    async with engine(service) as remote:
        passed = await judged(FailOpenEngine(remote), check())
        refused = await judged(FailOpenEngine(remote), check())
    assert not passed.violations and "HTTP 500" in (passed.unchecked or "")
    assert refused.violations and refused.unchecked == "second: broken"


async def test_what_json_cannot_say_is_no_verdict(service: ScriptedUpstream) -> None:
    async with engine(service) as remote:
        for content in ("\ud800", 1 << 70):
            with pytest.raises(EngineUnavailable, match="as JSON"):
                await judged(remote, Check((FIRST,), [{"role": "user", "content": content}]))
    assert not service.calls


async def test_growing_answers_wait_for_their_end(service: ScriptedUpstream) -> None:
    """Every rule is named as one that has to see the whole; no piece is ever clear."""
    async with engine(service) as remote:
        session = remote.open_session(check(), 256)
    assert session is not None
    assert session.waiting == ("first", "second")
    assert not session.check(session.turn(), "text")
    session.settle()
    assert session.stuck and not session.clear


class Clock:
    """Time as a test says."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_policies_are_loaded_once_an_hour(service: ScriptedUpstream) -> None:
    clock = Clock()
    service.reply(Reply([b"{}"]))
    async with RemoteEngine(service.url, KEY, 5.0, clock=clock) as remote:
        assert await remote.preload(["a", "b", "a"])
        clock.now += RELOAD_SECONDS - 1
        assert await remote.preload(["b", "a", "c"])
        clock.now += 1
        assert await remote.preload(["a", "b", "c"])
    assert [call.json for call in service.calls] == [{"policy": text} for text in "abcab"]
    assert {call.target for call in service.calls} == {"/api/v1/policy/load"}
    assert {call.headers["authorization"] for call in service.calls} == {f"Bearer {KEY}"}


@pytest.mark.parametrize(
    "reply",
    [
        Reply([b'{"errors": ["SECRET POLICY"]}']),
        Reply([b'{"detail": "SECRET POLICY"}'], status=400),
        Reply([b'{"detail": "SECRET POLICY"}'], status=401),
        Reply([b"SECRET POLICY"]),
        Reply(before_head=Abort()),
    ],
)
async def test_a_policy_that_did_not_load_is_sent_again(
    service: ScriptedUpstream, caplog: pytest.LogCaptureFixture, reply: Reply
) -> None:
    """The failure is logged, without the policy or the key, and ends nothing."""
    caplog.set_level(logging.DEBUG)
    service.reply(reply)
    async with engine(service) as remote:
        assert not await remote.preload(["SECRET POLICY"])
        service.reply(Reply([b"{}"]))
        assert await remote.preload(["SECRET POLICY"])
    assert "a policy was not preloaded" in caplog.text
    assert "SECRET" not in caplog.text and KEY not in caplog.text


async def test_keys_are_in_no_repr_and_no_message(service: ScriptedUpstream) -> None:
    asked = check(key=KEY)
    assert KEY not in repr(asked) and KEY not in repr(ServiceResponse(200, KEY.encode(), KEY))
    for reply in (Reply(status=500), Reply(status=401), Reply(before_head=Abort()), Reply([b"{"])):
        service.reply(reply)
        async with engine(service) as remote:
            with pytest.raises(ProxyError) as raised:
                await judged(remote, asked)
        assert KEY not in str(raised.value)
