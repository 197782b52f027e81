"""Pushed traces, from outside."""

import asyncio
import contextlib
import sqlite3
import uuid
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from tests.conftest import StartProxy
from tests.explorer.api import KEY, SAMPLE, Api

GUARDRAIL = {"id": "1", "name": "rule", "content": "raise ...", "action": "block"}
RECORD = {
    "id": "9f0e-1",
    "outcome": "refused_response",
    "model": "gemini-2.5-flash",
    "stream": True,
    "duration_ms": 12.5,
    "created": 1_700_000_000.25,
}


async def test_a_push_makes_the_dataset_and_its_traces(api: Api) -> None:
    """The ids come in the order of the traces, whose places in the dataset are theirs."""
    answer = await api.post(
        "/push/trace",
        {
            "messages": [SAMPLE, [], [{"role": "user", "content": None}]],
            "annotations": [[{"content": "note", "address": "messages.0.content:0-5"}], [], []],
            "metadata": [{"name": "first", "hierarchy_path": ["a", "b"]}, None, {"via_gateway": True}],
            "dataset": "pushed",
        },
    )
    assert (answer["dataset"], answer["username"], len(answer["id"])) == ("pushed", api.user, 3)
    listed = await api.get(f"{api.at('pushed')}/traces")
    assert [(one["id"], one["index"]) for one in listed] == [(key, place) for place, key in enumerate(answer["id"])]
    assert [one["name"] for one in listed] == ["first", None, None]
    assert listed[0]["hierarchy_path"] == ["a", "b"]
    assert [one["extra_metadata"]["uploader"] for one in listed] == [f"Via API ...{KEY[-5:]}"] * 3
    assert (await api.get(f"/trace/{answer['id'][0]}"))["messages"] == SAMPLE
    made = await api.get(api.at("pushed"))
    assert made["latest_trace_time"] is not None


async def test_a_push_without_a_dataset_names_none(api: Api) -> None:
    """Its traces are there all the same."""
    answer = await api.post("/push/trace", {"messages": [SAMPLE], "annotations": None, "metadata": None})
    assert set(answer) == {"id", "username"}
    trace = await api.get(f"/trace/{answer['id'][0]}")
    assert (trace["dataset"], trace["messages"]) == (None, SAMPLE)


async def test_annotations_come_back_as_they_were_pushed(api: Api) -> None:
    """The source, the guardrail and whatever else a client says of one."""
    extras = [{"source": "guardrails-error", "guardrail": GUARDRAIL, "severity": 0.5}, {}, {"source": "mine"}]
    pushed = [{"content": "c", "address": "messages.1", "extra_metadata": extra} for extra in extras]
    [trace] = await api.push(SAMPLE, annotations=[pushed], dataset="d")
    found = (await api.get(f"/trace/{trace}"))["annotations"]
    assert [one["extra_metadata"] for one in found] == [extras[0], {"source": "user"}, extras[2]]
    [listed] = await api.get(f"{api.at('d')}/traces")
    assert listed["annotations_by_source"] == {"guardrails-error": 1, "user": 1, "mine": 1}


async def test_a_recorded_exchange_keeps_what_its_proxy_recorded(api: Api) -> None:
    """Its time is that of the exchange, its id one that every push of it gets."""
    [trace] = await api.push(SAMPLE, dataset="d", metadata=[{"gemini_proxy": RECORD, "note": "kept"}])
    found = await api.get(f"/trace/{trace}")
    assert found["time_created"] == "2023-11-14T22:13:20.250000+00:00"
    assert found["extra_metadata"]["note"] == "kept"
    assert uuid.UUID(trace).version == 5
    later = {"id": "later", "outcome": "of a later version", "created": 1e300}
    [odd] = await api.push(SAMPLE, dataset="d", metadata=[{"gemini_proxy": later}])
    found = await api.get(f"/trace/{odd}")
    assert found["time_created"][:4] == str(datetime.now(UTC).year)
    assert found["extra_metadata"]["gemini_proxy"] == later


async def test_a_trace_pushed_again_is_kept_once(api: Api) -> None:
    """After a lost answer, and twice in one push beside a new trace."""
    again = {"gemini_proxy": {"id": "x"}}
    [first] = await api.push(SAMPLE, dataset="d", metadata=[again])
    assert await api.push(SAMPLE, dataset="d", metadata=[again]) == [first]
    ids = await api.push(SAMPLE, SAMPLE, SAMPLE, dataset="d", metadata=[again, {}, again])
    assert (ids[0], ids[2]) == (first, first)
    assert [one["id"] for one in await api.get(f"{api.at('d')}/traces")] == [first, ids[1]]


async def test_a_trace_pushed_at_the_same_moment_is_kept_once(api: Api) -> None:
    """Over several connections, each with a trace that others push as well: all are answered, with the same ids."""
    for round_ in range(10):
        record = [{"gemini_proxy": {"id": f"{round_}-{number}"}} for number in range(3)]
        pushes = await asyncio.gather(
            *(
                api.push(SAMPLE, SAMPLE, dataset="d", metadata=[record[one % 3], record[(one + 1) % 3]])
                for one in range(9)
            )
        )
        assert len({key for ids in pushes for key in ids}) == 3
    listed = [one["id"] for one in await api.get(f"{api.at('d')}/traces")]
    assert len(listed) == len(set(listed)) == 30


async def test_a_trace_of_a_deleted_dataset_stays_deleted(api: Api) -> None:
    """Pushed again it is answered for, so that its sender ends, and does not come back."""
    record = {"gemini_proxy": {"id": "x"}}
    [first] = await api.push(SAMPLE, dataset="d", metadata=[record])
    await api.delete(api.at("d"))
    assert await api.push(SAMPLE, dataset="d", metadata=[record]) == [first]
    assert (await api.refused("GET", f"/trace/{first}"))[0] == 404


