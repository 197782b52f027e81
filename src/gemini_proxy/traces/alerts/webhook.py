"""The client of those who are told. aiohttp's errors end here."""

import asyncio
import time
from typing import Final

import aiohttp

from gemini_proxy.guardrails.service_client import service_session
from gemini_proxy.traces.alerts.rules import AlertMessage, AlertRule
from gemini_proxy.traces.alerts.wording import body_of, headers_of
from gemini_proxy.traces.push.answers import Answer, Delivered, Failed, Failure, read_status

TIMEOUT: Final = 10.0
"""Seconds for one message, connecting included."""


class Webhooks:
    """Post messages. An asynchronous context manager; ``public_url`` is where the pages are, for links to them."""

    def __init__(self, public_url: str | None, *, timeout: float = TIMEOUT) -> None:
        self._public_url = public_url
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Webhooks":
        self._session = service_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, message: AlertMessage, rule: AlertRule) -> Answer:
        """Post a message once; without raising. Only the status of the response is read."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._post(message, rule)
        except TimeoutError:
            return Failed(Failure.TIMEOUT)
        # ValueError: a host name that cannot be sent.
        except (aiohttp.ClientError, OSError, ValueError):
            return Failed(Failure.UNREACHABLE)

    async def _post(self, message: AlertMessage, rule: AlertRule) -> Answer:
        assert self._session is not None
        body, now = body_of(message, rule, self._public_url), time.time()
        headers = headers_of(message, rule, body, now)
        async with self._session.post(rule.url, headers=headers, data=body, allow_redirects=False) as response:
            if 200 <= response.status < 300:
                return Delivered()
            return read_status(response.status, response.headers.get("retry-after"), now)
