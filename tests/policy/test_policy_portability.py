"""Notes on what reads differently in Invariant's engine: each kind, what comes near it, and policies that have none."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.policy import Conversation, PolicyError, PolicyWarning, compile_policy
from gemini_proxy.policy.lint.portability import Brackets, compiles, leftmost, portability, search_for
from gemini_proxy.policy.parse.parser import parse
from gemini_proxy.policy.parse.syntax import Condition, Logical, Raise

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT.parent / "shared" / "policies" / "examples.json"
SAFE = """\
from invariant import count
from invariant.detectors import secrets

EMAIL := "[a-z]+@[a-z]+[.]example"

untrusted(url: str) :=
    not match("https://own[.]example/", url)

raise "by words" if:
    (m: Message)
    (m.role == "user") or (m.role == "assistant")
    (t: str) in text(m)
    True and (("key" in t) or (any(secrets(t))) or (any(find(EMAIL, t))))

raise PolicyViolation("by tool", tool=c.function.name) if:
    (o: ToolOutput) -> (c: ToolCall)
    o is tool:read_mail
    c is tool:send_mail({to: "[^@]+@(own|our)[.]example", cc: *, tries: 3})
    not (c.function.arguments.get("subject", "") == "news")
    untrusted(c.function.arguments.get("url", ""))

raise "by number" if:
    count(min=4):
        (c: ToolCall)
        c is tool:search
"""


def rule(*lines: str, kind: str = "m: Message") -> str:
    """A rule over one variable; the lines begin at line 3."""
    return "\n    ".join(('raise "x" if:', f"({kind})", *lines)) + "\n"


def call(*lines: str) -> str:
    """A rule over a call."""
    return rule(*lines, kind="c: ToolCall")


def output(*lines: str) -> str:
    """A rule over a tool's output."""
    return rule(*lines, kind="o: ToolOutput")


def detectors(names: str, *lines: str) -> str:
    """A rule with imports, its lines one line further down."""
    return f"from invariant.detectors import {names}\n" + rule(*lines)


