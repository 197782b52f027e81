"""The language, feature by feature."""

import pickle
from typing import Any

import pytest

from gemini_proxy.policy import Budget, Conversation, ConversationError, EvaluationError, PolicyError, compile_policy
from tests.policy.conversations import assistant, call, calling, check, fires, output, ranges, rule, user

M = "(m: Message)"


@pytest.mark.parametrize(
    "policy",
    [
        'raise "x" if: (m: Message)',
        "# c\n\n  # c\nraise 'x' if :\n\t( m : Message )  # c\n\n\t# c\n\tm . role=='user'\n",
        'raise "x" if:\n        (m: Message)\n\n        m.role == (\n  "user"\n)\n# end',
        'raise PolicyViolation("x", m, reason="r",) if:\n (m: Message)\n m.role in ["user", "tool",]\n',
        'raise "a" "b" if:\n    (m: Message)\n    True and \\\n        m.content',
        '\ufeffraise """x\ny""" if:\n    (m: Message)\n',
        'X :=\n    "us" + "er"\nraise X if:\n    (m: Message)\n    m.role == X\n',
        'f(m: Message) := m.role == "user"\ng(x: str):\n    x\n'
        'raise "x" if:\n    (m: Message)\n    f(m) and g(m.content)\n',
        "from invariant import (Message, ToolCall, PolicyViolation)\nraise PolicyViolation if:\n    (m: Message)\n",
    ],
)
def test_spelling_is_free(policy: str) -> None:
    """Tabs, comments, brackets over lines, trailing commas, one-line bodies."""
    assert fires(policy, user("x"))


def test_errors_have_place_and_suggestion() -> None:
    """Line, column, reason and the nearest name, and a caret under it."""
    text = 'from invariant.detectors import secrets\nraise "x" if:\n    (m: Message)\n    any(secretz(m))\n'
    with pytest.raises(PolicyError) as caught:
        compile_policy(text, "policies/a.gr")
    assert 'policies/a.gr:4:9: unknown name "secretz" (did you mean "secrets"?)' == str(caught.value)
    assert "    any(secretz(m))\n        ^" == caught.value.caret()


def test_fields_are_checked_at_load() -> None:
    """A misspelled field of a declared event does not wait for a check."""
    with pytest.raises(PolicyError, match=r'Message has no field "contents" \(did you mean "content"\?\)'):
        compile_policy(rule(M, '"x" in m.contents'))


def test_missing_detectors_say_what_brings_them() -> None:
    """Never a rule that silently does not fire."""
    with pytest.raises(PolicyError, match="semgrep program, which only the policy files of a server can run"):
        compile_policy("from invariant.detectors import semgrep\n")


