"""Plots, without a page."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.explorer.pages.dashboard import breakdowns, plots
from gemini_proxy.explorer.pages.plots import Plot, Series, lines, stacked
from gemini_proxy.traces.figures import Bucket, DurationHistogram, Figures

COUNTS = st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**4)), min_size=1, max_size=70)
TIMES = st.lists(st.none() | st.floats(0.01, 10**7), min_size=1, max_size=70)


def inside(plot: Plot) -> bool:
    drawn = [(bar.x, bar.y, bar.x + bar.width, bar.y + bar.height) for bar in plot.bars]
    drawn += [(x, y, x, y) for line in plot.lines for x, y in points(line.path)]
    return all(
        plot.left - 1 <= x and plot.top - 1 <= y and right <= plot.right + 1 and base <= plot.base + 1
        for x, y, right, base in drawn
    )


def points(path: str) -> list[tuple[float, float]]:
    numbers = [float(number) for number in path.replace("M", " ").replace("L", " ").split()]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


@given(COUNTS)
def test_bars_are_as_high_as_their_counts(counts: list[tuple[int, int]]) -> None:
    """On top of each other, within the canvas, and the table says the same."""
    starts = [300 * number for number in range(len(counts))]
    series = [Series("a", "s-a", [a for a, _ in counts]), Series("b", "s-b", [b for _, b in counts])]
    plot = stacked("p", "P", starts, 300, series)
    assert inside(plot)
    assert plot.empty is not any(a or b for a, b in counts)
    assert [row.values for row in plot.rows] == [(f"{a:,}", f"{b:,}") for a, b in counts]
    highest = max(counts, key=lambda pair: sum(pair))
    if sum(highest):
        scale = sum(bar.height for bar in plot.bars) / sum(a + b for a, b in counts)
        by_style = {style: sum(bar.height for bar in plot.bars if bar.style == style) for style in ("s-a", "s-b")}
        assert abs(by_style["s-a"] - scale * sum(a for a, _ in counts)) < 1
        assert (plot.base - plot.top) / 4 < scale * sum(highest) < plot.base - plot.top + 1


@given(TIMES)
def test_lines_go_through_their_values_and_stop_where_there_is_none(values: list[float | None]) -> None:
    """A value that stands alone is a dot."""
    plot = lines("p", "P", [300 * number for number in range(len(values))], 300, [Series("a", "s", values)])
    assert inside(plot)
    (line,) = plot.lines
    assert len(points(line.path)) == sum(value is not None for value in values)
    known = [value is not None for value in values]
    runs = sum(here and not before for here, before in zip(known, [False, *known], strict=False))
    assert line.path.count("M") == runs
    alone = sum(
        here and not before and not after
        for before, here, after in zip([False, *known], known, [*known[1:], False], strict=False)
    )
    assert len(line.dots) == alone


def test_labels_are_round_and_apart() -> None:
    """The axis of a count has whole numbers; times are written in one unit."""
    starts = [1_700_000_000 + 1800 * number for number in range(48)]
    counts = stacked("p", "P", starts, 1800, [Series("a", "s", [*[0] * 47, 13])])
    assert [label.text for label in counts.y_labels] == ["0", "8", "16"]
    slow = lines("p", "P", starts, 1800, [Series("a", "s", [*[None] * 47, 1130.0])])
    assert [label.text for label in slow.y_labels] == ["0", "0.6 s", "1.2 s"]
    gaps = [after.at - before.at for before, after in zip(slow.x_labels, slow.x_labels[1:], strict=False)]
    assert len(slow.x_labels) > 4 and min(gaps) > 57


@pytest.mark.parametrize("step", [10_800, 21_600])
def test_seven_days_have_a_label_each(step: int) -> None:
    """At their midnights, over a change of the clock as well."""
    begun = datetime(2026, 3, 25, 13)
    first = round(begun.timestamp()) // step * step
    starts = range(first, first + 7 * 86_400, step)
    plot = stacked("p", "P", starts, step, [Series("a", "s", [1] * len(starts))])
    days = [begun + timedelta(days=number) for number in range(1, 8)]
    assert [label.text for label in plot.x_labels] == [f"{day:%a %d}" for day in days]
    scale = (plot.right - plot.left) / (starts[-1] + step - first)
    midnights = [plot.left + (day.replace(hour=0).timestamp() - first) * scale for day in days]
    assert [label.at for label in plot.x_labels] == pytest.approx(midnights, abs=0.01)


def test_the_dashboard_has_a_plot_for_each_question() -> None:
    """Requests by how they ended, refusals by rule, and two times; many rules share one color, pushed ones count."""
    refusals = {f"rule {number}": 20 - number for number in range(9)} | {"": 1}
    one = Figures(
        {"completed": 3, "refused_request": 2, "client_gone": 1, "pushed": 4}, refusals, masked={"a": 2, "b": 1}
    )
    total, begun, checked, answered = (DurationHistogram.of([ms]) for ms in (100.0, 10.0, 1.0, 20.0))
    timed = Figures({"completed": 1}, {}, 0, 0, total, begun, checks=checked, heads=answered, logged={"a": 1})
    requests, refused, found, guard, latency, first = plots([Bucket(0, 300, one), Bucket(300, 300, timed)])
    assert {series.name: list(series.values) for series in requests.series} == {
        "completed": [7, 1],
        "refused": [2, 0],
        "other": [1, 0],
    }
    assert [series.name for series in refused.series] == [
        *(f"rule {number}" for number in range(6)),
        "other guardrails",
    ]
    assert refused.series[-1].values == [14 + 13 + 12 + 1, 0]
    assert [list(series.values) for series in found.series] == [[0, 1], [3, 0], [0, 0]]
    medians = {series.name: series.values[1] or 0 for series in guard.series}
    assert 0.9 < medians["checks, median"] < 1.1 and 18 < medians["upstream, median"] < 22
    assert latency.series[0].values[0] is None and 90 < (latency.series[0].values[1] or 0) < 110
    assert 9 < (first.series[1].values[1] or 0) < 11
    assert plots([])[0].empty


def test_the_most_frequent_names_have_rows_and_the_others_one() -> None:
    """All of what was counted, each row with the filter of its traces; the dataset without a name among them."""
    figures = Figures(
        models={f"model {number}": 100 - number for number in range(20)} | {"": 5},
        prompts={"model 0": 7, "model 19": 3},
        refusals={"a": 1},
        logged={"a": 2, "b": 9},
    )
    models, rules, datasets = breakdowns(
        figures, {"": Figures({"completed": 2}), "shop": Figures({"refused_request": 3})}
    )
    assert [row.name for row in models.rows] == [*(f"model {number}" for number in range(12)), "others"]
    assert sum(row.values[0] for row in models.rows) == sum(figures.models.values())
    assert [(row.values[1], row.filters) for row in models.rows[:: len(models.rows) - 1]] == [
        (7, {"model": "model 0"}),
        (3, {}),
    ]
    assert [(row.name, row.values) for row in rules.rows] == [("b", (0, 0, 0, 9)), ("a", (1, 0, 0, 2))]
    assert [(row.filters, row.values) for row in datasets.rows] == [
        ({"dataset": "shop"}, (3, 3)),
        ({"dataset": "-"}, (2, 0)),
    ]
