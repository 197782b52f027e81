"""What a page shows of a trace, without a page."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.explorer.pages.annotated_text import SHOWN, AnnotatedText, annotate_text, text_window
from gemini_proxy.explorer.pages.conversation import MARKS, MESSAGES, ConversationPage, conversation_page
from gemini_proxy.explorer.pages.stored_messages import StoredMessages
from gemini_proxy.explorer.pages.trace_pages import facts
from gemini_proxy.traces.annotation_ranges import AnnotationRanges, leaves
from gemini_proxy.traces.rows import dump_messages, load
from gemini_proxy.traces.trace import Annotation
from tests.support.machine_speed import allowed
from tests.traces.samples import trace

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    "role content tool_calls tools thought candidate name tool_name tool_call_id field provider x".split()
)
MESSAGES_OF_ANY_KIND = st.lists(st.dictionaries(NAMES, JSON, max_size=5), max_size=4)
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "clown"])


def annotation(address: str, message: str = "said", action: str = "block", name: str = "rule") -> Annotation:
    return Annotation(message, address, "guardrails-error", {"name": name, "action": action})


def shown(page: ConversationPage) -> Iterator[AnnotatedText]:
    for message in page.messages:
        for block in message.blocks:
            if block.name is not None:
                yield block.name
            yield from (line.value for line in block.lines if line.value is not None)


def highlighted(page: ConversationPage, style: str) -> list[str]:
    return [run.text for found in shown(page) for run in found.runs if run.style == style]


def page_of(*messages: Any, annotations: tuple[Annotation, ...] = (), first: int = 0) -> ConversationPage:
    return conversation_page(dump_messages(messages), annotations, first)


@given(st.text(max_size=80), st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), max_size=8))
def test_an_annotated_text_is_its_text(text: str, ranges: list[tuple[int, int]]) -> None:
    """Whatever is marked, the runs joined are the text, and each marked one says by which marks."""
    marks = AnnotationRanges([annotation(f"messages.0.content:{start}-{end}") for start, end in ranges]).on(
        "messages.0.content"
    )
    found = annotate_text(text, "messages.0.content", marks)
    assert found.text == text
    for mark in marks:
        span = mark.span(text)
        covered = {run.at + offset for run in found.runs if mark.number in run.marks for offset in range(len(run.text))}
        assert covered == (set(range(*span)) if span else set())
    inside = {mark.number for mark in marks if mark.span(text)}
    assert {number for note in found.notes for number in note.numbers} == inside
    assert sorted(number for run in found.runs for number in run.starts) == sorted(inside)
    assert sorted(number for run in found.runs for number in run.ends) == sorted(inside)


@given(st.integers(0, 4 * SHOWN), st.lists(st.tuples(st.integers(0, 4 * SHOWN), st.integers(1, 900)), max_size=6))
def test_a_long_text_is_cut_and_what_is_marked_in_it_stays(length: int, ranges: list[tuple[int, int]]) -> None:
    """Runs and gaps together are the text; the beginning of every mark is among the runs."""
    text = "".join(chr(97 + place % 26) for place in range(length))
    marks = AnnotationRanges([annotation(f"m:{start}-{start + size}") for start, size in ranges]).on("m")
    found = annotate_text(text, "m", marks)
    at = 0
    for run in found.runs:
        assert (run.at, text[at : at + len(run.text)]) == (at, run.text)
        at += len(run.text) + run.skipped
    assert at == length
    assert len(found.text) <= SHOWN + len(ranges) * 2_000
    starts = {number for run in found.runs for number in run.starts}
    assert starts == {mark.number for mark in marks if mark.span(text)}


def test_the_rest_of_a_long_text_is_read_part_by_part() -> None:
    """The parts are the text, each with what is marked in it."""
    text = "".join(chr(97 + place % 26) for place in range(2 * SHOWN + 7))
    marks = AnnotationRanges([annotation(f"m:{SHOWN - 2}-{SHOWN + 3}")]).on("m")
    parts = [text_window(text, "m", marks, start) for start in range(0, len(text), SHOWN)]
    assert "".join(part.text for part in parts) == text
    marked = ["".join(run.text for run in part.runs if run.style) for part in parts]
    assert marked == [text[SHOWN - 2 : SHOWN], text[SHOWN : SHOWN + 3], ""]


@given(MESSAGES_OF_ANY_KIND)
def test_every_value_is_shown_whatever_the_messages_are(messages: list[dict[str, Any]]) -> None:
    """Pushed traces hold anything; no text of theirs is left out, and nothing is raised."""
    page = page_of(*messages)
    texts = "\n".join(found.text for found in shown(page))
    for message in load(dump_messages(messages)):
        said = {name: value for name, value in message.items() if name in ("x", "name") or name == "content"}
        for _, text in leaves(said, "messages.0"):
            assert text in texts or text in ("", "{}", "[]")


@given(MESSAGES_OF_ANY_KIND, st.data())
def test_a_mark_is_shown_or_listed_elsewhere(messages: list[dict[str, Any]], data: st.DataObject) -> None:
    """Never neither: an annotation that leads nowhere is still told."""
    addresses = [path for index, message in enumerate(messages) for path, _ in leaves(message, f"messages.{index}")]
    given_ = data.draw(st.lists(st.sampled_from([*addresses, "messages.0", "nowhere", ""]), max_size=6))
    page = page_of(*messages, annotations=tuple(annotation(address) for address in given_))
    noted = {number for note in page.elsewhere for number in note.numbers}
    for message in page.messages:
        for block in message.blocks:
            noted |= {number for note in block.all_notes for number in note.numbers}
    assert noted == set(range(1, len(given_) + 1))


CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "read", "arguments": {"path": "/etc/passwd"}}}
    ],
}


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("messages.0.content:4-10", ["secret"]),
        ("messages.0.content:4-99", ["secret é😀!"]),
        ("messages.0.content:11-13", ["é😀"]),
        ("messages.0.content", ["the secret é😀!"]),
        ("messages.0", ["the secret é😀!"]),
        ("messages.1.tool_calls.0.function.arguments.path:5-11", ["passwd"]),
        ("messages.1.tool_calls.0.function.name", ["read"]),
        ("messages.1.tool_calls.0", ["read", "/etc/passwd"]),
        ("messages.0.content:99-100", []),
        ("messages.9.content", []),
        ("messages.0.nothing:0-1", []),
        ("", []),
    ],
)
def test_exactly_what_an_address_means_is_highlighted(address: str, words: list[str]) -> None:
    """In characters, whatever their width; what is nowhere is listed and highlights nothing."""
    page = page_of({"role": "user", "content": "the secret é😀!"}, CALL, annotations=(annotation(address),))
    assert highlighted(page, "block") == words
    assert bool(page.elsewhere) is not bool(words)


def test_what_marks_a_message_is_told_beside_it() -> None:
    """The tool of an output, the field of a text, and that Gemini's servers ran a call are no values of their own."""
    chunks = [{"type": "text", "text": "hello"}, {"type": "text", "text": "beside", "field": "partMetadata"}]
    page = page_of(
        {"role": "user", "content": chunks},
        {**CALL, "provider": True},
        {"role": "tool", "tool_name": "read", "content": "root", "provider": True},
        {"role": "assistant", "content": "cut short", "field": "finishMessage"},
    )
    told = [[(block.kind, block.about) for block in message.blocks] for message in page.messages]
    assert told == [
        [("text", ""), ("text", "partMetadata")],
        [("call", "c1")],
        [("output", ""), ("text", "")],
        [("text", "")],
    ]
    assert [(message.field, message.provider) for message in page.messages] == [
        ("", False),
        ("", True),
        ("", True),
        ("finishMessage", False),
    ]
    (name, _) = page.messages[2].blocks
    assert name.name is not None and (name.name.text, name.name.address) == ("read", "messages.2.tool_name")


