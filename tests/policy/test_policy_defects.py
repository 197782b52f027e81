"""One test for each defect of the stock engine that this one must not have."""

import threading

import pytest

from gemini_proxy.policy import Conversation, EvaluationError, PolicyError, compile_policy
from tests.policy.conversations import assistant, call, calling, check, fires, output, ranges, rule, user

CONTAINS = rule("(m: Message)", '"voldemort" in m.content')


def test_long_conversations_are_checked_to_their_end() -> None:
    """No cap on evaluations: the last of 3,000 messages is seen."""
    assert fires(CONTAINS, *[user("hello")] * 2999, user("voldemort"))


def test_flows_over_many_calls_are_checked() -> None:
    """Twelve calls under a rule of two variables are 66 pairs, and more is no trouble."""
    policy = rule("(a: ToolCall) -> (b: ToolCall)", "a is tool:read", "b is tool:send")
    assert fires(policy, calling("read"), *[calling("other")] * 300, calling("send"))


@pytest.mark.parametrize(
    "statement",
    [
        "import os", "from os import system", "from invariant.detectors.fuzzy_matching import os",
        "from sys import modules",
        "from invariant import __builtins__", "from invariant.detectors import *",
        "from invariant.files import read_file",
    ],
)  # fmt: skip
def test_imports_reach_nothing(statement: str) -> None:
    """Only names on the list can be imported."""
    with pytest.raises(PolicyError, match=":1:"):
        compile_policy(statement + "\n" + CONTAINS)


def test_format_substitutes_and_nothing_else() -> None:
    """A format field cannot walk from a value to the interpreter."""
    policy = rule("(m: Message)", 'x := "{0.__globals__}".format(m.content)', "x == x")
    with pytest.raises(EvaluationError, match="format"):
        check(policy, user("hi"))


@pytest.mark.parametrize("a", [True, False])
@pytest.mark.parametrize("b", [True, False])
@pytest.mark.parametrize("c", [True, False])
@pytest.mark.parametrize(
    "text", ["a and b or c", "a or b and c", "not a == b", "a and not b or c", "not a and b", "a == b and not c"]
)
def test_precedence_is_pythons(text: str, a: bool, b: bool, c: bool) -> None:
    """Whatever the shape of the operands."""
    shapes = [("{}", ""), ("({} == True)", ""), ("any([{}])", "")]
    expected = bool(eval(text, {"a": a, "b": b, "c": c}))
    for shape, _ in shapes:
        written = " ".join(shape.format(f"input.{word}") if word in "abc" else word for word in text.split())
        if "==" in text and "{} ==" in shape:
            continue
        assert expected == fires(rule("(m: Message)", written), user(""), parameters={"a": a, "b": b, "c": c}), written


def test_not_binds_looser_than_in() -> None:
    """``not "z" in "abc"`` is ``not ("z" in "abc")``."""
    assert fires(rule("(m: Message)", 'not "z" in "abc"'), user(""))


def test_ranges_are_of_the_matching_message_only() -> None:
    """Matches in other messages do not show in a violation."""
    policy = rule("(m: Message)", 'any(find("s[0-9]", m.content))')
    found = check(policy, user("s1"), user("xx s2"), user("none"))
    assert [("messages.0.content:0-2",), ("messages.1.content:3-5",)] == [violation.ranges for violation in found]


def test_a_thousand_matching_messages_are_no_recursion() -> None:
    """Ranges cost what they are, not the square of it."""
    policy = rule("(m: Message)", 'any(find("s[0-9]", m.content))')
    assert 200 == len(check(policy, *[user(f"s{index}") for index in range(1500)]))


def test_threads_share_policies() -> None:
    """Forty checks in each of six threads give the same answers as one thread."""
    policy = compile_policy(rule("(m: Message)", 'any(find("[0-9]{3}", m.content))', "(t: str) in text(m)", '"é" in t'))
    conversations = [Conversation.of([user(f"é {index}"), user("x")]) for index in range(90, 110)]
    expected = [policy.check(conversation) for conversation in conversations]
    results: list[bool] = []

    def work() -> None:
        results.extend([policy.check(each) for each in conversations] == expected for _ in range(40))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [True] * 240 == results


def test_truth_is_pythons() -> None:
    """A list that is not empty and a length above zero fire; empty ones do not."""
    policy = rule("(m: Message)", "secrets(m)", head="from invariant.detectors import secrets")
    assert fires(policy, user("ghp_" + "a" * 36))
    assert not fires(policy, user("nothing"))
    assert fires(rule("(m: Message)", "len(m.content)"), user("x"))
    assert not fires(rule("(m: Message)", "len(m.content)"), user(""))


