"""Traces as the API lists and shows them, appended messages and annotations, from outside."""

import asyncio

import aiohttp
import pytest

from gemini_proxy.traces import catalogue, inserts, store
from gemini_proxy.traces.rows import dump, dump_messages, load
from tests.explorer.api import KEY, SAMPLE, Api
from tests.explorer.browsing import mine, record
from tests.support.proxy import Proxy

UNKNOWN = "00000000-0000-0000-0000-000000000000"
NOT_FOUND = (404, "Trace not found")


async def test_the_list_is_cut_by_indices_limit_and_offset(api: Api) -> None:
    """Oldest first, without messages; places that no trace has are left out."""
    dataset = await api.dataset("many")
    ids = await api.push(*[SAMPLE] * 5, dataset="many")
    path = f"{api.at('many')}/traces"

    async def listed(query: str) -> list[str]:
        return [one["id"] for one in await api.get(f"{path}?{query}")]

    assert await listed("") == ids
    assert await listed("limit=2") == ids[:2]
    assert await listed("limit=2&offset=3") == ids[3:]
    assert await listed("indices=4,0,0, 2") == [ids[0], ids[2], ids[4]]
    assert await listed("indices=1,2,3&limit=1&offset=1") == [ids[2]]
    assert await listed("indices=7,9999999999") == []
    assert await listed("limit=0") == []
    assert await listed("offset=999999999999999999999999") == []
    assert await listed("limit=99999999999999999999") == ids
    assert [one["id"] for one in await api.get(f"/dataset/byid/{dataset['id']}/traces?limit=1")] == ids[:1]
    [first] = await api.get(f"{path}?limit=1")
    assert set(first) == {
        *("id", "index", "messages", "annotations_by_source", "extra_metadata", "name", "hierarchy_path")
    }
    assert first["messages"] == []


NO_NUMBERS: list[str] = [
    "limit=-1",
    "limit=x",
    "limit=1.5",
    "offset=%00",
    "offset=٣",
    "indices=",
    "indices=1,",
    "indices=-1",
    "indices=1;2",
    "indices=99999999999",
    "indices=" + "1," * 1000 + "1",
]


async def test_a_list_without_a_limit_is_as_long_as_may_be(checker: Api) -> None:
    """Clients of the old service, which knew no bound, take it for the whole."""
    ids = await checker.push(*[SAMPLE] * 120, dataset="many")
    assert [one["id"] for one in await checker.get(f"{checker.at('many')}/traces")] == ids


async def test_numbers_that_are_none_are_refused(api: Api) -> None:
    """400, whatever stands in their place."""
    await api.dataset()
    for query in NO_NUMBERS:
        assert (await api.refused("GET", f"{api.at('dataset')}/traces?{query}"))[0] == 400


async def test_a_trace_is_shown_whole(api: Api) -> None:
    """In the contract's shape, by its id in either case."""
    [trace] = await api.push(
        SAMPLE, dataset="d", metadata=[{"name": "n"}], annotations=[[{"content": "c", "address": "messages.0"}]]
    )
    found = await api.get(f"/trace/{trace}")
    assert found == await api.get(f"/trace/{trace.upper()}")
    dataset = await api.get(api.at("d"))
    expected = {
        "id": trace,
        "index": 0,
        "messages": SAMPLE,
        "dataset": dataset["id"],
        "user_id": dataset["user_id"],
        "name": "n",
        "hierarchy_path": [],
        "user": api.user,
    }
    assert found.items() >= expected.items()
    assert found["time_created"] == found["time_last_pushed"] == dataset["latest_trace_time"]
    assert found["annotations"] == await api.get(f"/trace/{trace}/annotations")
    assert await api.get(f"/trace/{trace}/messages") == SAMPLE


def nested(depth: int) -> object:
    value: object = "deep"
    for _ in range(depth):
        value = [value]
    return value


