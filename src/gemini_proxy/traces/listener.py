"""Listen to PostgreSQL for changes of keys, policies and datasets, on a connection of its own."""

import asyncio
import logging
import secrets
import time
from typing import Any, Final

from gemini_proxy.traces import revision
from gemini_proxy.traces.clock import is_set_within
from gemini_proxy.traces.database import Database
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.postgres import direct_connection
from gemini_proxy.traces.revision import HEARD_WITHIN, News

log = logging.getLogger(__name__)

_PERIOD: Final = 0.3
"""Seconds between two looks that show that the connection lives: each holds for HEARD_WITHIN from its beginning."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
"""Seconds until a new connection is tried; each pause is twice the one before while none is heard on."""


class ChangeListener:
    """Keep ``news`` complete while its connection lives.

    Changes are announced at once. The number is also read a few times a second: that shows that the connection is
    alive, and finds unannounced changes, such as those of an older version.
    """

    def __init__(self, database: Database, url: str, news: News) -> None:
        """``url`` leads to the same database as ``database`` does, but not through a pooler."""
        self._database = database
        self._url = url
        self._news = news
        self._hearing = False
        self._said = ""

    async def run(self) -> None:
        """Listen until cancelled, and connect again whenever the connection is lost."""
        pause = _FIRST_PAUSE
        while True:
            self._hearing = False
            try:
                async with direct_connection(self._url) as connection:
                    await self._listen(connection)
            except StoreError as error:
                pause = _FIRST_PAUSE if self._hearing else min(2 * pause, _LONGEST_PAUSE)
                self._say_once(f"not now: {error}; until then they are asked for with each exchange")
            finally:
                self._news.lost()
            await asyncio.sleep(pause)

    async def _listen(self, connection: Any) -> None:
        """Raise StoreError when the connection is lost, or hears nothing of ``database``."""
        word, heard, lost = secrets.token_hex(8), asyncio.Event(), asyncio.Event()

        def told(_connection: object, _process: int, _channel: str, said: str) -> None:
            if said == word:
                heard.set()
            elif said == revision.CHANGED:
                self._news.changed()

        def terminated(_connection: object) -> None:
            self._news.lost()
            lost.set()

        connection.add_termination_listener(terminated)
        await connection.add_listener(revision.CHANNEL, told)
        # A connection to another database would keep a revoked key valid forever.
        await self._database.write(lambda other: revision.notify(other, word))
        try:
            async with asyncio.timeout(HEARD_WITHIN):
                await heard.wait()
        except TimeoutError:
            raise StoreError("notifications do not arrive: this is another database, or one behind a pooler") from None
        await self._follow(connection, lost)

    async def _follow(self, connection: Any, lost: asyncio.Event) -> None:
        seen: int | None = None
        while not lost.is_set():
            began = time.monotonic()
            try:
                number = await connection.fetchval(revision.CURRENT, timeout=HEARD_WITHIN)
            except TimeoutError:
                raise StoreError("no response in time") from None
            if number != seen:
                seen = number
                self._news.changed()
            self._news.heard_by(began)
            self._hearing = True
            self._say_once("they hold at once")
            await is_set_within(lost, _PERIOD)
        raise StoreError("the connection was lost")

    def _say_once(self, how: str) -> None:
        if how != self._said:
            self._said = how
            log.info("listening for changes of keys and rules: %s", how)
