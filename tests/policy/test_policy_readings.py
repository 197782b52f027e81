"""Texts as readers join them: what rules find over the seams of a turn, and what stays as it is."""

import pickle
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.policy import Budget, Conversation, Place, RuleViolation, Session, compile_policy
from tests.policy.conversations import Message, assistant, at, call, check, output, ranges, rule, user

BUDGET = Budget()
HEAD = """from invariant.detectors import secrets, pii, fuzzy_contains
from invariant.parsers import links, html_code
from invariant import count, forall
holds(t: str) := "xyzzy" in t
"""
TOKEN = "ghp_" + "a1B2" * 9

SEARCHES = [
    '"xyzzy" in m.content',
    '"xyzzy" in m',
    'any(find("xy+z{2}y", m.content))',
    'len(find("xyzzy", m)) > 0',
    'match("(?s).*xyzzy", m.content)',
    '"xyzzy" in m.content.lower()',
    '"XYZZY" in m.content.upper()',
    '"xyzzy" in m.content.strip()',
    '"xy-y" in m.content.replace("zz", "-")',
    'any("xyzzy" in t for t in text(m))',
    "holds(m.content)",
    'fuzzy_contains(m.content, "xyzzy", 1.0)',
    "input.word in m.content",
    "any(find(input.word, m.content))",
    'm.content.endswith("xyzzy") or "xyzzy!" in m.content',
]
BINDINGS: list[tuple[str, ...]] = [
    ("(m: Message)", "(t: str) in text(m)", '"xyzzy" in t'),
    ("(m: TextChunk)", '"xyzzy" in m.text'),
]


def thought(text: str) -> Message:
    return {"role": "assistant", "content": text, "thought": True}


def chunks(*texts: str) -> Message:
    return user([{"type": "text", "text": text} for text in texts])


def calls() -> Message:
    return {"role": "assistant", "tool_calls": [call("run")]}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TURNS: dict[str, list[Message]] = {
    "two contents": [user("say xy"), user("zzy")],
    "two contents of lists": [chunks("say xy"), chunks("zzy")],
    "chunks": [chunks("say xy", "zzy")],
    "chunks about an image": [user([{"type": "text", "text": "xy"}, IMAGE, {"type": "text", "text": "zzy"}])],
    "text, output, text": [user("xy"), output("42"), user("zzy")],
    "text, field, text": [user("xy"), {"role": "user", "content": "beside", "field": "partMetadata"}, user("zzy")],
    "text, field chunk, text": [
        user([{"type": "text", "text": "xy"}, {"type": "text", "text": "no", "field": "x"},
              {"type": "text", "text": "zzy"}]),
    ],
    "model: two contents": [user("hi"), assistant("xy"), assistant("zzy")],
    "model: one character each": [user("x"), *(assistant(char) for char in "xyzzy")],
    "model: text, thought, text": [assistant("xy"), thought("hm"), assistant("zzy")],
    "model: text, empty thought, text": [assistant("xy"), thought(""), assistant("zzy")],
    "model: thought, text, thought": [thought("xy"), assistant("hm"), thought("zzy")],
    "model: thought, text": [thought("xy"), assistant("zzy")],
    "model: text, call, text": [assistant("xy"), calls(), assistant("zzy")],
    "model: text, code and result, text": [
        assistant("xy"), calls() | {"provider": True}, output("1") | {"provider": True}, assistant("zzy")],
    "model: text, image, text": [assistant("xy"), assistant([IMAGE]), assistant("zzy")],
    "model: second candidate": [
        user("hi"), assistant("no") | {"candidate": 0}, assistant("xy") | {"candidate": 1},
        assistant("zzy") | {"candidate": 1}],
    "model: prefilled candidates": [
        assistant("xy"), assistant("no") | {"candidate": 0}, assistant("zzy") | {"candidate": 1}],
}  # fmt: skip


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("search", [*(("(m: Message)", search) for search in SEARCHES), *BINDINGS], ids=str)
def test_every_search_finds_what_readers_join(turn: list[Message], search: tuple[str, ...]) -> None:
    """Whatever stands between the pieces, one violation names the places of all of them."""
    found = check(rule(*search, head=HEAD), *turn, parameters={"word": "xyzzy"})
    assert len(found) == 1, found


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
def test_ranges_of_all_pieces_give_the_match(turn: list[Message]) -> None:
    """Every message or chunk that the match touches gets its range."""
    for search in ('"xyzzy" in m.content', 'any(find("x.zz.", m))', '"XYZZY" in m.content.upper()'):
        places = [place for place in ranges(rule("(m: Message)", search, head=HEAD), *turn) if ":" in place]
        assert "".join(at(turn, place) for place in sorted(places)) == "xyzzy"


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize(
    "negation",
    [
        'not ("xyzzy" in m.content)',
        '"xyzzy" not in m.content',
        'not any(find("xyzzy", m))',
        'not match("(?s).*xyzzy", m.content)',
    ],
)
def test_a_negation_is_false_where_a_reading_has_the_text(turn: list[Message], negation: str) -> None:
    """What a reader finds is missing from no message of the turn, a call or an empty text included."""
    role, candidate = turn[-1]["role"], turn[-1].get("candidate")
    others = [
        message for message in turn if message["role"] == role and message.get("candidate", candidate) != candidate
    ]
    found = check(rule("(m: Message)", f'm.role == "{role}"', negation, head=HEAD), *turn)
    assert len(found) == len(others)


