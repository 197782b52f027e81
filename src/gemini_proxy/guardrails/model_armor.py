"""Ask Google's Model Armor: runs a template's filters over one text."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import orjson

from gemini_proxy.errors import EngineUnavailable
from gemini_proxy.guardrails.service_client import ServiceClient
from gemini_proxy.policy import Answer, Question

METADATA: Final = "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token"
"""The URL from which a machine at Google gets its service account's token."""
_EARLY: Final = 60.0
"""Seconds before it expires that a token is replaced."""
_LOCATION: Final = re.compile(r"/locations/([^/]+)/")
_MODERATION: Final = frozenset(("rai", "csam"))


class ModelArmorAnswerer:
    """Ask the filters of ``template``. ``token`` is an OAuth token, by default that of the machine's account.

    ``url`` is the service's, by default the one of the template's location. ``clock`` counts seconds.
    """

    def __init__(
        self,
        client: ServiceClient,
        template: str,
        token: str | None,
        url: str | None = None,
        *,
        metadata: str = METADATA,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        location = _LOCATION.search(template)
        assert location is not None, "the configuration guarantees it"
        self._client = client
        self._url = f"{url or f'https://modelarmor.{location[1]}.rep.googleapis.com'}/v1/{template}"
        self._given = token
        self._metadata = metadata
        self._clock = clock
        self._fetched: tuple[str, float] | None = None

    def payer(self, key: str | None) -> str:
        """Return "": the operator pays for every caller."""
        return ""

    async def answer(self, question: Question, key: str | None) -> Answer:
        """Return the filters that match; for ``moderated``, whether one of its own does. Raises EngineUnavailable."""
        response = bool(orjson.loads(question.options).get("response"))
        method, field = (
            ("sanitizeModelResponse", "modelResponseData") if response else ("sanitizeUserPrompt", "userPromptData")
        )
        headers = {"authorization": f"Bearer {await self._token()}"}
        answer = await self._client.post(f"{self._url}:{method}", headers, {field: {"text": question.text}})
        matched = _matched(answer)
        return not _MODERATION.isdisjoint(matched) if question.detector == "moderated" else matched

    async def _token(self) -> str:
        if self._given is not None:
            return self._given
        if self._fetched is None or self._clock() >= self._fetched[1]:
            answer = await self._client.get(self._metadata, {"metadata-flavor": "Google"})
            token, lasts = answer.get("access_token"), answer.get("expires_in")
            if not isinstance(token, str) or not isinstance(lasts, int | float):
                raise EngineUnavailable("There is no token for Model Armor: set guardrails.model_armor.token")
            self._fetched = token, self._clock() + lasts - _EARLY
        return self._fetched[0]


def _matched(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the filters that match. Raises EngineUnavailable if none does and not all have run."""
    result = answer.get("sanitizationResult")
    if not isinstance(result, dict):
        raise EngineUnavailable("Model Armor's response has no result")
    filters = result.get("filterResults")
    named = filters.items() if isinstance(filters, dict) else ()
    matched = tuple(name for name, found in named if "MATCH_FOUND" in _states(found))
    if not matched and result.get("filterMatchState") == "MATCH_FOUND":
        return ("unnamed",)
    if not matched and (
        result.get("invocationResult") != "SUCCESS" or result.get("filterMatchState") != "NO_MATCH_FOUND"
    ):
        raise EngineUnavailable("Model Armor could not run all its filters")
    return matched


def _states(result: object) -> Iterator[str]:
    """Yield every ``matchState`` in a filter's result, at any depth."""
    if isinstance(result, dict):
        for name, value in result.items():
            if name == "matchState" and isinstance(value, str):
                yield value
            else:
                yield from _states(value)