# A policy, and for each note: line, column, a part of its message.
NOTED: dict[str, tuple[str, list[tuple[int, int, str]]]] = {
    "and in or": (rule('m.role == "a" and m.role == "b" or empty(m.content)'), [(3, 7, "groups these differently")]),
    "or in and, one in brackets": (rule("empty(m) or (len(m) > 1) and empty(m)"), [(3, 5, "each operand in brackets")]),
    "three with comparisons": (rule('m.role == "a" or m.role == "b" or m.role == "c"'), [(3, 7, "differently")]),
    "three, two in brackets": (rule('empty(m) or (m.role == "b") or m.role == "c"'), [(3, 5, "differently")]),
    "brackets around all": (rule("(empty(m) and empty(m) or empty(m))"), [(3, 6, "differently")]),
    "brackets around a part": (rule('any([(m.role) == "b" and empty(m) or empty(m)])'), [(3, 13, "differently")]),
    "three calls, not in the middle": (rule("empty(m) or not empty(m) or empty(m)"), [(3, 5, "differently")]),
    "not a comparison": (rule('not m.role == "user"'), [(3, 5, "write not (...)")]),
    "not, a pattern": (call("not c is tool:f"), [(3, 5, "write not (...)")]),
    "not in brackets in part": (rule('not (m.role) == "user"'), [(3, 5, "write not (...)")]),
    "a chain": (rule("1 < len(m) < 3"), [(3, 5, "one comparison after the other")]),
    "a condition behind a comparison": (rule("empty(m) == True if empty(m) else False"), [(3, 5, "before if")]),
    "a bracket goes on": (rule('m.role == "a"', '(m.role == "b") or empty(m)'), [(4, 5, "write True and (...)")]),
    "a sign goes on": (rule('m.role == "a"', "-1 == len(m)"), [(4, 5, 'begins with "-"')]),
    "a bracket after a source": (rule("(t: str) in text(m)", "(empty(t)) or (empty(m))"), [(4, 5, 'begins with "("')]),
    "one line": ('raise "x" if: empty("")\n', [(1, 15, "a line of its own")]),
    "a list of secrets": (detectors("secrets", "secrets(m)"), [(4, 5, "write any(...)")]),
    "an alias": (detectors("secrets as s", "s(m)"), [(4, 5, "write any(...)")]),
    "a list behind or": (detectors("secrets", "empty(m) or secrets(m)"), [(4, 17, "write any(...)")]),
    "a list at the end of and": (rule("empty(m) and text(m)"), [(3, 18, "write any(...)")]),
    "an assigned list": (rule("found := text(m)", "found"), [(4, 5, "write any(...)")]),
    "a comprehension": (rule("[t for t in text(m)]"), [(3, 6, "write any([...])")]),
    "a number": (rule("len(text(m))"), [(3, 5, "write ... > 0")]),
    "a sum": (rule("len(text(m)) + 1"), [(3, 5, "write ... != 0")]),
    "a text": (rule("m.role.lower()"), [(3, 12, "write len(...) > 0")]),
    "a content": (rule("m.content"), [(3, 7, "write not empty(...)")]),
    "a record": (detectors("python_code", "python_code(m)"), [(4, 5, "one of its fields")]),
    "a condition in a comprehension": (
        rule('any([t for t in text(m) if find("a", t)])'),
        [(3, 32, "write any(...)")],
    ),
    "a condition in a predicate": (
        "p(m: Message) :=\n    text(m)\n" + rule("p(m)"),
        [(2, 5, "write any(...)")],
    ),
    "in a count": (
        "from invariant import count\n" + rule("count(min=2):", "    (o: Message)", "    text(o)"),
        [(6, 9, "write any(...)")],
    ),
    "nothing but a variable": ('raise "x" if:\n    (c: ToolCall)\n', [(2, 5, "on every trace, an empty one too")]),
    "only an assignment": (rule("t := m.content"), [(2, 5, "on every trace")]),
    "only a source": (rule("(t: str) in text(m)"), [(2, 5, "on every trace")]),
    "a source that nothing asks for": (
        rule("(t: str) in image(m)", "empty(m.role)"),
        [(3, 5, "where there is no t; add a condition on t")],
    ),
    "a count of all": (
        "from invariant import count\n" + rule("empty(m.role)", "count(min=2):", "    (c: ToolCall)"),
        [(5, 5, "counts one")],
    ),
    "a bracket after a second declaration": (
        'raise "x" if:\n    (a: Message) -> (b: Message)\n    b -> (c: Message)\n    (empty(a)) or (empty(c))\n',
        [(4, 5, 'begins with "("')],
    ),
    "text chunks": ('raise "x" if:\n    (t: TextChunk)\n    empty(t.text)\n', [(2, 5, "not a TextChunk")]),
    "in with a pattern": (rule('"a.b" in m.role'), [(3, 5, 'write any(find("a[.]b", x))')]),
    "in with a broken pattern": (rule('"f(" in m.role'), [(3, 5, 'raises; write any(find("f[(]", x))')]),
    "in with a constant": ('WORD := "a+"\n' + rule("WORD in m.role"), [(4, 5, "marks")]),
    "in a message": (rule('"a" in m'), [(3, 12, "use (t: str) in text(m)")]),
    "in a call": (call('"a" in c'), [(3, 12, "use (t: str) in c.function.arguments.values()")]),
    "find in a content": (rule('any(find("a", m.content))'), [(3, 21, "use (t: str) in text(x)")]),
    "match of an output": (output('match("a", o.content)'), [(3, 18, "use (t: str) in text(x)")]),
    "find in an event": (rule('any(find("a", m))'), [(3, 19, "find raises")]),
    "a method of a content": (rule('m.content.lower() == "a"'), [(3, 15, "methods raise")]),
    "a detector of a call": (
        "from invariant.detectors import secrets\n" + call("any(secrets(c))", "any(secrets(c.function.arguments))"),
        [(4, 17, "finds nothing in a call"), (5, 28, "finds nothing in a call")],
    ),
    "match and a dot": (rule("(t: str) in text(m)", 'match(".*key", t)'), [(4, 11, "begin the pattern with (?s)")]),
    "match with a constant": ('KEY := "a.+"\n' + rule("match(KEY, m.role)"), [(4, 11, "(?s)")]),
    "alternatives": (call('c is tool:f({to: "a|b"})'), [(3, 22, 'write "(a|b)"')]),
    "a star in quotes": (call('c is tool:f({to: "*"})'), [(3, 22, "without them")]),
    "a constant in a pattern": ('A := "a"\n' + call("c is tool:f({to: A})"), [(4, 22, "write the text itself")]),
    "truth in a pattern": (call("c is tool:f({to: True})"), [(3, 22, "compare")]),
    "an entity": (call("c is tool:f({to: <EMAIL_ADDRESS>})"), [(3, 22, "presidio")]),
    "a hyphen": (call("c is tool:my-tool"), [(3, 10, 'x.function.name == "my-tool"')]),
    "is not a tool": (call("c is not tool:f"), [(3, 5, "write not (x is ...)")]),
    "an argument by name": (call('c.function.arguments.to == "a"'), [(3, 26, 'write .get("to", "")')]),
    "an argument by key": (call('c.function.arguments["to"] == "a"'), [(3, 25, 'write .get("to", "")')]),
    "an f-string": (
        'raise PolicyViolation(f"{m.role}") if:\n    (m: Message)\n    empty(m.content)\n',
        [(1, 23, "f-strings")],
    ),
    "a line end in a text": (rule('"\\n" in m.content'), [(3, 5, "stays a backslash")]),
    "a backslash in ==": (rule('m.role == "a\\\\b"'), [(3, 15, "stays a backslash")]),
    "an escape in a constant": ('END := "\\t"\n' + rule("END in m.content"), [(4, 5, "stays a backslash")]),
    "a detector with a model": (detectors("pii", "any(pii(m))"), [(1, 33, "needs presidio")]),
    "a detector that asks": (
        detectors("fuzzy_contains", 'fuzzy_contains(m.role, "a")'),
        [(4, 5, "say use_semantic=False")],
    ),
    "an option": (detectors("secrets", "any(secrets(m, generic=True))"), [(4, 28, "no option generic")]),
    "a plug-in": (detectors("weather", "any(weather(m))"), [(1, 33, "no detector weather")]),
    "not in": (rule('m.role not in ["a"]'), [(3, 7, "write not (x in y)")]),
    "is not": (rule('m.role is not "a"'), [(3, 7, "write x != y")]),
    "a slice": (rule('m.role[1:] == "ser"'), [(3, 11, "no slices")]),
    "a whole division": (rule("len(m) // 2 == 1"), [(3, 5, "no //")]),
    "a tuple": (rule('m.role in ("a", "b")'), [(3, 15, "write a list")]),
    "a method that is not there": (rule('m.role.startswith("a")'), [(3, 12, "no method startswith")]),
    "all": (rule("all([empty(t) for t in text(m)])"), [(3, 5, "no all(...)")]),
    "a generator": (rule("any(empty(t) for t in text(m))"), [(3, 9, "in [ ]")]),
    "a written list of values": (
        call('(n: int) in [c.function.arguments.get("n", 0)]', "n > 2"),
        [(3, 17, "tuple([...])")],
    ),
    "CRLF": (rule("empty(m.content)").replace("\n", "\r\n"), [(1, 1, "LF")]),
}

