"""How much may be annotated on one trace, over many calls."""

import asyncio
from dataclasses import replace

import pytest

from gemini_proxy.traces import inserts as bounds
from gemini_proxy.traces.catalogue import Catalogue
from gemini_proxy.traces.errors import TooMany
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Annotation, Trace
from tests.traces.samples import trace

NOTE = Annotation("note", "messages.0", "user")


@pytest.fixture
async def catalogue(store: TraceStore) -> Catalogue:
    return Catalogue(store.database)


@pytest.fixture
async def kept(store: TraceStore) -> Trace:
    """A trace with one annotation."""
    written = trace(owner="ann", annotations=(NOTE,))
    await store.add([written])
    return written


async def sources(catalogue: Catalogue, kept: Trace) -> list[str]:
    found = await catalogue.annotations("ann", kept.id)
    assert found is not None
    return sorted(one.annotation.source for one in found)


async def test_a_trace_has_no_more_annotations_than_there_may_be(
    store: TraceStore, catalogue: Catalogue, kept: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way they come, and however many at once."""
    monkeypatch.setattr(bounds, "MAX_ANNOTATIONS", 3)
    added = await asyncio.gather(*(catalogue.annotate("ann", kept.id, NOTE) for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(one, TooMany) for one in added) == 4
    with pytest.raises(TooMany, match="A trace must not have more than 3 annotations"):
        await catalogue.replace_annotations("ann", kept.id, "other", [NOTE])
    with pytest.raises(TooMany):
        await store.change("ann", kept.id, lambda before: replace(before, annotations=(*before.annotations, NOTE)))
    assert await sources(catalogue, kept) == ["user"] * 3
    assert await catalogue.replace_annotations("ann", kept.id, "user", [NOTE, NOTE]) == 3
    assert await sources(catalogue, kept) == ["user"] * 2


async def test_the_annotations_of_a_trace_are_bounded_in_size(
    catalogue: Catalogue, kept: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that is said of them counts."""
    monkeypatch.setattr(bounds, "MAX_ANNOTATED", 200)
    for large in (
        replace(NOTE, content="x" * 200),
        replace(NOTE, address="x" * 200),
        replace(NOTE, guardrail={"content": "x" * 200}),
        replace(NOTE, extra={"more": "x" * 200}),
    ):
        with pytest.raises(TooMany, match="must not be larger than 200 bytes"):
            await catalogue.annotate("ann", kept.id, large)
    await catalogue.annotate("ann", kept.id, replace(NOTE, content="x" * 100))
    with pytest.raises(TooMany):
        await catalogue.annotate("ann", kept.id, replace(NOTE, content="x" * 100))
    assert len(await sources(catalogue, kept)) == 2


async def test_messages_are_appended_to_a_trace_that_has_all_its_annotations(
    store: TraceStore, kept: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is on what is annotated; what rules found may be more."""
    monkeypatch.setattr(bounds, "MAX_ANNOTATIONS", 0)
    assert await store.change("ann", kept.id, lambda before: replace(before, messages=[*before.messages, {"n": 1}]))


async def test_of_two_replacements_at_once_one_holds(catalogue: Catalogue, kept: Trace) -> None:
    """The later one takes away what the earlier one put there."""
    await asyncio.gather(*(catalogue.replace_annotations("ann", kept.id, "user", [NOTE, NOTE]) for _ in range(8)))
    assert await sources(catalogue, kept) == ["user"] * 2


async def test_annotations_added_at_once_are_each_told_of_their_own(catalogue: Catalogue, kept: Trace) -> None:
    """The id in an answer is that of the annotation in it."""
    told = await asyncio.gather(
        *(catalogue.annotate("ann", kept.id, replace(NOTE, content=f"note {n}")) for n in range(8))
    )
    assert [one and one.annotation.content for one in told] == [f"note {n}" for n in range(8)]
    assert len({one.id for one in told if one}) == 8
