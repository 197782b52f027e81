"""Serve the page of a dataset's tools: the pinned declarations beside changed ones, and the tools' labels."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiohttp import web

from gemini_proxy.errors import NotFound
from gemini_proxy.explorer.api.dataset_api import checked_metadata
from gemini_proxy.explorer.app_keys import DATASETS, PINNED_TOOLS
from gemini_proxy.explorer.pages.site import PageVisit, dataset_path, page, see
from gemini_proxy.explorer.pages.templating import spelled_out
from gemini_proxy.policy import LABELS_PARAMETER
from gemini_proxy.traces.datasets import labels_of
from gemini_proxy.traces.pinned_tools import Declared, PinnedTool
from gemini_proxy.traces.rows import load

LABELS: Final = {
    "trusted": "Strangers cannot write what these tools return",
    "reads": "Calls only read data",
    "acts": "Calls have an effect",
    "free": "Arguments (tool.argument) that may come from anywhere",
    "private": "What these tools return is private",
}
"""The labels of tools, with the descriptions that the form shows."""
_SHOWN: Final = 20
"""Tools on one page: their declarations may be long."""
_MAX_COMPARED: Final = 1_000_000
"""Pairs of words that are compared, which takes a quarter of a second at worst; in longer texts everything between the
first and the last difference is marked."""
_WORD: Final = re.compile(r"\w+|\s+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DiffSpan:
    """A piece of a text; ``marked`` if the other text has something else there."""

    text: str
    marked: bool = False


@dataclass(frozen=True, slots=True)
class Side:
    """One declaration of a tool: its description and its parameters, with what differs from the other one marked."""

    declared: Declared
    description: Sequence[DiffSpan]
    parameters: Sequence[DiffSpan]


@dataclass(frozen=True, slots=True)
class ShownTool:
    """A tool as the page shows it; ``changed`` is None if it was always declared as it is pinned."""

    name: str
    pinned: Side
    changed: Side | None


@page
async def tools(visit: PageVisit) -> web.StreamResponse:
    """List the pinned tools of a dataset, the changed ones first."""
    dataset, start = await visit.dataset(), visit.number("from", 0) or 0
    pinned = await visit.app[PINNED_TOOLS].of(dataset, _SHOWN + 1, start)
    return await visit.show(
        "tools.html",
        dataset=dataset,
        path=dataset_path(dataset),
        tools=pinned[:_SHOWN],
        shown=_shown_tool,
        following=start + _SHOWN if len(pinned) > _SHOWN else None,
        first=not start,
        labels=[(kind, words, labels_of(dataset.metadata).get(kind, ())) for kind, words in LABELS.items()],
    )


@page
async def accept(visit: PageVisit) -> web.StreamResponse:
    """Pin the changed declaration that was looked at."""
    visit.require_operator()
    dataset, form = await visit.dataset(), await visit.form()
    if not await visit.app[PINNED_TOOLS].accept(
        dataset, form.get("name", ""), form.get("digest", ""), by=visit.identity.named
    ):
        raise NotFound("The tool's declaration has changed again: check it before you accept it")
    return see(f"{dataset_path(dataset)}/tools")


@page
async def forget(visit: PageVisit) -> web.StreamResponse:
    """Remove a tool, so that its next declaration is pinned."""
    visit.require_operator()
    dataset, form = await visit.dataset(), await visit.form()
    if not await visit.app[PINNED_TOOLS].forget(dataset, form.get("name", ""), by=visit.identity.named):
        raise NotFound("There is no such tool")
    return see(f"{dataset_path(dataset)}/tools")


@page
async def label(visit: PageVisit) -> web.StreamResponse:
    """Set the labels of a dataset's tools, from form fields with one name per line."""
    visit.require_operator()
    dataset, form = await visit.dataset(), await visit.form()
    labels = {kind: names for kind in LABELS if (names := _lines(form.get(kind, "")))}

    def change(before: Mapping[str, Any]) -> Mapping[str, Any]:
        rest = {key: value for key, value in before.items() if key != LABELS_PARAMETER}
        return checked_metadata({**rest, LABELS_PARAMETER: labels} if labels else rest)

    if (
        not dataset.name
        or await visit.app[DATASETS].change_metadata(visit.user, dataset.name, change, by=visit.identity.named) is None
    ):
        raise NotFound("Only a dataset with a name has labels")
    return see(f"{dataset_path(dataset)}/tools")


def _shown_tool(tool: PinnedTool) -> ShownTool:
    """Mark the differences of a tool. Takes up to half a second for the longest declarations."""
    before = _texts(tool.pinned)
    if tool.changed is None:
        return ShownTool(tool.name, Side(tool.pinned, *([DiffSpan(text)] for text in before)), None)
    compared = [differences(old, new) for old, new in zip(before, _texts(tool.changed), strict=True)]
    pinned, changed = zip(*compared, strict=True)
    return ShownTool(tool.name, Side(tool.pinned, *pinned), Side(tool.changed, *changed))


def differences(old: str, new: str) -> tuple[list[DiffSpan], list[DiffSpan]]:
    """Return both texts in spans of words, those marked that the other text does not have."""
    first, second = _WORD.findall(old), _WORD.findall(new)
    start = _common(first, second)
    end = _common(first[start:][::-1], second[start:][::-1])
    before, after = first[start : len(first) - end], second[start : len(second) - end]
    if len(before) * len(after) > _MAX_COMPARED:
        steps: Sequence[tuple[str, int, int, int, int]] = [("replace", 0, len(before), 0, len(after))]
    else:
        steps = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    head, rest = DiffSpan("".join(first[:start])), DiffSpan("".join(first[len(first) - end :]))
    olds = [DiffSpan("".join(before[at:to]), step != "equal") for step, at, to, _, _ in steps]
    news = [DiffSpan("".join(after[at:to]), step != "equal") for step, _, _, at, to in steps]
    return _filled(head, *olds, rest), _filled(head, *news, rest)


def _filled(*spans: DiffSpan) -> list[DiffSpan]:
    return [span for span in spans if span.text]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the items that both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(first), len(second)))


def _texts(declared: Declared) -> tuple[str, str]:
    """Return description and parameters, with hints below if any; invisible characters are spelled out."""
    if not declared.text:
        return "", ""
    declaration: dict[str, Any] = load(declared.text)
    description = declaration["description"] or ""
    hints = {"annotations": declaration["annotations"]} if "annotations" in declaration else None
    parameters = "\n".join(filter(None, map(_pretty, (declaration["parameters"], hints))))
    return spelled_out(description if isinstance(description, str) else _pretty(description)), spelled_out(parameters)


def _pretty(schema: Any) -> str:
    return orjson.dumps(schema, option=orjson.OPT_INDENT_2, default=str).decode() if schema else ""
