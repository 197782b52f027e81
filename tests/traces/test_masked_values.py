"""Masked values on both databases: who finds them, who can read them, and how long they stay."""

import base64
import os
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from gemini_proxy.traces.audit import AuditLog
from gemini_proxy.traces.database import connect
from gemini_proxy.traces.datasets import Datasets
from gemini_proxy.traces.masked_values import (
    MAX_VALUE,
    SAID,
    SENT,
    MaskedValues,
    Revealed,
    ValueScope,
    forget_old_values,
)
from gemini_proxy.traces.rows import load
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.value_keys import KEY_BYTES, SealedValue, ValueKeys, read_value_keys
from tests.traces.samples import execute, query, trace

OLD, NEW = os.urandom(KEY_BYTES), os.urandom(KEY_BYTES)
EMAIL, OTHER = "ada.lovelace@example.com", "charles.babbage@example.org"
PLACEHOLDER, HIDDEN, FOREIGN = "<EMAIL_ADDRESS_0123456789>", "<EMAIL_ADDRESS_9876543210>", "<EMAIL_ADDRESS_aaaaaaaaaa>"
SCOPE = ValueScope("ann", "demo", ["conversation"])
SHOWN = trace(owner="ann", metadata={"conversation": "conversation"})


def values(store: TraceStore, *keys: bytes, days: int = 30, counts: Counter[str] | None = None) -> MaskedValues:
    return MaskedValues(store.database, ValueKeys(keys or (OLD,)), days, Counter() if counts is None else counts)


async def kept(store: TraceStore, *keys: bytes, scope: ValueScope = SCOPE, **fields: Any) -> MaskedValues:
    """Values that were written with a trace: one that the client sent, one that the model said, and a spelling."""
    found = values(store, *keys)
    texts = [(PLACEHOLDER, SENT, EMAIL), (HIDDEN, SAID, OTHER), (PLACEHOLDER, "a" * 32, "email_address_0123456789")]
    await store.add([trace(owner="ann", masked=found.sealed(scope, texts), **fields)])
    return found


async def test_a_value_is_found_by_its_owner_dataset_and_conversation_alone(
    store: TraceStore, database_url: str
) -> None:
    """And by nobody who reads the tables."""
    found = await kept(store)
    rows = [await query(database_url, f"SELECT * FROM {table}") for table in ("masked_values", "traces")]
    assert [len(some) for some in rows] == [3, 1]
    assert not any(canary in str(rows) for canary in (EMAIL, OTHER, "email_address_0123456789"))
    asked = {PLACEHOLDER[-11:-1], HIDDEN[-11:-1], FOREIGN[-11:-1]}
    read = await found.find(SCOPE, asked)
    assert read.sent == {PLACEHOLDER: EMAIL}
    assert read.spellings == {(PLACEHOLDER, "a" * 32): "email_address_0123456789"}
    assert await found.find(ValueScope("ann", "demo", ["another", "conversation", ""])) == read
    assert not (await found.find(SCOPE, {FOREIGN[-11:-1]})).sent
    assert not (await found.find(SCOPE, ())).sent
    for scope in (
        ValueScope("bob", "demo", ["conversation"]),
        ValueScope("ann", None, ["conversation"]),
        ValueScope("ann", "demo", ["another"]),
        ValueScope("ann", "demo", []),
    ):
        assert not (await found.find(scope, asked)).sent


async def test_a_value_is_revealed_by_its_trace_and_the_audit_log_tells(store: TraceStore) -> None:
    """Also one that the client has never had; a trace of another conversation reveals nothing."""
    found = await kept(store)
    assert await found.kept(SHOWN, [PLACEHOLDER, HIDDEN, FOREIGN]) == {PLACEHOLDER, HIDDEN}
    assert await found.reveal(SHOWN, PLACEHOLDER, "eve") == Revealed(PLACEHOLDER, "read", EMAIL)
    assert await found.reveal(SHOWN, HIDDEN, "eve") == Revealed(HIDDEN, "read", OTHER)
    for other in (trace(owner="ann"), replace(SHOWN, owner="bob"), replace(SHOWN, dataset=None)):
        assert await found.reveal(other, PLACEHOLDER, "eve") == Revealed(PLACEHOLDER, "not_kept")
    entries = await AuditLog(store.database).of_action("value.read")
    assert [(entry.by, entry.subject, entry.owner) for entry in entries] == [("eve", f"trace {SHOWN.id}", "ann")] * 2
    assert [load(entry.details)["after"] for entry in entries] == [
        {"placeholder": PLACEHOLDER},
        {"placeholder": HIDDEN},
    ]


async def test_a_value_that_is_masked_again_stays_longer_and_is_one(store: TraceStore, database_url: str) -> None:
    """One past its time is not found, deleted or not."""
    found = await kept(store)
    await execute(database_url, "UPDATE masked_values SET expires = 1")
    assert not (await found.find(SCOPE)).sent
    assert (await found.reveal(SHOWN, PLACEHOLDER, "eve")).state == "not_kept"
    await execute(database_url, f"UPDATE masked_values SET expires = {time.time() + 5}")
    found = await kept(store)
    rows = await query(database_url, "SELECT kind, expires FROM masked_values")
    assert len(rows) == 3
    assert all(expires > time.time() + 29 * 86_400 for _, expires in rows)
    assert (await found.find(SCOPE)).sent == {PLACEHOLDER: EMAIL}