@pytest.mark.parametrize("key", ["tool_name", "name"])
def test_the_name_of_an_output_is_marked_at_its_address(key: str) -> None:
    """Under the key of today, and that of traces of earlier versions."""
    page = page_of({"role": "tool", key: "read", "content": "x"}, annotations=(annotation(f"messages.0.{key}:0-2"),))
    assert (highlighted(page, "block"), page.elsewhere) == (["re"], ())


@pytest.mark.parametrize("field", ["long" * 30, {"a": "b"}, 3])
def test_a_field_that_is_no_name_is_a_value(field: Any) -> None:
    """Pushed messages hold anything under it."""
    page = page_of({"role": "user", "content": "x", "field": field, "provider": "who"})
    assert {"who", *(text for _, text in leaves(field, "messages.0.field"))} <= {found.text for found in shown(page)}


def test_blocked_and_logged_are_told_apart() -> None:
    """Where both are, it is blocked."""
    page = page_of(
        {"role": "user", "content": "abcdef"},
        annotations=(annotation("messages.0.content:0-3", action="log"), annotation("messages.0.content:2-5")),
    )
    assert (highlighted(page, "log"), highlighted(page, "block")) == (["ab"], ["c", "de"])


def test_arguments_in_json_text_are_read_as_rules_read_them() -> None:
    """By key; unless a rule marked the text itself."""
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "run", "arguments": '{"code": "rm x"}'}}]}
    path = "messages.0.tool_calls.0.function.arguments"
    assert highlighted(page_of(message, annotations=(annotation(f"{path}.code:0-2"),)), "block") == ["rm"]
    assert highlighted(page_of(message, annotations=(annotation(f"{path}:2-6"),)), "block") == ["code"]


