"""Properties: nothing but PolicyError from any text, Python's precedence, ranges that hold what they say."""

import json
import operator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gemini_proxy.policy import Conversation, ConversationError, EvaluationError, PolicyError, compile_policy
from gemini_proxy.policy.detectors.fuzzy import search
from gemini_proxy.policy.run.budget import Budget, Meter
from tests.policy.conversations import assistant, at, call, check, fires, output, rule, user

SHARED = Path(__file__).parents[2].parent / "shared" / "policies" / "examples.json"
VALID = [
    'raise PolicyViolation("m", c, x=f"{c.function.name}") if:\n    (o: ToolOutput) -> (c: ToolCall)\n'
    "    o is tool:get_inbox\n"
    '    not (c is tool:send-mail({to: "[^@]+@x[.]com", n: [1, *, <EMAIL_ADDRESS>]}))\n',
    "from invariant import count\nA := \"x\" + 'y'\np(t: str) :=\n    any(find(A, t))\n"
    'raise "x" if:\n\tnot count(min=2, max=input.n):\n\t\t(m: Message)\n'
    '\t\tp(m.content) if m.role == "user" else m.content[0:2] in [A]\n',
    *([example["policy"] for example in json.loads(SHARED.read_text())] if SHARED.exists() else []),
]
FRAGMENTS = [
    "(", ")", "[", "]", "{", "}", ":", ":=", "->", "~>", "not ", " and ", " or ", " in ", " is ", "tool:x", "\n",
    "\n    ", "\t", "\r",
    '"', "'", '"""', "f'{", "#", "\\", "raise ", "if", ":\n", "from invariant import ", "x", "1", ".", ",", "=", "**",
    "<A>", "é", "\x00",
    " for x in ", "forall:\n", "count(min=1):\n", "(m: Message)", "__x__",
]  # fmt: skip


def load(text: str) -> None:
    try:
        policy = compile_policy(text)
    except PolicyError as error:
        assert error.line >= 1 and error.column >= 1
        error.caret()
        return
    try:
        policy.check(Conversation.of([user("hi"), assistant("x", call("f", {"a": 1})), output("o")]), {"n": 1})
    except EvaluationError:
        pass


@given(st.text() | st.lists(st.sampled_from(FRAGMENTS)).map("".join))
@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_loads_or_is_a_policy_error(text: str) -> None:
    """Whatever the text."""
    load(text)


@given(st.sampled_from(VALID), st.data())
@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_policy_loads_or_is_a_policy_error(text: str, data: st.DataObject) -> None:
    """Cut, doubled or spliced anywhere."""
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + data.draw(st.sampled_from(FRAGMENTS) | st.just(text[start:end] * 2)) + text[end:]
    load(text)


NUMBERS = st.recursive(
    st.sampled_from(["a", "b", "c", "1", "2", "0", "True", "False", "[1, 2]"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or", "==", "!=", "in", "not in", "<", "<=", ">", "+", "-",
        "*"]), inner).map(" ".join),
        inner.map(lambda text: f"not {text}"),
        inner.map(lambda text: f"-{text}"),
        inner.map(lambda text: f"({text})"),
        st.tuples(inner, inner, inner).map(lambda parts: f"{parts[0]} if {parts[1]} else {parts[2]}"),
    ),
    max_leaves=8,
)  # fmt: skip