# What stands near a note, and reads alike.
ALIKE = {
    "two comparisons": rule('m.role == "a" and "b" in m.content'),
    "two, one a call": rule('not empty(m) or ".." == m.role'),
    "three calls": rule("empty(m) or empty(m) or empty(m)"),
    "three in brackets": rule('True and ((m.role == "a") or (m.role == "b") or (m.role == "c"))'),
    "mixed in brackets": rule('((m.role == "a") and empty(m)) or empty(m)'),
    "brackets in brackets": rule('(((m.role) == "a") and empty(m)) or (((empty(m))))'),
    "not in brackets": rule('not (m.role == "user")', "not ((m.role) == (m.content))", "not empty(m)"),
    "a condition in brackets": rule('(empty(m) if m.role == "a" else False)'),
    "a bracket after a declaration": rule('(m.role == "a") or (m.role == "b")'),
    "a bracket in the first line": 'p(m: Message) :=\n    (empty(m)) or (empty(m.role))\n' + rule("p(m)"),
    "a bracket after a flow": 'raise "x" if:\n    (a: Message) -> (b: Message)\n    (empty(a)) or (empty(b))\n',
    "a declaration in the middle": rule('m.role == "a"', "(t: str) in text(m)", "empty(t)"),
    "truth values": detectors("secrets", "any(secrets(m))", "len(text(m)) > 0", "not text(m)", "empty(m) == True"),
    "a list before the end of and": rule("text(m) and empty(m)"),
    "a variable in the message": 'raise PolicyViolation("x", call=c) if:\n    (c: ToolCall)\n',
    "a flow alone": 'raise "x" if:\n    (a: Message) -> (b: Message)\n',
    "members of lists": 'ALL := ["a.b"]\n' + rule('"a.b" in ALL', '"a.b" in ["c"]', '"a.b" in m.role.split(".")'),
    "plain words in a text": rule('"SECRET key-1" in m.content'),
    "texts of a content": rule("(t: str) in text(m.content)", 'any(find("a", t))', 't.lower() == "a"'),
    "match up to line ends": rule('match("(?s).*a", m.role)', 'match("[.]*[^.]+\\.*a.", m.role)'),
    "find has no such dot": rule('any(find(".*", m.role))'),
    "alternatives in a group": call('c is tool:f({to: "(a|b)", cc: "[|]", n: 1, x: *})'),
    "arguments by get": call('c.function.arguments.get("a", "") == "b"', '"a" in c.function.arguments.keys()'),
    "quotes in a text": rule("\"\\\"\" in m.content", 'm.role == "\\d"'),
    "escapes in a pattern": 'END := "\\t"\n' + rule('any(find("\\n", m.role))', "any(find(END, m.role))"),
    "no meaning asked": detectors("fuzzy_contains", 'fuzzy_contains(m.role, "a", use_semantic=False)'),
    "is not None": rule("m.role is not None", "m.content is None"),
    "a constant list": rule('(n: int) in [1, 2]', "n > 2"),
    "an empty policy": "",
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), NOTED.values(), ids=NOTED)
def test_what_reads_differently_is_noted(text: str, expected: list[tuple[int, int, str]]) -> None:
    """Each place once, with what happens there and what to write; and nothing else."""
    notes = portability(text)
    assert [(note.line, note.column) for note in notes] == [(line, column) for line, column, _ in expected], notes
    for note, (_, _, part) in zip(notes, expected, strict=True):
        assert part in note.message


