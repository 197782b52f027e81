"""Run a command's work on the trace database, opened for it and closed after it; report its errors in words."""

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.store import TraceStore

T = TypeVar("T")


def shell_user() -> str:
    """Return the user of the command line, for the records of their actions."""
    return f"{getpass.getuser()} (command line)"


def with_store(
    database: str,
    work: Callable[[TraceStore], Awaitable[T]],
    *,
    opened: Callable[[str], Awaitable[TraceStore]] = TraceStore.open_read_only,
    failure: type[click.ClickException] = click.ClickException,
) -> T:
    """Run ``work`` on the database at that URL. What the store raises ends the command, as a ``failure``."""

    async def run() -> T:
        store = await opened(database)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except StoreError as error:
        raise failure(str(error)) from None
