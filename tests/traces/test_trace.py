from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.traces.trace import Annotation, annotations_for, innermost, new_id, trace_json
from tests.traces.samples import ANNOTATION, GUARDRAIL, trace


@dataclass
class Violation:
    message: str
    ranges: Sequence[str] = ()
    described: Mapping[str, Any] = field(default_factory=lambda: GUARDRAIL)
    traced: bool = False


def test_ids_are_random_uuids() -> None:
    made = [new_id() for _ in range(100)]
    read = [UUID(one) for one in made]
    assert [str(one) for one in read] == made
    assert {(one.version, one.variant) for one in read} == {(4, RFC_4122)} and len(set(read)) == 100


@pytest.mark.parametrize(
    ("ranges", "kept"),
    [
        (["messages.1", "messages.1.content:3-9"], ["messages.1.content:3-9"]),
        (["messages.1", "messages.10.content:3-9"], ["messages.1", "messages.10.content:3-9"]),
        (["messages.1.content", "messages.1.content:3-9"], ["messages.1.content:3-9"]),
        (["messages.1.content:3-9", "messages.1.content:3-90"], ["messages.1.content:3-9", "messages.1.content:3-90"]),
        (["messages.1.content:1-2", "messages.1.content:1-2"], ["messages.1.content:1-2"]),
        (["messages", "messages.0", ""], ["messages.0"]),
        ([], []),
    ],
)
def test_ancestors_are_dropped_by_path_segments(ranges: list[str], kept: list[str]) -> None:
    assert list(innermost(ranges)) == kept


addresses = st.lists(st.sampled_from(["1", "10", "content", "a"]), min_size=1, max_size=4).map(".".join)
with_ranges = st.tuples(addresses, st.sampled_from(["", ":1-2", ":1-20"])).map("".join)


@given(st.lists(with_ranges, max_size=8))
def test_what_is_dropped_lies_above_something_kept(ranges: list[str]) -> None:
    kept = innermost(ranges)
    assert set(kept) <= set(ranges)
    for dropped in set(ranges) - set(kept):
        assert any(other.startswith((dropped + ".", dropped + ":")) for other in kept)


def test_each_range_of_a_violation_becomes_an_annotation_and_one_without_ranges_is_kept() -> None:
    found = annotations_for([Violation("a", ["messages.0", "messages.1"]), Violation("b")])
    assert found == (
        Annotation("a", "messages.0", "guardrails-error", GUARDRAIL),
        Annotation("a", "messages.1", "guardrails-error", GUARDRAIL),
        Annotation("b", "", "guardrails-error", GUARDRAIL),
    )


def test_ranges_of_other_violations_do_not_count() -> None:
    found = annotations_for([Violation("a", ["messages.1"]), Violation("b", ["messages.1.content:0-1"])])
    assert [annotation.address for annotation in found] == ["messages.1", "messages.1.content:0-1"]


def test_the_two_ends_of_a_traced_value_are_told_apart_and_violations_from_each_other() -> None:
    """A value without a source, or a rule that traces nothing, has no ends."""
    argument, source = "messages.1.tool_calls.0.function.arguments.to", "messages.0.content:3-9"
    given = [
        Violation("a", [argument, source], traced=True),
        Violation("b", [argument], traced=True),
        Violation("c", [argument, source]),
        Violation("d", [source, argument], traced=True),
    ]
    extras = [annotation.extra for annotation in annotations_for(given)]
    first, last = ([{"traced": {"violation": number, "end": end}} for end in ("call", "source")] for number in (0, 3))
    assert extras == [*first, {}, {}, {}, *last[::-1]]


def test_json_has_invariants_annotations_and_no_tenant() -> None:
    found = trace_json(trace(annotations=(ANNOTATION,), tenant="hash"))
    assert found["annotations"] == [
        {
            "content": "no secrets",
            "address": "messages.1.content:4-10",
            "extra_metadata": {"source": "guardrails-error", "guardrail": GUARDRAIL},
        }
    ]
    assert "tenant" not in found