async def test_a_push_that_cannot_be_written_may_be_sent_again(
    start_proxy: StartProxy, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """While another program keeps the database to itself: 503, which senders take for "later"."""
    api = Api(session, (await start_proxy()).url)
    with contextlib.closing(sqlite3.connect(tmp_path / "traces.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        refused = await api.refused("POST", "/push/trace", {"messages": [SAMPLE]})
        assert refused == (503, "The trace database cannot be reached now")
        other.rollback()
    assert len(await api.push(SAMPLE)) == 1


async def test_two_users_may_push_the_same_exchange(alice: Api, bob: Api) -> None:
    """Each has a trace of their own, and neither sees the other's."""
    record = {"gemini_proxy": {"id": "x"}}
    [hers] = await alice.push(SAMPLE, dataset="d", metadata=[record])
    [his] = await bob.push(SAMPLE, dataset="d", metadata=[record])
    assert hers != his
    assert (await bob.refused("GET", f"/trace/{hers}"))[0] == 404
    assert [one["id"] for one in await bob.get(f"{bob.at('d')}/traces")] == [his]


_TRACE = [[{"role": "user", "content": "x"}]]


NOT_PUSHED: list[tuple[object, str]] = [
    ({}, "messages must be a list of traces"),
    ({"messages": None}, "messages must be a list of traces"),
    ({"messages": "x"}, "messages must be a list of traces"),
    ({"messages": {"0": []}}, "messages must be a list of traces"),
    ({"messages": []}, "messages must not be empty"),
    ({"messages": [{}]}, "messages must be a list of traces"),
    ({"messages": [[], "x"]}, "messages must be a list of traces"),
    ({"messages": [["x"]]}, "messages must be a list of traces"),
    ({"messages": [[None]]}, "messages must be a list of traces"),
    ({"messages": [[]] * 1001}, "A push must not hold more than 1000 traces"),
    ({"messages": _TRACE, "annotations": {}}, "annotations must be a list of annotations"),
    ({"messages": _TRACE, "annotations": []}, "annotations must be the same length as messages"),
    ({"messages": _TRACE, "annotations": [None]}, "annotations must be a list of annotations"),
    ({"messages": _TRACE, "annotations": [["x"]]}, "annotations must be a list of annotations"),
    ({"messages": _TRACE, "annotations": [[{}]]}, "An annotation's content must be a string"),
    (
        {"messages": _TRACE, "annotations": [[{"content": "c", "address": 1}]]},
        "An annotation's address must be a string",
    ),
    (
        {
            "messages": _TRACE,
            "annotations": [[{"content": "c", "address": "a", "extra_metadata": {"guardrail": {"name": "n" * 257}}}]],
        },
        "name must not be longer than 256 characters",
    ),
    (
        {"messages": _TRACE, "annotations": [[{"content": "c", "address": "a", "extra_metadata": []}]]},
        "An annotation's extra_metadata must be a dictionary",
    ),
    (
        {"messages": _TRACE, "annotations": [[{"content": "", "address": ""}] * 100_001]},
        "A push must not hold more than 100000 annotations",
    ),
    ({"messages": _TRACE, "metadata": {}}, "metadata must be a list of metadata"),
    ({"messages": _TRACE, "metadata": [{}, {}]}, "metadata must be the same length as messages"),
    ({"messages": _TRACE, "metadata": ["x"]}, "metadata must be a list of metadata"),
    (
        {"messages": _TRACE, "metadata": [{"x": "x" * 1_048_576}]},
        "The metadata of a trace must not be larger than 1048576 bytes",
    ),
    ({"messages": _TRACE, "metadata": [{"name": 1}]}, "metadata.name must be a string"),
    (
        {"messages": _TRACE, "metadata": [{"hierarchy_path": "a"}]},
        "metadata.hierarchy_path must be a list of strings",
    ),
    (
        {"messages": _TRACE, "metadata": [{"hierarchy_path": [1]}]},
        "metadata.hierarchy_path must be a list of strings",
    ),
    ({"messages": _TRACE, "dataset": 1}, "dataset name must be a string"),
    ({"messages": _TRACE, "dataset": ""}, "Dataset name can only contain A-Z, a-z, 0-9, - and _"),
    ({"messages": _TRACE, "dataset": "../x"}, "Dataset name can only contain A-Z, a-z, 0-9, - and _"),
]


async def test_what_is_wrong_with_a_push_is_said(api: Api) -> None:
    """In the words of the contract, with 400, and nothing is kept."""
    for body, detail in NOT_PUSHED:
        assert await api.refused("POST", "/push/trace", body) == (400, detail)
        assert await api.get("/dataset/list") == []


NOT_RIGHT: list[object] = [
    "x",
    {},
    {"id": 7},
    {"id": ""},
    {"id": "a/b"},
    {"id": "x" * 65},
    {"id": "x", "outcome": 1},
    {"id": "x", "model": 1},
    {"id": "x", "model": "m" * 257},
    {"id": "x", "stream": "yes"},
    {"id": "x", "duration_ms": -1},
    {"id": "x", "duration_ms": "1"},
    {"id": "x", "created": -1},
    {"id": "x", "created": True},
]


async def test_a_record_that_cannot_be_right_is_refused(api: Api) -> None:
    """What a proxy says of an exchange is checked before it is believed."""
    for wrong in NOT_RIGHT:
        body = {"messages": _TRACE, "metadata": [{"gemini_proxy": wrong}]}
        status, detail = await api.refused("POST", "/push/trace", body)
        assert status == 400 and detail.startswith("metadata.gemini_proxy")
