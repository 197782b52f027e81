"""Sessions: policies over text as it comes."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.policy import Budget, Conversation, Place, RuleViolation, Session, compile_policy
from gemini_proxy.policy.compile.window import looks_around
from gemini_proxy.policy.detectors.builtin import BUILTIN
from gemini_proxy.policy.detectors.secrets import SecretsDetector
from tests.policy.conversations import assistant, rule, user

IMPORTS = """from invariant.detectors import secrets, pii
from invariant.parsers import links
from invariant import count, forall"""
BUDGET = Budget()


def window(*lines: str) -> str:
    return compile_policy(rule(*lines, head=IMPORTS)).rules[0].window


class Checked(NamedTuple):
    """What came of a piece: each policy's violations, and whether all so far has passed."""

    violations: Sequence[Sequence[RuleViolation]]
    clear: bool


class OneTurn:
    """A session with one turn, whose first run of text stands at ``place``."""

    def __init__(self, session: Session, place: Place) -> None:
        self.session = session
        self._turn = session.turn()
        self.begin(place)

    @property
    def clear(self) -> bool:
        return self.session.clear

    def begin(self, place: Place) -> None:
        self.session.begin(self._turn, place)

    def check(self, piece: str, budget: Budget) -> Checked:
        violations = self.session.check(self._turn, piece, budget)
        return Checked(tuple(violations), self.session.clear)


def session(*lines: str, overlap: int = 20) -> OneTurn:
    return OneTurn(Session([compile_policy(rule(*lines, head=IMPORTS))], {}, overlap), Place(2))


def ranges(opened: OneTurn, piece: str) -> list[str]:
    verdict = opened.check(piece, BUDGET)
    return [address for found in verdict.violations for one in found for address in one.ranges]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("(c: ToolCall)", "c is tool:send"), "event"),
        (("(c: ToolCall)", "not c.function.name in input.allowed"), "event"),
        (("(o: ToolOutput)", "any(secrets(o))"), "event"),
        (("(a: ToolCall) -> (b: ToolCall)", "a is tool:read", "b is tool:send"), "event"),
        (("count(min=2):", "    (c: ToolCall)"), "event"),
        (("count(min=1, max=3):", "    (c: ToolCall)"), "late"),
        (("not count(min=1):", "    (c: ToolCall)"), "late"),
        (("forall:", "    (c: ToolCall)", "    c is tool:read"), "late"),
        (("(m: Message)", 'm.role == "user"', 'not "please" in m.content'), "event"),
        (("(m: Message)", 'm.role in ["user", "system"] and len(m.content) > 9'), "event"),
        (("(m: Message)", 'm.role == "user" or "x" in m.content'), "slice"),
        (("(m: Message) -> (c: ToolCall)", '"x" in m.content'), "whole"),
        (("(a: Message)", "(b: Message)", '"x" in a.content and "y" in b.content'), "whole"),
        (("(m: Message)", 'm.role == "user"', "(m: Message) -> (c: ToolCall)"), "event"),
        (("count(min=2):", "    (m: Message)", '    "x" in m.content'), "whole"),
        (("(i: Input)", "len(i.messages) > 3"), "whole"),
        (("(m: Message)", '"x" in text(m)'), "whole"),
        (("(m: Message)", '"x" in m.content.lower()'), "whole"),
        (("(m: Message)", '"x" in m.content[:9]'), "whole"),
        (("(m: Message)", "(u: str) in find(\"[a-z]+\", m.content)", '"evil" in u'), "whole"),
        (("(m: Message)", "any(links(m))"), "whole"),
        (("(m: Message)", 'm.content == "x"'), "whole"),
        (("(m: Message)", "any(find(input.word, m.content))"), "edge"),
        (("(m: Message)", "input.word in m.content", "input.strict"), "slice"),
        (("(m: Message)", "x := find(\"a\", m.content)", "any(x)"), "whole"),
        (("(m: Message)", "len(find(\"a\", m.content)) > 0 or len(find(\"b\", m.content)) > 1"), "whole"),
    ],
)  # fmt: skip
def test_what_a_slice_can_decide(lines: tuple[str, ...], expected: str) -> None:
    """Rules are sorted when they load, and where it is not certain they wait for the whole."""
    assert window(*lines) == expected