ODD: list[object] = [
    "a lone \ud800 surrogate",
    '\0 \u2028 é 😀 "</script>',
    2**70 + 1,
    -(2**63) - 1,
    2**64 - 1,
    1e308,
    5e-324,
    0.1,
    -0.0,
    nested(253),
    nested(400),
    {"": None, "é\udfff": [True, {}]},
]


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:20])
async def test_a_trace_is_read_as_it_was_written(checker: Api, proxy: Proxy, odd: object) -> None:
    """Whatever JSON can hold, in the messages and beside them, each without the other.

    Digits that 64 bits do not hold are kept in messages alone.
    """
    plain = [{"content": "é"}]
    in_messages, beside = await record(
        proxy,
        mine(messages=[*plain, {"content": odd}]),
        mine(messages=plain, metadata={"odd": odd}),
    )
    assert await checker.get(f"/trace/{in_messages.id}/messages") == [*plain, {"content": odd}]
    whole = await checker.get(f"/trace/{in_messages.id}")
    assert (whole["messages"], whole["extra_metadata"]) == ([*plain, {"content": odd}], {})
    whole = await checker.get(f"/trace/{beside.id}")
    assert (whole["messages"], whole["extra_metadata"]) == (plain, {"odd": load(dump(odd))})


async def test_stored_messages_are_sent_unread(checker: Api, proxy: Proxy, session: aiohttp.ClientSession) -> None:
    """Byte for byte: to read and write those of a large trace again stops everything else."""
    messages = [{"content": "é"}, {"content": "\ud800 é"}, *({"content": "é" * n} for n in range(1_000))]
    [one] = await record(proxy, mine(messages=messages))
    written = dump_messages(messages)
    headers = {"authorization": f"Bearer {KEY}"}
    for path in ("/messages", ""):
        async with session.get(f"{proxy.url}/api/v1/trace/{one.id}{path}", headers=headers) as answer:
            body = await answer.read()
            assert answer.headers["content-length"] == str(len(body))
            assert answer.headers["cache-control"] == "no-store"
            assert body == written if path else written in body


@pytest.mark.parametrize("size", [131_071, 131_072, 131_073, 3_000_000])
async def test_a_large_trace_arrives_whole(checker: Api, proxy: Proxy, size: int) -> None:
    """At the sizes where its pieces begin and end as well; what a client leaves unread keeps nobody waiting."""
    messages = [{"content": "x" * (size - len('[{"content":""}]'))}]
    [one] = await record(proxy, mine(messages=messages))
    path = f"/trace/{one.id}"
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as leaving:
        answer = await leaving.get(f"{proxy.url}/api/v1{path}/messages")
        assert await answer.content.readany()
        answer.close()
    assert await checker.get(f"{path}/messages") == messages
    assert (await checker.get(path))["messages"] == messages


async def test_messages_are_merged_by_their_time(api: Api) -> None:
    """Those without one that are there are from when the trace was made, new ones from now."""
    times = ["2020-01-01T00:00:00+00:00", "2020-01-01T00:02:00+00:00"]
    [trace] = await api.push([{"content": name, "timestamp": at} for name, at in zip("ac", times, strict=True)])
    path = f"/trace/{trace}/messages"
    added = [{"content": "b", "timestamp": "2020-01-01T01:01:00+01:00"}, {"content": "d"}]
    assert await api.post(path, {"messages": added}) == {"success": True}
    assert await api.post(path, {"messages": [{"content": "0", "timestamp": "2019-12-31T23:59:00"}]})
    found = await api.get(path)
    assert "".join(message["content"] for message in found) == "0abcd"
    assert found[2]["timestamp"] == "2020-01-01T00:01:00+00:00"
    assert found[0]["timestamp"] == "2019-12-31T23:59:00+00:00"
    whole = await api.get(f"/trace/{trace}")
    assert whole["time_last_pushed"] > whole["time_created"]