@pytest.mark.parametrize(
    "messages",
    [
        [user("xy"), assistant("zzy")],
        [assistant("xy"), user("zzy")],
        [assistant("xy"), output("1"), assistant("zzy")],
        [assistant("xy") | {"candidate": 0}, assistant("zzy") | {"candidate": 1}],
        [user("xy"), {"role": "user", "content": "zzy", "field": "x"}],
        [user("xy"), output("zzy")],
        [output("xy"), output("zzy")],
        [user("xy"), {"role": "system", "content": "zzy"}],
        [user("zzy"), user("xy")],
        [assistant("xy") | {"candidate": 0}, output("zzy") | {"provider": True, "candidate": 0}],
        [assistant("x") | {"candidate": 0}, output("yz") | {"provider": True, "candidate": 0}, assistant("zy")],
        [assistant("xy"), thought("zz"), thought("-"), assistant("y")],
    ],
    ids=str,
)
def test_what_no_reader_joins_is_not_joined(messages: list[Message]) -> None:
    """Nor does anything that is one string but for a seam change: an output, a field, another side, a candidate."""
    for search in SEARCHES:
        assert not check(rule("(m: Message)", search, head=HEAD), *messages, parameters={"word": "xyzzy"})


def test_detectors_find_over_seams() -> None:
    """Labels, links and comments, each once."""
    halves = [user(f"it is {TOKEN[:20]}"), user(TOKEN[20:] + " ok")]
    policy = rule("(m: Message)", "any(secrets(m))", head=HEAD)
    assert ranges(policy, *halves) == ["messages.1.content:0-20", "messages.0.content:6-26"]
    mail = [assistant("write to ann@"), thought("hm"), assistant("corp.example now")]
    assert len(check(rule("(m: Message)", '"EMAIL_ADDRESS" in pii(m)', head=HEAD), *mail)) == 1
    link = rule("(m: Message)", "(l: str) in links(m)", '"evil" in l', head=HEAD)
    assert len(check(link, user("see https://ev"), user("il.example/x"))) == 1
    comment = rule("(m: Message)", "(c: str) in html_code(m).comments", '"obey" in c', head=HEAD)
    assert len(check(comment, user("<!-- o"), user("bey --> "))) == 1


def test_quantifiers_and_filters_see_readings() -> None:
    turn = TURNS["two contents"]
    assert check(rule("count(min=1, max=1):", "    (m: Message)", '    "xyzzy" in m.content', head=HEAD), *turn)
    assert not check(rule("forall:", "    (m: Message)", '    "xyzzy" not in m.content', head=HEAD), *turn)
    assert check(rule("(m: Message)", 'len([t for t in text(m) if "xyzzy" in t]) == 1', head=HEAD), *turn)


@pytest.mark.parametrize("condition", ['m.content == "xyzzy"', "len(m.content) > 4", 'm.content is "xyzzy"',
                                       'len(m.content.split("z")) > 3', '"xyzzy" in [m.content]'])  # fmt: skip
def test_what_is_no_search_sees_the_text_alone(condition: str) -> None:
    assert not check(rule("(m: Message)", condition, head=HEAD), user("xy"), user("zzy"))


def test_patterns_that_look_around_see_what_a_reader_sees() -> None:
    r"""``\B`` at the beginning of a piece holds in the joined text alone."""
    policy = rule("(m: Message)", r'any(find("\Bzzy", m.content))')
    assert ranges(policy, user("xy"), user("zzy")) == ["messages.1.content:0-3"]
    assert not check(policy, user("xy "), user("zzy"))
    end = rule("(m: Message)", r'match("xy\Bz", m.content)')
    assert len(check(end, user("xy"), user("z"))) == 1


@pytest.mark.parametrize(("text", "needle"), [("stra|ßenbahn", "STRASSENBAHN"), ("o|ßß|x", "OSSSSX")])
def test_letters_that_become_two(text: str, needle: str) -> None:
    turn = [user(piece) for piece in text.split("|")]
    found = check(rule("(m: Message)", f'"{needle}" in m.content.upper()'), *turn)
    assert len(found) == 1
    assert set(found[0].ranges) == {f"messages.{index}.content" for index in range(len(turn))}