def test_violations_carry_arguments() -> None:
    """Events as dictionaries, values as they are, all of it picklable."""
    policy = 'raise PolicyViolation("no", c, n=[1, c.function.name]) if:\n    (c: ToolCall)\n'
    (violation,) = check(policy, calling("ls", {"a": 1}, "c1"))
    assert "no" == violation.message
    assert {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": {"a": 1}}} == violation.args[1]
    assert {"n": [1, "ls"]} == violation.kwargs
    assert violation == pickle.loads(pickle.dumps(violation))
    assert "raise PolicyViolation" in violation.rule.text and 1 == violation.rule.line


def test_parameters_are_listed_and_read() -> None:
    """Under input, and a missing one is no answer."""
    policy = compile_policy(rule(M, "m.content in input.words", "input.on == True"))
    assert frozenset(("words", "on")) == policy.parameters
    assert policy.check(Conversation.of([user("a")]), {"words": ["a"], "on": True})
    with pytest.raises(EvaluationError, match='missing policy parameter "words"'):
        policy.check(Conversation.of([user("a")]))


def test_flows_go_forward_at_any_distance() -> None:
    """``->`` is earlier to later; the same event is neither."""
    policy = rule("(a: ToolCall) -> (b: ToolCall)", "a is tool:x", "b is tool:y")
    assert fires(policy, calling("x"), user("a"), user("b"), calling("y"))
    assert not fires(policy, calling("y"), calling("x"))
    assert not fires(rule("(a: ToolCall) -> (b: ToolCall)", "a is tool:x", "b is tool:x"), calling("x"))


def test_a_message_comes_before_its_calls() -> None:
    """And its calls in their order."""
    both = assistant("go", call("x"), call("y"))
    assert fires(rule("(m: Message) -> (c: ToolCall)"), both)
    assert fires(rule("(a: ToolCall) ~> (b: ToolCall)", "a is tool:x", "b is tool:y"), both)


def test_immediate_predecessors() -> None:
    """``~>`` takes the very next event only."""
    policy = rule("(a: Message) ~> (b: Message)", 'a.content == "1"', 'b.content == "2"')
    assert fires(policy, user("1"), user("2"))
    assert not fires(policy, user("1"), user("x"), user("2"))


def test_flow_chains_and_bound_names() -> None:
    """Three links on a line, and bound events in later lines."""
    messages = [user("1"), user("2"), user("3")]
    assert 1 == len(check(rule("(a: Message) -> (b: Message) -> (c: Message)"), *messages))
    assert 1 == len(check(rule("(a: Message)", "(b: Message)", "(c: Message)", "a -> b", "b ~> c"), *messages))
    assert 1 == len(check(rule("(a: Message) -> (b: Message)", "(b: Message) -> (c: Message)"), *messages))


def test_order_of_conditions_is_kept_where_it_guards() -> None:
    """A condition that would fail is not evaluated before the one that guards it."""
    policy = rule(
        "(a: ToolCall) -> (b: ToolCall)",
        "a.function.arguments.n and b.function.arguments.n",
        "a.function.arguments.n < 5",
    )
    assert not fires(policy, calling("f", {"n": ""}), calling("f", {"n": "x"}))


COUNT = "from invariant import count, forall\n"


@pytest.mark.parametrize(("calls", "expected"), [(1, False), (2, True), (3, True), (4, False)])
def test_count_is_inclusive(calls: int, expected: bool) -> None:
    """Both bounds; its negation; and the events counted are the ranges."""
    lines = ("count(min=2, max=3):", "    (c: ToolCall)", "    c is tool:x")
    messages = [*[calling("x")] * calls, calling("y")]
    assert expected == fires(rule(*lines, head=COUNT), *messages)
    assert (not expected) == fires(rule("not " + lines[0], *lines[1:], head=COUNT), *messages)
    if expected:
        assert [f"messages.{index}.tool_calls.0" for index in range(calls)] == ranges(
            rule(*lines, head=COUNT), *messages
        )


def test_forall() -> None:
    """True of every binding, of none too; with not, of one that fails."""
    lines = ("forall:", "    (c: ToolCall)", "    c is tool:x")
    assert fires(rule(M, *lines, head=COUNT), user(""), calling("x"))
    assert not fires(rule(M, *lines, head=COUNT), user(""), calling("x"), calling("y"))
    assert fires(rule("not forall:", *lines[1:], head=COUNT), calling("x"), calling("y"))
    assert fires(rule(M, *lines, head=COUNT), user(""))


def test_quantifiers_see_outer_variables() -> None:
    """A count for each outer binding."""
    policy = rule(
        "(a: ToolCall)",
        "count(min=2):",
        "    (b: ToolCall)",
        "    a.function.arguments == b.function.arguments",
        head=COUNT,
    )
    assert fires(policy, calling("x", {"n": [1]}), calling("y", {"n": [1]}))
    assert not fires(policy, calling("x", {"n": [1]}), calling("y", {"n": [2]}))


@pytest.mark.parametrize(
    ("pattern", "arguments", "expected"),
    [
        ("tool:f", {}, True), ("tool:g", {}, False), ("tool:f()", {}, True), ("tool:f({})", {"a": 1}, True),
        ('tool:f({a: "x.*"})', {"a": "xyz\nw"}, True), ('tool:f({"a": "x"})', {"a": "xy"}, False),
        ("tool:f({a: 1, b: *})", {"a": 1, "b": None}, True), ("tool:f({b: *})", {"a": 1}, False),
        ('tool:f({a: "*"})', {"a": 5}, True), ('tool:f({a: [1, "b.", *]})', {"a": [1, "bc", {}]}, True),
        ("tool:f({a: [1]})", {"a": [1, 2]}, False), ("tool:f({a: {b: {c: 2}}})", {"a": {"b": {"c": 2, "d": 3}}}, True),
        ("tool:f({a: <EMAIL_ADDRESS>})", {"a": "write to a@b.io"}, True), ("tool:f({a: <US_SSN>})", {"a": "x"}, False),
        ("tool:f({a: -1.5})", {"a": -1.5}, True), ("tool:f({a: True})", {"a": 1}, False),
        ("tool:f({a: None})", {"a": None}, True),
        ("tool:f({a: P})", {"a": "q1"}, True), ('tool:f({a: "a.b+c"})', {"a": "a.b+c"}, True),
    ],
)  # fmt: skip
def test_tool_patterns(pattern: str, arguments: dict[str, Any], expected: bool) -> None:
    """Names, regular expressions over the whole value, numbers, lists, nested dictionaries, wildcards, entities."""
    assert expected == fires(rule("(c: ToolCall)", f"c is {pattern}", head='P := "q[0-9]"'), calling("f", arguments))
    assert expected != fires(
        rule("(c: ToolCall)", f"c is not {pattern}", head='P := "q[0-9]"'), calling("f", arguments)
    )
    assert expected == fires(
        rule("(o: ToolOutput)", f"o is {pattern}", head='P := "q[0-9]"'), calling("f", arguments), output("")
    )


@pytest.mark.parametrize(
    "line",
    [
        "[x * 2 for x in [1, 2, 3] if x > 1] == [4, 6]", '[k + v for k, v in {"a": "b"}.items()] == ["ab"]',
        "max([1, 3, 2]) == 3",
        "min(2, 1) == 1", "sum([1, 2]) == 3", "tuple([1]) == (1,)", "empty([])", "not empty([1])", "len({a: 1}) == 1",
        '{a: 1}["a"] == 1', '{"a": 1}.get("b", 2) == 2', "[1, 2][-1] == 2", '"abc"[1:] == "bc"', '"x" if 0 else "y"',
        "7 // 2 == 3",
        "2 ** 3 ** 0 == 2", "-2 ** 2 == -4", "1 < 2 < 3", "not 3 > 2 > 2", '"a" not in ["b"]', '" a ".strip() == "a"',
        '"a,b".split(",") == ["a", "b"]', '"a b\\nc".split() == ["a", "b", "c"]', '"a\\nb".splitlines() == ["a", "b"]',
        '"-".join(["a", "b"]) == "a-b"', '"{} {1} {n} {{}}".format("a", "b", n=1) == "a b 1 {}"',
        '"Ab".lower() + "c".upper() == "abC"',
        'json_loads("{\\"a\\": [1]}").a[0] == 1', 'json_loads("{") == None', "None == None", "any([0, 1])",
        "all([1, 1])",
        '"a" in {"a": 1}', '"a" in ("a", "b")', '"a" in {"a", "b"}', 'm.role is not None', '"abc".startswith("ab")',
        'r"\\n" == "\\\\n"',
        'm.content.replace("i", "o") == "ho"', "1.5e1 == 15", "len(m.tool_calls) == 0", "m.metadata.x == None",
        "server(m) == None",
        'text(m, "a", ["b"]) == ["hi", "a", "b"]', '[c for c in m.content] == ["h", "i"]', "image(m) == []",
        '"" in m.content',
    ],
)  # fmt: skip
def test_expressions(line: str) -> None:
    """Each of these is true."""
    assert fires(rule(M, line), user("hi"))


@pytest.mark.parametrize(
    ("kind", "messages"),
    [
        ("Tool", [{"tools": [{"name": "t", "description": "evil", "inputSchema": {}}]}]),
        ("ToolParameter", [{"tools": [{"name": "t", "inputSchema": {"properties": {"p": {"description": "evil"}}}}]}]),
        ("TextChunk", [user([{"type": "text", "text": "evil"}])]), ("TextChunk", [user("evil")]),
        ("Input", [user("evil")]), ("ToolCall", [{"type": "function", "function": {"name": "f",
        "arguments": {"a": "evil"}}}]),
    ],
)  # fmt: skip
def test_every_kind_of_event_can_be_bound(kind: str, messages: list[dict[str, Any]]) -> None:
    """And its text searched, with a range that ends in it."""
    found = check(rule(f"(x: {kind})", "(t: str) in text(x)", '"evil" in t'), *messages)
    assert 1 == len(found)
    assert found[0].ranges[0].endswith(":0-4")


def test_images() -> None:
    """From chunks, as events and as URLs."""
    parts = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    assert ["messages.0.content.1"] == ranges(rule("(i: Image)"), user(parts))
    assert fires(rule(M, "(i: Image) in m.content"), user(parts))
    assert fires(rule(M, '"base64" in image(m)[0]'), user(parts))


def test_tool_parameters() -> None:
    """Names, types and whether they are required, from the schema."""
    tool = {"name": "t", "inputSchema": {"properties": {"p": {"type": "integer"}, "q": {}}, "required": ["p"]}}
    assert 1 == len(
        check(rule("(p: ToolParameter)", 'p.type == "integer" and p.required and p.name == "p"'), {"tools": [tool]})
    )
    assert 2 == len(check(rule("(t: Tool)", "(p: ToolParameter) in t.inputSchema"), {"tools": [tool]}))


def test_items_of_a_list_by_type() -> None:
    """Only those of the declared type are bound, those inside other items included."""
    policy = rule("(c: ToolCall)", "(x: {kind}) in c.function.arguments.items_")
    arguments = {"items_": ["a", 1, 2.5, True, None, {"k": 1}, [1]]}
    counted = {
        kind: len(check(policy.replace("{kind}", kind), calling("f", arguments)))
        for kind in ("str", "int", "float", "bool", "dict", "list")
    }
    assert {"str": 1, "int": 3, "float": 1, "bool": 1, "dict": 1, "list": 1} == counted


def test_ranges_are_of_the_binding() -> None:
    """Of several found links each violation has its own."""
    policy = rule(M, '(u: str) in find("h[0-9]", m.content)', '"h" in u')
    assert [
        ("messages.0.content:0-2", "messages.0.content:0-1"),
        ("messages.0.content:3-5", "messages.0.content:3-4"),
    ] == [violation.ranges for violation in check(policy, user("h1 h2"))]


def test_ranges_through_string_methods() -> None:
    """Stripped, lowered, split and sliced text remembers its place."""
    policy = rule(M, 'any([("b" in w) for w in m.content.strip().lower().split(" ")])')
    assert ["messages.0.content:5-6", "messages.0.content:6-7"] == ranges(policy, user("  aa Bb"))


def test_found_in_what_failed_is_not_marked() -> None:
    """Only what made the rule fire."""
    policy = rule(M, 'any(find("a", m.content)) and any(find("z", m.content)) or any(find("b", m.content))')
    assert ["messages.0.content:1-2"] == ranges(policy, user("ab"))


@pytest.mark.parametrize(
    ("pattern", "hit"),
    [
        (r"\d+", "٣"), (r"^\w+$", "née"), (r"a\sb", "a\u00a0b"), (r"\Bx", "ax"), ("secret$", "secret\n"), (r"a\Z",
        "a"), ("a{,2}b", "aab"),
        (r"\u00e9", "é"), (r"[\w-]+@[\d]", "é-@٣"), (r"(?a)\d", "3"), (r"[^\W\d]", "é"), (r"[\S]", "é"), (r"(?u)é",
        "é"), (r"(?m)a$", "a\nb"),
        ("a|b$", "b\n"), (r"[\b]", "\b"), (r"\é", "é"), ("x{y", "x{y"), ("[]a]", "]"), (r"[^\]]", "a"), ("(?P<n>a)",
        "a"), ("(?i:A)", "a"),
    ],
)  # fmt: skip
def test_patterns_mean_what_they_mean_in_python(pattern: str, hit: str) -> None:
    """Where RE2 reads them otherwise they are rewritten."""
    import re

    assert re.search(pattern, hit)
    assert fires(rule(M, f'any(find(r"{pattern}", m.content))'), user(hit))


@pytest.mark.parametrize("pattern", [r"\bword\b", r"a$b", r"a\\.b"])
def test_caveats_are_warnings(pattern: str) -> None:
    """What cannot be rewritten is said at load."""
    (warning,) = compile_policy(rule(M, f'any(find("{pattern}", m.content))')).warnings
    assert 4 == warning.line and str(warning).startswith("4:")


@pytest.mark.parametrize(
    "messages",
    [
        ["x"], [{}], [{"role": 5}], [{"role": "user", "content": object()}], [{"role": "assistant",
        "tool_calls": {"a": 1}}],
        [{"role": "assistant", "tool_calls": [{}]}], [{"role": "assistant", "tool_calls": [{"function": {"name": 1}}]}],
        [{"tools": {}}], [{"tools": [{}]}], [None],
    ],
)  # fmt: skip
def test_unreadable_messages_are_refused(messages: list[Any]) -> None:
    """With the place of what cannot be read."""
    with pytest.raises(ConversationError, match=r"^messages\.0"):
        Conversation.of(messages)


def test_budgets_by_clock() -> None:
    """A deadline in the past ends a check that has work to do."""
    with pytest.raises(EvaluationError, match="timed out"):
        check(rule(M, "m.content"), user("x"), budget=Budget(deadline=0.0))


def test_expected_cost_grows_with_what_is_checked() -> None:
    """More text, more events, more variables."""
    local, flow = compile_policy(rule(M, '"x" in m.content')), compile_policy(rule("(a: Message) -> (b: Message)"))
    few, many = Conversation.of([user("x")] * 10), Conversation.of([user("x")] * 1000)
    long = Conversation.of([user("x" * 1_000_000)])
    assert local.expected_cost(few) < local.expected_cost(many) < flow.expected_cost(many)
    assert local.expected_cost(few) < 100 < local.expected_cost(long)


RECORDS = [{"type": "invoice", "note": "zzbad"}]
HIDDEN = [{"type": "text", "text": "ok", "more": "zzbad"}]


@pytest.mark.parametrize("content", [RECORDS, HIDDEN, [*HIDDEN, "x"], [{"type": "file", "file": {"name": "zzbad"}}]])
@pytest.mark.parametrize(
    "test",
    [
        '"zzbad" in o.content',
        '"zzbad" in o.content.lower()',
        'find("zzbad", o.content)',
        'match(".*zzbad", o.content)',
        '"zzbad" in f"{o.content}"',
    ],
)
def test_no_string_of_an_output_goes_unread(content: Any, test: str) -> None:
    """Whatever a tool puts beside the text of what looks like a chunk."""
    assert fires(rule("(o: ToolOutput)", test), {"role": "tool", "content": content})


def test_records_with_a_type_are_data() -> None:
    """They are no empty text: only a list with chunks of content is a text."""
    found = {"role": "tool", "content": RECORDS}
    assert fires(rule("(o: ToolOutput)", "len(o.content) == 1", 'not (o.content == "")'), found)
    assert fires(rule(M, "len(m.content) == 2", 'm.content == "ok"'), {"role": "user", "content": HIDDEN})


@pytest.mark.parametrize(
    "test", ['m.content + "!" == "ok!"', '"<" + m.content == "<ok"', "m.content + m.content == 'okok'"]
)
def test_chunks_are_added_as_their_text(test: str) -> None:
    """One message's content may be chunks and its neighbor's a string: adding them gives a text either way."""
    for content in ("ok", [{"type": "text", "text": "o"}, {"type": "text", "text": "k"}]):
        assert fires(rule(M, test), {"role": "user", "content": content})


def test_chunks_are_ordered_as_their_text() -> None:
    assert fires(
        rule(M, 'm.content < "p"', 'm.content > "n"'), {"role": "user", "content": [{"type": "text", "text": "ok"}]}
    )


def test_lists_of_an_output_are_added_as_lists() -> None:
    """Data has no text of its own."""
    found = {"role": "tool", "content": RECORDS}
    assert fires(rule("(o: ToolOutput)", "len(o.content + [1]) == 2"), found)
