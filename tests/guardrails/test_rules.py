"""Which rules hold for a request, and what a violation tells the client."""

import pytest

from gemini_proxy.errors import BadRequest
from gemini_proxy.guardrails.header_policy import with_header
from gemini_proxy.guardrails.rules import GuardrailSet, Shadow, guardrail
from gemini_proxy.guardrails.verdict import Violation

POLICY = 'raise "x" if:\n    (m: Message)\n    "\\\\d" in m.content'
FILE = guardrail("file.gr", POLICY, "block")
LOG = guardrail("log.gr", POLICY, "log")
FILES = GuardrailSet((FILE,), (LOG,))


async def test_header_rules_are_added() -> None:
    """Adding never removes a rule of the operator's."""
    found = await with_header(FILES, POLICY.encode("unicode_escape").decode(), "add")
    assert found.blocking[0] is FILE
    assert [rule.policy.text for rule in found.blocking] == [POLICY, POLICY]
    assert found.logging == (LOG,)


async def test_header_rules_replace_only_blocking_ones() -> None:
    found = await with_header(FILES, POLICY.encode("unicode_escape").decode(), "replace")
    assert [rule.name for rule in found.blocking] == ["Invariant-Guardrails"]
    assert found.logging == (LOG,)


async def test_header_rules_switched_off() -> None:
    """Nothing of the header is even read."""
    assert await with_header(FILES, "\\q not a policy", "off") is FILES


@pytest.mark.parametrize(
    "text", ['raise "é" if:\n    (m: Message)\n    "\N{SNOWMAN}" in m.content', POLICY, POLICY.replace("\n", "\r\n")]
)
async def test_every_text_survives_its_escaping(text: str) -> None:
    found = await with_header(GuardrailSet(), text.encode("unicode_escape").decode("ascii"), "add")
    assert found.blocking[0].policy.text == text


@pytest.mark.parametrize("escape", ["\\q", "\\x1", "\\u12", "\\U00110000", "\\", "\\N{SNOWMAN}"])
async def test_malformed_escapes_are_refused(escape: str) -> None:
    with pytest.raises(BadRequest, match="unicode-escaped"):
        await with_header(GuardrailSet(), f'raise "{escape}" if:\n    True' + escape, "add")


async def test_long_header_policies_are_refused() -> None:
    with pytest.raises(BadRequest, match="over"):
        await with_header(GuardrailSet(), "#" * 20_000, "add")


@pytest.mark.parametrize(
    ("address", "moved"),
    [
        ("messages.1.content:2-3", "messages.1.content:2-3"),
        ("messages.2.content:2-3", "messages.5.content:2-3"),
        ("messages.10", "messages.13"),
        (
            "messages.2.tool_calls.0.function.arguments.messages.2",
            "messages.5.tool_calls.0.function.arguments.messages.2",
        ),
    ],
)
def test_addresses_of_later_candidates_move(address: str, moved: str) -> None:
    assert Violation(("x",), {}, (address,), FILE).moved(2, 3).ranges == (moved,)


def test_a_refusal_tells_no_content() -> None:
    """Objects in a violation may hold what was refused: only plain values reach the client."""
    error = Violation(("why", {"secret": 1}), {"call": {"args": "secret"}, "path": "/x"}, (), FILE).error
    assert error == {
        "args": ["why"],
        "kwargs": {"path": "/x"},
        "ranges": [],
        "guardrail": {"id": FILE.id, "name": "file.gr", "action": "block"},
    }


def test_a_shadow_takes_its_share_of_conversations() -> None:
    """Always the same ones; a greater share takes them and more, and another shadow takes others."""
    names = [f"conversation {number}" for number in range(1_000)]

    def taken(share: int, policy: str = "p") -> set[str]:
        shadow = Shadow(1, policy, "name", POLICY, "block", share)
        return {name for name in names if shadow.takes(name)}

    assert (taken(0), taken(100)) == (set(), set(names))
    assert 200 < len(taken(25)) < 300 and taken(25) < taken(50)
    assert taken(25) == taken(25) != taken(25, "q")
