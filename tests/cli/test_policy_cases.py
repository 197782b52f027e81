from pathlib import Path
from typing import Any

import pytest

from gemini_proxy.cli.policy_cases import read_cases
from tests.cli.policy_runs import run

SHORTHAND = """\
cases:
  - name: n
    fires: [all of it]
    messages:
      - system: be kind
      - tools: [search, {name: mail, description: sends}]
      - user: [{type: text, text: hi}]
      - thought: hm
      - assistant: let me see
        call: {search: {q: 1}, mail: {to: [a]}}
      - output: {rows: [1]}
        of: mail
      - output: found
      - call: search
      - output: more
      - call: [{search: {q: 2}}, {search: {q: 3}}]
      - role: tool
        content: as it is
"""


def test_shorthand_is_the_messages_that_rules_read(folder: Path) -> None:
    """Every short form, in the shape of recorded messages: outputs name the tool of the call that they answer."""
    (folder / "all.gr").write_text(
        'raise PolicyViolation("all of it", i) if:\n    (i: Input)\n    len(i.messages) == 12\n\n'
        'raise PolicyViolation("wrong output", o) if:\n    (o: ToolOutput)\n'
        '    o.content == "found" and not (o is tool:search) or "rows" in o.content and not (o is tool:mail)\n'
    )
    (folder / "c.yaml").write_text(SHORTHAND)
    result = run("test", "all.gr", "c.yaml")
    assert result.exit_code == 0, result.output
    (case,) = read_cases(folder / "c.yaml")

    def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "arguments": arguments}}

    assert list(case.conversation.messages) == [
        {"role": "system", "content": "be kind"},
        {"tools": [{"name": "search"}, {"name": "mail", "description": "sends"}]},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": "hm", "thought": True},
        {"role": "assistant", "content": "let me see"},
        {"role": "assistant", "tool_calls": [call("search", {"q": 1}), call("mail", {"to": ["a"]})]},
        {"role": "tool", "tool_name": "mail", "content": {"rows": [1]}},
        {"role": "tool", "tool_name": "search", "content": "found"},
        {"role": "assistant", "tool_calls": [call("search", {})]},
        {"role": "tool", "tool_name": "search", "content": "more"},
        {"role": "assistant", "tool_calls": [call("search", {"q": 2}), call("search", {"q": 3})]},
        {"role": "tool", "content": "as it is"},
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cases: [", "while parsing"),
        ("cases: &a [*a]", "aliases are not available"),
        ("cases: []\ncases: []", '"cases" is given twice'),
        ("cases: []", "it has no cases"),
        ("case: []", 'unknown key "case"'),
        ("hello", "expected a mapping with cases"),
        ("cases: {}", "cases must be a list"),
        ("cases: [{messages: []}]", "case 1: fires must be true, false"),
        ("cases: [{fires: 3, messages: []}]", "case 1: fires must be true, false"),
        ("cases: [{fires: true}]", "case 1: messages must be a list"),
        ("cases: [{fires: true, messages: [{uesr: x}]}]", 'message 1: unknown key "uesr" (did you mean "user"?)'),
        ("cases: [{fires: true, messages: [{user: yes}]}]", "expected a text, found True; put it in quotes"),
        ("cases: [{fires: true, messages: [{user: a, assistant: b}]}]", "cannot be combined"),
        ("cases: [{fires: true, messages: [{call: 3}]}]", "a call is written"),
        ("cases: [{fires: true, messages: [{output: x, of: mail}]}]", 'no call of "mail" waits'),
        ("cases: [{fires: true, messages: [{of: mail}]}]", '"of" needs an output'),
        ("cases: [{fires: true, messages: [{tools: mail}]}]", "tools must be a list"),
        ("cases: [{fires: true, messages: [{role: 3}]}]", "messages.0.role is not a string"),
        ("cases: [{fires: true, parameters: 3, messages: []}]", "case 1: parameters must be a mapping"),
        ("[" * 3000, "nested too deeply"),
    ],
)  # fmt: skip
def test_cases_that_cannot_be_read_are_wrong_usage(folder: Path, text: str, reason: str) -> None:
    """Exit code 2, the file, and where in it what was expected."""
    (folder / "c.yaml").write_text(text)
    result = run("test", "leak.gr", "c.yaml")
    assert (result.exit_code, "c.yaml: " in result.output, reason in result.output) == (2, True, True)
