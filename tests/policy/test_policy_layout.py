"""How the text of a policy is laid out: indentation as a whole, uneven bodies, lines that go on."""

import pytest

from gemini_proxy.policy import PolicyError, compile_policy
from tests.policy.conversations import fires, user

COUNT = "from invariant import count\n"
HIT, MISS = [user("a zebra")], [user("a horse")]

# One policy with every statement, at the left margin.
PLAIN = """\
# what it is about
from invariant import count
from invariant.detectors import (
    secrets,
    pii)

WORD := "zebra"
WORDS :=
    ["zebra", "okapi"]

animal(t: str) :=
    WORD in t
    # a comment in a body
    WORD in WORDS

raise "animal" if:
    (m: Message)

    not any(secrets(m)) # a comment after a condition
    count(min=1):
        (n: Message)
        animal(n.content)
    animal(m.content)

raise "okapi" if:
    (m: Message)
    "okapi" in m.content
"""


def _indented(margin: str) -> str:
    return "".join(margin + line if line.strip() else line for line in PLAIN.splitlines(keepends=True))


@pytest.mark.parametrize("margin", ["", "    ", " ", "\t", "  \t", " " * 13])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_policy_may_be_indented_as_a_whole(margin: str, ending: str) -> None:
    """It means what it means at the left margin, rule by rule."""
    text = f"\n{_indented(margin)}{margin}".replace("\n", ending)
    assert len(compile_policy(text).rules) == 2
    assert fires(text, *HIT) and not fires(text, *MISS)


def test_places_are_those_of_the_text_as_written() -> None:
    """Line and column of an error count from the text's own beginning."""
    with pytest.raises(PolicyError) as refused:
        compile_policy('\n        raise "x" if:\n            (m: Message)\n            nobody(m)\n')
    assert (refused.value.line, refused.value.column) == (4, 13)


@pytest.mark.parametrize(
    "text",
    [
        'raise "x" if:\n        (m: Message)\n    "zebra" in m.content\n',
        '    raise "x" if:\n            (m: Message)\n      "zebra" in m.content\n',
        'raise "x" if:\n    (m: Message)\n        "zebra" in m.content\n',
        COUNT + 'raise "x" if:\n    count(min=1):\n          (m: Message)\n      "zebra" in m.content\n',
        COUNT + '\n        raise "x" if:\n            (m: Message)\n            "zebra" in m.content\n',
        'raise "x" if:\n    (m: Message)\n\n# at the margin\n\n    "zebra" in m.content\n',
    ],
)
def test_a_body_goes_as_far_as_it_is_indented_more_than_its_head(text: str) -> None:
    """Whatever the lines between them do: every condition counts."""
    assert fires(text, *HIT) and not fires(text, *MISS)


def test_a_line_at_the_width_of_its_head_ends_the_body() -> None:
    """A condition that slipped out of its rule is an error, not a rule that asks less."""
    with pytest.raises(PolicyError) as refused:
        compile_policy('    raise "x" if:\n        (m: Message)\n    "zebra" in m.content\n')
    assert refused.value.line == 3


def test_an_uneven_block_is_not_the_outer_one() -> None:
    """What is indented less than a quantifier is of the rule around it."""
    text = (
        "from invariant import count\n"
        'raise "x" if:\n      count(min=2):\n          (m: Message)\n   (n: Message)\n   "zebra" in n.content\n'
    )
    assert fires(text, *MISS, *HIT) and not fires(text, *HIT)


@pytest.mark.parametrize(
    "condition",
    [
        '"okapi" in m.content or\n    "zebra" in m.content',
        '"okapi" in m.content\n    or "zebra" in m.content',
        '"okapi" in m.content # one\n\n    # two\n    or ("zebra" in m.content)',
        'm.role == "user" and\n        "zebra" in\n  m.content',
        '"zebra" \\\nin m.content',
        'any(find("zebra", m.content \\\n))',
    ],
)
def test_an_expression_goes_on_where_it_needs_an_operand(condition: str) -> None:
    """``and`` and ``or`` at either end join lines, and so does a backslash, whatever the next one's indentation."""
    text = f'raise "x" if:\n    (m: Message)\n    {condition}\n'
    assert fires(text, *HIT) and not fires(text, *MISS)


def test_a_name_that_begins_with_an_operator_is_a_line_of_its_own() -> None:
    """``order`` is not ``or``."""
    assert fires('raise "x" if:\n    (m: Message)\n    order := m.content\n    "zebra" in order\n', *HIT)
