"""Serve the pages of a dataset's rules: list, write, check, try and save them; compare and restore their versions."""

import difflib
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Final, Literal

import orjson
from aiohttp import web

from gemini_proxy.errors import BadRequest, NotFound
from gemini_proxy.explorer.api.endpoints import ApiCall, api
from gemini_proxy.explorer.api.policy_api import version_of
from gemini_proxy.explorer.api.request_bodies import MAX_POLICY_NAME, PolicyTrial, WrittenPolicy, is_dataset_name
from gemini_proxy.explorer.app_keys import (
    DATABASE,
    DATASETS,
    FILE_RULES,
    GUARDRAILS,
    POLICIES,
    POLICY_VERSIONS,
    SHADOWS,
    TRACES,
)
from gemini_proxy.explorer.pages.site import DATASET_GONE, Form, PageVisit, dataset_path, page, see
from gemini_proxy.explorer.pages.trials import BATCH, MAX_TRIED, TRIALS, PolicyCheck
from gemini_proxy.guardrails.plugins import installed_detectors
from gemini_proxy.guardrails.rules import HEADER_NAME, Action, ToolFacts
from gemini_proxy.policy.vocabulary import vocabulary
from gemini_proxy.traces.dataset_rules import files_in_force
from gemini_proxy.traces.datasets import UNNAMED, Dataset, labels_of
from gemini_proxy.traces.errors import DatasetGone
from gemini_proxy.traces.policies import PolicyVersion, StoredPolicy
from gemini_proxy.traces.search.listing import Listing, TraceQuery
from gemini_proxy.traces.shadows import StoredShadow
from gemini_proxy.traces.trace import Trace

_PAGE: Final = 100
"""Traces that are listed at once for a trial."""
STARTER: Final = """\
from invariant.detectors import secrets

raise "no secrets in answers" if:
    (m: Message)
    m.role == "assistant"
    any(secrets(m.content))
"""
"""The text of a new rule."""
SHARE: Final = 10
"""The share of the conversations, in percent, that a shadow is started on unless another is chosen."""
_VERSIONS: Final = 10
"""Versions of a rule on one page: each may differ in a long text."""
_MAX_COMPARED: Final = 250_000
"""Pairs of lines that are compared, which takes some 50 ms at worst; of longer texts all lines are shown as changed."""
_MAX_LINES: Final = 400
"""Lines of a difference that are shown."""
_AROUND: Final = 3
"""Lines around a difference."""
_ACTIONS: Final[Mapping[str, Action]] = {"block": "block", "ask": "ask", "mask": "mask", "log": "log"}


@dataclass(frozen=True, slots=True)
class Draft:
    """A rule as a form has it. ``id`` is "" for one that is not saved yet."""

    id: str = ""
    name: str = ""
    content: str = STARTER
    action: Action = "block"
    enabled: bool = True

    @classmethod
    def of(cls, policy: StoredPolicy) -> "Draft":
        return cls(policy.id, policy.name, policy.content, policy.action, policy.enabled)

    @classmethod
    def from_form(cls, form: Form, policy_id: str = "") -> "Draft":
        return cls(
            policy_id,
            form.get("name", "").strip(),
            form.get("content", ""),
            _ACTIONS.get(form.get("action", ""), "block"),
            "enabled" in form,
        )

    @classmethod
    def of_shadow(cls, shadow: StoredShadow) -> "Draft":
        return cls(shadow.policy, shadow.name, shadow.content, shadow.action)

    @property
    def wrong_name(self) -> str:
        """Return the fault of the name, "" if it has none."""
        if not self.name:
            return "A rule needs a name"
        if len(self.name) > MAX_POLICY_NAME or "\0" in self.name:
            return f"A name must have at most {MAX_POLICY_NAME} characters and no NUL"
        return ""


