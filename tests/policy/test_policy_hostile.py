"""Policies from strangers: what must not load, and what must not run away."""

import gc
from collections.abc import Iterator
from time import process_time

import pytest

from gemini_proxy.policy import (
    Budget,
    BudgetExceeded,
    Conversation,
    EvaluationError,
    PolicyError,
    compile_policy,
)
from tests.policy.conversations import calling, check, rule, user

M = "(m: Message)"


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """Measure checks, not the collector, which walks all that a run of thousands of tests holds."""
    gc.disable()
    yield
    gc.enable()


REFUSED = [
    # Reaching the interpreter
    "import os", "import os as x", "from os import system", "from builtins import open", "from invariant import os",
    "from invariant.detectors.secrets import re", "from invariant.analyzer import LocalPolicy", "from . import x",
    "from invariant.files import read_file", "from invariant.access_control import x",
    "from __future__ import annotations",
    "from invariant.detectors import secrets as find",
    rule(M, "m.__class__"), rule(M, "m.content.__class__.__mro__"), rule(M, "().__class__"), rule(M, '"".__len__()'),
    rule(M, "__import__('os')"), rule(M, "__builtins__"), rule(M, "find.__globals__"), rule(M, "m.content.__init__.x"),
    rule(M, "eval('1')"), rule(M, "exec('1')"), rule(M, "open('/etc/passwd')"), rule(M, "getattr(m, 'x')"),
    rule(M, "globals()"), rule(M, "vars(m)"), rule(M, "type(m)"), rule(M, "compile('1', '', 'eval')"),
    rule(M, "dir(m)"),
    rule(M, "os.system('x')"), rule(M, "lambda x: x"), rule(M, "(lambda: 1)()"), rule(M, "m.content.encode('utf-8')"),
    rule(M, "m.content.translate({})"), rule(M, "m.content.format_map({})"), rule(M, "m.model_dump()"),
    rule(M, "m.data"), rule(M, "m.tool_name"), rule(M, "c.function"), rule(M, "input.__class__"), rule(M, "input()"),
    rule(M, "input"), rule(M, "find"), rule(M, "x.y"), rule(M, 'f"{m.__class__}"'), rule(M, 'f"{m!r}"'),
    rule(M, 'f"{m.content:>1000000000}"'), rule(M, 'f"{"'), rule(M, '"%s" % m'), rule(M, "m.content = 1"),
    rule(M, "del m"), rule(M, "yield m"), rule(M, "await m"), rule(M, "x = 1"), rule(M, "global x"), rule(M, "1; 2"),
    rule(M, "m.content[::2]"), rule(M, "[x for x in [1] for y in [2]]"), rule(M, "{**m}"), rule(M, "[*m]"),
    rule(M, "find(*m)"), rule(M, "print(file=m)"), rule(M, "@x"), rule(M, "`ls`"), rule(M, "m.content!"),
    rule(M, "m\\x"),
    # What needs more than there is
    "from invariant.detectors import moderated", "from invariant import llm", "from invariant.parsers import ocr",
    "from invariant.detectors import semgrep",
    "from invariant import llm_confirm",
    "from invariant.detectors import nothing_like_it",
    # Malformed
    "raise", 'raise "x"', 'raise "x" if', 'raise "x" if:', 'raise "x" if:\n', 'raise 5 if:\n    1\n', "x", "x :=", "f(",
    "def f():\n    1\n", '"""', "'", "(((", ")", 'raise "x" if:\n  1\n   2\n3\n', rule("(x: Str)"), rule("(x: str)"),
    rule("(m: Message) ->"), rule("(m: Message) -> x"), rule("(x: str) -> (m: Message)"), rule("count(min=2):"),
    rule("count(min=1):", "    (c: ToolCall)"), rule(M, "forall(x=1):",
    "    (c: ToolCall)", head="from invariant import forall"),
    rule(M, "count(least=1):", "    (c: ToolCall)", head="from invariant import count"),
    rule(M, "find(5, m.content)"), rule(M, 'find("a")'), rule(M, "len()"), rule(M, "m.content.lower(1)"),
    rule(M, "m is tool:x({a: <NOBODY>})"), rule(M, "m is tool:x(1, 2)"), rule(M, "p()", head="p() := p()"),
    rule(M, "a()", head="a() := b()\nb() := a()\n"), rule(M, "1", head="A := B"), rule(M, "1", head="A := 1\nA := 2"),
    rule(M, "1", head="A := 10 ** 100000"), rule(M, "1", head='A := "x" * 100000000'),
    rule(M, "1", head="A := input.x"),
    rule(M, "1", head="A := [1] * 100000000"), rule(M, "1", head="A := 1 / 0"), rule(M, "x := 7 ** 9999"),
    rule(M, "1 % 0"),
    rule(M, "1", head="A := [x for x in [y for y in [z for z in [1] * 9999] * 9]]"),
    # Too deep
    rule(M, "(" * 1000 + "1" + ")" * 1000), rule(M, "not " * 5000 + "1"), rule(M, "-" * 5000 + "1"),
    rule(M, "[" * 500 + "]" * 500), rule(M, "1" + " + 1" * 5000), rule(M, "m" + ".a" * 5000),
    rule(M, "1" + "**1" * 5000),
    rule(M, "m" + "[0]" * 5000), rule(M, "1 if 1 else " * 5000 + "1"), rule(M, "f" + "(" * 900 + ")" * 900),
    rule(M, "m is tool:x(" + "[" * 900 + "]" * 900 + ")"), rule(M, "{a: " * 900 + "1" + "}" * 900),
    "\n".join(" " * depth + "x" for depth in range(100)),
]  # fmt: skip

