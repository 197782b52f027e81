"""Help while writing: what never holds is a warning, and a fault says what may be meant."""

import pytest

from gemini_proxy.policy import PolicyError, compile_policy
from tests.policy.conversations import rule

M, C, OUT = "(m: Message)", "(c: ToolCall)", "(o: ToolOutput)"


@pytest.mark.parametrize(
    ("lines", "hint"),
    [
        ((M, 'm.role == "model"'), 'write "assistant" for the model'),
        ((M, '"model" == m.role'), 'write "assistant" for the model'),
        ((M, 'm.role in ["user", "model"]'), 'write "assistant" for the model'),
        ((M, 'm.role == "assistent"'), 'did you mean "assistant"?'),
        ((M, 'm.role != "User"'), 'did you mean "user"?'),
        ((M, 'm.role == "tool"'), "outputs of tools are (o: ToolOutput)"),
        ((M, 'm.role == "developer"'), 'write "system" for instructions'),
        ((M, 'm.role == "nobody"'), 'the role is one of "assistant", "system", "user"'),
        ((OUT, 'o.role == "function"'), 'the role is "tool"'),
        ((M, 'm.content.lower == "x"'), "write .lower()"),
        ((M, 'any(find("x", m.content.strip))'), "write .strip()"),
        ((M, 'm.content.lower().split == "x"'), "write .split()"),
        ((M, "m.content.startswith"), "write .startswith(...)"),
        ((M, "m.content.length > 3"), "write len(text)"),
        ((C, 'c.function.arguments.to.lower == "x"'), "write .lower()"),
        ((C, 'c.function.name.replace == "x"'), "write .replace(...)"),
        ((C, 'c is "send_mail"'), "write c is tool:send_mail"),
        ((C, 'c == "send_mail"'), "write c is tool:send_mail"),
        ((M, 'm == "hello"'), "read a field first, as in .content"),
    ],
)
def test_what_never_holds_is_warned_of(lines: tuple[str, str], hint: str) -> None:
    """The policy loads, and its one warning has its line and what may be meant."""
    [warning] = compile_policy(rule(*lines)).warnings
    assert (warning.line, warning.suggestion) == (4, hint)


def test_a_role_of_a_constant_is_read() -> None:
    """The warning stands where the constant is used."""
    [warning] = compile_policy('SPEAKS := ["user", "model"]\n' + rule(M, "m.role in SPEAKS")).warnings
    assert '"model"' in warning.message


@pytest.mark.parametrize(
    "lines",
    [
        (M, 'm.role == "assistant"'), (M, 'm.role in ["user", "system"]'), (M, '"assist" in m.role'),
        (M, 'm.role == input.role'), (OUT, 'o.role == "tool"'), (OUT, 'o.content.lower() == "x"'),
        (C, 'c.function.arguments.format == "pdf"'), (C, "c.function.arguments.items == 3"),
        (C, 'c.function.arguments.role == "model"'), (OUT, 'o.content.keys == "x"'), (C, "c is tool:send_mail"),
    ],
)  # fmt: skip
def test_what_may_hold_is_not_warned_of(lines: tuple[str, str]) -> None:
    """Arguments of a tool may have any name, and outputs any field."""
    assert compile_policy(rule(*lines)).warnings == ()


@pytest.mark.parametrize(
    ("lines", "hint"),
    [
        ((M, 'm.role = "user"'), "equality is written =="),
        ((M, '(m.role = "user")'), "equality is written =="),
        ((M, 'm.role == "user" && True'), "write the word and"),
        ((M, 'm.role == "user" || True'), "write the word or"),
        ((M, 'm.role == "user";'), "a line needs no character at its end"),
        ((M, "m.role == user"), 'a text is written in quotes: "user"'),
        ((M, "m.content == null"), "write None"),
        ((M, 'm.content.contains("x")'), 'write "..." in text'),
        ((M, 'm.content contains "x"'), 'write "..." in text'),
        ((M, "m.content.toLowerCase()"), "write .lower()"),
        ((M, 'm.text == "x"'), "write m.content"),
        ((C, "c is send_mail"), "write c is tool:send_mail"),
        ((C, "c is not send_mail"), "write c is tool:send_mail"),
        ((C, 'c.name == "send_mail"'), "write c.function.name, or c is tool:the_name"),
        ((C, 'c.arguments.to == "x"'), "write c.function.arguments"),
        ((OUT, 'o.name == "x"'), "write o.tool_name, or o is tool:the_name"),
    ],
)
def test_a_fault_says_what_may_be_meant(lines: tuple[str, str], hint: str) -> None:
    """In the author's own words, not another language's."""
    with pytest.raises(PolicyError) as refused:
        compile_policy(rule(*lines))
    assert refused.value.suggestion == hint


@pytest.mark.parametrize("text", ["import re\n", "from re import match\n"])
def test_regular_expressions_need_no_import(text: str) -> None:
    """The hint names what does their work."""
    with pytest.raises(PolicyError, match="need no import"):
        compile_policy(text)


def test_a_definition_is_not_an_assignment() -> None:
    """At the beginning of a line ``=`` is meant as a definition."""
    with pytest.raises(PolicyError, match="a definition is written :="):
        compile_policy("LIMIT = 5\n")
