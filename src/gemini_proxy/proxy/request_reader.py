"""Reads what a request brings, once and whole: its body, its meaning, and the rules that hold for it."""

from aiohttp import web

from gemini_proxy.config import Config
from gemini_proxy.errors import BadRequest, EngineUnavailable, Unavailable
from gemini_proxy.gemini.request import GeminiRequest, read_request
from gemini_proxy.guardrails.rules import HEADER_NAME, GuardrailSet, with_header
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.proxy.credentials import upstream_headers
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.request_body import read_body
from gemini_proxy.traces.dataset_rules import DatasetRules
from gemini_proxy.traces.datasets import UNNAMED
from gemini_proxy.traces.errors import StoreError

_LARGE = 524_288
"""Bytes of body whose reading takes more than the five milliseconds that the loop may lose."""
_SHOWN = 100
"""Characters of a field's address that an error repeats."""
_MANY = 10_000
"""Values in a body (its objects, lists and members) whose reading takes tens of milliseconds, however small it is."""
_READ_SECONDS = 10.0
"""How long a large body may take to be read, its wait for a process included: several times what the largest takes."""


class RequestReader:
    """Fills an exchange from its request, or raises the error that the client gets."""

    def __init__(self, config: Config, rules: GuardrailSet, dataset_rules: DatasetRules, workers: Workers) -> None:
        self._server = config.server
        self._forwarded = config.upstream.forward_headers
        self._header_mode = config.guardrails.header_policies
        self._outbound = config.guardrails.outbound_fields
        self._rules = rules
        self._dataset_rules = dataset_rules
        self._workers = workers

    async def read(self, exchange: Exchange, request: web.Request) -> None:
        """Read rules, headers and body. Raises BadRequest and its kinds, and Unavailable for rules not to be had."""
        rules = await self._with_header(exchange, request, await self._stored_rules(exchange, self._rules))
        if exchange.call.dataset is None and rules.compares_tools:
            rules = await self._stored_rules(exchange, rules, UNNAMED)
        exchange.rules = rules
        key = exchange.credentials.gemini or ""
        exchange.headers = upstream_headers(request.headers, key, self._forwarded)
        exchange.body = await read_body(request, self._server.max_request_bytes, self._server.request_timeout)
        exchange.size = len(exchange.body)
        exchange.request = await self._read(exchange)
        if exchange.request.outbound and self._outbound == "refuse":
            raise BadRequest(
                f'The field "{exchange.request.outbound[0][:_SHOWN]}" sends the answer elsewhere, unchecked; '
                'this server takes it only with guardrails.outbound_fields = "allow".'
            )

    async def _stored_rules(self, exchange: Exchange, rules: GuardrailSet, dataset: str | None = None) -> GuardrailSet:
        """Those given; for a dataset, by default the path's, its own in the place of those of the same action."""
        if dataset is None and (dataset := exchange.call.dataset) is None:
            return rules
        try:
            return await self._dataset_rules.of(exchange.owner, dataset, rules)
        except StoreError:
            raise Unavailable("The rules of the dataset cannot be read now.") from None

    async def _with_header(self, exchange: Exchange, request: web.Request, stored: GuardrailSet) -> GuardrailSet:
        given = request.headers.getall(HEADER_NAME, ())
        if len(given) > 1:
            raise BadRequest(f"The header {HEADER_NAME} is given more than once.")
        if not given:
            return stored
        try:
            return await with_header(stored, given[0], self._header_mode, exchange.client)
        except UnicodeEncodeError:
            raise BadRequest(f"The header {HEADER_NAME} holds half a character (a lone surrogate).") from None

    async def _read(self, exchange: Exchange) -> GeminiRequest:
        body = exchange.body
        if len(body) < _LARGE and body.count(b"{") + body.count(b"[") + body.count(b":") < _MANY:
            return read_request(exchange.call, body)
        try:
            return await self._workers.run_within(exchange.client, _READ_SECONDS, read_request, exchange.call, body)
        except EngineUnavailable as error:
            raise Unavailable(f"The body could not be read in time. {error.message}") from None
