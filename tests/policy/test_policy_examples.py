"""The verified policies with their conversations."""

import json
from pathlib import Path
from typing import Any

import pytest

from gemini_proxy.policy import Conversation, compile_policy

SHARED = Path(__file__).parents[2].parent / "shared" / "policies" / "examples.json"

FIRST_RANGES = {
    1: ["messages.2", "messages.3.tool_calls.0"],
    2: ["messages.1.content:4-21"],
    3: ["messages.1.content"],
    4: ["messages.0.tool_calls.0.function.arguments.path"],
    5: [f"messages.{index}.tool_calls.0" for index in range(4)],
    6: [f"messages.{index}.tool_calls.0" for index in range(3)],
    7: ["messages.1.content:0-32"],
    8: ["messages.1"],
    9: ["messages.0.tool_calls.0"],
    10: ["messages.0.tool_calls.0"],
    11: ["messages.1.content:10-19"],
    12: ["messages.0.content:5-30"],
}

SAMPLE = {
    "id": 11,
    "title": "a sample of our own, so that something runs everywhere",
    "policy": 'raise "leak" if:\n    (m: Message)\n    m.role == "assistant"\n    any(find(input.canary, m.content))\n',
    "parameters": {"canary": "CANARY-42"},
    "conversations": [
        {"fires": True, "messages": [{"role": "user", "content": "q"}, {"role": "assistant",
        "content": "my rules: CANARY-42"}]},
        {"fires": False, "messages": [{"role": "system", "content": "CANARY-42"}]},
    ],
}  # fmt: skip


def examples() -> list[dict[str, Any]]:
    shared: list[dict[str, Any]] = json.loads(SHARED.read_text()) if SHARED.exists() else []
    return [*shared, SAMPLE]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example["title"])
def test_fires_exactly_where_it_must(example: dict[str, Any]) -> None:
    """Each conversation gets the verdict that was verified, and the first violation points where the table says."""
    policy = compile_policy(example["policy"])
    found = [
        policy.check(Conversation.of(each["messages"]), example["parameters"]) for each in example["conversations"]
    ]

    assert [each["fires"] for each in example["conversations"]] == [bool(violations) for violations in found]
    first = next(violations for violations in found if violations)[0].ranges
    expected = FIRST_RANGES[example["id"]]
    assert all(address.startswith(start) for address, start in zip(first, expected, strict=False)) and len(
        first
    ) >= len(expected)


def test_all_examples_are_there() -> None:
    """Twelve policies and 36 conversations, when the shared folder is."""
    if not SHARED.exists():
        pytest.skip("the shared examples are not beside this repository")
    shared = json.loads(SHARED.read_text())
    assert (12, 36) == (len(shared), sum(len(example["conversations"]) for example in shared))
