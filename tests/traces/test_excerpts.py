from typing import Any

import pytest

from gemini_proxy.traces.excerpts import excerpts

CALL = {"function": {"name": "mail", "arguments": {"to": {"a.b": "dotted", "a": {"b": "nested"}}, "cc": ["x", "yz"]}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "one two three"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": [{"type": "text", "text": "chunk"}]},
    {"tools": [{"name": "mail"}]},
    {"role": "assistant", "tool_calls": [{"function": {"name": "run", "arguments": '{"code": "1"}'}}]},
    {"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "text", "text": "cd", "field": "note"}]},
    {"role": "tool", "content": [{"type": "text", "text": "ok", "more": "x"}]},
]


@pytest.mark.parametrize(
    ("address", "role", "found"),
    [
        ("messages.0.content:4-7", "user", "two"),
        ("messages.0", "user", "one two three"),
        ("messages.1", "assistant", 'mail({"to":{"a.b":"dotted","a":{"b":"nested"}},"cc":["x","yz"]})'),
        ("messages.1.tool_calls.0.function.arguments.cc.1:1-2", "assistant", "z"),
        ("messages.1.tool_calls.0.function.arguments.to.a.b", "assistant", "dotted"),
        ("messages.1.tool_calls.0.function.arguments.cc", "assistant", '["x","yz"]'),
        ("messages.2.content.0.text:0-5", "tool", "chunk"),
        ("messages.3.tools.0", "tools", '{"name":"mail"}'),
        ("messages.4.tool_calls.0.function.arguments.code", "assistant", '{"code": "1"}'),
        ("messages.5", "user", "abcd"),
        ("messages.5.content.1.text:1-2", "user", "d"),
        ("messages.6", "tool", '[{"type":"text","text":"ok","more":"x"}]'),
        ("messages.9.content:0-3", "", ""),
        ("messages.1.tool_calls.7", "assistant", ""),
        ("messages.0.nothing", "user", ""),
    ],
)  # fmt: skip
def test_an_address_leads_to_its_text(address: str, role: str, found: str) -> None:
    """Keys with dots, data, JSON text that stands for an object; nothing where there is nothing."""
    (excerpt,) = excerpts(MESSAGES, [address])
    assert (excerpt.role, excerpt.found) == (role, found)


def test_what_stands_beside_is_shown() -> None:
    """The text around, and no more of it than fits."""
    (short,) = excerpts(MESSAGES, ["messages.0.content:4-7"])
    assert (short.before, short.after) == ("one ", " three")
    (long,) = excerpts([{"role": "user", "content": "a" * 100 + "b" * 500 + "c" * 100}], ["messages.0.content:100-600"])
    assert (len(long.before), len(long.found), len(long.after)) == (43, 160, 43)


def test_twenty_ranges_are_enough() -> None:
    """A text in which everything matches is not printed a thousand times."""
    assert len(excerpts(MESSAGES, ["messages.0.content:0-1"] * 1000)) == 20