def test_one_rule_that_says_the_same_is_one_finding() -> None:
    """With all its places, those on other pages included."""
    messages = [{"role": "user", "content": "aaa"}] * (MESSAGES + 1)
    places = ("messages.0.content:0-1", "messages.0.content:1-2", f"messages.{MESSAGES}.content:0-1", "nowhere")
    page = page_of(*messages, annotations=tuple(annotation(place) for place in places))
    (linked,) = page.notes
    assert linked.ranges == ((1, 0), (2, 0), (3, MESSAGES), (4, -1))
    assert [note.numbers for note in page.elsewhere] == [(4,)]


@pytest.mark.parametrize(
    ("url", "image", "about"),
    [
        ("data:image/png;base64,AAAA", "data:image/png;base64,AAAA", "image/png, 1 kB"),
        ("data:image/PNG;base64,_-AA AA", "data:image/png;base64,/+AAAA==", "image/PNG, 1 kB"),
        ("data:image/svg+xml;base64,AAAA", "", "image/svg+xml, 1 kB, not shown"),
        ("data:text/html,<script>alert(1)</script>", "", "text/html, 1 kB, not shown"),
        ('data:image/png;base64,AA" onerror="alert(1)', "", "image/png, 1 kB, not shown"),
        ("data:image/png;base64," + "A" * 4_000_000, "", "image/png, 3.0 MB, not shown"),
        ("https://evil.example/pixel.png", "", "at a URL"),
        ("javascript:alert(1)", "", "at a URL"),
    ],
)
def test_only_plain_images_are_shown(url: str, image: str, about: str) -> None:
    """Of four types, of bounded size, and never fetched from anywhere."""
    page = page_of({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})
    (block,) = page.messages[0].blocks
    assert (block.image, block.about) == (image, about)


def test_images_of_one_page_are_bounded_together() -> None:
    """So many that a browser takes them; the others are named."""
    chunk = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2_500_000}}
    page = page_of({"role": "user", "content": [chunk] * 5})
    assert [bool(block.image) for block in page.messages[0].blocks] == [True, True, False, False, False]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": "x"}] * 200_000},
        {"role": "user", "content": {f"key{number}": number for number in range(200_000)}},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}] * 100_000},
        {"role": "user", "content": "x" * 30_000_000},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}] * 100_000},
        {"tools": [{"name": "f"}] * 100_000},
        {f"key{number}": "x" for number in range(100_000)},
    ],
)
def test_a_page_stays_bounded(message: dict[str, Any]) -> None:
    """However large one message is."""
    started = time.perf_counter()
    page = page_of(message, annotations=tuple(annotation(f"messages.0.content:{n}-{n + 9}") for n in range(3000)))
    assert sum(len(message.blocks) for message in page.messages) < 5_000
    assert sum(len(found.runs) for found in shown(page)) < 20_000
    assert sum(len(found.text) for found in shown(page)) < 700_000
    assert page.uncounted == 3000 - MARKS
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "addresses",
    [
        ["messages.0.content"] * 2000,
        [f"messages.0.content.key{number}:{number}-9999" for number in range(2000)],
        ["m" * number for number in range(2000)],
        [f"messages.0.content.key1:{number}-{9999 - number}" for number in range(2000)],
    ],
)
def test_thousands_of_marks_take_bounded_time(addresses: list[str]) -> None:
    """On everything at once, one within the other, of any length."""
    content = {f"key{number}": "x" * (9999 if number == 1 else 9) for number in range(3000)}
    annotations = tuple(annotation(address, f"said {number}") for number, address in enumerate(addresses))
    started = time.process_time()
    page_of({"role": "user", "content": content}, annotations=annotations)
    assert time.process_time() - started < allowed(4)


@pytest.mark.parametrize("content", [{"rows": [1] * 9_000}, ["row"] * 9_000, [{"text": "row"}] * 9_000])
def test_of_an_output_that_is_too_long_the_beginning_is_shown(content: Any) -> None:
    """And that there is more; of one that fits, all."""
    long = page_of({"role": "tool", "tool_call_id": "c", "name": "f", "content": content}).messages[0]
    assert long.cut and long.blocks[0].kind == "output"
    assert sum(len(block.lines) for block in long.blocks) > 1_400
    assert not page_of({"role": "tool", "name": "f", "content": {"rows": [1] * 90}}).messages[0].cut


