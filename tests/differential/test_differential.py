"""Our engine beside the stock one: on a few conversations here, on thousands in ``python -m tests.differential``."""

from collections.abc import Iterator

import pytest

from tests.differential.compare import UNEXPLAINED, Comparison, Report, chosen
from tests.differential.conversations import ConversationMaker
from tests.differential.differences import CONVERSATIONS, POLICIES, Messages, rewritings
from tests.differential.oracle import MISSING, PYTHON, Oracle, running_oracle
from tests.differential.policies import CASES

SAMPLE = ("contains", "tool pattern", "output then call", "count calls", "precedence", "truth of a list", "secrets of")


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    if not PYTHON.exists():
        pytest.skip(MISSING)
    with running_oracle() as started:
        yield started


def test_no_difference_without_a_reason(oracle: Oracle) -> None:
    """A sample of policies gives the stock engine's verdicts on random conversations, but for what is documented."""
    report = Comparison(oracle, chosen(SAMPLE)).run(seed=1_000_000, conversations=60)

    assert [] == [(found.case.name, found.number) for found in report.unexplained]
    assert report.agreed["fires"] > 20 and report.agreed["clean"] > 100


def test_a_difference_without_a_reason_is_told(oracle: Oracle) -> None:
    """What differs, and is not in the table, is reported as unexplained."""
    [case] = chosen(["truth of a list"])
    undeclared = type(case)(case.name, case.text)
    comparison = Comparison(oracle, [undeclared])
    comparison.compare(0, [{"role": "user", "content": "eve@evil.io"}])

    [found] = comparison.report.unexplained
    assert (UNEXPLAINED, "fires", "clean") == (found.why, found.ours.word, found.stock.word)


def test_the_oracle_is_patched(oracle: Oracle) -> None:
    """More than a hundred messages are no error, and a violation has its own ranges only."""
    oracle.load("patched", 'raise "x" if:\n    (m: Message)\n    any(find("SECRET", m.content))\n')
    messages = [{"role": "user", "content": "SECRET"} for _ in range(150)]
    [outcome] = oracle.check(["patched"], messages, {})

    assert 150 == len(outcome.violations)
    assert all(2 == len(ranges) for ranges in outcome.violations)


def test_every_reason_is_in_the_table() -> None:
    """A policy's differences are those that are documented."""
    documented = {difference.name for difference in POLICIES}
    assert set() == {name for case in CASES for name in case.why} - documented
    assert all(difference.reason for difference in (*POLICIES, *CONVERSATIONS))


def test_policies_have_names_of_their_own() -> None:
    """At least forty policies, each findable by its name."""
    assert len(CASES) == len({case.name for case in CASES}) >= 40


def test_conversations_are_the_same_for_the_same_seed() -> None:
    """A number names a conversation, and different numbers different ones."""
    first, again, other = (ConversationMaker(seed).conversation() for seed in (7, 7, 8))
    assert first == again != other


def test_rewriting_begins_with_the_conversation_itself() -> None:
    """What is plain is not rewritten, what is not is rewritten in every combination."""
    plain: Messages = [{"role": "user", "content": "x"}]
    assert [((), plain)] == list(rewritings(plain))
    odd: Messages = [{"role": "user", "content": None}, {"role": "tool", "content": {"a": ["b", 5]}}]
    changed = {names: messages for names, messages in rewritings(odd)}
    assert "" == changed[("no content is empty text",)][0]["content"]


def test_reports_add_up() -> None:
    """Two runs together say what each said."""
    one, other = Report(checks=2), Report(checks=3)
    one.merge(other)
    assert 5 == one.checks