def test_a_declared_event_must_exist() -> None:
    """A rule with nothing but a declaration needs such an event."""
    policy = rule("(c: ToolCall)")
    assert not fires(policy)
    assert not fires(policy, user("hi"))
    assert fires(policy, calling("f"))


@pytest.mark.parametrize(("needle", "hit", "miss"), [("(", "a(b", "ab"), ("a.b", "a.b", "axb"), ("..", "a..b", "abcd")])
def test_in_is_literal(needle: str, hit: str, miss: str) -> None:
    """The left side of ``in`` is text, in the test and in the range."""
    policy = rule("(m: Message)", f'"{needle}" in m.content')
    at = hit.index(needle)
    assert [f"messages.0.content:{at}-{at + len(needle)}"] == ranges(policy, user(hit))
    assert not fires(policy, user(miss))


@pytest.mark.parametrize("content", [None, [], [{"type": "text", "text": "hello"}], {"a": "hello"}, ""])
def test_content_of_any_shape_can_be_asked(content: object) -> None:
    """String methods, find, match and in work on None, on parts and on data."""
    policy = rule("(m: Message)", 'm.content.lower() == "x" or any(find("zzz", m.content)) or match("zzz", m.content)')
    assert not fires(policy, {"role": "user", "content": content})


def test_parts_are_searched_one_by_one() -> None:
    """A match in the second part is marked there."""
    parts = [
        {"type": "text", "text": "one"},
        {"type": "image_url", "image_url": {"url": "u"}},
        {"type": "text", "text": "TWO"},
    ]
    assert ["messages.0.content.2.text:0-3"] == ranges(rule("(m: Message)", '"TWO" in m.content'), user(parts))
    assert ["messages.0.content.2.text:1-3"] == ranges(rule("(m: Message)", '"wo" in m.content.lower()'), user(parts))


@pytest.mark.parametrize(
    "lines", [("any(secrets(o))",), ("(t: str) in text(o)", "any(secrets(t))"), ('"ghp_" in o.content',)]
)
def test_dictionaries_from_tools_are_scanned(lines: tuple[str, ...]) -> None:
    """A secret inside a tool's data is found at any depth, with its place."""
    policy = rule("(o: ToolOutput)", *lines, head="from invariant.detectors import secrets")
    found = ranges(policy, output({"result": {"deep": ["x", {"text": "key ghp_" + "b" * 36}]}}))
    assert found and found[0].startswith("messages.0.content.result.deep.1.text:4-")


def test_keys_and_numbers_from_tools_are_scanned() -> None:
    """What a model reads as text is searched, keys and numbers too."""
    policy = rule("(o: ToolOutput)", "(t: str) in text(o)", 'any(find("4111", t)) or any(find("hidden", t))')
    assert fires(policy, output({"hidden": 1}))
    assert ["messages.0.content.n"] == ranges(policy, output({"n": 4111}))


def test_outputs_belong_to_their_call() -> None:
    """By id, else in order; an output of no call is no tool's, and no error."""
    policy = rule("(o: ToolOutput)", "o is tool:inbox", '"secret" in o.content')
    both = assistant("", call("inbox", call_id="a"), call("web", call_id="b"))
    assert fires(policy, both, output("x", "b"), output("secret", "a"))
    assert not fires(policy, both, output("secret", "b"), output("x", "a"))
    unnamed = assistant("", call("inbox"), call("web"))
    assert fires(policy, unnamed, output("secret"), output("x"))
    assert not fires(policy, unnamed, output("x"), output("secret"))
    assert not fires(policy, output("secret"))
    assert not fires(policy, output("secret", "nobody"))


def test_a_line_end_hides_nothing_from_match() -> None:
    """``match`` is anchored at the start, and its dot takes line ends."""
    assert fires(rule("(m: Message)", 'match(".*secret.*", m.content)'), user("a\nsecret"))
    assert not fires(rule("(m: Message)", 'match("secret", m.content)'), user("a secret"))


def test_tool_patterns_match_the_whole_argument() -> None:
    """Alternatives are grouped: neither end of either may hang over."""
    policy = rule("(c: ToolCall)", 'c is tool:send({to: "a@x|b@x"})')
    assert fires(policy, calling("send", {"to": "a@x"}))
    assert not fires(policy, calling("send", {"to": "a@xEVIL"}))
    assert not fires(policy, calling("send", {"to": "EVILb@x"}))