@given(NUMBERS, st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_expressions_mean_what_python_means(text: str, a: int, b: int, c: int) -> None:
    """Random boolean, comparison and arithmetic expressions, with operands in any shape."""
    # Of a list before "in" each item is looked for.
    assume("[1, 2]" not in text or " in " not in text)
    names = {"a": a, "b": b, "c": c}
    try:
        expected = eval(text, {"__builtins__": {}}, dict(names))
    except (TypeError, SyntaxError):
        return
    policy = rule("(m: Message)", *[f"{name} := input.{name}" for name in names], f"x := {text}", "any([x])")
    try:
        assert bool(expected) == fires(policy, user(""), parameters=names)
    except (EvaluationError, PolicyError) as error:
        # What Python allows and the language does not: ordering lists, arithmetic with them.
        assert "[1, 2]" in text or "has no order" in str(error)


TEXTS = st.text(alphabet="abé😀\n \t1@.", max_size=30)


@given(
    st.lists(TEXTS.filter(bool), min_size=1, max_size=5),
    st.sampled_from(["a", "é", "😀+", r"\\d", "b.", r"\\w+@", "a|b", r"\\s", "[^a]", ""]),
)
@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_ranges_hold_the_match(texts: list[str], pattern: str) -> None:
    """Each range of a find is, in the message, what the same search in Python finds there, in order."""
    import re

    messages = [(user, assistant)[index % 2](text) for index, text in enumerate(texts)]
    found = [
        [at(messages, address) for address in violation.ranges if ":" in address]
        for violation in check(rule("(m: Message)", f'find("{pattern}", m.content)'.replace("\\\\", "\\")), *messages)
    ]
    wanted = [[each.group() for each in re.finditer(pattern.replace("\\\\", "\\"), text)] for text in texts]
    assert [list(dict.fromkeys(each)) for each in wanted if each] == [list(dict.fromkeys(each)) for each in found]


DATA = st.recursive(
    TEXTS | st.integers(-9, 9) | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "key"]), inner, max_size=3),
    max_leaves=8,
)


@given(DATA, st.sampled_from(["a", "é", "😀"]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_data_of_any_shape_is_scanned(data: Any, needle: str) -> None:
    """A text anywhere in a tool's output or a call's arguments is found, and its range holds it."""
    messages = [assistant("", call("f", {"deep": data})), output({"deep": data})]
    policy = rule("(e: ToolCall)", f'any(find("{needle}", text(e)))') + rule(
        "(e: ToolOutput)", f'"{needle}" in e.content'
    )
    found = [address for violation in check(policy, *messages) for address in violation.ranges]
    inside = needle in "".join(strings(data))
    assert (2 if inside else 0) == len(check(policy, *messages))
    assert all(at(messages, address) == needle for address in found if ":" in address)


def strings(data: Any) -> list[str]:
    if isinstance(data, str):
        return [data]
    if isinstance(data, dict):
        return [text for key, value in data.items() for text in [key, *strings(value)]]
    return [text for item in data for text in strings(item)] if isinstance(data, list) else []


@given(
    st.lists(
        st.recursive(DATA, lambda inner: st.fixed_dictionaries({"role": inner, "content": inner}), max_leaves=4),
        max_size=4,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_messages_are_read_or_refused(messages: list[Any]) -> None:
    """Anything in place of messages is a conversation or a ConversationError."""
    try:
        Conversation.of(messages)
    except ConversationError:
        pass


def distance(query: str, text: str) -> int:
    """Least edits between the query and any part of the text, by the table."""
    row = [0] * (len(text) + 1)
    for i, one in enumerate(query, 1):
        previous, row[0] = row[:], i
        for j, other in enumerate(text, 1):
            row[j] = min(previous[j - 1] + (one != other), previous[j] + 1, row[j - 1] + 1)
    return min(row)


@given(st.text(alphabet="abc", min_size=1, max_size=8), st.text(alphabet="abc", max_size=20), st.integers(0, 3))
@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_fuzzy_search_is_edit_distance(query: str, text: str, allowed: int) -> None:
    """The bit vectors agree with the table."""
    found = search(query, text, allowed, Meter(Budget()))
    assert (distance(query, text) <= allowed) == (found is not None)


@given(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from(["+", "-", "*", "//", "%"]))
def test_arithmetic_is_pythons(left: int, right: int, sign: str) -> None:
    """Signs and rounding included."""
    table = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod}
    if right == 0 and sign in ("//", "%"):
        return
    policy = rule("(m: Message)", f"input.a {sign} input.b == input.c")
    assert fires(policy, user(""), parameters={"a": left, "b": right, "c": table[sign](left, right)})