@page
async def rules(visit: PageVisit) -> web.StreamResponse:
    """Show the rules that apply to a dataset: its own, those of the policy files, and what clients may send."""
    dataset = await visit.dataset()
    policies = await visit.app[POLICIES].of(dataset)
    files, guardrails = visit.app[FILE_RULES](), visit.app[GUARDRAILS]()
    in_force = files_in_force(policies, files).actions
    operates = visit.identity.role == "operator"
    removed = await visit.app[POLICY_VERSIONS].removed(dataset) if operates else ()
    shadows = {shadow.policy: shadow for shadow in await visit.app[SHADOWS].of(dataset)} if operates else {}
    known = {policy.id for policy in policies}
    return await visit.show(
        "rules.html",
        dataset=dataset,
        path=dataset_path(dataset),
        rules=policies,
        removed=removed,
        shadows=shadows,
        only_shadows=[shadow for shadow in shadows.values() if shadow.policy not in known],
        files=[(rule, rule.action in in_force) for rule in files.all],
        header=HEADER_NAME,
        header_mode=guardrails.header_policies,
        off=guardrails.engine == "off",
    )


@page
async def new(visit: PageVisit) -> web.StreamResponse:
    """Show a form for a new rule."""
    return await editor(visit, await visit.dataset(), Draft())


@page
async def edit(visit: PageVisit) -> web.StreamResponse:
    """Show a form for a rule."""
    dataset = await visit.dataset()
    return await editor(visit, dataset, Draft.of(await _policy(visit, dataset)))


@page
async def add(visit: PageVisit) -> web.StreamResponse:
    """Save a new rule if it loads; otherwise show the form again with its faults."""
    visit.require_operator()
    dataset = await visit.dataset()
    draft = Draft.from_form(await visit.form())
    check = await visit.app[TRIALS].check(visit.user, draft.content)
    if draft.wrong_name or not check.ok:
        return await editor(visit, dataset, draft, check)
    try:
        await visit.app[POLICIES].add(
            dataset, draft.name, draft.content, enabled=draft.enabled, action=draft.action, by=visit.identity.named
        )
    except DatasetGone:
        raise NotFound(DATASET_GONE) from None
    return see(f"{dataset_path(dataset)}/rules")


@page
async def save(visit: PageVisit) -> web.StreamResponse:
    """Save a changed rule if it loads; otherwise show the form again with its faults."""
    visit.require_operator()
    dataset = await visit.dataset()
    policy_id = visit.id("id")
    draft = Draft.from_form(await visit.form(), policy_id)
    check = await visit.app[TRIALS].check(visit.user, draft.content)
    if draft.wrong_name or not check.ok:
        return await editor(visit, dataset, draft, check)
    kept = await visit.app[POLICIES].change(
        dataset,
        policy_id,
        name=draft.name,
        content=draft.content,
        enabled=draft.enabled,
        action=draft.action,
        by=visit.identity.named,
    )
    if kept is None:
        raise NotFound("There is no such rule")
    return see(f"{dataset_path(dataset)}/rules")


@page
async def switch(visit: PageVisit) -> web.StreamResponse:
    """Enable or disable a rule, or give it another action."""
    visit.require_operator()
    dataset = await visit.dataset()
    form = await visit.form()
    to = form.get("to", "")
    policies, policy_id = visit.app[POLICIES], visit.id("id")
    if to in _ACTIONS:
        changed = await policies.change(dataset, policy_id, action=_ACTIONS[to], by=visit.identity.named)
    elif to in ("on", "off"):
        changed = await policies.change(dataset, policy_id, enabled=to == "on", by=visit.identity.named)
    else:
        raise BadRequest("A rule can be switched to block, ask, mask, log, on or off")
    if changed is None:
        raise NotFound("There is no such rule")
    return see(f"{dataset_path(dataset)}/rules")