@pytest.mark.parametrize("text", [*ALIKE.values(), SAFE], ids=[*ALIKE, "all that is safe"])
def test_what_reads_alike_is_not(text: str) -> None:
    """No note on what comes near one."""
    assert portability(text) == ()


def test_policies_of_the_tables_load() -> None:
    """But for the plug-in that nobody has: else the notes were on what is none of the language."""
    for name, text in {**{name: text for name, (text, _) in NOTED.items()}, **ALIKE, "safe": SAFE}.items():
        if name != "a plug-in":
            compile_policy(text, name)


def test_notes_are_not_warnings() -> None:
    """A server that starts with a policy says nothing of another engine."""
    assert compile_policy(rule('not m.role == "user"')).warnings == ()


def test_a_policy_that_does_not_parse_is_an_error() -> None:
    """The same as compiling it."""
    with pytest.raises(PolicyError, match=r"^a\.gr:1:6"):
        portability("raise", "a.gr")


def test_notes_are_in_the_order_of_the_text() -> None:
    """Whatever their kind."""
    notes = portability(call("c.function.arguments.a == 1", "not c is tool:my-tool", "len(c)"))
    assert [note.line for note in notes] == sorted(note.line for note in notes)
    assert {note.line for note in notes} == {3, 4, 5}


EXPECTED_OF_EXAMPLES = {
    "4": ["begin the pattern with (?s)", 'write any(find("[.][.]", x))'],
    "9": ['.get("code", "")'],
    "11": ["find raises"],
    "12": ["find raises", "find raises"],
}