def test_a_detector_of_the_same_name_is_not_taken_for_ours() -> None:
    """What another package's detector does with a slice is not known."""
    text = rule("(m: Message)", "any(secrets(m))", head=IMPORTS)
    other = BUILTIN.with_detectors(SecretsDetector())
    assert compile_policy(text, detectors=other).rules[0].window == "whole"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        *((pattern, True) for pattern in ("^a", "a$", r"\ba", r"a\B", r"\Aa", r"a\Z", r"(a|^b)", r"\[^a", r"\\\ba")),
        *((pattern, False) for pattern in ("a", "[^a]b", r"\\b", r"a\$", r"\^", r"[a-z]+\d\w\s", "(?i)a|b")),
    ],
)
def test_patterns_that_look_beside_their_match(pattern: str, expected: bool) -> None:
    assert looks_around(pattern) is expected


def test_ranges_are_those_of_the_whole_text() -> None:
    """Offsets count from the text's beginning, however much of it is gone, and name the chunk they are in."""
    opened = session("(m: Message)", '"secret" in m.content')
    for _ in range(10):
        assert ranges(opened, "x" * 30) == []
    assert ranges(opened, "sec") == []
    assert ranges(opened, "ret!") == ["messages.2.content:300-306"]
    opened.begin(Place(4, "content.1.text", "a sec"))
    assert ranges(opened, "ret") == ["messages.4.content.1.text:2-8"]


def test_what_stands_at_the_edge_waits_for_what_follows() -> None:
    """``\\bfoo\\b`` at the end is not yet a word; the next piece decides, both ways."""
    opened = session("(m: Message)", r'any(find("\bfoo\b", m.content))')
    assert opened.check("a foo", BUDGET).violations == ((),)
    assert not opened.clear
    assert opened.check("bar", BUDGET).clear
    assert not opened.check(" foo", BUDGET).clear
    assert ranges(opened, " ") == ["messages.2.content:9-12"]


def test_a_hint_waits_for_the_whole() -> None:
    """A number that is no card number yet, or no longer, is nothing to refuse for, and nothing to let go."""
    opened = session("(m: Message)", "any(pii(m))")
    assert opened.check("nothing here", BUDGET).clear
    verdict = opened.check(" 4111 1111 1111 1112 ", BUDGET)
    assert (verdict.violations, verdict.clear, opened.session.stuck) == (((),), False, True)
    opened.session.settle()
    assert OneTurn(opened.session, Place(3)).check("all is well", BUDGET).clear


def test_a_rule_that_fails_or_takes_too_long_waits_for_the_whole() -> None:
    """A session has no errors: the check of the whole will say what there is to say."""
    opened = session("(m: Message)", "input.word in m.content")
    assert not opened.check("x", BUDGET).clear
    slow = session("(m: Message)", 'any(find("a", m.content))')
    assert not slow.check("a" * 3000, Budget(steps=100)).clear
    large = session("(m: Message)", '"a" in m.content')
    assert not large.check("b" * 100_000, BUDGET).clear


def test_the_cost_of_a_piece_does_not_grow() -> None:
    """After a million characters a piece is judged within the steps that the first one takes."""
    opened = session("(m: Message)", 'any(find("[a-z]+@corp[.]example", m.content))', "any(secrets(m))", overlap=256)
    budget = Budget(steps=60, max_total_chars=10_000)
    for _ in range(1000):
        assert opened.check("lorem ip" * 128, budget).clear