@page
async def ask_delete(visit: PageVisit) -> web.StreamResponse:
    """Ask whether to delete a rule."""
    dataset = await visit.dataset()
    rule = await _policy(visit, dataset)
    return await visit.show("delete_rule.html", dataset=dataset, path=dataset_path(dataset), rule=rule)


@page
async def delete(visit: PageVisit) -> web.StreamResponse:
    """Delete a rule."""
    visit.require_operator()
    dataset = await visit.dataset()
    if not await visit.app[POLICIES].remove(dataset, visit.id("id"), by=visit.identity.named):
        raise NotFound("There is no such rule")
    return see(f"{dataset_path(dataset)}/rules")


@api
async def check_policy(call: ApiCall) -> object:
    """Say whether a policy loads, and if not, with line, column, reason and caret (``POST
    /explorer/api/check-policy``).
    """
    return (await call.app[TRIALS].check(call.user, (await call.body(WrittenPolicy)).policy)).json


@api
async def try_policy(call: ApiCall) -> object:
    """Say what a policy would have refused of a dataset's newest traces (``POST /explorer/api/try-policy``)."""
    trial = await call.body(PolicyTrial)
    text, last = trial.policy, 100 if trial.last is None else trial.last
    known = not trial.dataset or is_dataset_name(trial.dataset)
    dataset = await call.app[DATASETS].get(call.user, trial.dataset or UNNAMED) if known else None
    if dataset is None:
        raise NotFound("Dataset not found")
    trials = call.app[TRIALS]
    check = await trials.check(call.user, text)
    if not check.ok:
        return check.json
    tools = ToolFacts(labels_of(dataset.metadata))
    return (await trials.over(call.user, text, tools, _newest(call.app, dataset, max(1, min(last, MAX_TRIED))))).json


async def _newest(app: web.Application, dataset: Dataset, last: int) -> AsyncIterator[Sequence[Trace]]:
    """Yield the newest traces, newest first, in batches."""
    listing, store = Listing(app[DATABASE]), app[TRACES]
    before: int | None = None
    while last > 0:
        listed = await listing.page(dataset, TraceQuery(), min(_PAGE, last), before)
        positions = [summary.position for summary in listed.traces]
        for start in range(0, len(positions), BATCH):
            yield (await store.at(dataset, positions[start : start + BATCH]))[::-1]
        last -= len(positions)
        before = listed.older
        if before is None:
            return


async def _policy(visit: PageVisit, dataset: Dataset) -> StoredPolicy:
    policy_id = visit.id("id")
    for policy in await visit.app[POLICIES].of(dataset):
        if policy.id == policy_id:
            return policy
    raise NotFound("There is no such rule")


async def editor(
    visit: PageVisit,
    dataset: Dataset,
    draft: Draft,
    check: PolicyCheck | None = None,
    *,
    share: int = SHARE,
    of_shadow: bool = False,
) -> web.StreamResponse:
    """Show the form of a rule, with the faults if it was checked; with ``of_shadow`` that of a rule in shadow.

    ``share`` is the form's share of the conversations for the rule in shadow.
    """
    return await visit.show(
        "rule.html",
        400 if check is not None else 200,
        nonce=secrets.token_urlsafe(16),
        dataset=dataset,
        path=dataset_path(dataset),
        rule=draft,
        check=check,
        vocabulary=_vocabulary(),
        share=share,
        of_shadow=of_shadow,
    )


@cache
def _vocabulary() -> str:
    """Return the language's vocabulary for the editor, as JSON. Raise PluginError."""
    return orjson.dumps(vocabulary(installed_detectors()).json).decode()


@dataclass(frozen=True, slots=True)
class DiffLine:
    """A line of a difference: in both texts, only in the new or the old one, or a gap for lines that are left out."""

    kind: Literal["same", "added", "removed", "gap"]
    text: str


@dataclass(frozen=True, slots=True)
class ShownVersion:
    """A version with what was changed in it: ``facts`` in words, ``lines`` of the text."""

    version: PolicyVersion
    facts: Sequence[str]
    lines: Sequence[DiffLine]


