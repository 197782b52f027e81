"""What is decided without a regular expression, or once for several rules, is decided as it would be without that."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.policy import Budget, Conversation, compile_policy
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.regex import Regex

_PATTERNS = st.lists(
    st.sampled_from(["abc", "abcd", "b", "a", "?", "*", "+", "{2}", "{0}", "|", "(c)", "[ab]", "."])
).map("".join)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
        Regex(text, "find")
    except (re.error, ValueError):
        return False
    return True


@given(_PATTERNS.filter(_is_pattern), st.text("abcd", max_size=12))
def test_search_finds_what_python_finds(pattern: str, text: str) -> None:
    """A text without a pattern's fixed beginning is not searched; no match is lost by that."""
    meter = Meter(Budget())
    assert Regex(pattern, "find").test(text, meter) is (re.search(pattern, text) is not None)
    assert bool(list(Regex(pattern, "find").spans(text, meter))) is (re.search(pattern, text) is not None)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("abcd?", "abc"), ("abc|xyz", "xyz"), ("abcd{0,1}e", "abce"), ("(?i)abc", "ABC"), ("abc(d|e)", "abce")],
)
def test_beginning_that_is_not_fixed(pattern: str, text: str) -> None:
    """What may be missing, or be written otherwise, is no fixed beginning."""
    assert Regex(pattern, "find").test(text, Meter(Budget()))


@given(st.lists(st.sampled_from(["Message", "ToolCall", "Tool"]), min_size=1, max_size=4), st.integers(1, 30))
def test_cost_of_rules_is_the_sum_of_theirs(kinds: list[str], messages: int) -> None:
    """A policy of several rules is expected to cost what its rules cost one by one, but for rounding."""
    conversation = Conversation.of([{"role": "user", "content": "word " * 500}] * messages)
    texts = [f'raise "{number}" if:\n    (x: {kind})\n    find("a+", x)\n' for number, kind in enumerate(kinds)]
    apart = sum(compile_policy(text).expected_cost(conversation) for text in texts)
    assert abs(compile_policy("\n".join(texts)).expected_cost(conversation) - apart) <= len(kinds)
