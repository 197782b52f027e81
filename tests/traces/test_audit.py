"""The audit log: what is kept of a change, and that a chain which was tampered with is found out; and sealed traces."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, select, update

from gemini_proxy.traces.approvals import ApprovalRequest, Approvals
from gemini_proxy.traces.audit import FIRST, AuditEntry, AuditLog, Change, Head, Verifier, digest_of
from gemini_proxy.traces.datasets import Datasets
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.keys import Keys
from gemini_proxy.traces.pinned_tools import Declared, DeclaredTools, PinnedTools
from gemini_proxy.traces.policies import Policies
from gemini_proxy.traces.schema import audit_head, trace_seals, traces
from gemini_proxy.traces.seals import Checked, Sealer, check_seals
from gemini_proxy.traces.store import TraceStore
from tests.support.clock import JumpingClock
from tests.traces.pushing import ONE_DATABASE
from tests.traces.samples import ensured, trace

DAY = 86_400.0


def chain(length: int) -> list[AuditEntry]:
    entries: list[AuditEntry] = []
    for seq in range(1, length + 1):
        previous = entries[-1].digest if entries else FIRST
        entry = AuditEntry(seq, 1e9 + seq, "ada", "rule.changed", f"rule {seq}", None, b'{"before":1}', previous, "")
        entries.append(replace(entry, digest=digest_of(entry)))
    return entries


def faults(entries: list[AuditEntry], *heads: Head) -> list[str]:
    verifier = Verifier()
    verifier.follow(entries)
    verifier.end(heads)
    return verifier.faults


CHANGES: list[Callable[[AuditEntry], AuditEntry]] = [
    lambda entry: replace(entry, at=entry.at + 1),
    lambda entry: replace(entry, by="eve"),
    lambda entry: replace(entry, action="rule.added"),
    lambda entry: replace(entry, subject=f"{entry.subject} "),
    lambda entry: replace(entry, owner=""),
    lambda entry: replace(entry, details=b'{"before":2}'),
    lambda entry: replace(entry, previous="1" * 64),
    lambda entry: replace(entry, digest="1" * 64),
    # Whoever recomputes the digest breaks the link of the next entry, or of the head.
    lambda entry: replace(changed := replace(entry, by="eve"), digest=digest_of(changed)),
]


@settings(max_examples=100)
@given(st.integers(2, 8), st.data())
def test_every_change_removal_and_new_order_is_found(length: int, data: st.DataObject) -> None:
    entries = chain(length)
    head = Head(length, entries[-1].digest)
    assert faults(entries, head) == []
    at = data.draw(st.integers(0, length - 1))
    what = data.draw(st.sampled_from(["change", "remove", "swap", "repeat", "cut"]))
    tampered = list(entries)
    if what == "change":
        tampered[at] = data.draw(st.sampled_from(CHANGES))(entries[at])
    elif what == "remove":
        del tampered[at]
    elif what == "repeat":
        tampered.insert(at, entries[at])
    elif what == "cut":
        del tampered[at:]
    else:
        other = data.draw(st.integers(0, length - 1).filter(lambda place: place != at))
        tampered[at], tampered[other] = tampered[other], tampered[at]
    assert faults(tampered, head)


def test_a_log_that_was_written_again_is_found_by_a_head_that_was_kept() -> None:
    kept = Head(3, chain(5)[2].digest)
    first = replace(chain(1)[0], by="eve")
    again = [replace(first, digest=digest_of(first))]
    for entry in chain(5)[1:]:
        linked = replace(entry, previous=again[-1].digest)
        again.append(replace(linked, digest=digest_of(linked)))
    assert faults(again, Head(5, again[-1].digest)) == []
    assert faults(again, kept) == [f"entry 3 is not the one with the digest {kept.digest}"]
    assert faults([], kept) == ["entries 1 to 3 are missing at the end"]
    assert faults([], Head()) == []


async def entries(store: TraceStore) -> list[AuditEntry]:
    return await AuditLog(store.database).page(0)


async def verified(store: TraceStore) -> list[str]:
    return faults(await entries(store), await AuditLog(store.database).head())


async def test_processes_append_to_one_chain_which_the_database_keeps(store: TraceStore) -> None:
    log = AuditLog(store.database)
    changes = [Change("a", f"{number}", "ada", after="AIza" + "x" * 35) for number in range(12)]
    await asyncio.gather(*(log.append(change) for change in changes))
    assert await verified(store) == []
    kept = await entries(store)
    assert {entry.subject for entry in kept} == {change.subject for change in changes}
    assert b"AIza" not in kept[0].details
    for statement in ("UPDATE audit_log SET by = 'eve'", "DELETE FROM audit_log WHERE seq = 3"):

        def tamper(connection: Connection, statement: str = statement) -> None:
            connection.exec_driver_sql(statement)

        with pytest.raises(StoreError):
            await store.database.write(tamper)
    await store.database.write(lambda connection: connection.execute(update(audit_head).values(seq=13)))
    assert await verified(store) == ["entry 13 is missing at the end"]


async def test_a_change_is_kept_with_who_made_it_and_what_was_before(store: TraceStore) -> None:
    database = store.database
    dataset = await ensured(Datasets(database), "ada", "shop")
    record, key = await Keys(database).add("ada", "client", by="root")
    assert await Keys(database).revoke(record.id, by="root") and not await Keys(database).revoke(record.id)
    policies = Policies(database)
    rule = await policies.add(dataset, "r", "x" * 30_000, by="ada")
    await policies.change(dataset, rule.id, enabled=False, by="ada")
    await policies.remove(dataset, rule.id, by="ada")
    pins = PinnedTools(database)
    for text in (b"1", b"2"):
        await pins.learn(DeclaredTools("ada", "shop", {"pay": Declared(text.decode() * 64, text, 1.0)}, True))
    assert await pins.accept(dataset, "pay", "2" * 64, by="ada")
    assert await pins.forget(dataset, "pay", by="ada")
    datasets = Datasets(database)
    await datasets.change_metadata("ada", "shop", lambda _: {"tool_labels": {"trusted": ["pay"]}}, by="ada")
    approvals = Approvals(database)
    asked = ApprovalRequest("ada", "shop", "t", "g.gr", "m", "d" * 64, {"asked": ["CANARY"]})
    approval = await approvals.open(asked, 60)
    await approvals.decide(approval.id, allow=False, by="bob", reason="no")
    await datasets.delete("ada", dataset.id, by="ada")
    kept = await entries(store)
    assert [(entry.action, entry.by, entry.owner) for entry in kept] == [
        ("key.added", "root", "ada"),
        ("key.revoked", "root", "ada"),
        ("rule.added", "ada", "ada"),
        ("rule.changed", "ada", "ada"),
        ("rule.removed", "ada", "ada"),
        ("tool.accepted", "ada", "ada"),
        ("tool.forgotten", "ada", "ada"),
        ("labels.changed", "ada", "ada"),
        ("approval.decided", "bob", "ada"),
        ("dataset.deleted", "ada", "ada"),
    ]
    described = [entry.described for entry in kept]
    assert (described[3]["before"], described[3]["after"]) == (
        {"name": "r", "enabled": True},
        {"name": "r", "enabled": False},
    )
    assert "30,000 characters, SHA-256" in described[2]["after"]["content"]
    assert described[5]["before"], described[5]["after"] == ({"digest": "1" * 64}, {"digest": "2" * 64})
    assert key not in str(kept) and "CANARY" not in str(kept)
    assert await verified(store) == []


@ONE_DATABASE
async def test_the_same_settings_are_kept_once(store: TraceStore) -> None:
    log = AuditLog(store.database)
    for digest in ("a", "a", "b", "a"):
        await log.append_new(Change("settings.loaded", "server x", "gemini-proxy", after={"digest": digest}))
    assert [entry.described["after"]["digest"] for entry in await entries(store)] == ["a", "b", "a"]


async def sealed(store: TraceStore, now: float) -> int:
    clock = JumpingClock(now)
    clock.horizon = now + 1e6
    return await Sealer(store.database, lambda: now, lambda: True, clock=clock).seal(now)


async def test_sealed_traces_are_compared_with_their_seals(store: TraceStore) -> None:
    """Changed, added, grown and gone ones are told apart; retention is no fault."""
    noon = time.time() // DAY * DAY + DAY / 2
    yesterday = [trace(created=noon - DAY + number) for number in range(6)]
    await store.add(yesterday)
    assert await sealed(store, noon - DAY) == 0
    await store.add([trace(created=noon)])
    assert (await sealed(store, noon), await sealed(store, noon)) == (7, 0)
    assert await check_seals(store.database) == Checked(unchanged=7)
    [owner] = {one.owner for one in await store.recent(1)}
    first = yesterday[0]
    await store.change(
        owner, first.id, lambda old: replace(old, messages=[*old.messages, {"role": "user", "content": "x"}])
    )

    def tamper(connection: Connection) -> None:
        numbers = connection.scalars(select(traces.c.seq).order_by(traces.c.seq)).all()
        connection.execute(update(traces).where(traces.c.seq == numbers[1]).values(outcome="completed", model="other"))
        connection.execute(update(traces).where(traces.c.seq == numbers[2]).values(messages=b"[]"))
        connection.execute(delete(traces).where(traces.c.seq.in_(numbers[3:5])))

    await store.database.write(tamper)
    checked = await check_seals(store.database)
    assert (checked.unchanged, checked.grown, checked.gone) == (2, 1, 2)
    assert len(checked.faults) == 2 and all("was changed after its seal" in fault for fault in checked.faults)
    emptied = update(trace_seals).values(leaves=b"")
    await store.database.write(lambda connection: connection.execute(emptied))
    assert "was changed" in (await check_seals(store.database)).faults[0]
    assert await verified(store) == []


@ONE_DATABASE
async def test_a_trace_that_was_put_between_sealed_ones_is_found(store: TraceStore) -> None:
    yesterday = time.time() - 1.5 * DAY
    await store.add([trace(created=yesterday) for _ in range(3)])

    def number(connection: Connection, to: int) -> None:
        middle = connection.scalars(select(traces.c.seq).order_by(traces.c.seq)).all()[1]
        connection.execute(update(traces).where(traces.c.seq == middle).values(seq=to))

    await store.database.write(lambda connection: number(connection, 50))
    await sealed(store, time.time())
    await store.add([trace(created=yesterday)])
    await store.database.write(lambda connection: number(connection, 20))
    checked = await check_seals(store.database)
    assert (checked.gone, checked.faults) == (1, ["trace number 20 was added after its seal"])


@ONE_DATABASE
async def test_a_trace_that_was_put_between_seals_is_found(store: TraceStore) -> None:
    """Between the last trace of one seal and the first of the next, and a seal is as long as the log says."""
    midnight = time.time() // DAY * DAY
    await store.add([trace(created=midnight - 1) for _ in range(2)])
    await sealed(store, midnight)

    def number(connection: Connection, to: int) -> None:
        last = select(traces.c.seq).order_by(traces.c.seq.desc()).limit(1)
        connection.execute(update(traces).where(traces.c.seq == connection.scalar(last)).values(seq=to))

    await store.add([trace(created=midnight)])
    await store.database.write(lambda connection: number(connection, 50))
    await sealed(store, midnight + DAY)
    assert await check_seals(store.database) == Checked(unchanged=3)
    await store.add([trace(created=midnight - 1)])
    await store.database.write(lambda connection: number(connection, 20))
    longer = update(trace_seals).where(trace_seals.c.first == 50).values(last=1000)
    await store.database.write(lambda connection: connection.execute(longer))
    assert (await check_seals(store.database)).faults == [
        "trace number 20 was added after its seal",
        "the seal of traces 50 to 1000 is not in the log",
    ]
