"""What is asked of a store of many traces: the pages of the Explorer, with each filter and the worst of their pairs."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import func, select

from bench.million_traces import CONVERSATION, LABEL, LOGGED, MODELS, OWNER, PHRASE, RARE_WORD, RULES
from gemini_proxy.explorer.pages.conversation_pages import EXCHANGES
from gemini_proxy.explorer.pages.dashboard import plots_and_tables
from gemini_proxy.traces.audit import AuditLog
from gemini_proxy.traces.catalogue import Catalogue
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.datasets import Dataset, Datasets
from gemini_proxy.traces.headline import KEY_LENGTH
from gemini_proxy.traces.schema import usage as kept
from gemini_proxy.traces.search.listing import Listing, TraceQuery
from gemini_proxy.traces.shadows import Shadows
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import REFUSED, Outcome
from gemini_proxy.traces.usage import DatasetUsage

PAGE: Final = 50
DEEP: Final = 1_000
DAY: Final = 86_400
RARE_MODEL: Final = list(MODELS)[-1]


@dataclass(frozen=True, slots=True)
class Question:
    """Something that a page asks; ``ask`` says how much came of it."""

    title: str
    ask: Callable[[], Awaitable[int]]


def _filters(now: float) -> dict[str, TraceQuery]:
    """The pages of one dataset, by title."""
    first_day = TraceQuery(since=now - 29 * DAY, until=now - 28 * DAY)
    return {
        "first page": TraceQuery(),
        "outcome, common": TraceQuery(outcome=Outcome.COMPLETED),
        "outcome, 1 %": TraceQuery(outcome=Outcome.REFUSED_REQUEST),
        "outcome, 0.01 %": TraceQuery(outcome=Outcome.FAILED),
        "outcome, none": TraceQuery(outcome=Outcome.PUSHED),
        "model, common": TraceQuery(model="gemini-2.5-flash"),
        "model, 0.01 %": TraceQuery(model=RARE_MODEL),
        "model, none": TraceQuery(model="gemini-none"),
        "rule, 10 %": TraceQuery(rule=LOGGED),
        "rule, 1 %": TraceQuery(rule="secrets"),
        "rule, 0.002 %": TraceQuery(rule="canary"),
        "rule, none": TraceQuery(rule="none"),
        "rule by its message, 1 %": TraceQuery(rule="secrets found"),
        "outcomes, 2 %": TraceQuery(outcome=REFUSED),
        "status, 1 %": TraceQuery(status=429),
        "status, none": TraceQuery(status=503),
        "status 1 % + outcome that it never has": TraceQuery(status=429, outcome=REFUSED),
        "tool, common": TraceQuery(tool="look_up"),
        "tool, common + rule 0.002 %": TraceQuery(tool="look_up", rule="canary"),
        "key, common": TraceQuery(key="a" * KEY_LENGTH),
        "key, 0.1 %": TraceQuery(key="c" * KEY_LENGTH),
        "key, none": TraceQuery(key="0" * KEY_LENGTH),
        "key 0.1 % + outcome 0.01 %": TraceQuery(key="c" * KEY_LENGTH, outcome=Outcome.FAILED),
        "label or note, 0.1 %": TraceQuery(rule=LABEL),
        "label 0.1 % + status 1 %": TraceQuery(rule=LABEL, status=429),
        "conversation + outcome that it never has": TraceQuery(conversation=CONVERSATION, outcome=Outcome.FAILED),
        "conversation, of two": TraceQuery(conversation=CONVERSATION),
        "a day of last week": TraceQuery(since=now - 8 * DAY, until=now - 7 * DAY),
        "a day four weeks ago": first_day,
        "text, rare word": TraceQuery(text=RARE_WORD),
        "text, common word": TraceQuery(text="error"),
        "text, two common words": TraceQuery(text="error file"),
        "text, phrase of 0.2 %": TraceQuery(text=f'"{PHRASE}"'),
        "text, phrase of common words, none": TraceQuery(text='"file the error the file of"'),
        "text, beginning of a rare word": TraceQuery(text=f"{RARE_WORD[:6]}*"),
        "text, beginning of common words": TraceQuery(text="kalo*"),
        "text, beginning of a common word": TraceQuery(text="pleas*"),
        "text, no hit": TraceQuery(text="zzyzx"),
        "text, common word but not another": TraceQuery(text="error -file"),
        "text, common word but not a commoner one": TraceQuery(text="error -the"),
        "text, nothing but a word that is left out": TraceQuery(text="-the"),
        "text rare + outcome rare": TraceQuery(text=RARE_WORD, outcome=Outcome.FAILED),
        "text common + outcome 0.01 %": TraceQuery(text="error", outcome=Outcome.FAILED),
        "text common + model 0.01 %": TraceQuery(text="error", model=RARE_MODEL),
        "text common + rule 0.002 %": TraceQuery(text="error", rule="canary"),
        "text common + rule 10 %": TraceQuery(text="error", rule=LOGGED),
        "text phrase + rule 1 %": TraceQuery(text=f'"{PHRASE}"', rule="secrets"),
        "text common + a day four weeks ago": replace(first_day, text="error"),
        "rule 10 % + outcome 0.01 %": TraceQuery(rule=LOGGED, outcome=Outcome.FAILED),
        "rule 10 % + model 0.01 %": TraceQuery(rule=LOGGED, model=RARE_MODEL),
        "rule 1 % + outcome that it never has": TraceQuery(rule="secrets", outcome=Outcome.COMPLETED),
        "rule 10 % + a day four weeks ago": replace(first_day, rule=LOGGED),
        "outcome common + model 0.01 %": TraceQuery(outcome=Outcome.COMPLETED, model=RARE_MODEL),
        "outcome 0.01 % + model 0.01 %": TraceQuery(outcome=Outcome.FAILED, model=RARE_MODEL),
        "everything at once": TraceQuery(
            Outcome.REFUSED_REQUEST, "gemini-2.5-pro", "secrets", now - 20 * DAY, now - 10 * DAY, "error"
        ),
    }


async def questions(database: Database) -> list[Question]:
    """Of the datasets that ``million_traces`` makes: the largest one, and the smallest for words that others have."""
    datasets, listing, usage, catalogue = (
        Datasets(database),
        Listing(database),
        DatasetUsage(database),
        Catalogue(database),
    )
    store, shadows, audit = TraceStore(database), Shadows(database), AuditLog(database)
    largest, smallest = await _dataset(datasets, "support-agent"), await _dataset(datasets, "billing")
    newest = (await listing.page(largest, TraceQuery(), 1)).traces[0]
    everything = await datasets.all(OWNER)
    # What was made may be older than this run.
    latest = select(func.max(kept.c.start))
    now = float(await database.read(lambda connection: connection.execute(latest).scalar_one()))

    def pages(dataset: Dataset, query: TraceQuery, before: int | None = None) -> Callable[[], Awaitable[int]]:
        async def ask() -> int:
            return len((await listing.page(dataset, query, PAGE, before)).traces)

        return ask

    async def one() -> int:
        found = await catalogue.stored(OWNER, newest.id)
        return 0 if found is None else 1

    async def trace_page() -> int:
        """Ask for a trace as its page does: with its neighbors, and with what shadows found in it."""
        found = await catalogue.stored(OWNER, newest.id)
        beside = await listing.neighbours(largest, newest.position)
        return (found is not None) + (beside.older is not None) + len(await shadows.of_trace(largest, newest.id))

    async def conversation_page() -> int:
        """Ask for the exchanges of a conversation, whole, as its page does."""
        listed = [one async for one in listing.each(everything, TraceQuery(conversation=CONVERSATION), EXCHANGES + 1)]
        return len([await catalogue.stored(OWNER, one.id) for one in listed])

    async def guardrails_page() -> int:
        """Count the findings of a day by guardrail, and look for slow checks among the newest exchanges."""
        named = [TraceQuery(rule=name, since=now - DAY) for name in (*RULES, LOGGED)]
        hits = await listing.counts(everything, named)
        listed = await listing.over(everything, TraceQuery(), 2 * PAGE)
        return len(await store.outlined([one.seq for one in listed.traces])) + sum(one.number for one in hits)

    async def overview() -> int:
        return len(await datasets.all(OWNER)) + len(await datasets.extents(OWNER))

    async def audit_page() -> int:
        """Ask for the newest entries, of all users and of one."""
        return len(await audit.latest(PAGE)) + len(await audit.latest(PAGE, owner=OWNER))

    async def menus() -> int:
        choices = await listing.choices(everything)
        return len(choices.models) + len(choices.rules)

    def across(query: TraceQuery, before: int | None = None) -> Callable[[], Awaitable[int]]:
        async def ask() -> int:
            return len((await listing.over(everything, query, PAGE, before)).traces)

        return ask

    def counts(query: TraceQuery) -> Callable[[], Awaitable[int]]:
        """Count by outcome what answers a query, as lists do."""
        wanted = (None, Outcome.COMPLETED, REFUSED, Outcome.UPSTREAM_ERROR, Outcome.FAILED, Outcome.PUSHED)

        async def ask() -> int:
            found = await listing.counts(everything, [replace(query, outcome=one) for one in wanted])
            return sum(one.number for one in found)

        return ask

    def plots(days: int) -> Callable[[], Awaitable[int]]:
        async def ask() -> int:
            found = await usage.by_dataset(OWNER, now - days * DAY, now, 150)
            plots_and_tables(found, {})
            return len(found.buckets)

        return ask

    async def plots_of_one() -> int:
        return len(await usage.of_dataset(largest, now - 30 * DAY, now, 150))

    deep = newest.position - DEEP * PAGE
    return [
        *(Question(title, pages(largest, query)) for title, query in _filters(now).items()),
        Question(f"page {DEEP:,}", pages(largest, TraceQuery(), deep)),
        Question("small dataset, first page", pages(smallest, TraceQuery())),
        Question("small dataset, common word", pages(smallest, TraceQuery(text="error"))),
        Question("small dataset, rare word", pages(smallest, TraceQuery(text=RARE_WORD))),
        Question("small dataset, rule 10 %", pages(smallest, TraceQuery(rule=LOGGED))),
        *(Question(f"all datasets, {title}", across(query)) for title, query in _filters(now).items()),
        Question(f"all datasets, page {DEEP:,}", across(TraceQuery(), newest.seq - DEEP * PAGE)),
        *(
            Question(f"all datasets, counts by outcome of {title}", counts(query))
            for title, query in {
                "everything": TraceQuery(),
                "a common word": TraceQuery(text="error"),
                "a common key": TraceQuery(key="a" * KEY_LENGTH),
                "a rule of 10 %": TraceQuery(rule=LOGGED),
                "a status of 1 %": TraceQuery(status=429),
            }.items()
        ),
        Question("all datasets, models and rules", menus),
        Question("one trace by its id", one),
        Question("one trace, its page", trace_page),
        Question("a conversation, its page", conversation_page),
        Question("guardrails", guardrails_page),
        Question("audit log", audit_page),
        Question("datasets", overview),
        Question("dashboard, 24 hours", plots(1)),
        Question("dashboard, 7 days", plots(7)),
        Question("dashboard, 30 days", plots(30)),
        Question("dashboard of one dataset, 30 days", plots_of_one),
    ]


async def _dataset(datasets: Datasets, name: str) -> Dataset:
    found = await datasets.get(OWNER, name)
    if found is None:
        raise SystemExit(f"the store has no dataset {name}: it was not made by this bench")
    return found