def test_checks_keep_nothing() -> None:
    """A second check of the same text gives the same ranges."""
    policy = compile_policy(
        rule("(m: Message)", "any(secrets(m.content))", head="from invariant.detectors import secrets")
    )
    conversation = Conversation.of([user("x ghp_" + "a" * 36)])
    assert policy.check(conversation) == policy.check(conversation)
    assert ("messages.0.content:2-42",) == policy.check(conversation)[0].ranges


def test_crlf_policies_load() -> None:
    """Line ends of any system mean the same."""
    for end in ("\r\n", "\r"):
        assert fires(CONTAINS.replace("\n", end), user("voldemort"))


def test_f_strings_are_interpolated() -> None:
    """Expressions in braces, and doubled braces."""
    policy = 'raise PolicyViolation(f"call of {c.function.name} {{x}} {1 + 1}") if:\n    (c: ToolCall)\n'
    assert "call of ls {x} 2" == check(policy, calling("ls"))[0].message


def test_line_ends_in_literals() -> None:
    """``"\\n"`` is a line end both for find and for in."""
    assert fires(rule("(m: Message)", r'any(find("a\nb", m.content))', r'"\n" in m.content'), user("a\nb"))
    assert not fires(rule("(m: Message)", r'"\n" in m.content'), user("a\\nb"))


def test_hyphenated_tools_can_be_named() -> None:
    """As MCP servers name them."""
    assert fires(rule("(c: ToolCall)", "c is tool:my-tool({a: 1})"), calling("my-tool", {"a": 1}))


def test_missing_arguments_are_none() -> None:
    """Tests of what is not there are false, and no error."""
    missing = rule(
        "(c: ToolCall)", '"x" in c.function.arguments.path or match("x", c.function.arguments.path.a[0].lower())'
    )
    assert not fires(missing, calling("f"))
    assert fires(rule("(c: ToolCall)", "c.function.arguments.path == None"), calling("f"))


@pytest.mark.parametrize("arguments", ['{"path": "/etc/x"}', {"path": "/etc/x"}])
def test_arguments_are_data_or_json(arguments: object) -> None:
    """The range is the same for both."""
    policy = rule("(c: ToolCall)", 'any(find("/etc", c.function.arguments.path))')
    assert ["messages.0.tool_calls.0.function.arguments.path:0-4"] == ranges(policy, calling("f", arguments))


@pytest.mark.parametrize("arguments", ["{not json", "[1, 2]", '"text /etc"', "", ["/etc"]])
def test_arguments_that_are_no_object_stay_visible(arguments: object) -> None:
    """Under ``raw``, never an exception."""
    policy = rule("(c: ToolCall)", "any(text(c)) or c.function.arguments.raw == input.empty")
    assert fires(policy, calling("f", arguments), parameters={"empty": ""})


def test_unknown_roles_pass() -> None:
    """A role nobody knows is a message like any other."""
    assert fires(CONTAINS, {"role": "wizard", "content": "voldemort"})


@pytest.mark.parametrize(
    "pattern", [r"\d+", "[.]", r"a\.b", r"\[x\]", r"\w+@\w+", r"(?i)ABC", r"\bword\b", r"^a.*z$", r"\s", r"\"q\""]
)
def test_patterns_of_the_stock_language_load(pattern: str) -> None:
    """Escapes in a literal reach the regular expression as written."""
    compile_policy(rule("(m: Message)", f'any(find("{pattern}", m.content))'))


def test_an_output_without_its_call_goes_by_its_name() -> None:
    """A history that leaves the call out does not hide which tool an output is from."""
    policy = compile_policy('raise "x" if:\n    (o: ToolOutput)\n    o is tool:get_inbox')
    output = {"role": "tool", "tool_call_id": "c1", "name": "get_inbox", "content": "mail"}
    assert policy.check(Conversation.of([output]))
    assert not policy.check(Conversation.of([{**output, "name": "other"}]))


def test_typed_items_are_found_at_any_depth() -> None:
    """A value in a list in an argument is a value of the arguments."""
    policy = compile_policy(
        'raise "x" if:\n    (c: ToolCall)\n    (v: str) in c.function.arguments.values()\n    "evil" in v'
    )
    assert policy.check(Conversation.of([calling("send", {"cc": ["eve@evil.io"]})]))
    assert policy.check(Conversation.of([calling("send", {"to": {"cc": [["eve@evil.io"]]}})]))
    assert not policy.check(Conversation.of([calling("send", {"cc": [["eve@good.io"], 5, None]})]))


def test_links_need_no_space_before_them() -> None:
    policy = compile_policy(
        'from invariant.parsers import links\nraise "x" if:\n    (m: Message)\n    any(links(m.content))'
    )
    assert policy.check(Conversation.of([user("pleasehttps://evil.example/a")]))