@pytest.mark.skipif(not EXAMPLES.exists(), reason="the shared policies are not here")
def test_policies_written_for_both_have_few_notes() -> None:
    """A missing argument, a content that is None, a line end in a path, a range: no note on a form."""
    for example in json.loads(EXAMPLES.read_text()):
        notes: tuple[PolicyWarning, ...] = portability(example["policy"])
        expected = EXPECTED_OF_EXAMPLES.get(str(example["id"]), [])
        assert len(notes) == len(expected), example["id"]
        for note, part in zip(notes, expected, strict=True):
            assert part in note.message


OPERANDS = st.recursive(
    st.sampled_from(("a", "f(a)", "a.b", "a == 1", "not a", '"x" in a', "(a) == 1", "a[0]", "f((a))")),
    lambda inner: st.one_of(
        inner.map("({})".format), st.tuples(inner, st.sampled_from(("and", "or")), inner).map(" ".join)
    ),
    max_leaves=8,
)


@given(st.lists(st.tuples(OPERANDS, st.booleans()), min_size=2, max_size=4), st.sampled_from((" and ", " or ")))
def test_brackets_are_known_for_what_they_hold(operands: list[tuple[str, bool]], word: str) -> None:
    """Of operands in brackets of their own, each is so; of those without, none is but by what they are made of."""
    line = word.join(f"({text})" if wrapped else "f(a)" for text, wrapped in operands)
    policy = f'raise "x" if:\n    {line}\n'
    statement = parse(policy, "p").statements[0]
    assert isinstance(statement, Raise)
    condition = statement.body[0]
    assert isinstance(condition, Condition)
    assert isinstance(condition.value, Logical)
    brackets = Brackets(policy)
    following = (*condition.value.operands[1:], None)
    found = [brackets.around(node, after) for node, after in zip(condition.value.operands, following, strict=True)]
    assert found == [wrapped for _, wrapped in operands]


def test_the_first_part_of_an_expression_is_found() -> None:
    """Through attributes, indexes, calls and operators."""
    statement = parse('raise "x" if:\n    a.b[1](2).c + 1 == 2 and d\n', "p").statements[0]
    assert isinstance(statement, Raise)
    condition = statement.body[0]
    assert isinstance(condition, Condition)
    first = leftmost(condition.value)
    assert (first.line, first.column) == (2, 5)


@given(st.text("ab.[(|$\\^\"' +*?{}", min_size=1, max_size=8))
def test_the_spelling_for_a_text_finds_just_it(text: str) -> None:
    """Where the note can spell a pattern, the pattern means the text."""
    call_of_find = search_for(text)
    if call_of_find == "any(find(...))":
        return
    pattern = call_of_find.removeprefix('any(find("').removesuffix('", x))')
    assert compiles(pattern)
    policy = compile_policy(f'raise "x" if:\n    {call_of_find.replace(", x)", ", input.t)")}\n')
    assert policy.check(Conversation.of(()), {"t": f"<{text}>"})
    assert not policy.check(Conversation.of(()), {"t": "<" + text.replace(text[0], "#") + ">"})
