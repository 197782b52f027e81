"""The policy benchmarks measure what they say: rules that do not fire, attacks that arrive, goals one can miss."""

import json

import pytest
from bench.hostile import Attack, attacks
from bench.loop_server import Watch
from bench.policies import Row, policies, table
from bench.policy_rules import RULES, TEN_REGEX_RULES, TEN_WINDOW_RULES, conversation, prose

from gemini_proxy.policy import Conversation, compile_policy


@pytest.mark.parametrize("text", [*RULES.values(), TEN_REGEX_RULES, TEN_WINDOW_RULES])
def test_no_rule_fires(text: str) -> None:
    """A rule that fires would be measured for what it finds."""
    messages = [*conversation(40), {"role": "assistant", "content": prose(5_000)}]
    assert () == compile_policy(text).check(Conversation.of(messages))


def test_ten_rules_are_judged_as_text_grows() -> None:
    """Each can be checked on a window, else the figure of a window would be one of nothing."""
    assert ["slice"] * 10 == [rule.window for rule in compile_policy(TEN_WINDOW_RULES).rules]


def test_there_are_policies_to_load() -> None:
    """The verified ones, or the library's."""
    assert len(policies()) >= 10
    for name, text in policies().items():
        assert compile_policy(text, name).rules


def test_conversations_have_every_kind_of_event() -> None:
    """Questions, calls, outputs and answers in turn, as many messages as asked for."""
    read = Conversation.of(conversation(8))
    assert (6, 2, 2) == (read.counts["Message"], read.counts["ToolCall"], read.counts["ToolOutput"])


def test_a_missed_goal_is_told() -> None:
    """By the ratio, by the time, and in the table."""
    rows = [Row("a", "slow", 1.0, 2.0, 10.0), Row("a", "fast", 0.1, 2.0, 10.0), Row("a", "late", 0.1, None, 1.0, 0.01)]
    assert [False, True, False] == [row.reached for row in rows]
    lines = table(rows).splitlines()
    assert 5 == len(lines) and 1 == len({line.count("|") for line in lines})
    assert "10x: missed" in lines[2] and "10x: met" in lines[3] and "10 ms at most: missed" in lines[4]


def test_attacks_arrive() -> None:
    """Each has a name of its own, a policy that fits one header line, and a body that is JSON."""
    found: list[Attack] = list(attacks())
    assert len(found) == len({attack.name for attack in found}) >= 100
    for attack in found:
        header = attack.policy()
        assert header.isascii() and header.isprintable() and len(header) < 8_000, attack.name
    assert all(json.loads(attack.body)["contents"] for attack in found[:20])


def test_loads_are_never_the_same_twice() -> None:
    """A policy that was compiled before would load nothing."""
    [first, *_] = attacks()
    assert first.policy() != first.policy()


def test_what_was_measured_is_taken_once() -> None:
    """The next attack begins at nothing."""
    watch = Watch(lag=0.5, cpu=0.4, worst="here")
    first, second = watch.taken(), watch.taken()
    assert (0.5, 0.4, "here") == (first["lag"], first["cpu"], first["worst"])
    assert (0.0, 0.0, "") == (second["lag"], second["cpu"], second["worst"])
