import json
import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.traces.figures import (
    FIRST_BOUND,
    GROWTH,
    LAST_INTERVAL,
    Bucket,
    Counts,
    DurationHistogram,
    Figures,
    as_json,
    figures_of,
    from_json,
    resampled,
    total,
    with_fewer_names,
)

COUNTS = st.dictionaries(st.text(max_size=3), st.integers(1, 9), max_size=4)
LAST_BOUND = FIRST_BOUND * GROWTH**LAST_INTERVAL
MEASURABLE = st.floats(FIRST_BOUND * 1.001, LAST_BOUND * 0.99)
HISTOGRAMS = st.lists(st.floats(0, 1e9), max_size=5).map(DurationHistogram.of)
VALUES: dict[object, st.SearchStrategy[Any]] = {Counts: COUNTS, int: st.integers(0, 99), DurationHistogram: HISTOGRAMS}
FIGURES = st.builds(Figures, **{field.name: VALUES[field.type] for field in fields(Figures)})


@given(FIGURES, FIGURES, FIGURES)
def test_figures_are_merged_in_any_order(a: Figures, b: Figures, c: Figures) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Figures() == a


@given(st.lists(FIGURES, max_size=3))
def test_figures_survive_their_storage(figures: list[Figures]) -> None:
    """And are added up when several are read."""
    assert from_json(map(as_json, figures)) == total(figures)


@given(st.lists(MEASURABLE, min_size=1), st.floats(0, 1))
def test_a_quantile_is_at_most_ten_percent_off(values: list[float], share: float) -> None:
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    estimate = DurationHistogram.of(values).quantile(share)
    assert estimate is not None
    assert abs(estimate - exact) <= 0.096 * exact


@given(st.lists(st.floats(0, 1e9)), st.lists(st.floats(0, 1e9)))
def test_merged_histograms_count_what_each_of_them_did(a: list[float], b: list[float]) -> None:
    assert DurationHistogram.of(a) + DurationHistogram.of(b) == DurationHistogram.of(a + b)
    assert (DurationHistogram.of(a) + DurationHistogram.of(b)).count == len(a) + len(b)


def test_nothing_counted_has_no_quantile() -> None:
    assert DurationHistogram().quantile(0.5) is None


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf, 1e300, 10**400])
def test_a_duration_that_is_none_is_counted_all_the_same(value: float) -> None:
    assert DurationHistogram.of([value]).count == 1


def test_an_exchange_is_counted_with_its_tokens_times_and_rules() -> None:
    metadata = {
        "usage": {"promptTokenCount": 7, "candidatesTokenCount": 5, "thoughtsTokenCount": 3, "totalTokenCount": 15}
        | {"cachedContentTokenCount": 4},
        "latencies_ms": {"upstream_head": 90.0, "first_byte": 100.0},
        "coverage": {"milliseconds": 3.0},
    }
    found = figures_of(
        "refused_response", metadata, 400.0, {"block": ["a", "b"], "ask": ["b", "c"], "log": ["d"]}, "gemini"
    )
    assert found == Figures(
        {"refused_response": 1},
        {"a": 1, "b": 1, "c": 1},
        7,
        8,
        DurationHistogram.of([400]),
        DurationHistogram.of([100]),
        {"gemini": 1},
        logged={"d": 1},
        asked={"b": 1, "c": 1},
        prompts={"gemini": 7},
        outputs={"gemini": 8},
        cached={"gemini": 4},
        checks=DurationHistogram.of([3]),
        heads=DurationHistogram.of([90]),
    )
    assert (found.requests, found.refused) == (1, 1)


def test_rules_count_only_where_they_refused() -> None:
    found = figures_of("completed", {}, 1.0, {"mask": ["a"], "ask": ["b"]})
    assert (found.refusals, found.masked, found.asked) == ({}, {"a": 1}, {"b": 1})


def test_figures_of_an_earlier_version_are_read() -> None:
    """What it did not count is missing, and is counted from then on."""
    kept = '{"outcomes":{"completed":2},"refusals":{},"tokens":[1,2],"durations":{},"first_bytes":{},"models":{"m":2}}'
    old = from_json([json.loads(kept)])
    assert old == Figures({"completed": 2}, prompt_tokens=1, output_tokens=2, models={"m": 2})
    assert (old + Figures(logged={"a": 1}, prompts={"m": 4})).prompts == {"m": 4}


def test_a_pushed_trace_took_no_time_here() -> None:
    assert figures_of("pushed", {}, 0.0).durations.count == 0


@given(
    st.dictionaries(
        st.sampled_from(["usage", "latencies_ms", "coverage"]),
        st.recursive(
            st.none() | st.integers() | st.floats() | st.text(),
            lambda inner: st.dictionaries(
                st.sampled_from(["promptTokenCount", "candidatesTokenCount", "first_byte", "milliseconds"]), inner
            ),
        ),
    )
)
def test_metadata_that_a_client_made_up_does_no_harm(metadata: dict[str, Any]) -> None:
    assert figures_of("completed", metadata, 1.0).requests == 1


def test_a_true_count_of_tokens_is_one() -> None:
    """As Python has it, and in JSON a number all the same."""
    assert json.dumps(as_json(figures_of("pushed", {"usage": {"promptTokenCount": True}}, 0.0))["tokens"]) == "[1, 0]"


def test_resampled_buckets_are_equal_in_width_and_leave_out_no_time() -> None:
    def bucket(start: int, count: int) -> Bucket:
        return Bucket(start, 300, Figures({"completed": count}))

    merged = resampled([bucket(3300, 1), bucket(3600, 2), bucket(6900, 3), bucket(10800, 4)], 3500, 10_900, 3600)
    assert [(one.start, one.seconds, one.figures.requests) for one in merged] == [
        (0, 3600, 1),
        (3600, 3600, 5),
        (7200, 3600, 0),
        (10800, 3600, 4),
    ]


@given(st.lists(st.tuples(st.integers(0, 50), FIGURES)), st.integers(1, 10))
def test_resampling_loses_nothing(found: list[tuple[int, Figures]], factor: int) -> None:
    buckets = [Bucket(start * 300, 300, figures) for start, figures in found]
    merged = resampled(buckets, 0, 51 * 300, factor * 300)
    assert total(one.figures for one in merged) == total(figures for _, figures in found)


@given(FIGURES, st.integers(1, 3))
def test_rare_names_are_counted_together(figures: Figures, most: int) -> None:
    fewer = with_fewer_names(figures, most)
    assert len(fewer.refusals) <= most and len(fewer.models) <= most
    assert sum(fewer.refusals.values()) == sum(figures.refusals.values())
    assert sum(fewer.models.values()) == sum(figures.models.values())
