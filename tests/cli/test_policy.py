from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from gemini_proxy.cli import main
from tests.cli.policy_runs import CASES, HOSTILE, rule, run

# fmt


def test_fmt_writes_the_standard_form(folder: Path) -> None:
    """In place, naming what it changed; a second time there is nothing to change."""
    rough, fine = 'raise "x" if :\r\n  (m:Message) # every\r\n', 'raise "x" if:\n    (m: Message)  # every\n'
    (folder / "rough.gr").write_bytes(rough.encode())
    leak = (folder / "leak.gr").read_bytes()
    checked = run("fmt", "--check", "leak.gr", "rough.gr")
    assert (checked.exit_code, checked.output) == (1, "rough.gr: would change\n")
    shown = run("fmt", "--diff", "leak.gr", "rough.gr")
    assert shown.exit_code == 0 and '\n+raise "x" if:\n' in shown.output and shown.output.startswith("--- rough.gr\n")
    assert run("fmt", "--check", "--diff", "rough.gr").exit_code == 1
    assert (folder / "rough.gr").read_bytes() == rough.encode()
    done = run("fmt", "leak.gr", "rough.gr")
    assert (done.exit_code, done.output) == (0, "rough.gr: formatted\n")
    assert ((folder / "rough.gr").read_bytes(), (folder / "leak.gr").read_bytes()) == (fine.encode(), leak)
    assert (run("fmt", "--check", "rough.gr").exit_code, run("fmt", "rough.gr").output) == (0, "")
    piped = CliRunner().invoke(main, ["policy", "fmt", "-"], input=rough)
    assert (piped.exit_code, piped.output) == (0, fine)


def test_fmt_leaves_what_does_not_parse(folder: Path) -> None:
    """The fault is shown, the other files are formatted, and the exit code is 2."""
    (folder / "bad.gr").write_text("raise  1 if\n")
    (folder / "rough.gr").write_text("X:=1")
    result = run("fmt", "bad.gr", "rough.gr")
    assert result.exit_code == 2 and "bad.gr:1:12: error:" in result.output and "rough.gr: formatted" in result.output
    assert (folder / "bad.gr").read_text() == "raise  1 if\n"


# check


def test_check_points_at_the_fault_and_suggests(folder: Path) -> None:
    """File, line and column, the source line with a caret under the fault, a suggestion, exit code 1."""
    (folder / "bad.gr").write_text('raise "x" if:\n    (m: Message)\n    m.contend == "y"\n')
    result = run("check", "bad.gr")
    assert result.exit_code == 1
    place, source, caret, hint = result.output.splitlines()
    assert place.startswith("bad.gr:3:") and ': error: Message has no field "contend"' in place
    assert source == '        m.contend == "y"'
    assert source[len(caret) - 1 :].startswith("contend")
    assert hint == '    did you mean "content"?'


def test_check_goes_on_after_a_fault(folder: Path) -> None:
    """Every file is reported, and one fault is enough for exit code 1."""
    (folder / "bad.gr").write_text("raise")
    result = run("check", "bad.gr", "leak.gr")
    assert (result.exit_code, result.output.splitlines()[-1]) == (1, "leak.gr: loads: 1 rule")


def test_check_says_what_a_policy_reads(folder: Path) -> None:
    """The parameters are named, for they have to be configured."""
    (folder / "a.gr").write_text(rule("(m: Message)", "input.b in m.content", "input.a in m.content"))
    assert run("check", "a.gr").output == "a.gr: loads: 1 rule, reads input.a, input.b\n"


def test_warnings_are_faults_only_when_strict(folder: Path) -> None:
    """A warning shows its place; ``--strict`` makes the exit code 1."""
    (folder / "w.gr").write_text('raise "x" if:\n    (m: Message)\n    any(find("\\bword", m.content))\n')
    result = run("check", "w.gr")
    assert result.exit_code == 0
    assert result.output.startswith("w.gr:3:")
    assert ": warning: " in result.output
    assert '    any(find("\\bword", m.content))\n' in result.output
    assert run("check", "--strict", "w.gr").exit_code == 1
    assert run("check", "--strict", "leak.gr").exit_code == 0


