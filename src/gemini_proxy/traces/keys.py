"""Keep the keys of users, and the browsers that have signed in with one. Only hashes are stored."""

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import Connection, delete, insert, or_, select, update

from gemini_proxy.traces import revision
from gemini_proxy.traces.audit import UNKNOWN, Change, append
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.schema import keys, sessions

MAX_SESSIONS: Final = 100
"""Browsers signed in with one key: each is a row until it expires."""


Role = Literal["client", "approver", "operator"]
"""The permissions of a key, beside reading its user's data.

A ``client`` makes model calls. An ``operator`` does, and changes the rules of its user's datasets. An ``approver``
decides approvals, of every user, and makes no model calls.
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """The caller: the key's user, role and id."""

    owner: str
    role: Role
    key: str

    @property
    def named(self) -> str:
        """Return the name for records of this user's actions."""
        return f"{self.owner} (key {self.key})" if self.key else f"{self.owner} (without a key)"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """``owner`` is the user of the key, ``hint`` its last four characters. Times are in Unix seconds.

    ``used`` is when it was last used, to a minute.
    """

    id: str
    owner: str
    hint: str
    created: float
    revoked: float | None
    role: Role
    used: float | None = None


class Keys:
    """The keys of a database; every method raises StoreError.

    Changes apply from the next request on, with PostgreSQL within a second.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, owner: str, role: Role = "operator", *, by: str = UNKNOWN) -> tuple[KeyRecord, str]:
        """Create a key for a user, who may have others. Return its record, and the key itself, which is not stored.

        ``by`` is the person who adds it, for the audit log.
        """
        key = f"inv-{secrets.token_hex(32)}"
        record = KeyRecord(secrets.token_hex(4), owner, key[-4:], time.time(), None, role)

        def work(connection: Connection) -> None:
            connection.execute(
                insert(keys).values(
                    id=record.id, owner=owner, digest=digest(key), hint=record.hint, created=record.created, role=role
                )
            )
            revision.advance(connection)
            after = {"id": record.id, "role": role, "hint": record.hint}
            append(connection, Change("key.added", f"key {record.id}", by, owner, None, after))

        await self._database.write(work)
        return record, key

    async def all(self) -> list[KeyRecord]:
        """Return every key, revoked ones too, the oldest first."""
        shown = (keys.c.id, keys.c.owner, keys.c.hint, keys.c.created, keys.c.revoked, keys.c.role, keys.c.used)
        query = select(*shown).order_by(keys.c.created)
        return await self._database.read(
            lambda connection: [KeyRecord(**row) for row in connection.execute(query).mappings()]
        )

    async def note_uses(self, uses: Mapping[str, float]) -> None:
        """Keep when keys were last used, by their ids, in Unix seconds."""

        def work(connection: Connection) -> None:
            for key_id, at in sorted(uses.items()):
                later = or_(keys.c.used.is_(None), keys.c.used < at)
                connection.execute(update(keys).where(keys.c.id == key_id, later).values(used=at))

        await self._database.write(work)

    async def revoke(self, key_id: str, *, by: str = UNKNOWN) -> bool:
        """Revoke a key and its sessions. Return False if no valid key has that id."""

        def work(connection: Connection) -> bool:
            valid = (keys.c.id == key_id, keys.c.revoked.is_(None))
            owner = connection.scalar(update(keys).where(*valid).values(revoked=time.time()).returning(keys.c.owner))
            connection.execute(delete(sessions).where(sessions.c.key == key_id))
            revision.advance(connection)
            if owner is not None:
                append(connection, Change("key.revoked", f"key {key_id}", by, owner))
            return owner is not None

        return await self._database.write(work)


class Sessions:
    """Browsers that have signed in; every method raises StoreError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open(self, key: str, seconds: float) -> str | None:
        """Create a token for the browser, valid for this long. Return None if the key is not valid.

        If a key has more than MAX_SESSIONS, those that would end first end now.
        """
        token = secrets.token_urlsafe(32)
        now = time.time()

        def work(connection: Connection) -> str | None:
            valid = select(keys.c.id).where(keys.c.digest == digest(key), keys.c.revoked.is_(None))
            key_id = connection.execute(valid).scalar()
            if key_id is None:
                return None
            of_key = sessions.c.key == key_id
            kept = select(sessions.c.digest).where(of_key).order_by(sessions.c.expires.desc()).limit(MAX_SESSIONS - 1)
            connection.execute(delete(sessions).where(sessions.c.expires < now))
            connection.execute(delete(sessions).where(of_key, sessions.c.digest.not_in(kept)))
            connection.execute(insert(sessions).values(digest=digest(token), key=key_id, expires=now + seconds))
            return token

        return await self._database.write(work)

    async def identity(self, token: str) -> Identity | None:
        """Return who signed in with it. None if the session has ended."""
        query = (
            select(keys.c.owner, keys.c.role, keys.c.id.label("key"))
            .join(sessions, sessions.c.key == keys.c.id)
            .where(sessions.c.digest == digest(token), sessions.c.expires >= time.time(), keys.c.revoked.is_(None))
        )

        def work(connection: Connection) -> Identity | None:
            row = connection.execute(query).mappings().first()
            return None if row is None else Identity(**row)

        return await self._database.read(work)

    async def close(self, token: str) -> None:
        """Sign out."""
        await self._database.write(
            lambda connection: connection.execute(delete(sessions).where(sessions.c.digest == digest(token)))
        )


def valid_identities(connection: Connection) -> dict[str, Identity]:
    """Return whom each valid key stands for, by the key's digest."""
    query = select(keys.c.digest, keys.c.owner, keys.c.role, keys.c.id).where(keys.c.revoked.is_(None))
    return {found: Identity(owner, role, key) for found, owner, role, key in connection.execute(query)}


def digest(secret: str) -> str:
    """Return the SHA-256 of a key or token, in hexadecimal: they are random and long, so that no salt is needed."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
