"""The first key of a server that nobody has a key for yet: written to a file, because a log is read by others."""

import asyncio
import os
from pathlib import Path
from typing import Final

from gemini_proxy.cli.settings import fail
from gemini_proxy.traces.keys import Keys
from gemini_proxy.traces.store import TraceStore

FIRST_USER: Final = "admin"


def make_first_key(database: str, file: Path) -> bool:
    """Write a key for FIRST_USER to ``file``, which only its owner can read, if ``database`` has no key, not even a
    revoked one. Return whether it did. Raises StoreError; ends the program with 78 where the file cannot be written.
    """

    try:
        return asyncio.run(_make(database, file))
    except OSError as error:
        fail(f"--first-key: {file}: {error.strerror}")


async def _make(database: str, file: Path) -> bool:
    store = await TraceStore.open(database)
    try:
        keys = Keys(store.database)
        if await keys.all():
            return False
        # Opened before the key is made: a key that cannot be written down is of no use.
        with os.fdopen(_private(file), "wb", buffering=0) as opened:
            record, key = await keys.add(FIRST_USER)
            try:
                opened.write(key.encode() + b"\n")
                os.fsync(opened.fileno())
            except OSError:
                await keys.revoke(record.id)
                raise
        return True
    finally:
        await store.close()


def _private(file: Path) -> int:
    """A descriptor for writing ``file`` from its beginning, mode 0600."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    # It may have been there before.
    os.fchmod(descriptor, 0o600)
    return descriptor