@pytest.mark.parametrize(
    ("lines", "warned"),
    [
        (['m.role == "assistant"', '"Dublin" in m.content'], True),
        (['not ("source:" in m.content)'], True),
        (['m.role == "user"', '"Dublin" in m.content'], False),
        (['"Cork" in m.content'], False),
        (['"Dublin" in m.content', "input.city in m.content"], False),
    ],
)
def test_a_message_that_sets_its_rule_off_is_a_warning(folder: Path, lines: list[str], warned: bool) -> None:
    """A chat sends the refusal back as the model's turn; where that cannot be decided nothing is said."""
    (folder / "d.gr").write_text(
        "\n".join(['raise "no Dublin" if:', "    (m: Message)", *(f"    {line}" for line in lines)])
    )
    result = run("check", "--strict", "d.gr")
    assert ("d.gr:1:1: warning: its refusal would refuse the rest of the chat" in result.output) == warned
    assert result.exit_code == warned


def test_a_message_that_depends_on_what_was_found_is_not_warned_of(folder: Path) -> None:
    """What a refusal will say is not known then."""
    (folder / "d.gr").write_text('raise f"no {m.role}" if:\n    (m: Message)\n')
    assert "warning" not in run("check", "d.gr").output


def test_what_reads_differently_elsewhere_is_said_to_those_who_ask(folder: Path) -> None:
    """With place and caret, and as a fault, with ``--portable`` alone."""
    (folder / "n.gr").write_text('raise "x" if:\n    (m: Message)\n    not m.role == "assistant"\n')
    plain = run("check", "--strict", "n.gr")
    assert (plain.exit_code, plain.output) == (0, "n.gr: loads: 1 rule\n")
    result = run("check", "--portable", "n.gr")
    assert result.exit_code == 1
    note, source, caret, summary = result.output.splitlines()
    assert note.startswith("n.gr:3:5: note: reads differently in Invariant's engine: ")
    assert (source, caret, summary) == ('        not m.role == "assistant"', "        ^", "n.gr: loads: 1 rule")


def test_a_policy_for_both_engines_passes_as_portable(folder: Path) -> None:
    """Without notes the exit code is 0; a warning is no note."""
    (folder / "p.gr").write_text(rule("(m: Message)", "(t: str) in text(m)", 'any(find("\\bword", t))'))
    result = run("check", "--portable", "p.gr")
    assert (result.exit_code, ": note: " in result.output, ": warning: " in result.output) == (0, False, True)


def test_check_speaks_json(folder: Path) -> None:
    """One object a file, each on a line, with the exit code of the words; places and hints stand by themselves."""
    (folder / "bad.gr").write_text('raise "x" if:\n    (m: Message)\n    m.contend == "y"\n')
    (folder / "w.gr").write_text(rule("(m: Message)", 'not m.role == "model"', "len(m.content) > input.most"))
    result = run("check", "--json", "bad.gr", "w.gr")
    assert result.exit_code == 1
    bad, warned = map(orjson.loads, result.output.splitlines())
    assert bad == {
        "file": "bad.gr", "loads": False, "rules": 0, "parameters": [], "asks": [], "waits": [], "warnings": [],
        "notes": [], "errors": [{"line": 3, "column": 7, "message": 'Message has no field "contend"',
        "hint": 'did you mean "content"?'}],
    }  # fmt: skip
    assert (warned["loads"], warned["rules"], warned["parameters"], warned["waits"]) == (True, 1, ["most"], [1])
    [warning] = warned["warnings"]
    assert (warning["line"], warning["column"], warning["hint"]) == (3, 19, 'write "assistant" for the model')
    assert run("check", "--json", "w.gr").exit_code == 0
    assert run("check", "--json", "--strict", "w.gr").exit_code == 1
    portable = run("check", "--json", "--portable", "w.gr")
    assert (portable.exit_code, orjson.loads(portable.output)["notes"][0]["line"]) == (1, 3)


def test_a_fault_is_shown_without_control_characters(folder: Path) -> None:
    """A policy file may hold anything; the terminal gets text."""
    (folder / "bad.gr").write_text(f"raise {HOSTILE.rstrip()} \x07 if:\n")
    output = run("check", "bad.gr").output
    assert not {"\x1b", "\x9b", "\u202e", "\x07", "\r"} & set(output)


