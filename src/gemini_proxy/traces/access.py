"""Who a key belongs to, and whether it may be used: as the database has it now, at the price of one small read."""

import hmac
import re
from typing import Final, Literal

from gemini_proxy.traces import revision
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.keys import Sessions, digest, valid_owners
from gemini_proxy.traces.snapshot import Revisions, Snapshots

DEVELOPER: Final = "developer"
"""The user whom every key stands for where access is open."""
_KEY: Final = re.compile(r"inv-[\x21-\x7e]{1,4000}")
_NOBODY: Final = "0" * 64


class AccessControl:
    """Answers for keys and sessions. Every method raises StoreError."""

    def __init__(self, database: Database, revisions: Revisions, mode: Literal["open", "keys"]) -> None:
        self.mode = mode
        self._sessions = Sessions(database)
        self._database = database
        self._owners = Snapshots(revisions, self._load)

    async def user(self, key: str | None) -> str | None:
        """The user a key stands for; None where it is not valid.

        A key that is unknown takes as long as one that is known: they are told apart by their digests, of which the
        time says nothing that helps to find a key.
        """
        if self.mode == "open":
            return DEVELOPER if key and _KEY.fullmatch(key) else None
        owners = await self._owners.now(None)
        found = digest(key or "")
        known = found if found in owners else _NOBODY
        return owners.get(known) if hmac.compare_digest(known, found) else None

    async def _load(self, _: None) -> tuple[int, dict[str, str]]:
        return await self._database.read(revision.stamped(valid_owners))

    async def session_user(self, token: str | None) -> str | None:
        """Who signed in with a browser's token; where access is open nobody has to."""
        if self.mode == "open":
            return DEVELOPER
        return await self._sessions.owner(token) if token else None
