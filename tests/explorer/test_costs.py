"""What models cost, without a page."""

import pytest

from gemini_proxy.config import Config
from gemini_proxy.explorer.pages.costs import costs_of, money, prices_of
from gemini_proxy.explorer.pages.dashboard import plots_and_tables
from gemini_proxy.sections import Price
from gemini_proxy.traces.figures import Bucket, Figures
from gemini_proxy.traces.usage import OwnerUsage

LISTED = {
    "gemini-*-flash*": Price(input=1.0, output=4.0, cached=0.25),
    "gemini-*": Price(input=2.0, output=8.0),
    "gemini-9-flash-own": Price(input=100.0, output=100.0),
}
SPENT = Figures(
    models={"gemini-9-flash": 2, "gemini-9-pro": 1, "strange": 1},
    prompts={"gemini-9-flash": 3_000_000, "gemini-9-pro": 1_000_000, "strange": 5, "": 1},
    outputs={"gemini-9-flash": 500_000, "gemini-9-pro": 1_000_000},
    cached={"gemini-9-flash": 2_000_000, "gemini-9-pro": 1_000_000},
)


def test_a_model_has_its_own_price_or_that_of_the_first_pattern_it_fits() -> None:
    found = prices_of(["gemini-9-flash", "gemini-9-pro", "gemini-9-flash-own", "strange", ""], LISTED)
    assert {model: price.input for model, price in found.items()} == {
        "gemini-9-flash": 1.0,
        "gemini-9-pro": 2.0,
        "gemini-9-flash-own": 100.0,
    }


def test_tokens_of_a_cache_cost_what_they_do_or_what_others_do() -> None:
    costs = costs_of(SPENT, prices_of(SPENT.prompts, LISTED))
    assert costs.models == {"gemini-9-flash": pytest.approx(1 + 0.5 + 2), "gemini-9-pro": pytest.approx(2 + 8)}
    assert costs.total == pytest.approx(13.5)
    assert costs.unpriced == ("", "strange")


def test_more_cached_tokens_than_there_were_cost_no_more() -> None:
    """A pushed trace may say so."""
    figures = Figures(prompts={"gemini-9-flash": 1_000_000}, cached={"gemini-9-flash": 9_000_000})
    assert costs_of(figures, prices_of(figures.prompts, LISTED)).total == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("value", "written"), [(0.0, "0"), (0.01234, "$0.0123"), (1.0, "$1.00"), (1234.5, "$1,234.50")]
)
def test_small_sums_have_more_digits(value: float, written: str) -> None:
    assert money(value) == written


def test_cost_is_shown_by_day_and_by_model() -> None:
    """A day's cost is that of its parts; without a price list there is neither a plot nor a column."""
    day = 86_400
    buckets = [Bucket(start, day // 2, SPENT) for start in range(10 * day, 14 * day, day // 2)]
    shown = plots_and_tables(OwnerUsage(buckets, {}), LISTED)
    cost = shown["plots"][-1]
    assert (cost.title, len(cost.rows)) == ("Cost by day (UTC)", 4)
    assert [label.text for label in cost.x_labels] == ["Sun 11", "Mon 12", "Tue 13", "Wed 14"]
    assert cost.rows[0].values == ("$20.00", "$7.00")
    assert [row.values[-1] for row in shown["breakdowns"][0].rows][:2] == [pytest.approx(28), pytest.approx(80)]
    bare = plots_and_tables(OwnerUsage(buckets, {}), {})
    assert bare["costs"] is None and len(bare["plots"]) == len(shown["plots"]) - 1
    assert "cost" not in bare["breakdowns"][0].columns


def test_prices_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_PROXY_PRICES", '{"gemini-*": {"input": 1, "output": 2}}')
    assert Config().prices == {"gemini-*": Price(input=1, output=2)}
