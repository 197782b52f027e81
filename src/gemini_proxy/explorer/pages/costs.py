"""Compute the cost of tokens by the operator's price list. No I/O."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from gemini_proxy.sections import Price
from gemini_proxy.traces.figures import Figures

_PRICED: Final = 1_000_000
"""Tokens that a price is for."""


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """The cost in US dollars by model. ``unpriced`` are the models with tokens and without a price, "" for the rare."""

    models: Mapping[str, float]
    unpriced: tuple[str, ...]

    @property
    def total(self) -> float:
        return sum(self.models.values())


def prices_of(models: Iterable[str], prices: Mapping[str, Price]) -> dict[str, Price]:
    """Return the price of each model that has one: by its own name, else by the first pattern that it fits."""
    found: dict[str, Price] = {}
    for model in filter(None, models):
        fitting = (price for pattern, price in prices.items() if fnmatchcase(model, pattern))
        price = prices.get(model) or next(fitting, None)
        if price is not None:
            found[model] = price
    return found


def costs_of(figures: Figures, prices: Mapping[str, Price]) -> ModelCosts:
    """Return the cost of the figures' tokens. ``prices`` are by model, as ``prices_of`` returns them."""
    models = sorted({*figures.prompts, *figures.outputs})
    priced = {model: _cost(figures, model, prices[model]) for model in models if model in prices}
    return ModelCosts(priced, tuple(model for model in models if model not in prices))


def money(value: float) -> str:
    """Write US dollars as ``$1,234.50``, less than one as ``$0.0123``, none as ``0``."""
    return "0" if not value else f"${value:,.2f}" if value >= 1 else f"${value:.4f}"


def _cost(figures: Figures, model: str, price: Price) -> float:
    prompt, cached = figures.prompts.get(model, 0), figures.cached.get(model, 0)
    from_cache = price.input if price.cached is None else price.cached
    sums = (
        max(0, prompt - cached) * price.input,
        min(prompt, cached) * from_cache,
        figures.outputs.get(model, 0) * price.output,
    )
    return sum(sums) / _PRICED
