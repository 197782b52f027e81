"""The prefilter says only what is certain: with and without it, a check finds the same."""

import json
from typing import Any

import orjson
import pytest
import re2
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gemini_proxy.policy import (
    Budget,
    Conversation,
    EvaluationError,
    Place,
    Policy,
    PolicyError,
    Prefilter,
    Session,
    compile_policy,
)
from gemini_proxy.policy.compile.needs import needed_by_pattern, needed_by_text
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.regex import Regex, RegexError
from tests.policy.conversations import assistant, call, calling, output, rule, user

# Texts that JSON writes otherwise, that case folds to others, that numbers are written with, and what patterns find.
PIECES = st.sampled_from(
    [
        "foo", "foo", "f", "o", "oo", "bar", "k", "K", "\u212a", '"', "\\", "\n", " ", "é", "12", "1e", "-", "05", ".",
        "\u2028",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=6).map("".join) | st.sampled_from(["foo", "a foo", "12 foos"])
NUMBERS = st.sampled_from([0, 5, 12, -7, 1e-05, 1.5e16, 1e22, 0.25, 120.0, float("inf")])
DATA = st.recursive(
    TEXTS | NUMBERS | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
CHUNKS = st.lists(TEXTS.map(lambda text: {"type": "text", "text": text}), max_size=3)
CALLS = st.builds(
    lambda name, arguments: call(name, arguments),
    st.sampled_from(["foo", "bar", 'f"oo', "o"]),
    st.dictionaries(st.sampled_from(["x", "to", "foo"]), DATA, max_size=2)
    | TEXTS
    | TEXTS.map(lambda text: json.dumps({"x": text})),
)  # fmt: skip
MESSAGES = {
    "Message": st.one_of(
        st.builds(user, TEXTS | CHUNKS),
        st.builds(lambda text: {"role": "system", "content": text}, TEXTS),
        st.builds(assistant, TEXTS | CHUNKS | st.none()),
        st.builds(lambda text: {"role": "assistant", "content": text, "thought": True}, TEXTS),
        st.builds(lambda text, at: {"role": "assistant", "content": text, "candidate": at}, TEXTS, st.integers(0, 1)),
        st.builds(lambda text: {"role": "assistant", "content": text, "turn": "user"}, TEXTS),
    ),
    "ToolCall": st.builds(
        lambda content, calls: assistant(content, *calls), TEXTS | st.none(), st.lists(CALLS, min_size=1, max_size=2)
    ),
    "ToolOutput": st.one_of(
        st.builds(output, TEXTS | CHUNKS | DATA.filter(lambda data: data is not None)),
        st.builds(lambda text: {**output(text), "provider": True}, TEXTS),
    ),
    "Tool": st.builds(
        lambda name, text: {"tools": [{"name": name, "description": text, "inputSchema": {"properties": {text: {}}}}]},
        st.sampled_from(["foo", "bar"]),
        TEXTS,
    ),
}  # fmt: skip


def messages_with(kind: str) -> st.SearchStrategy[list[Any]]:
    """Some messages, and among them one with an event of the kind."""
    others = st.lists(st.one_of(*MESSAGES.values()), max_size=2)
    return st.builds(lambda before, one, after: [*before, one, *after], others, MESSAGES[kind], others)


CLASSES = ["[a-o]", "[0-9]", r"\d", r"\w", ".", "[^a]", r"\s", "[kK]", "[ -~]", "[e.-]", "[-+e0-9]", r"[\w.]", "[]f]"]
CHARACTERS = ["f", "o", "oo", "foo", "k", "s", "1", "2", "12", "-", r"\.", '"', r"\\", r"\n", "é", r"\x66", r"\u006f"]
TIMES = ["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "+?"]
PATTERNS = st.recursive(
    st.sampled_from([*CHARACTERS, r"\b", "^", "$"]) | st.sampled_from(CLASSES),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(TIMES)).map(lambda parts: f"(?:{parts[0]}){parts[1]}"),
        inner.map(lambda part: f"(?i:{part})"),
        inner.map(lambda part: f"(?i){part}"),
    ),
    max_leaves=6,
)
LITERALS = (st.sampled_from(["foo", "oo", "12", "e", 'o"o']) | TEXTS).map(
    lambda text: json.dumps(text, ensure_ascii=False)
)
# What a variable ``v`` of a kind has that is searched, and tests of it that are of one kind alone.
HAYS = {
    "Message": ["v", "v.content", "text(v)", "t", "v.content.lower()"],
    "ToolOutput": ["v", "v.content", "text(v)", "t"],
    "ToolCall": ["v", "v.function.arguments", "v.function.arguments.x", "v.function.name", "text(v)", "t"],
    "Tool": ["v", "v.description", "v.name", "t"],
}
OTHERS = {
    "Message": [
        'v.role == "assistant"', 'v.role != "user"', 'v.role in ["user", "tool"]', "match('foo', v.content)", "f(v)",
        "len(v.content) > 3", "input.flag", "SECRET in v.content",
    ],
    "ToolOutput": ["v is tool:foo", "v is not tool:bar", "tool_call(v).function.name == 'foo'", "SECRET in v"],
    "ToolCall": [
        "v is tool:foo", "v is not tool:bar", 'v.function.name == "foo"', "v.function.name in NAMES",
        "v is tool:foo({x: 'foo'})", 'v.function.arguments.to == "foo"', '"foo" == v.function.name',
        "v.function.arguments.x != 'foo'",
    ],
    "Tool": ['v.name == "foo"', "v.description == 'foo'", "t == 'foo'"],
}  # fmt: skip


def lines_about(kind: str) -> st.SearchStrategy[list[str]]:
    hays = st.sampled_from(HAYS[kind])
    searches = st.builds(lambda pattern, hay: f"find(r'{pattern}', {hay})", PATTERNS, hays)
    tests = st.one_of(
        st.builds(lambda literal, hay: f"{literal} in {hay}", LITERALS, hays),
        searches,
        searches.map(lambda search: f"any({search})"),
        searches.map(lambda search: f"len({search}) > 0"),
        st.builds(lambda search, hay: f"len({search}) + len(find('foo', {hay})) > 0", searches, hays),
        st.sampled_from(OTHERS[kind]),
    )
    expressions = st.recursive(
        tests,
        lambda inner: st.one_of(
            inner.map(lambda test: f"not ({test})"),
            st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
        ),
        max_leaves=3,
    )
    declarations = st.one_of(
        searches.map(lambda search: f"(t: str) in {search}"),
        hays.filter(lambda hay: hay != "t").map(lambda hay: f"(t: str) in {hay}"),
        st.sampled_from(["(other: ToolOutput)", "v -> (later: ToolCall)", "(n: Message)", "t := v", "t := 'foo'"]),
    )
    return st.builds(
        lambda others, last: [f"(v: {kind})", *others, last],
        st.lists(st.just("(t: str) in text(v)") | declarations, max_size=1),
        expressions | st.just("'foo' in v"),
    )


RULES_AND_MESSAGES = st.sampled_from(list(HAYS)).flatmap(lambda kind: st.tuples(lines_about(kind), messages_with(kind)))
HEAD = 'NAMES := ["foo", "bar"]\nSECRET := "fo" + "o"\nf(x: Message) :=\n    "foo" in x\n'


def compiled(lines: list[str]) -> Policy | None:
    """None where the rule does not load: some that are put together by chance ask something for what it has not."""
    try:
        return compile_policy(rule(*lines, head=HEAD))
    except PolicyError:
        return None


def outcome(policy: Policy, messages: list[Any], rules: Any) -> Any:
    try:
        return policy.check(Conversation.of(messages), {"flag": True}, rules=rules)
    except EvaluationError as error:
        return str(error)


@given(RULES_AND_MESSAGES, st.integers(0, 5))
@settings(max_examples=75, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_check_finds_the_same_with_and_without_it(drawn: tuple[list[str], list[Any]], first: int) -> None:
    """Whatever the rule and the messages: the same violations with the same ranges, or the same error. Also where the
    first messages were seen before and need not be seen again, wherever that is.
    """
    lines, messages = drawn
    policy = compiled(lines)
    assume(policy is not None)
    assert policy is not None
    everything = outcome(policy, messages, None)
    prefilter, first = Prefilter([policy]), min(first, len(messages))
    assert outcome(policy, messages, prefilter.rules(messages)[0]) == everything
    rules = prefilter.rules(messages, first, prefilter.see(messages[:first]))
    assert outcome(policy, messages, rules[0]) == everything


@given(st.lists(lines_about("Message"), min_size=1, max_size=2), st.lists(TEXTS, min_size=1, max_size=5), st.data())
@settings(max_examples=75, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_session_judges_the_same_with_and_without_it(
    rules: list[list[str]], pieces: list[str], data: st.DataObject
) -> None:
    """Piece by piece, over the end of a run as well."""
    policies = [policy for lines in rules if (policy := compiled(lines)) is not None]
    before = [user("go on"), assistant(data.draw(TEXTS))] if data.draw(st.booleans()) else [user("hello")]
    plain, filtered = (Session(policies, {"flag": True}, 8, before, filtered=which) for which in (False, True))
    turns = plain.turn(), filtered.turn()
    for number, piece in enumerate(pieces):
        if number == 0 or data.draw(st.booleans()):
            place = Place(len(before) + number, thought=data.draw(st.booleans()))
            plain.begin(turns[0], place)
            filtered.begin(turns[1], place)
        assert filtered.check(turns[1], piece, Budget()) == plain.check(turns[0], piece, Budget())
        assert (plain.clear, plain.stuck) == (filtered.clear, filtered.stuck)


@given(PATTERNS, TEXTS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_a_pattern_needs_is_wherever_it_matches(pattern: str, text: str) -> None:
    """In the JSON of the text, and in the text itself."""
    needs = needed_by_pattern(pattern)
    assume(needs is not None)
    try:
        regex = Regex(pattern, "find")
    except RegexError:
        return
    if needs is not None and regex.test(text, Meter(Budget())):
        for written in (orjson.dumps(text).decode(), text):
            assert any(re2.search(need.pattern, written) for need in needs)


@given(TEXTS)
def test_what_a_text_needs_is_wherever_it_stands(text: str) -> None:
    """Whatever JSON writes for it."""
    needs = needed_by_text(text)
    assert needs is None or all(re2.search(need.pattern, orjson.dumps(f"x{text}x").decode()) for need in needs)


@given(st.characters(exclude_categories=["Cs"]))
@settings(max_examples=200)
def test_json_writes_all_other_characters_as_they_are(char: str) -> None:
    """Which is why needs are looked for in it."""
    assert char in '"\\' or char < " " or orjson.dumps(char).decode() == f'"{char}"'


LITERAL = rule("(m: Message)", '"zebra" in m.content')
PATTERN = rule("(m: Message)", 'm.role == "assistant"', 'any(find("AIza[0-9A-Za-z_-]{35}", m.content))')
CALL = rule("(c: ToolCall)", "c is tool:send_email", 'not (c.function.arguments.to == "a@x.com")')
FLOW = rule("(o: ToolOutput) -> (c: ToolCall)", "c is tool:send_email")


def runs(policy: str, *messages: Any) -> bool:
    return bool(Prefilter([compile_policy(policy)]).rules(messages)[0])


@pytest.mark.parametrize(
    ("policy", "messages"),
    [
        (LITERAL, [user("a horse")]),
        (PATTERN, [user("AIza")]),
        (PATTERN, [user("a"), assistant("b")]),
        (CALL, [user("send_email")]),
        (CALL, [calling("send_mail")]),
        (CALL, [{"tools": [{"name": "send_email"}]}, user("mail"), calling("search", {"name": "send_email"})]),
        (FLOW, [calling("send_email")]),
        (rule("(m: Message)", 'any(find("[0-9]{3}-[0-9]{2}-[0-9]{4}", m.content))'), [user("2026 - 11")]),
        (rule("(m: Message)", 'any(find("(?i)ignore (all )?previous", m)) or "jailbreak" in m'), [user("go on")]),
        (rule("(m: Message)", '(t: str) in text(m)', 'len(find("foo", t)) + len(find("bar", t)) > 0'), [user("fo ba")]),
    ],
)  # fmt: skip
def test_a_rule_that_lacks_something_does_not_run(policy: str, messages: list[Any]) -> None:
    """A kind of event, a text, a name."""
    assert not runs(policy, *messages)


@pytest.mark.parametrize(
    "lines",
    [
        ('not ("zebra" in m.content)',),
        ('m.content.lower() == "zebra"',),
        ("any(find(input.word, m.content))",),
        ('match("zebra", m.content)',),
        ("len(m.content) > 5",),
        ("input.flag == 1", '"zebra" in m.content'),
        ('"zebra" in m.content or m.role == input.role',),
        ('any(find("[a-z]+", m.content))',),
        ('any(find("z?", m.content))',),
    ],
)
def test_a_rule_of_which_nothing_is_certain_always_runs(lines: tuple[str, ...]) -> None:
    """Negations, computed values, and what may end in an error before the test that could tell."""
    assert runs(rule("(m: Message)", *lines), user("a horse"))


@pytest.mark.parametrize(
    "messages",
    [
        [user("ze"), user("bra")],
        [user("ze"), {"role": "system", "content": "a horse"}, user("bra")],
        [{"role": "assistant", "content": "ze", "turn": "user"}, user("bra")],
        [assistant("ze"), {"role": "tool", "content": "a horse", "provider": True}, assistant("bra")],
        [
            {**assistant("ze"), "candidate": 0},
            {**assistant("bra"), "candidate": 0},
        ],
        [user([{"type": "text", "text": "ze"}, {"type": "text", "text": "bra"}])],
        [calling("f", '{"x": "\\u007aebra"}')],
        [user("\ud800")],
        [user({1: "x"})],
        [user(2**70)],
        [{"function": {"name": "f", "arguments": "x"}}],
        ["zebra"],
    ],
)
def test_messages_of_another_form_run_every_rule(messages: list[Any]) -> None:
    """What readers join, what JSON does not show as it is, and what it cannot write."""
    assert runs(LITERAL, *messages)


def test_a_long_conversation_is_searched_in_pieces() -> None:
    """What stands over the end of one is found."""
    for at in range(4080, 4110):
        assert runs(LITERAL, user("a" * at + "zebra" + "b" * 5000))
    assert not runs(LITERAL, user("a" * 50_000))
    assert runs(LITERAL, user("a" * 200_000))


def test_each_policy_has_its_own_rules() -> None:
    """In the order of the policies, and of the rules in them."""
    first, second = compile_policy(LITERAL + CALL), compile_policy(PATTERN + LITERAL)
    rules = Prefilter([first, second]).rules([user("a zebra")])
    assert rules == (first.compiled[:1], second.compiled[1:])