@page
async def versions(visit: PageVisit) -> web.StreamResponse:
    """Show the versions of a rule, also of one that was deleted, to a key with the role operator."""
    visit.require_operator()
    dataset, policy_id = await visit.dataset(), visit.id("id")
    found = await visit.app[POLICY_VERSIONS].of(dataset, policy_id, _VERSIONS + 1, visit.number("before"))
    newest = found[:1] if visit.number("before") is None else await visit.app[POLICY_VERSIONS].of(dataset, policy_id, 1)
    if not newest:
        raise NotFound("There is no such rule")
    return await visit.show(
        "rule_versions.html",
        dataset=dataset,
        path=dataset_path(dataset),
        current=newest[0],
        found=found[:_VERSIONS],
        shown=lambda at: _shown_version(found[at], found[at + 1] if at + 1 < len(found) else None),
        older=found[_VERSIONS - 1].number if len(found) > _VERSIONS else None,
    )


@page
async def restore(visit: PageVisit) -> web.StreamResponse:
    """Make a version the current one. Raise BadRequest if it no longer loads."""
    visit.require_operator()
    dataset, policy_id = await visit.dataset(), visit.id("id")
    version = await version_of(visit.app, dataset, policy_id, visit.request.match_info["version"])
    check = await visit.app[TRIALS].check(visit.user, version.content)
    if not check.ok:
        place = f"line {check.line}, column {check.column}"
        raise BadRequest(f"Version {version.number} does not load any more: {place}: {check.reason}")
    try:
        await visit.app[POLICIES].restore(dataset, version, by=visit.identity.named)
    except DatasetGone:
        raise NotFound(DATASET_GONE) from None
    return see(f"{dataset_path(dataset)}/rules/{policy_id}/versions")


def _shown_version(version: PolicyVersion, before: PolicyVersion | None) -> ShownVersion:
    """Compare a version with the one before it, if that is known."""
    if before is None:
        return ShownVersion(version, (), ())
    return ShownVersion(version, tuple(_facts(before, version)), shown_difference(before.content, version.content))


def shown_difference(old: str, new: str) -> tuple[DiffLine, ...]:
    """Compare two texts, leaving out what is too long to show."""
    return tuple(_cut(differing(old, new)))


def differing(old: str, new: str) -> Iterator[DiffLine]:
    """Yield the lines in which two texts differ, with some around them."""
    before, after = old.split("\n"), new.split("\n")
    if len(before) * len(after) > _MAX_COMPARED:
        yield from (DiffLine("removed", line) for line in before)
        yield from (DiffLine("added", line) for line in after)
        return
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for number, group in enumerate(matcher.get_grouped_opcodes(_AROUND)):
        if number:
            yield DiffLine("gap", "…")
        for step, first, last, start, stop in group:
            if step == "equal":
                yield from (DiffLine("same", line) for line in before[first:last])
                continue
            yield from (DiffLine("removed", line) for line in before[first:last])
            yield from (DiffLine("added", line) for line in after[start:stop])


def _cut(lines: Iterator[DiffLine]) -> Iterator[DiffLine]:
    for number, line in enumerate(lines):
        if number == _MAX_LINES:
            more = sum(1 for _ in chain([line], lines))
            yield DiffLine("gap", f"… and {more:,} more lines")
            return
        yield line


def _facts(before: PolicyVersion, after: PolicyVersion) -> Iterator[str]:
    """Yield the changes of a version other than those of its text, in words."""
    if after.removed:
        yield "deleted"
    elif before.removed:
        yield "brought back"
    if before.name != after.name:
        yield f"renamed from “{before.name}”"
    if before.action != after.action:
        yield f"{before.action} → {after.action}"
    if before.enabled != after.enabled:
        yield "enabled" if after.enabled else "disabled"
    if before.metadata != after.metadata:
        yield "metadata changed"