async def test_values_go_with_their_time_and_with_their_dataset(store: TraceStore, database_url: str) -> None:
    found = await kept(store)
    await kept(store, scope=ValueScope("ann", "other", ["conversation"]), dataset="other")
    await forget_old_values(store.database, time.time())
    assert len(await query(database_url, "SELECT 1 FROM masked_values")) == 6
    demo = await Datasets(store.database).get("ann", "demo")
    assert demo is not None
    await Datasets(store.database).delete("ann", demo.id)
    assert len(await query(database_url, "SELECT 1 FROM masked_values")) == 3
    assert not (await found.find(SCOPE)).sent
    await forget_old_values(store.database, time.time() + 31 * 86_400)
    assert await query(database_url, "SELECT 1 FROM masked_values") == []


async def test_a_very_long_value_is_not_kept(tmp_path: Any) -> None:
    found = MaskedValues(connect(f"sqlite:///{tmp_path / 'never opened'}"), ValueKeys([OLD]), 30, Counter())
    texts = [(PLACEHOLDER, SENT, "a" * MAX_VALUE), (FOREIGN, SENT, "a" * (MAX_VALUE + 1))]
    assert [row.placeholder for row in found.sealed(SCOPE, texts)] == [PLACEHOLDER]


async def test_a_new_key_reads_what_the_older_one_wrote_and_takes_it_over(store: TraceStore, database_url: str) -> None:
    await kept(store, OLD)
    both = values(store, NEW, OLD)
    assert (await both.reveal(SHOWN, PLACEHOLDER, "eve")).value == EMAIL
    assert (await both.seal_again(), await both.seal_again()) == (3, 0)
    assert {key for (key,) in await query(database_url, "SELECT key FROM masked_values")} == {ValueKeys([NEW]).first}
    alone = values(store, NEW)
    assert (await alone.find(SCOPE)).sent == {PLACEHOLDER: EMAIL}
    assert (await alone.find(SCOPE)).spellings
    assert await alone.seal_again() == 0


async def test_what_cannot_be_read_is_nothing_and_counted(store: TraceStore, database_url: str) -> None:
    """A lost key, a row that was changed, and rows that were exchanged: never an error, never another's value."""
    await kept(store)
    counts: Counter[str] = Counter()
    lost = values(store, NEW, counts=counts)
    assert not (await lost.find(SCOPE)).sent
    assert await lost.reveal(SHOWN, PLACEHOLDER, "eve") == Revealed(PLACEHOLDER, "unreadable")
    assert counts == {"unreadable": 3}
    found = values(store, NEW, OLD, counts=counts)
    hidden = f"SELECT sealed FROM masked_values WHERE placeholder = '{HIDDEN}'"
    for change in (f"sealed = ({hidden})", f"placeholder = '{FOREIGN}'"):
        await execute(database_url, f"UPDATE masked_values SET {change} WHERE kind = 'sent'")
        assert not (await found.find(SCOPE)).sent
        asked = PLACEHOLDER if "sealed" in change else FOREIGN
        assert (await found.reveal(SHOWN, asked, "eve")).state == "unreadable"
    # A value that the client never had does not become one that it sent.
    await execute(database_url, "DELETE FROM masked_values WHERE kind = 'sent'", "UPDATE masked_values SET kind='sent'")
    assert not (await found.find(SCOPE)).sent
    assert await found.seal_again() > 0
    assert await found.seal_again() == 0


@pytest.mark.parametrize(
    "text",
    ["", "word", base64.b64encode(bytes(16)).decode(), " ".join([base64.b64encode(bytes(KEY_BYTES)).decode()] * 2)],
)
def test_keys_are_as_many_random_bytes_as_they_should_be(text: str) -> None:
    with pytest.raises(ValueError, match="base64"):
        read_value_keys(text)


def test_keys_stand_in_lines_and_show_nowhere() -> None:
    encoded = [base64.b64encode(key).decode() for key in (NEW, OLD)]
    keys = read_value_keys("\n".join(encoded))
    assert keys == (NEW, OLD)
    made = ValueKeys(keys)
    row = made.seal(EMAIL, SealedValue("h", "c", PLACEHOLDER, SENT, "", b"", 0.0))
    for shown in (repr(made), repr(row), made.first, *made.older):
        assert not any(text in shown for text in (*encoded, NEW.hex(), OLD.hex(), EMAIL))


async def test_no_byte_of_a_database_file_holds_a_value(tmp_path: Any) -> None:
    store = await TraceStore.open(f"sqlite:///{tmp_path / 'traces.db'}")
    await kept(store)
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    await store.close()
    for canary in (EMAIL, OTHER, "email_address_0123456789"):
        assert canary.encode() not in written
    database = connect(f"sqlite:///{tmp_path / 'traces.db'}")
    assert (
        await database.read(
            lambda connection: connection.exec_driver_sql("SELECT count(*) FROM masked_values").scalar_one()
        )
        == 3
    )
    await database.close()
