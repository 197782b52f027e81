"""Check with a service of the Guardrails contract: a client of ``policy/check/batch`` and ``policy/load``.

aiohttp's errors do not leave this module. A check is sent a second time only if a kept connection was closed as it was
used.
"""

import asyncio
import hashlib
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import aiohttp
from yarl import URL

from gemini_proxy.errors import EngineUnavailable, Unauthenticated
from gemini_proxy.gemini.call_links import with_ids
from gemini_proxy.guardrails.engine import Check, GuardSession
from gemini_proxy.guardrails.remote_responses import ServiceResponse, read_loaded, read_verdict
from gemini_proxy.guardrails.service_client import bounded, encoded, in_pieces, service_headers, service_session
from gemini_proxy.guardrails.verdict import Verdict, Violation
from gemini_proxy.policy import OpenTurn, Place

log = logging.getLogger(__name__)

MAX_RESPONSE: Final = 4_194_304
"""Bytes of a response: enough for every violation in a long conversation, and parsed in some ten milliseconds."""
RELOAD_SECONDS: Final = 3600.0
"""Seconds for which a service is taken to know a policy, as in Invariant's own gateway."""
_RETRY_SECONDS: Final = 60.0
"""Seconds after which policies that did not load are sent again."""
_LOADED_KEPT: Final = 1024
"""Texts that are remembered as loaded. One that is forgotten is sent again, which changes nothing."""


class RemoteEngine:
    """Ask the service at ``url``. ``timeout`` limits a call in seconds, connecting included.

    ``key`` is used when the caller supplies none. ``clock`` counts seconds. Enter this asynchronous context manager
    before calling it.
    """

    def __init__(
        self, url: str, key: str | None, timeout: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url = url
        self._key = key
        self._timeout = timeout
        self._clock = clock
        self._session_id = str(uuid.uuid4())
        self._session: aiohttp.ClientSession | None = None
        self._loaded: OrderedDict[bytes, float] = OrderedDict()

    async def __aenter__(self) -> "RemoteEngine":
        self._session = service_session()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def open_session(self, check: Check, overlap: int) -> GuardSession | None:
        """Open a session in which every guardrail waits for the end: no service checks a response piece by piece."""
        return _EndOnly(tuple(guardrail.name for guardrail in check.guardrails)) if check.guardrails else None

    def check(self, check: Check) -> Verdict | Awaitable[Verdict]:
        """Check with all guardrails in one call. Raises Unauthenticated without a key or if it is not accepted."""
        return self._check(check) if check.guardrails else Verdict()

    async def _check(self, check: Check) -> Verdict:
        started = time.perf_counter()
        asked = {
            "messages": with_ids(check.messages),
            "policies": [guardrail.policy.text for guardrail in check.guardrails],
            "parameters": check.parameters,
            "dataset_name": check.dataset,
        }
        response = await self._call(
            "policy/check/batch", asked, check.key or self._key or check.invariant_key, check.session
        )
        return read_verdict(response, check.guardrails, (time.perf_counter() - started) * 1000)

    async def preload(self, texts: Sequence[str]) -> bool:
        """Send the policies that the service was not sent within the last hour, with the engine's own key.

        Return whether the service now has all of them; failures are logged.
        """
        return all([await self._load(text) for text in texts])

    async def run(self, texts: Sequence[str]) -> None:
        """Keep the policies ``texts`` loaded, until cancelled."""
        while True:
            loaded = await self.preload(texts)
            await asyncio.sleep(RELOAD_SECONDS if loaded else _RETRY_SECONDS)

    async def _load(self, text: str) -> bool:
        known, now = hashlib.sha256(text.encode()).digest(), self._clock()
        if now - self._loaded.get(known, -RELOAD_SECONDS) < RELOAD_SECONDS:
            return True
        try:
            read_loaded(await self._call("policy/load", {"policy": text}, self._key, None))
        except (EngineUnavailable, Unauthenticated) as error:
            log.warning("a policy was not preloaded: %s", error.message)
            return False
        self._loaded[known] = now
        self._loaded.move_to_end(known)
        while len(self._loaded) > _LOADED_KEPT:
            self._loaded.popitem(last=False)
        return True

    async def _call(self, path: str, asked: object, key: str | None, session_id: str | None) -> ServiceResponse:
        """Call the service. Raises EngineUnavailable without a response, Unauthenticated without a key."""
        key = _usable(key)
        headers = service_headers(key) | {"x-session-id": session_id or self._session_id}
        url = URL(f"{self._url}/api/v1/{path}")
        try:
            async with asyncio.timeout(self._timeout):
                return ServiceResponse(*await self._post(url, headers, encoded(asked, "the guardrails service")), key)
        except TimeoutError:
            raise EngineUnavailable("The guardrails service did not answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineUnavailable(f"The guardrails service cannot be reached ({type(error).__name__})") from None

    async def _post(self, url: URL, headers: dict[str, str], data: bytes) -> tuple[int, bytes]:
        assert self._session is not None
        for attempt in (1, 2):
            try:
                sent = in_pieces(data)
                async with self._session.post(url, headers=headers, data=sent, allow_redirects=False) as response:
                    # Decide by the status alone: no body may turn a rejected key into a check without a verdict.
                    if response.status == 401:
                        return 401, b""
                    return response.status, await bounded(response.content, MAX_RESPONSE, "the guardrails service")
            except aiohttp.ServerDisconnectedError:
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")


class _EndOnly:
    """A GuardSession that judges nothing: its engine only sees whole responses."""

    overlap = 0
    clear = False
    stuck = True

    def __init__(self, waiting: tuple[str, ...]) -> None:
        self.waiting = waiting

    def turn(self, messages: Sequence[tuple[int, Mapping[str, Any]]] = ()) -> OpenTurn:
        return OpenTurn([])

    def begin(self, turn: OpenTurn, place: Place) -> None:
        """Do nothing: nothing is judged before the end."""

    def check(self, turn: OpenTurn, text: str) -> Sequence[Violation]:
        return ()

    def settle(self) -> None:
        """Do nothing: nothing is judged before the end."""


def _usable(key: str | None) -> str:
    if not key:
        raise Unauthenticated(
            "No key for the guardrails service: send invariant-guardrails-authorization or invariant-authorization, "
            "or configure guardrails.remote.api_key"
        )
    if not (key.isascii() and key.isprintable()):
        raise Unauthenticated("The API key for the guardrails service cannot be sent in a header")
    return key
