"""``keys``: added, listed and revoked on the configured database, whether a server runs or not."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main
from gemini_proxy.traces.access import AccessControl
from gemini_proxy.traces.keys import KeyRecord, Keys
from gemini_proxy.traces.revision import Revisions
from gemini_proxy.traces.store import TraceStore
from tests.cli.process import write_config
from tests.support.sqlite import make_database

T = TypeVar("T")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path, access={"mode": "keys"})


def run(config: Path, *arguments: str) -> Result:
    runner = CliRunner(env={"COLUMNS": "80"})
    return runner.invoke(main, ["--config", str(config), "keys", *arguments])


def with_store(config: Path, work: Callable[[TraceStore], Awaitable[T]]) -> T:
    async def run() -> T:
        store = await TraceStore.open(make_database(config.parent / "traces.db"))
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def add(config: Path, name: str, *options: str) -> str:
    """The key, which is all that standard output holds."""
    make_database(config.parent / "traces.db")
    result = run(config, "add", name, *options)
    assert result.exit_code == 0, result.output
    key = result.stdout.removesuffix("\n")
    assert re.fullmatch("inv-[0-9a-f]{64}", key)
    assert key not in result.stderr
    return key


def user(config: Path, key: str) -> str | None:
    """Who a key stands for."""

    async def ask(store: TraceStore) -> str | None:
        identity = await AccessControl(store.database, Revisions(store.database), "keys").identity(key)
        return None if identity is None else identity.owner

    return with_store(config, ask)


def records(config: Path) -> list[KeyRecord]:
    return with_store(config, lambda store: Keys(store.database).all())


def test_a_key_is_printed_once_and_not_kept(config: Path) -> None:
    """It stands for its user at once, in a database that did not exist before; nothing in the files is the key."""
    key = add(config, "build-server_1")
    assert user(config, key) == "build-server_1"
    assert user(config, key[:-1] + ("0" if key[-1] != "0" else "1")) is None
    for file in config.parent.glob("traces.db*"):
        assert key.encode() not in file.read_bytes()
    assert key not in run(config, "list").output


def test_the_list_shows_each_key(config: Path) -> None:
    """Id, name, last characters and times; the revoked ones too."""
    key = add(config, "alice")
    add(config, "bob")
    [alice, bob] = records(config)
    assert run(config, "revoke", bob.id).exit_code == 0
    heading, first, second = run(config, "list").output.splitlines()
    assert re.split(r"\s{2,}", heading.strip()) == [
        "id",
        "name",
        "role",
        "ends with",
        "created",
        "last used",
        "revoked",
    ]
    assert first.split()[:4] == [alice.id, "alice", "operator", key[-4:]] and len(first.split()) == 6
    assert second.split()[:2] == [bob.id, "bob"] and len(second.split()) == 8


@pytest.mark.parametrize("role", ["client", "approver", "operator"])
def test_a_key_has_the_role_that_is_asked_for(config: Path, role: str) -> None:
    add(config, "alice", "--role", role)
    assert [record.role for record in records(config)] == [role]
    assert run(config, "list").output.splitlines()[1].split()[2] == role


def test_there_are_no_other_roles(config: Path) -> None:
    result = run(config, "add", "alice", "--role", "root")
    assert (result.exit_code, result.stdout) == (2, "")


def test_an_approvers_key_is_not_for_clients(config: Path) -> None:
    told = run(config, "add", "alice", "--role", "approver").stderr
    assert "makes no model calls" in told
    assert "invariant-authorization" not in told


def test_a_name_has_one_key_unless_another_is_meant(config: Path) -> None:
    """A second one is refused with the first one's id, and with --another both are good; after revoking it is new."""
    first = add(config, "alice")
    result = run(config, "add", "alice")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{records(config)[0].id} ending with {first[-4:]}" in result.stderr
    second = add(config, "alice", "--another")
    assert [user(config, key) for key in (first, second)] == ["alice", "alice"]
    assert run(config, "revoke", "alice", "--all").exit_code == 0
    assert user(config, add(config, "alice")) == "alice"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "é", "a\n", "x" * 101, "<b>"])
def test_a_name_is_a_part_of_a_path(config: Path, name: str) -> None:
    """Anything else is a usage error, and no key is made."""
    result = run(config, "add", "--", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert not (config.parent / "traces.db").exists()


def test_revoking_by_name_never_takes_more_than_is_meant(config: Path) -> None:
    """The only key of a user goes by name; of several, an id or --all says which."""
    alone = add(config, "bob")
    both = [add(config, "alice"), add(config, "alice", "--another")]
    assert run(config, "revoke", "bob").exit_code == 0
    assert user(config, alone) is None
    refused = run(config, "revoke", "alice")
    assert (refused.exit_code, refused.stdout) == (1, "")
    ids = [record.id for record in records(config) if record.owner == "alice"]
    assert all(one in refused.stderr for one in ids) and "2 valid keys" in refused.stderr
    assert [user(config, key) for key in both] == ["alice", "alice"]
    done = run(config, "revoke", ids[0])
    assert done.stdout == f"revoked {ids[0]} of alice, ending with {both[0][-4:]}\n"
    assert [user(config, key) for key in both] == [None, "alice"]


def test_what_cannot_be_revoked_is_said(config: Path) -> None:
    """Unknown, or revoked already: exit code 1."""
    add(config, "alice")
    [record] = records(config)
    assert "no valid key with the id or name nobody" in run(config, "revoke", "nobody").stderr
    assert run(config, "revoke", "alice").exit_code == 0
    for given, words in ((record.id, "is already revoked"), ("alice", "no valid key")):
        result = run(config, "revoke", given)
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr


def test_an_id_wins_over_a_name_that_looks_like_one(config: Path) -> None:
    """Nobody else's key goes with it."""
    add(config, "alice")
    [alice] = records(config)
    other = add(config, alice.id)
    assert f"of alice, ending with {alice.hint}" in run(config, "revoke", alice.id).stdout
    assert user(config, other) == alice.id


def test_a_change_holds_in_a_server_that_runs(config: Path) -> None:
    """From the next question on: its keys are those of the database."""

    async def serve(store: TraceStore) -> None:
        access = AccessControl(store.database, Revisions(store.database), "keys")
        key = await asyncio.to_thread(add, config, "alice")
        assert await access.identity(key) is not None
        await asyncio.to_thread(run, config, "revoke", "alice")
        assert await access.identity(key) is None

    with_store(config, serve)


def test_it_is_said_where_the_key_goes(config: Path) -> None:
    """A header, a pair, the place of a Gemini key, and what else asks for it; standard output is the key alone."""
    told = run(config, "add", "alice").stderr
    for way in (
        "invariant-authorization: Bearer KEY",
        ";invariant-auth=KEY",
        "GEMINI_API_KEY=KEY",
        "INVARIANT_API_KEY",
    ):
        assert way in told


def test_where_access_is_open_it_says_that_keys_are_not_asked_for(tmp_path: Path) -> None:
    """A key is made all the same, for the day it is not."""
    result = run(write_config(tmp_path, access={"mode": "open"}), "add", "alice")
    assert result.exit_code == 0
    assert 'access.mode is "open"' in result.stderr


def test_there_is_nothing_to_list_without_a_database(config: Path) -> None:
    """And none is made by looking."""
    result = run(config, "list")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no trace database" in result.stderr
    assert not (config.parent / "traces.db").exists()