@pytest.mark.parametrize(
    ("pieces", "call_", "needle"),
    [
        (["x y", " z z y"], 'replace(" ", "")', "xyzzy"),
        (["x<", "b>y", "zzy"], 'replace("<b>", "")', "xyzzy"),
        (["  xy", "zzy  "], "strip()", "xyzzy"),
        (["--xy", "zzy--"], 'strip("-")', "xyzzy"),
        (["x Y", " zZy"], 'replace(" ", "").lower()', "xyzzy"),
        (["  ", "x", "yzzy"], "strip().upper()", "XYZZY"),
    ],
)
def test_what_methods_make_of_a_reading(pieces: list[str], call_: str, needle: str) -> None:
    turn = [user(piece) for piece in pieces]
    assert len(check(rule("(m: Message)", f'"{needle}" in m.content.{call_}'), *turn)) == 1


def test_messages_without_a_second_text_are_not_copied() -> None:
    """What has no seam costs nothing."""
    messages = [user("a"), assistant("b", call("run")), output("c"), assistant("d")]
    conversation = Conversation.of(messages)
    assert conversation.messages is messages
    assert conversation.events("Message")[0].content is messages[0]["content"]
    assert conversation.chars == sum(len(message["content"]) for message in messages)


def test_readings_count_for_the_cost_of_a_check() -> None:
    policy = compile_policy(rule("(m: Message)", 'any(find("a.c", m.content))'))
    one, two = Conversation.of([user("x" * 100_000)]), Conversation.of([user("x" * 50_000), user("x" * 50_000)])
    assert policy.expected_cost(two) > 1.9 * policy.expected_cost(one)


def test_a_turn_of_many_pieces_costs_a_scan_of_its_text() -> None:
    """Steps grow with the pieces, not with their square."""
    for search in ('"xyzzy" in m.content', 'any(find("xy{2}", m))', "any(secrets(m))", '"xy" in m.content.lower()'):
        policy = compile_policy(rule("(m: Message)", search, head=HEAD))
        assert not policy.check(Conversation.of([assistant("word ") for _ in range(2000)]), {}, Budget(steps=30_000))


def test_values_of_violations_travel_as_plain_data() -> None:
    policy = 'raise PolicyViolation("no", m) if:\n    (m: Message)\n    "xyzzy" in m.content\n'
    found = check(policy, user("xy"), user("zzy"))
    copied = pickle.loads(pickle.dumps(found[0].args))
    assert copied[1]["content"] == "zzy" and type(copied[1]["content"]) is str


WORDS = st.sampled_from(["x", "y", "z", "xy", "zz", " ", "a", "é", "😀", "foo", "1", "\n", "@", "b.c"])
PATTERNS = ["xy", "x+y*z", r"\bfoo\b", r"o\Bo", "(?m)^foo", "foo$", "(?i)[a-z]+@", "é.?x", r"\s\w", "^", "z|zx", "o.*x"]


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[str], list[bool]]:
    pieces = draw(st.lists(st.lists(WORDS, max_size=5).map("".join), min_size=1, max_size=5))
    return pieces, draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))


@settings(max_examples=75, deadline=None)
@given(splits(), st.sampled_from(PATTERNS))
def test_a_split_text_is_refused_where_the_whole_is(given_: tuple[list[str], list[bool]], pattern: str) -> None:
    """Whatever the seams and what stands in them; and no match inside one piece is lost."""
    pieces, separated = given_
    separators = [[calls()] if one else [] for one in separated]
    turn = [m for piece, between in zip(pieces, separators, strict=True) for m in (assistant(piece), *between)]
    for search in (f'any(find("{pattern}", m.content))', f'match("{pattern}", m.content)'):
        policy = rule("(m: Message)", search)
        if "".join(pieces) and check(policy, assistant("".join(pieces))):
            assert check(policy, *turn)
        alone = [place for piece in pieces for place in check(policy, assistant(piece))]
        assert len(check(policy, *turn)) >= len(alone)


@settings(max_examples=100, deadline=None)
@given(splits(), st.sampled_from(["xy", "zx", "foo", "o 1", "yzzx", "é"]))
def test_ranges_of_a_literal_join_to_it(given_: tuple[list[str], list[bool]], needle: str) -> None:
    pieces, _ = given_
    turn = [user(piece) for piece in pieces]
    found = check(rule("(m: Message)", f'"{needle}" in m.content'), *turn)
    assert bool(found) == (needle in "".join(pieces))
    if sum("".join(pieces).count(needle) for _ in (0,)) == 1:
        places = sorted(place for violation in found for place in violation.ranges if ":" in place)
        assert "".join(at(turn, place) for place in places) == needle