async def test_annotations_stay_with_their_messages(api: Api) -> None:
    """Of two messages the second one moves when another comes between them."""
    times = ["2020-01-01T00:00:00+00:00", "2020-01-01T00:02:00+00:00"]
    [trace] = await api.push([{"content": name, "timestamp": at} for name, at in zip("ac", times, strict=True)])
    for address in ("messages.0.content:0-1", "messages.1.content:0-1"):
        await api.post(f"/trace/{trace}/annotate", {"content": "seen", "address": address})
    added = {
        "messages": [{"content": "b", "timestamp": "2020-01-01T00:01:00+00:00"}],
        "annotations": [{"content": "new", "address": "messages.1.content:0-1"}],
    }
    assert await api.post(f"/trace/{trace}/messages", added) == {"success": True}
    found = await api.get(f"/trace/{trace}/annotations")
    assert [(one["content"], one["address"]) for one in found] == [
        ("seen", "messages.0.content:0-1"),
        ("seen", "messages.2.content:0-1"),
        ("new", "messages.1.content:0-1"),
    ]


async def test_messages_appended_at_once_are_all_there(api: Api) -> None:
    """No change overwrites another's."""
    [trace] = await api.push([])
    path = f"/trace/{trace}/messages"
    await asyncio.gather(*(api.post(path, {"messages": [{"content": str(n)}]}) for n in range(10)))
    assert {message["content"] for message in await api.get(path)} == set("0123456789")


async def test_appended_annotations_join_those_there(api: Api) -> None:
    """They may be of any message of the trace."""
    [trace] = await api.push(SAMPLE, annotations=[[{"content": "old", "address": ""}]])
    new = {"content": "new", "address": "messages.0", "extra_metadata": {"source": "s"}}
    await api.post(f"/trace/{trace}/messages", {"messages": [{"role": "user"}], "annotations": [new]})
    found = await api.get(f"/trace/{trace}/annotations")
    assert [(one["content"], one["extra_metadata"]) for one in found] == [
        ("old", {"source": "user"}),
        ("new", {"source": "s"}),
    ]


NOT_APPENDED: list[object] = [
    {},
    {"messages": []},
    {"messages": {}},
    {"messages": ["x"]},
    {"messages": [{"timestamp": "yesterday"}]},
    {"messages": [{"timestamp": 1_700_000_000}]},
    {"messages": [{"timestamp": "0001-01-01T00:00:00+14:00"}]},
    {"messages": [{"timestamp": "9" * 100_000}]},
    {"messages": [{}], "annotations": {"content": "c"}},
    {"messages": [{}], "annotations": {}},
    {"messages": [{}], "annotations": ""},
    {"messages": [{}], "annotations": False},
    {"messages": [{}], "annotations": [[]]},
    {"messages": [{}], "annotations": [{"content": "c"}]},
]


async def test_what_cannot_be_appended_changes_nothing(api: Api) -> None:
    """400, and the trace is as it was."""
    [trace] = await api.push(SAMPLE)
    for body in NOT_APPENDED:
        assert (await api.refused("POST", f"/trace/{trace}/messages", body))[0] == 400
        found = await api.get(f"/trace/{trace}")
        assert (found["messages"], found["annotations"]) == (SAMPLE, [])


async def test_annotations_are_added_and_replaced_by_source(api: Api) -> None:
    """Those of other sources stay; an annotation's id is the same whoever reads it."""
    [trace] = await api.push(SAMPLE)
    path = f"/trace/{trace}"
    one = await api.post(f"{path}/annotate", {"content": "c", "address": "a", "extra_metadata": {"source": "x"}})
    two = await api.post(f"{path}/annotate", {"content": "d", "address": "b"})
    assert one["trace_id"] == trace and one["user"]["username"] == api.user
    assert await api.get(f"{path}/annotations") == [one, two]
    replaced = await api.post(
        f"{path}/annotations/update",
        {"source": "x", "annotations": [{"content": "e", "address": "f", "extra_metadata": {"source": "liar"}}] * 2},
    )
    assert replaced == {"deleted": 1, "inserted": 2}
    left = await api.get(f"{path}/annotations")
    assert left[0] == two
    assert [(annotation["content"], annotation["extra_metadata"]) for annotation in left[1:]] == [
        ("e", {"source": "x"})
    ] * 2
    assert len({annotation["id"] for annotation in left}) == 3