def test_files_that_cannot_be_read_are_wrong_usage(folder: Path) -> None:
    """Exit code 2 and the file's name."""
    (folder / "latin.gr").write_bytes(b'raise "\xe9" if:\n')
    for name in ("latin.gr", "missing.gr"):
        result = run("check", name)
        assert (result.exit_code, name in result.output) == (2, True)


# test


def test_passing_cases_are_a_table_and_exit_code_0(folder: Path) -> None:
    """Case, expected, got, ok."""
    result = run("test", "leak.gr", "leak.yaml")
    assert result.exit_code == 0
    names = [line.split("  ")[0] for line in result.output.splitlines()]
    assert names == [
        "case",
        "leaks",
        "does not",
        "",
        "leak.gr: 2 of 2 cases ok",
    ]
    assert result.output.splitlines()[1].split() == ["leaks", "it", "leaks", "it", "leaks", "yes"]


def test_a_failure_shows_what_fired_and_where(folder: Path) -> None:
    """The diff has what is missing, and what fired with its range and the text there."""
    (folder / "wrong.yaml").write_text(
        CASES.replace("fires: it leaks", "fires: [it rains]").replace("- user: the", "- assistant: the")
    )
    result = run("test", "leak.gr", "wrong.yaml")
    assert result.exit_code == 1
    _, first, second, _ = result.output.replace(" \n", "\n").split("\n\n")
    assert [line.rstrip() for line in first.splitlines()] == [
        "leaks",
        "- it rains",
        "+ it leaks  line 1",
        "    messages.0.content:4-11",
        "      assistant: the secrets of the trade",
    ]
    assert second.splitlines()[:2] == ["does not", "+ it leaks  line 1"]
    assert result.output.endswith("leak.gr: 0 of 2 cases ok\n")


def test_a_case_that_must_fire_and_does_not_says_so(folder: Path) -> None:
    """``fires: true`` is any rule."""
    (folder / "c.yaml").write_text("cases: [{name: n, fires: true, messages: [{user: secret}]}]")
    result = run("test", "leak.gr", "c.yaml")
    assert result.exit_code == 1
    assert "\nn\n- any rule\n" in result.output


def test_rules_that_were_not_expected_are_a_failure(folder: Path) -> None:
    """``fires`` with messages means exactly these; a rule that fires often counts once."""
    (folder / "two.gr").write_text(rule("(m: Message)") + rule("(m: Message)").replace('"x"', '"y"'))
    (folder / "c.yaml").write_text(
        "cases:\n"
        "  - {name: a, fires: [x, y], messages: [{user: hi}, {user: ho}]}\n"
        "  - {name: b, fires: x, messages: [{user: hi}]}\n"
    )
    result = run("test", "two.gr", "c.yaml")
    assert result.exit_code == 1
    assert "\nb\n+ y  line 3\n" in result.output
    assert "+ x" not in result.output


