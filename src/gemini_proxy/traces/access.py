"""Find the user of a key, and check that it is valid, by one small read of the database."""

import asyncio
import hmac
import logging
import re
import time
from typing import Final, Literal

from gemini_proxy.traces import revision
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.keys import Identity, Keys, Sessions, digest, valid_identities
from gemini_proxy.traces.revision import Revisions, Snapshots

log = logging.getLogger(__name__)

USES_SECONDS: Final = 60.0
DEVELOPER: Final = "developer"
"""The user whom every key stands for where access is open."""
_OPEN: Final = Identity(DEVELOPER, "operator", "")
_KEY: Final = re.compile(r"inv-[\x21-\x7e]{1,4000}")
_NOBODY: Final = "0" * 64


class AccessControl:
    """Identify the users of keys and sessions. Every method raises StoreError."""

    def __init__(self, database: Database, revisions: Revisions, mode: Literal["open", "keys"]) -> None:
        self.mode = mode
        self._sessions = Sessions(database)
        self._database = database
        self._identities = Snapshots(revisions, self._load)
        self._uses: dict[str, float] = {}

    async def identity(self, key: str | None) -> Identity | None:
        """Return the identity behind a key, None if the key is not valid.

        An unknown key takes as long as a known one: they are compared by their digests, whose timing does not help to
        find a key.
        """
        if self.mode == "open":
            return _OPEN if key and _KEY.fullmatch(key) else None
        identities = await self._identities.now(None)
        found = digest(key or "")
        known = found if found in identities else _NOBODY
        identity = identities.get(known) if hmac.compare_digest(known, found) else None
        if identity is not None:
            self._uses[identity.key] = time.time()
        return identity

    async def keep_uses(self) -> None:
        """Write every minute which keys were used in it, until cancelled."""
        while True:
            await asyncio.sleep(USES_SECONDS)
            await self.write_uses()

    async def write_uses(self) -> None:
        """Write when keys were used since the last time; what cannot be written is left out."""
        uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            await Keys(self._database).note_uses(uses)
        except StoreError as error:
            log.warning("the last use of keys was not written: %s", error)

    async def _load(self, _: None) -> tuple[int, dict[str, Identity]]:
        return await self._database.read(revision.stamped(valid_identities))

    async def session_identity(self, token: str | None) -> Identity | None:
        """Return who signed in with a browser's token. If access is open nobody has to."""
        if self.mode == "open":
            return _OPEN
        identity = await self._sessions.identity(token) if token else None
        if identity is not None:
            self._uses[identity.key] = time.time()
        return identity
