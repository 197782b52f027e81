"""Our own refusals in a history are not what rules look at; what only looks like one is."""

import pytest

from gemini_proxy.guardrails.own_words import OwnWords
from gemini_proxy.guardrails.rules import guardrail

RULES = (
    guardrail("p", 'raise "no Dublin" if:\n    "x" == "y"\nraise "a; b" if:\n    "x" == "y"', "block"),
    guardrail("q", 'raise f"dynamic {m.role}" if:\n    (m: Message)', "block"),
    guardrail("r", 'raise PolicyViolation("named", 3) if:\n    "x" == "y"', "block"),
)
START = "[Invariant] The response did not pass the guardrails"


def left(text: str, role: str = "assistant", prefix: str = "[Invariant]") -> object:
    return OwnWords(prefix).left_out([{"role": role, "content": text}], RULES)[0]["content"]


@pytest.mark.parametrize(
    "why", ["", ": no Dublin", ": a; b", ": no Dublin; named", ": named; a; b; no Dublin", ": no Dublin\n"]
)
def test_refusals_are_left_out(why: str) -> None:
    """The text before a refusal stays where it is, so that ranges hold."""
    assert left(START + why) == ""
    assert left(f"In {START}{why}") == "In "
    assert left(f"{START}{why}".replace("response", "request")) == ""


@pytest.mark.parametrize(
    "text",
    [
        f"{START}: no Dublin and more",
        f"{START}: secret",
        f"{START}: no Dublin; secret",
        f"{START} secret",
        f"{START}: no Dublin\nsecret",
        f"{START}: dynamic user",
        START.replace("[Invariant]", "[Other]"),
    ],
)
def test_what_could_hide_something_stays(text: str) -> None:
    assert left(text) == text


def test_only_the_model_can_have_said_it() -> None:
    assert left(START, role="user") == START


def test_the_configured_prefix_counts() -> None:
    assert left(START.replace("[Invariant]", "[Wall]"), prefix="[Wall]") == ""
    assert left(START.replace("[Invariant] ", ""), prefix="") == ""