def test_what_was_found_is_highlighted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the characters of the range."""
    monkeypatch.setenv("TERM", "xterm-256color")
    (folder / "c.yaml").write_text("cases: [{name: n, fires: false, messages: [{assistant: a secret b}]}]")
    assert "a \x1b[1;37;41msecret\x1b[0m b" in run("test", "leak.gr", "c.yaml", color=True).output


def test_a_check_without_a_verdict_is_a_failure(folder: Path) -> None:
    """Neither a violation nor clean: whatever the case expects, it is not ok."""
    (folder / "e.gr").write_text('raise "x" if:\n    (m: Message)\n    1 / len(m.content) > 0\n')
    (folder / "c.yaml").write_text(
        "cases: [{name: a, fires: false, messages: [{user: ''}]}, {name: b, fires: true, messages: [{user: ''}]}]"
    )
    result = run("test", "e.gr", "c.yaml")
    assert result.exit_code == 1
    assert result.output.count("! no verdict: rule at line 1: division by zero") == 2


def test_a_missing_parameter_is_no_verdict(folder: Path) -> None:
    """Even where the rule would not have come to reading it."""
    (folder / "p.gr").write_text('raise "x" if:\n    (c: ToolCall)\n    c.function.name == input.tool\n')
    (folder / "c.yaml").write_text("cases: [{name: a, fires: false, messages: [{user: hi}]}]")
    result = run("test", "p.gr", "c.yaml")
    assert (result.exit_code, "parameters.tool is not given" in result.output) == (1, True)


def test_parameters_of_a_case_win_over_those_of_the_file(folder: Path) -> None:
    """Both are read as input."""
    (folder / "p.gr").write_text(rule("(m: Message)", "input.a in m.content", "input.b in m.content"))
    (folder / "c.yaml").write_text(
        "parameters: {a: 'one', b: 'two'}\n"
        "cases:\n"
        "  - {name: n, fires: true, messages: [{user: one two}]}\n"
        "  - {name: m, fires: true, parameters: {b: three}, messages: [{user: one three}]}\n"
        "  - {name: o, fires: false, parameters: {b: three}, messages: [{user: one two}]}\n"
    )
    assert run("test", "p.gr", "c.yaml").exit_code == 0


def test_results_as_json(folder: Path) -> None:
    """Everything the table and the diff say."""
    (folder / "c.yaml").write_text("cases: [{name: n, fires: [other], messages: [{assistant: a secret b}]}]")
    result = run("test", "--json", "leak.gr", "c.yaml")
    assert result.exit_code == 1
    found = orjson.loads(result.output)
    assert (found["policy"], found["passed"], found["failed"]) == ("leak.gr", 0, 1)
    (case,) = found["cases"]
    assert (case["name"], case["fires"], case["ok"], case["failure"]) == ("n", ["other"], False, None)
    (fired,) = case["fired"]
    assert (fired["message"], fired["line"]) == ("it leaks", 1)
    assert fired["ranges"] == [{"address": "messages.0.content:2-8", "found": "secret", "excerpt": "a secret b"}]


def test_the_format_of_examples(folder: Path) -> None:
    """A list of policies with conversations; each is picked by its id, and FILE is what runs."""
    conversations = [
        {"fires": True, "messages": [{"role": "assistant", "content": "secret"}]},
        {"fires": False, "messages": [{"role": "user", "content": "secret"}]},
    ]
    examples = [
        {"id": 7, "title": "t", "policy": "not run", "parameters": {}, "conversations": conversations},
        {"id": 8, "title": "u", "conversations": [{"fires": True, "messages": []}]},
    ]
    (folder / "examples.json").write_bytes(orjson.dumps(examples))
    result = run("test", "leak.gr", "examples.json", "--only", "7")
    assert (result.exit_code, "2 of 2 cases ok" in result.output) == (0, True)
    assert run("test", "leak.gr", "examples.json").exit_code == 1
    assert run("test", "leak.gr", "examples.json", "--only", "t #1").exit_code == 0
    assert run("test", "leak.gr", "examples.json", "--only", "9").exit_code == 2


def test_a_policy_that_does_not_load_cannot_be_tested(folder: Path) -> None:
    """Exit code 2, with its fault: no case was wrong, none was tried."""
    (folder / "bad.gr").write_text('raise "x" if:\n    (m: Mesage)\n')
    result = run("test", "bad.gr", "leak.yaml")
    assert result.exit_code == 2
    assert "bad.gr:2:5: error: " in result.output


def test_text_in_cases_is_never_markup_nor_a_control_sequence(folder: Path) -> None:
    """Names, messages, rules' words and what was found."""
    word = orjson.dumps(HOSTILE).decode()
    quoting = 'raise PolicyViolation(m.content) if:\n    (m: Message)\n    any(find("not", m.content))\n'
    (folder / "h.gr").write_text(quoting)
    (folder / "c.json").write_text(
        f'[{{"title": {word}, "conversations": [{{"fires": {word}, "messages": [{{"role": {word}, "content": {word}}},'
        f'{{"role": "user", "content": "not"}}]}}]}}]'
    )
    output = run("test", "h.gr", "c.json").output
    assert "[red]not markup[/red] :smile:" in output
    assert not {"\x1b", "\x9b", "\u202e", "\r"} & set(output)
