"""Keys and sign-ins in the store."""

import pytest
from sqlalchemy import Connection, text

from gemini_proxy.traces import keys as bounds
from gemini_proxy.traces.access import AccessControl
from gemini_proxy.traces.keys import Identity, Keys, Role, Sessions
from gemini_proxy.traces.revision import Revisions
from gemini_proxy.traces.store import TraceStore


def owner(identity: Identity | None) -> str | None:
    return None if identity is None else identity.owner


@pytest.mark.parametrize("role", ["client", "approver", "operator"])
async def test_a_key_and_its_browsers_have_its_role(store: TraceStore, role: Role) -> None:
    record, key = await Keys(store.database).add("ann", role)
    sessions, access = Sessions(store.database), AccessControl(store.database, Revisions(store.database), "keys")
    token = await sessions.open(key, 60)
    assert token is not None
    assert await access.identity(key) == await access.session_identity(token) == Identity("ann", role, record.id)
    assert [known.role for known in await Keys(store.database).all()] == [role]


async def test_a_key_from_before_roles_is_an_operators(store: TraceStore) -> None:
    """Also one that a process from before adds while machines are updated: it names no role."""

    def work(connection: Connection) -> None:
        connection.execute(
            text("INSERT INTO keys (id, owner, digest, hint, created) VALUES ('a', 'ann', :digest, 'x', 0)"),
            {"digest": bounds.digest("inv-old")},
        )

    await store.database.write(work)
    access = AccessControl(store.database, Revisions(store.database), "keys")
    assert await access.identity("inv-old") == Identity("ann", "operator", "a")


async def test_a_key_is_its_owners_until_it_is_revoked(store: TraceStore) -> None:
    """In every process; another one of the same user stays good, and what is like a key is none."""
    keys, elsewhere = Keys(store.database), AccessControl(store.database, Revisions(store.database), "keys")
    [(first, one), (_, two)] = [await keys.add("ann") for _ in range(2)]
    for nobodys in (None, "", one[:-1], f"{one}0", one.upper(), f" {one}", "inv-\ud800", "inv-" + "0" * 64):
        assert await elsewhere.identity(nobodys) is None
    assert [owner(await elsewhere.identity(key)) for key in (one, two)] == ["ann", "ann"]
    assert await keys.revoke(first.id)
    assert not await keys.revoke(first.id)
    assert [owner(await elsewhere.identity(key)) for key in (one, two)] == [None, "ann"]


async def test_a_key_is_told_by_its_digest_alone(store: TraceStore) -> None:
    """What the database holds does not open anything."""
    _, key = await Keys(store.database).add("ann")
    access = AccessControl(store.database, Revisions(store.database), "keys")
    assert await access.identity(bounds.digest(key)) is None
    assert await access.session_identity(key) is None


async def test_a_revoked_key_signs_its_browsers_out(store: TraceStore) -> None:
    """And nobody else's."""
    keys, sessions = Keys(store.database), Sessions(store.database)
    [(record, key), (_, other)] = [await keys.add("ann") for _ in range(2)]
    token, kept = await sessions.open(key, 60), await sessions.open(other, 60)
    assert token is not None and kept is not None
    assert [owner(await sessions.identity(one)) for one in (token, kept)] == ["ann", "ann"]
    await keys.revoke(record.id)
    assert [owner(await sessions.identity(one)) for one in (token, kept)] == [None, "ann"]
    assert await sessions.open(key, 60) is None


async def test_a_session_ends_with_its_time_or_its_browser(store: TraceStore) -> None:
    """Signing out ends one; time ends the others."""
    sessions = Sessions(store.database)
    _, key = await Keys(store.database).add("ann")
    out, on, over = [await sessions.open(key, seconds) for seconds in (60, 60, -1)]
    assert over is not None and out is not None and on is not None
    await sessions.close(out)
    assert [owner(await sessions.identity(token)) for token in (over, out, on)] == [None, None, "ann"]


async def test_a_key_has_so_many_browsers(store: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more signs out the one that would be first to end; other keys have their own."""
    monkeypatch.setattr(bounds, "MAX_SESSIONS", 2)
    keys, sessions = Keys(store.database), Sessions(store.database)
    [(_, key), (_, other)] = [await keys.add(owner) for owner in ("ann", "bob")]
    beside = await sessions.open(other, 10)
    tokens = [await sessions.open(key, 60 + number) for number in range(4)]
    owners = [owner(await sessions.identity(token)) for token in (beside, *tokens) if token]
    assert owners == ["bob", None, None, "ann", "ann"]
