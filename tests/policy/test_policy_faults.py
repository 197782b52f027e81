"""What kind of fault a policy has, which others tell apart without reading its words."""

import pytest

from gemini_proxy.policy import PolicyError, compile_policy

RULE = 'raise "x" if:\n    (m: Message)\n    {}\n'
FAULTS = {
    "unknown": [
        RULE.format("secretz(m.content)"),
        RULE.format("secrets(m.content)"),
        RULE.format("m.nothing"),
        RULE.format("(c: ToolCall)\n    c.function.nothing"),
        RULE.format("m.content.shout()"),
        RULE.format("m.upper()"),
        RULE.format('find("x", m.content, nothing=1)'),
        RULE.format("(n: Massage)"),
        "p(a: strr) := a\n" + RULE.format("p(m.content)"),
        "from invariant import count\n" + RULE.format("count(around=2):\n        (n: Message)"),
    ],
    "excess": [
        "#" * 1_000_001,
        RULE.format("True") * 1_001,
        RULE.format("(" * 100 + "1" + ")" * 100),
        RULE.format("not " * 100 + "True"),
        RULE.format("2" + " ** 2" * 100),
        RULE.format("1" * 41),
        RULE.format(f'match("{"x" * 10_001}", m.content)'),
        RULE.format('match("[^x]{1000}[^y]{1000}", m.content)'),
        RULE.format(f'match("{".{1000}" * 1400}", m.content)'),
        RULE.format("\n    ".join(f"(m{n}: Message)" for n in range(100))),
        RULE.format("\n    ".join(f'match("a{n}", m.content)' for n in range(501))),
        "\n".join(" " * n + "x:" for n in range(30)),
        "from invariant import forall\n"
        + RULE.format("\n".join(" " * 4 * n + "forall:" for n in range(1, 7)).lstrip() + "\n" + " " * 28 + "True"),
        "".join(f"p{n}(a: str) := p{n + 1}(a)\n" for n in range(70))
        + "p70(a: str) := a\n"
        + RULE.format("p0(m.content)"),
    ],
    "form": [
        "raise",
        RULE.format('"never closed'),
        RULE.format('match("(", m.content)'),
        RULE.format("m.content ="),
        "import os",
        "nothing",
    ],
}


@pytest.mark.parametrize(("fault", "text"), [(fault, text) for fault, texts in FAULTS.items() for text in texts])
def test_a_fault_is_of_its_kind(fault: str, text: str) -> None:
    """It names what there is not, is more than there may be, or is not in the language's form."""
    with pytest.raises(PolicyError) as refused:
        compile_policy(text)
    assert refused.value.fault == fault, refused.value