EVIL = [
    r"(a+)+$", r"(a|a)*$", r"(a|aa)+$", r"(.*a){20}", r"([a-zA-Z]+)*$", r"(a*)*b", r"((a+)+)+$", r"^(\w+\s?)*$",
    r"(x+x+)+y",
    r"(.*)*", r"(a?){50}a{50}", r"^(([a-z])+.)+[A-Z]([a-z])+$", r"(\d+)*\d+x", r"(?:a|b|ab)*c", r"[ab]*a[ab]{30}c",
    r"(.+)+(.+)+(.+)+=", r".*.*.*.*.*.*.*x", r"^(a|b|c|ab|ac|bc)*$x", r"(([a])*)*", r"(\s*\S*)*x",
    r"(?s).{0,500}z.{0,400}q",
    r"^(a+)*b$", r"(a+){10}c", r"((a?)+)+x", r"(a|b|ab)*?c", r"(?:(?:a*)*)*z", r"^(.*?,){11}P", r"(\w+\d*)+@",
    r"(?:a+b?)+c", r"([^x]*,)*[^x]*;", r"(a{1,30}){1,30}b", r"(?i)(k|K|\w)+!x", r"(\b\w+\b\s*)+!!", r"^(a|a?)+$x",
    r"(?m)(^.*$\n?)+z", r"(\S+\s*)+\d\d\d\d", r"(?:[^b]|a)+b", r"(.?)*x", r"((.)(.))*q{3}", r"\s+$", r"(a*b*)*c",
    r"<a[^>]*(href=[^>]*)*>", r"^([\w.-]+)+@([\w.-]+)+$", r"(?:aa?){25}b", r"(?:(?:ab){1,9}a?){1,9}!!", r"[a-z ]{900}z",
    r"(?:[a-z][ab]?|a[a-z]){3,9}$", r"(?s)(.*)(.*)(.*)(.*)z", r"((ab)*|(ba)*)*c", r"(x?a){0,99}y", r"(?:.{0,9}){0,9}z$",
]  # fmt: skip

NOT_LINEAR = [
    "(?=a)", "(?!a)", "(?<=a)", "(?<!a)", r"(a)\\1".replace("\\\\", "\\"), "(?P<x>a)(?P=x)", "(?>a)", "a++", "a*+",
    "a?+",
    "a{2}+", "(?(1)a|b)", "(?x) a", "(?#c)a", "[", "(", "*", "a{1001}", r"\\C".replace("\\\\", "\\"),
    "((a{500}){500}){500}",
    r"\\p{Nope}".replace("\\\\", "\\"), "a" * 20_000,
]  # fmt: skip


@pytest.mark.parametrize("policy", REFUSED, ids=lambda policy: policy.strip()[:60])
def test_refused_at_load(policy: str) -> None:
    """With a PolicyError that has a place and a reason, in bounded time."""
    started = process_time()
    with pytest.raises(PolicyError) as caught:
        compile_policy(policy, "p.gr")
    assert process_time() - started < 1
    assert caught.value.line >= 1 and caught.value.column >= 1 and caught.value.reason
    assert str(caught.value).startswith(f"p.gr:{caught.value.line}:{caught.value.column}: ")
    assert caught.value.caret().endswith("^")


@pytest.mark.parametrize("pattern", NOT_LINEAR, ids=lambda pattern: pattern[:30])
def test_patterns_that_re2_has_not_are_refused(pattern: str) -> None:
    """At load when they are written down, at run time as no answer when they are computed."""
    with pytest.raises(PolicyError):
        compile_policy(rule(M, f'any(find(r"{pattern}", m.content))'))
    with pytest.raises(EvaluationError):
        check(rule(M, "any(find(input.p, m.content))"), user("abc"), parameters={"p": pattern})


