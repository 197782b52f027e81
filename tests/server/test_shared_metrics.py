"""Metrics that several processes have together."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.server.shared_metrics import Families, Family, Page, SharedMetrics, counted, merged

COUNTER = "exchanges"


def families(value: float, gauge: float = 0.0) -> Families:
    """A counter and a gauge."""
    counter = Family(COUNTER, "So many.", "counter", {(f"{COUNTER}_total", (("method", "m"),)): value})
    return {COUNTER: counter, "busy": Family("busy", "Now.", "gauge", {("busy", ()): gauge})}


def shown(found: Families) -> tuple[float, float | None]:
    """The values of ``families``."""
    (value,) = found[COUNTER].samples.values()
    return value, found["busy"].samples["busy", ()] if "busy" in found else None


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    """Memory for a parent and two processes."""
    made = [os.memfd_create("page") for _ in range(3)]
    yield made
    for descriptor in made:
        os.close(descriptor)


def test_whoever_is_asked_adds_all_up(descriptors: list[int]) -> None:
    pages = [Page(descriptor) for descriptor in descriptors]
    first, second = (SharedMetrics(pages, number) for number in (1, 2))
    second.write(families(5, gauge=1))
    assert shown(first.all(families(3, gauge=2), {})) == (8, 3)
    assert shown(second.all(families(6, gauge=1), {"busy": max})) == (9, 2)


def test_a_successor_goes_on_from_what_was_counted(descriptors: list[int]) -> None:
    """Its own count begins at nothing; gauges of who has ended are no more."""
    pages = [Page(descriptor) for descriptor in descriptors]
    SharedMetrics(pages, 1).write(families(7, gauge=4))
    parent = Page(descriptors[1])
    parent.write(counted(parent.read()))
    assert shown(SharedMetrics(pages, 2).all({}, {})) == (7, None)
    successor = SharedMetrics([Page(descriptor) for descriptor in descriptors], 1)
    assert shown(successor.all(families(2, gauge=1), {})) == (9, 1)
    successor.write(families(3))
    assert shown(successor.all(families(4), {})) == (11, 0)


def test_a_process_that_is_killed_while_it_writes_leaves_what_it_wrote_before(descriptors: list[int]) -> None:
    """Wherever in the new version it was."""
    memory, page = descriptors[0], Page(descriptors[0])
    for value in (1.25, 2.25):
        page.write(families(value))
    before = os.pread(memory, os.fstat(memory).st_size, 0)
    page.write(families(3.25))
    after = os.pread(memory, len(before), 0)
    step = 4096
    (start,) = (at for at in range(0, len(after), step) if before[at : at + step] != after[at : at + step])
    written = len(after[start : start + step].rstrip(b"\0"))
    for end in range(start + 1, start + written):
        torn = after[start:end] + before[end : start + step]
        os.pwrite(memory, torn, start)
        # What it wrote last may be what was there.
        assert shown(Page(memory).read())[0] == (3.25 if torn == after[start : start + step] else 2.25)
    os.pwrite(memory, after[start : start + step], start)
    assert shown(Page(memory).read())[0] == 3.25


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)), min_size=1))
def test_each_sample_is_the_sum_of_those_that_have_it(parts: list[dict[str, int]]) -> None:
    given_parts = [
        {"x": Family("x", "", "counter", {("x_total", (("of", label),)): value for label, value in part.items()})}
        for part in parts
    ]
    whole = {labels[0][1]: value for (_, labels), value in merged(given_parts, {})["x"].samples.items()}
    assert whole == {label: sum(part.get(label, 0) for part in parts) for label in set().union(*parts)}