def test_texts_of_several_turns_are_apart() -> None:
    """Two candidates' halves make no whole."""
    opened = session("(m: Message)", '"secret" in m.content')
    other = OneTurn(opened.session, Place(2))
    assert not ranges(opened, "sec")
    assert other.check("ret", BUDGET).clear
    assert ranges(opened, "ret")


@settings(max_examples=75, deadline=None)
@given(st.lists(st.sampled_from(["foo", "fo", "o", "bar", " ", "\n", "é", "Foo", "x" * 30]), max_size=20))
def test_early_violations_are_violations_of_the_whole(pieces: list[str]) -> None:
    """Whatever follows: what a session reports, checking the whole text reports, at the same place."""
    policies = [
        compile_policy(rule("(m: Message)", f'any(find("{pattern}", m.content))'))
        for pattern in ("foo", r"\bfoo\b", r"o\Bo", "(?m)^foo$", "foo$", "(?i)f.o", "o+[^o]")
    ]
    opened = OneTurn(Session(policies, {}, 20), Place(1))
    early = [found for piece in pieces for found in enumerate(opened.check(piece, BUDGET).violations)]
    whole = Conversation.of([user("hi"), assistant("".join(pieces))])
    for index, violations in early:
        assert not violations or policies[index].check(whole)


@pytest.mark.parametrize("pattern", [r"a\sb", r"a[\s]b", r"a\Sb", r"a[\S]b", r"a[^\s]b"])
@pytest.mark.parametrize("char", ["\t", "\x0b", "\x0c", "\x1c", "\x1f", " ", "x", "\x00", "\x7f"])
def test_a_verdict_does_not_turn_when_a_text_stops_being_ascii(pattern: str, char: str) -> None:
    """White space is Python's in ASCII texts as well: a later accent must not change what was judged."""
    opened = session("(m: Message)", f'any(find("{pattern}", m.content))')
    expected = re.search(pattern, f"a{char}b") is not None
    assert bool(ranges(opened, f"a{char}b")) == expected
    opened.begin(Place(3))
    assert bool(ranges(opened, f"éa{char}b")) == expected


def test_what_the_edge_of_a_piece_may_hide_is_not_let_go() -> None:
    """Cut off from the ``q`` before it, the first alternative matches and takes the ``w`` that the second one needs."""
    opened = session("(m: Message)", r'any(find("\bq+w|w{3}e", m.content))')
    assert opened.check("z" * 40 + "q" * 25 + "w", BUDGET).clear
    assert not opened.check("wwe" + "y" * 30, BUDGET).clear
    assert not opened.check("y" * 60, BUDGET).clear


def test_what_a_text_ends_with_stays_open_when_another_begins() -> None:
    """``foo`` at the end of a thought is what the rule means, though nothing follows it there."""
    opened = session("(m: Message)", 'any(find("foo$", m.content))')
    assert not opened.check("a foo", BUDGET).clear
    opened.begin(Place(3))
    assert not opened.check("and so on", BUDGET).clear


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [("z" * 100, "SK" + "0123456789abcdef" * 2, "qw"), ("x ", "s.abcdefghijklmnopqrstuvw1", "z ")],
    ids=("before", "after"),
)
def test_a_word_that_a_slice_cuts_is_not_taken_for_a_secret(before: str, value: str, after: str) -> None:
    """What stands beside it is in another piece: the whole text has no such word."""
    opened = session("(m: Message)", "any(secrets(m))", overlap=len(value))
    for piece in (before + value, after[0], after[1], " and so on" * 20):
        assert ranges(opened, piece) == []


def test_a_secret_before_which_nothing_is_cut_is_reported() -> None:
    """At the beginning of a text, and far from that of a slice."""
    value = "SK" + "0123456789abcdef" * 2
    for before in ("", "z" * 90 + " " * 20):
        opened = session("(m: Message)", "any(secrets(m))", overlap=40)
        found = [address for piece in (before, value, ".") for address in ranges(opened, piece)]
        assert found[0] == f"messages.2.content:{len(before)}-{len(before) + len(value)}"