def check_all(
    session: Session, *turn: Message, first: int = 0, checked: Sequence[tuple[int, Message]] = ()
) -> list[list[RuleViolation]]:
    """Judge each message's text in pieces of two characters, in a turn of which ``checked`` has passed.

    Return the violations of each piece.
    """
    found = []
    growing = session.turn(checked)
    for index, message in enumerate(turn, first):
        session.begin(growing, Place(index, thought=bool(message.get("thought"))))
        text = message["content"]
        by_policy = [session.check(growing, text[start : start + 2], BUDGET) for start in range(0, len(text), 2)]
        found += [[violation for violations in piece for violation in violations] for piece in by_policy]
    return found


@pytest.mark.parametrize(
    "turn",
    [
        [assistant("say xy"), thought("hm" * 40), assistant("zzy!")],
        [thought("xy"), assistant("zzy")],
        [thought("xy"), assistant("hm" * 40), thought("zzy")],
        [assistant("x"), thought("-"), assistant("y"), thought("-"), assistant("z"), thought("-"), assistant("zy")],
        [assistant("a" * 99 + "xyz"), assistant("zy")],
    ],
    ids=str,
)
def test_a_session_finds_over_seams(turn: list[Message]) -> None:
    """As it grows, at the places that the check of the whole gives."""
    policy = compile_policy(rule("(m: Message)", '"xyzzy" in m.content'))
    pieces = check_all(Session([policy], {}, 20), *turn)
    found = [violation for violations in pieces for violation in violations]
    assert set(found[0].ranges) == set(policy.check(Conversation.of(turn))[0].ranges)


def test_a_session_goes_on_with_the_turn_that_the_request_began() -> None:
    """A prefilled text, and one that was checked before ``settle``."""
    policy = compile_policy(rule("(m: Message)", '"xyzzy" in m.content'))
    history = [user("hi"), assistant("say x"), assistant("y")]
    session = Session([policy], {}, 20, history)
    assert list(map(len, check_all(session, assistant("zzy"), first=3))) == [0, 1]
    session = Session([policy], {}, 20, history)
    assert check_all(session, assistant("z"), first=3) == [[]] and session.clear
    session.settle()
    found = check_all(session, assistant("zy"), first=5, checked=[(3, assistant("z")), (4, calls())])[0]
    assert found[0].ranges == (
        "messages.5.content:0-2", "messages.1.content:4-5", "messages.2.content:0-1", "messages.3.content:0-1"
    )  # fmt: skip
    session.settle()
    checked = [(3, assistant("z")), (4, output("zy") | {"provider": True})]
    assert check_all(session, assistant("y"), first=5, checked=checked) == [[]] and session.clear
    other = Session([policy], {}, 20, [assistant("xy"), user("zz")])
    assert check_all(other, assistant("y"), first=2) == [[]] and other.clear


def parts_of(turn: Sequence[tuple[bool, str]]) -> list[Message]:
    return [thought(text) if its else assistant(text) for its, text in turn]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.lists(WORDS, min_size=1, max_size=8).map("".join)), min_size=1, max_size=7))
def test_a_session_refuses_what_the_whole_is_refused_for(turn: list[tuple[bool, str]]) -> None:
    """A session is clear only if the whole has no match of at most its overlap; what it reports the whole has."""
    messages = parts_of(turn)
    for search in ('"zx" in m.content', 'any(find("x.?y", m.content))', r'any(find("\bfoo\b", m.content))'):
        policy = compile_policy(rule("(m: Message)", search))
        session = Session([policy], {}, 6)
        early = any(check_all(session, *messages))
        whole = bool(policy.check(Conversation.of(messages)))
        assert not early or whole
        assert early or not whole or not session.clear


@pytest.mark.parametrize(
    "silent",
    [calls(), assistant([IMAGE]), assistant("beside") | {"field": "finishMessage"}, user({"a": 1}), user(None)],
    ids=["call", "image", "field", "data", "nothing"],
)
def test_a_message_that_says_nothing_is_asked_for_its_turn_and_left_as_it_is(silent: Message) -> None:
    """Violations and traces show what was sent, not what a negation looked at."""
    said = {"role": silent["role"], "content": "the source: here"}
    conversation = Conversation.of([said, silent])
    assert conversation.events("Message")[1].data is silent
    assert not check(rule("(m: Message)", 'not ("source:" in m.content)'), said, silent)
    assert len(check(rule("(m: Message)", 'not ("source:" in m.content)'), silent, silent)) == 2