NOT_ANNOTATED: list[tuple[str, object]] = [
    ("annotate", {"address": "a"}),
    ("annotate", {"content": 1, "address": "a"}),
    ("annotate", {"content": "c", "address": None}),
    ("annotate", {"content": "c", "address": "a", "extra_metadata": {"source": 1}}),
    ("annotate", {"content": "c", "address": "a", "extra_metadata": {"guardrail": "g"}}),
    ("annotations/update", {}),
    ("annotations/update", {"source": "x"}),
    ("annotations/update", {"source": 1, "annotations": []}),
    ("annotations/update", {"source": "s" * 257, "annotations": []}),
    ("annotate", {"content": "c", "address": "a", "extra_metadata": {"source": "s" * 257}}),
    ("annotations/update", {"source": "x", "annotations": {}}),
    ("annotations/update", {"source": "x", "annotations": [1]}),
    ("annotations/update", {"source": "x", "annotations": [{"content": "", "address": ""}] * 100_001}),
]


async def test_a_trace_takes_so_many_annotations(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond that each way to add one is refused, and what came with it is not kept either."""
    monkeypatch.setattr(inserts, "MAX_ANNOTATIONS", 1)
    note = {"content": "c", "address": "a"}
    [trace] = await api.push(SAMPLE, annotations=[[note]])
    for path, body in (
        ("annotate", note),
        ("annotations/update", {"source": "x", "annotations": [note]}),
        ("messages", {"messages": [{}], "annotations": [note]}),
    ):
        refused = await api.refused("POST", f"/trace/{trace}/{path}", body)
        assert refused == (400, "A trace must not have more than 1 annotations")
    found = await api.get(f"/trace/{trace}")
    assert (found["messages"], len(found["annotations"])) == (SAMPLE, 1)
    await api.post(f"/trace/{trace}/annotations/update", {"source": "user", "annotations": [note]})


async def test_annotations_that_are_none_are_refused(api: Api) -> None:
    """400, and the trace has none."""
    [trace] = await api.push(SAMPLE)
    for path, body in NOT_ANNOTATED:
        assert (await api.refused("POST", f"/trace/{trace}/{path}", body))[0] == 400
        assert await api.get(f"/trace/{trace}/annotations") == []


NO_IDS: list[str] = [UNKNOWN, "x", "%00", "..%2f", UNKNOWN.replace("-", ""), "%F0%9F%98%80"]


async def test_a_trace_that_is_not_there_is_404(api: Api) -> None:
    """By every way to it."""
    for missing in NO_IDS:
        path = f"/trace/{missing}"
        note = {"content": "c", "address": "a"}
        assert await api.refused("GET", path) == NOT_FOUND
        assert await api.refused("GET", f"{path}/messages") == NOT_FOUND
        assert await api.refused("GET", f"{path}/annotations") == NOT_FOUND
        assert await api.refused("POST", f"{path}/messages", {"messages": [{}]}) == NOT_FOUND
        assert await api.refused("POST", f"{path}/annotate", note) == NOT_FOUND
        update = {"source": "s", "annotations": [note]}
        assert await api.refused("POST", f"{path}/annotations/update", update) == NOT_FOUND


async def test_a_listing_fits_into_memory(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces whose metadata is too much for one answer are asked for in pieces; none is left out in silence."""
    monkeypatch.setattr(catalogue, "MAX_OUTLINED", 10_000)
    described = [{"said": "x" * 3_000}] * 4
    ids = await api.push(*[SAMPLE] * 4, dataset="heavy", metadata=described)
    path = f"{api.at('heavy')}/traces"
    status, detail = await api.refused("GET", path)
    assert status == 400 and "limit" in detail
    pieces = [await api.get(f"{path}?limit=2&offset={offset}") for offset in (0, 2)]
    assert [one["id"] for piece in pieces for one in piece] == ids


async def test_a_trace_does_not_grow_for_ever(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would make it too large is refused, and changes nothing."""
    monkeypatch.setattr(store, "MAX_GROWN", 5_000)
    [trace] = await api.push(SAMPLE)
    more = {"messages": [{"role": "user", "content": "x" * 3_000}]}
    assert await api.post(f"/trace/{trace}/messages", more) == {"success": True}
    assert (await api.refused("POST", f"/trace/{trace}/messages", more))[0] == 400
    assert len(await api.get(f"/trace/{trace}/messages")) == len(SAMPLE) + 1
