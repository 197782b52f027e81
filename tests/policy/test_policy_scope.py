"""``scope="new"``: violations in what was allowed before do not count, and all others do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.policy import MAX_VIOLATIONS, Conversation, Policy, compile_policy, portability

RULE = """
raise PolicyViolation("found", {scope}) if:
    (m: Message)
    {test} in m.content
"""
RULES = """
from invariant.detectors import secrets

raise PolicyViolation("word", scope="new") if:
    (m: Message)
    any(find("x[0-9]?", m.content))

raise PolicyViolation("call", scope="new") if:
    (c: ToolCall)
    c is tool:send

raise PolicyViolation("flow", scope="new") if:
    (m: Message) -> (c: ToolCall)
    "x" in m.content

raise PolicyViolation("part", scope="new") if:
    (o: ToolOutput)
    (t: str) in text(o)
    "x" in t
"""


def compiled(text: str) -> Policy:
    return compile_policy(text)


def message(role: str, text: str) -> dict[str, object]:
    if role == "call":
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": text, "arguments": {}}}]}
    if role == "tool":
        return {"role": "tool", "tool_name": "send", "content": text}
    return {"role": role, "content": [{"type": "text", "text": text}] if role == "user" else text}


POLICY = compiled(RULES)
MESSAGES = st.builds(
    message, st.sampled_from(["user", "assistant", "call", "tool"]), st.sampled_from(["x", "x1 x", "send", "y"])
)


@given(st.lists(MESSAGES, max_size=8), st.lists(MESSAGES, max_size=6))
def test_exactly_what_touches_new_content_counts(old: list[dict[str, object]], new: list[dict[str, object]]) -> None:
    """Old content ends with a turn of the model, and new content begins with one of the user."""
    begun = [*old, message("assistant", "y")]
    conversation = Conversation.of([*begun, message("user", "y"), *new])

    def in_new(address: str) -> bool:
        return int(address.split(".")[1].partition(":")[0]) >= len(begun)

    every = POLICY.check(conversation)
    counted = POLICY.check(conversation, allowed=len(begun))
    assert counted == tuple(one for one in every if any(map(in_new, one.ranges)))
    assert POLICY.check(Conversation.of(begun), allowed=len(begun)) == ()


def test_what_was_allowed_does_not_crowd_out_what_is_new() -> None:
    many = [message("assistant", "x")] * (MAX_VIOLATIONS + 5)
    conversation = Conversation.of([*many, message("user", "x")])
    (found,) = compiled(RULE.format(scope='scope="new"', test='"x"')).check(conversation, allowed=len(many))
    assert found.ranges == (f"messages.{len(many)}.content.0.text:0-1",)


@pytest.mark.parametrize(
    ("rule", "warned"),
    [
        (RULE.format(scope='scope="new"', test='"x"'), ""),
        (RULE.format(scope='scope="New"', test='"x"'), 'write scope="new"'),
        (RULE.format(scope="scope=m.role", test='"x"'), 'write scope="new"'),
        (RULE.format(scope='scope="new", action="mask"', test='"x"'), "masked in every request"),
        (RULE.format(scope='scope="new", action=m.role', test='"x"'), "masked in every request"),
        (RULE.format(scope='scope="new"', test='"x"') + "    count(min=1):\n        (c: ToolCall)\n", "count, forall"),
        (RULE.format(scope='scope="new"', test='"x"') + "    (i: Input)\n", "count, forall and Input"),
        (RULE.format(scope='scope="new"', test='"x"') + "    calls()\n\ncalls() :=\n    (c: ToolCall)\n", "count"),
    ],
)
def test_a_scope_without_effect_is_told_and_has_none(rule: str, warned: str) -> None:
    policy = compiled("from invariant import count\n" + rule)
    assert policy.narrows is not bool(warned)
    assert warned in "".join(warning.advice for warning in policy.warnings)
    assert bool(policy.warnings) is bool(warned)
    said = [message("user", "x"), message("call", "f"), message("assistant", "y"), message("user", "y")]
    assert bool(policy.check(Conversation.of(said), allowed=3)) is bool(warned)


def test_it_is_noted_for_authors_who_run_both_engines() -> None:
    assert [note.line for note in portability(RULES) if "have no scope" in note.message] == [4, 8, 12, 16]