def test_what_somebody_noted_is_no_rules_word() -> None:
    """An annotation of no rule neither blocked nor was logged; beside a rule's it steps back."""
    remark = Annotation("nice", "messages.0.content:0-3", "user", {}, {"reviewer": "ann"})
    page = page_of({"role": "user", "content": "abcdef"}, annotations=(remark, annotation("messages.0.content:2-5")))
    assert (highlighted(page, "remark"), highlighted(page, "block")) == (["ab"], ["c", "de"])
    assert [linked.note.kind for linked in page.notes] == ["remark", "block"]


def test_the_heavier_action_colours_a_range() -> None:
    """What one rule masks and another only logs is shown as masked, what one blocks as blocked."""
    marks = (annotation("messages.0.content:0-4", action="log"), annotation("messages.0.content:2-6", action="mask"))
    page = page_of({"role": "user", "content": "abcdef"}, annotations=marks)
    assert (highlighted(page, "log"), highlighted(page, "mask")) == (["ab"], ["cd", "ef"])
    page = page_of({"role": "user", "content": "abcdef"}, annotations=(*marks, annotation("messages.0.content:3-5")))
    assert "".join(highlighted(page, "block")) == "de"


def test_many_messages_are_several_pages() -> None:
    """Each message on one of them."""
    messages = [{"role": "user", "content": f"message {number}"} for number in range(2 * MESSAGES + 5)]
    seen: list[str] = []
    first = 0
    while first < len(messages):
        page = page_of(*messages, first=first)
        seen += [found.text for found in shown(page)]
        first = page.end
    assert seen == [message["content"] for message in messages]
    assert page_of(*messages, first=10**15).messages[0].index == len(messages) - 1


@given(MESSAGES_OF_ANY_KIND)
def test_the_text_at_an_address_is_the_one_that_is_shown(messages: list[dict[str, Any]]) -> None:
    """The whole of a text that a page cut is found by its address."""
    addresses = [path for index, message in enumerate(messages) for path, _ in leaves(message, f"messages.{index}")]
    for found in shown(page_of(*messages)):
        # A key may be empty or hold dots, and then two texts can share an address.
        if addresses.count(found.address) == 1 and "" not in found.address.split("."):
            assert StoredMessages(dump_messages(messages)).text_at(found.address) is not None


@pytest.mark.parametrize("address", ["", "messages", "messages.9", "messages.0.x", "messages.٣.content", "x" * 9999])
def test_there_is_no_text_at_an_address_of_nothing(address: str) -> None:
    assert StoredMessages(dump_messages([{"role": "user", "content": "x"}])).text_at(address) is None


@given(
    st.dictionaries(st.sampled_from(["usage", "coverage", "latencies_ms", "refusal", "error", "model_version"]), JSON)
)
def test_facts_are_told_of_any_metadata(metadata: dict[str, Any]) -> None:
    """What a client pushed has no sure shape; nothing is raised."""
    facts(trace(metadata=metadata))


def test_facts_of_an_exchange() -> None:
    """Times, tokens, checks, what was not checked and what the client was told."""
    metadata = {
        "usage": {"promptTokenCount": 1200, "totalTokenCount": 1234, "candidatesTokenCount": True},
        "latencies_ms": {"first_byte": 250.4, "upstream_head": 1500},
        "coverage": {
            "verdict": "refused",
            "mode": "final",
            "rules": ["a", "b"],
            "checked_messages": 1,
            "not_checked": [{"address": "messages.0.content.1", "reason": "inline image/png"}] * 20,
            "not_checked_in_all": 25,
            "milliseconds": 2.25,
            "masked_values": 3,
            "values_kept": False,
        },
        "refusal": {"reason": "R", "text": "[Invariant] no"},
        "temperature": 0.5,
    }
    told = facts(trace(metadata=metadata, duration_ms=61_000))
    assert [(fact.value, fact.name) for fact in told.timing] == [
        ("1.0 min", "total"),
        ("1.5 s", "upstream response"),
        ("250 ms", "first event"),
        ("2.2 ms", "checks"),
    ]
    assert [(fact.name, fact.value) for fact in told.tokens] == [("prompt", "1,200"), ("total", "1,234")]
    assert [fact.value for fact in told.checks] == ["refused", "final", "1", "2", "3"]
    assert [fact.detail for fact in told.checks[-2:]] == ["a, b", "placeholders stay in later responses"]
    assert (len(told.unchecked), told.unchecked_more) == (20, 5)
    assert told.refusal is not None and told.refusal.value == "[Invariant] no"
    assert [(fact.name, fact.value) for fact in told.others] == [("temperature", "0.5")]