def test_the_rewrite_of_a_refused_pattern_is_named() -> None:
    """The author is told what to write instead."""
    with pytest.raises(PolicyError, match=r"<policy>:4:14: negative look-ahead .* \(use match"):
        compile_policy(rule(M, 'any(find("a(?!b)", m.content))'))


@pytest.mark.parametrize("pattern", EVIL)
def test_evil_patterns_are_quick(pattern: str) -> None:
    """Fifty thousand characters made to hurt take well under a second, or end at the deadline."""
    conversation = Conversation.of([user("a" * 50_000 + "!"), user("ab" * 25_000), user("a b " * 12_500)])
    policy = compile_policy(rule(M, f'any(find(r"{pattern}", m.content)) and match(r"{pattern}", m.content)'))
    started = process_time()
    try:
        policy.check(conversation, budget=Budget(seconds=0.5))
    except BudgetExceeded:
        pass
    assert process_time() - started < 1.0


RUNAWAY = [
    rule(M, "len(find('a.*z|a', input.long)) < 0"),
    rule(M, "len(html_code(input.tags).links) < 0",
         *[f"(x{i}: Message)" for i in range(4)], "x0.content + x3.content == m",
         head="from invariant.parsers import html_code"),
    rule(M, *[f"(a{i}: Message)" for i in range(9)], "a0.content + a8.content == 'x'"),
    rule(M, "len([1 for a in [b for b in m.content.split(' ')]]) > 0",
         *[f"(b{i}: Message)" for i in range(4)], "b0.content + b3.content == m"),
    rule(M, "p6(m.content)", head="p0(t: str) := len(find('.', t)) < 0\n" + "".join(
        f"p{i}(t: str) := any([p{i - 1}(t) for x in [1] * 50])\n" for i in range(1, 7))),
    rule(M, "count(max=0):", "    (a: Message)", "    (b: Message)", "    (c: Message)", "    (d: Message)",
    "    a.content + d.content == 'x'",
         head="from invariant import count"),
    rule(M, "x := [[m.content for a in [1] * 300] for b in [1] * 300]", "(a: Message)", "x == [a]"),
    rule("(a: Message) -> (b: Message) -> (c: Message) -> (d: Message)",
    "a.content + b.content == c.content + d.content"),
]  # fmt: skip


LONG = {"long": "a" * 400_000, "tags": "<a " * 300_000}


@pytest.mark.parametrize("policy", RUNAWAY)
def test_deadlines_are_kept(policy: str) -> None:
    """Within ten percent and the time the machine takes to notice."""
    conversation = Conversation.of([user(f"hello world {index}") for index in range(200)])
    compiled = compile_policy(policy)
    started = process_time()
    with pytest.raises(BudgetExceeded):
        compiled.check(conversation, LONG, Budget(steps=10**12, seconds=0.3))
    assert process_time() - started < 0.4


def test_steps_are_counted() -> None:
    """The same check ends with few steps and passes with enough."""
    policy = rule("(a: Message) -> (b: Message)", "a.content + b.content == 'x'")
    messages = [user("hello")] * 100
    with pytest.raises(BudgetExceeded, match="step"):
        check(policy, *messages, budget=Budget(steps=1000))
    assert () == check(policy, *messages, budget=Budget(steps=20_000))


@pytest.mark.parametrize(
    "line",
    [
        "x := m.content * 1000000", "x := m.content + m.content", 'x := "{}{}".format(m.content, m.content)',
        'x := m.content.join([str for str in ["a"] * 1000])', 'x := m.content.replace("h", "hhhhhhhhhhh")',
        "x := len(m.content) ** 9999",
        'x := f"{m.content}{m.content}"', "x := [m] * 1000000", "x := [c for c in m.content] * 100",
        "x := m.content.upper()",
    ],
)  # fmt: skip
def test_memory_is_bounded(line: str) -> None:
    """What would be over the bound is refused before it is built."""
    with pytest.raises(BudgetExceeded):
        check(rule(M, line), user("h" * 6000), budget=Budget(max_chars=5000, max_items=5000))


def test_long_texts_are_searched_all_the_same() -> None:
    """The bound is on what rules build, not on what they look at."""
    policy = rule(M, 'any(find("needle", m.content)) and "needle" in m.content')
    assert check(policy, user("h" * 2_000_000 + "needle"))


@pytest.mark.parametrize(
    ("lines", "parameters"),
    [
        (("m.content < 5",), {}), (("m.content + 1",), {}), (("m.content.nope",), {}), (("input.missing",), {}),
        (("5 in m.content",), {}), (("any(find(input.p, m.content))",), {"p": 5}), (("-m.content",), {}),
        (("x := 1 % len([])",), {}), (("m.content.get('x')",), {}), (("sum([m.content])",), {}), (("any(5)",), {}),
        (('match("a", [1])',), {}), (('m.content.split("")',), {}), (('"{x}".format()',), {}), (('"{".format(1)',), {}),
    ],
)  # fmt: skip
def test_failures_are_no_answer(lines: tuple[str, ...], parameters: dict[str, object]) -> None:
    """Anything that goes wrong inside a rule is an EvaluationError that names its line."""
    with pytest.raises(EvaluationError) as caught:
        check(rule(M, *lines), user("x"), parameters=parameters)
    assert 2 == caught.value.line


def test_deep_data_is_no_crash() -> None:
    """Arguments nested a thousand deep are read, and at worst there is no answer."""
    deep: object = "x"
    for _ in range(900):
        deep = {"a": [deep]}
    policy = compile_policy(
        'raise PolicyViolation("x", c, c.function.arguments) if:\n    (c: ToolCall)\n    "x" in text(c)\n'
    )
    conversation = Conversation.of([calling("f", deep)])
    try:
        assert policy.check(conversation)
    except EvaluationError:
        pass


def test_policies_have_a_size() -> None:
    """The bound is the caller's."""
    with pytest.raises(PolicyError, match="longer than 100"):
        compile_policy("# " + "x" * 200, max_chars=100)


def test_large_policies_load_in_time() -> None:
    """64 KiB of anything is refused or loaded within a second or so."""
    for piece in (
        "x\n",
        "(",
        'raise "x" if: (m: Message)\n',
        "a :=",
        '"""',
        "'",
        "f'{",
        "\\",
        "    x\n",
        "A",
        "1",
        "[x for x in ",
    ):
        text = piece * (65_536 // len(piece))
        started = process_time()
        try:
            compile_policy(text)
        except PolicyError:
            pass
        assert process_time() - started < 2, piece


def test_many_large_patterns_are_refused() -> None:
    """Their compilation is bounded as a whole."""
    text = "".join(
        f'raise "x" if:\n    (m: Message)\n    any(find("(a{{0,1000}}){index}", m.content))\n' for index in range(1000)
    )
    started = process_time()
    with pytest.raises(PolicyError, match="too large together"):
        compile_policy(text)
    assert process_time() - started < 2


def test_print_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """And is always true."""
    assert check(rule(M, 'print("x", m, end="")'), user("x"))
    assert ("", "") == tuple(capsys.readouterr())


def test_many_matches_are_bounded() -> None:
    """A text of matches and nothing else does not fill the memory."""
    for line in ('find("a", m.content)', "m.content.split()", "m.content.splitlines()", "secrets(m.content)"):
        policy = rule(M, line, head="from invariant.detectors import secrets")
        for text in ("a " * 50_000, "\n" * 50_000, "xoxb-1-a " * 20_000):
            try:
                check(policy, user(text), budget=Budget(max_items=5000))
            except BudgetExceeded as error:
                assert "list of 5001 items" in str(error)


def test_what_a_check_builds_is_bounded_as_a_whole() -> None:
    """Many strings under the bound are over it together."""
    policy = rule(M, "x := [m.content + m.content for i in [1] * 1000]", "x == []")
    with pytest.raises(BudgetExceeded, match="together have too many characters"):
        check(policy, user("h" * 10_000), budget=Budget(max_total_chars=1_000_000))


def test_a_thousand_violations_over_many_events_are_quick() -> None:
    """Addresses are found once, however many violations ask."""
    policy = rule("(a: Message) -> (b: Message)", 'any(find("x", a.content)) and any(find("y", input.p))')
    conversation = Conversation.of([user(f"x {index}") for index in range(2000)])
    compiled = compile_policy(policy)
    started = process_time()
    assert 200 == len(compiled.check(conversation, {"p": "y"}))
    assert process_time() - started < 1


@pytest.mark.parametrize("item", [[], {}, 1, None, "", [[]], {"": 0}], ids=repr)
@pytest.mark.parametrize("as_content", [True, False], ids=["content", "arguments"])
def test_many_small_things_count_as_much_text(item: object, as_content: bool) -> None:
    """What is walked piece by piece is never taken for a quick check, and finding that out is quick itself."""
    many = [item] * 20_000
    message = {"role": "user", "content": many} if as_content else calling("run", {"many": many})
    conversation = Conversation.of([message])
    assert compile_policy(rule(M, '"x" in m.content')).expected_cost(conversation) > 10_000
    started = process_time()
    Conversation.of([message | {"content": [item] * 1_000_000}] * 5)
    assert process_time() - started < 1
