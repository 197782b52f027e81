"""Read what a request brings, once and whole: its body, its meaning, and the rules that hold for it."""

import re
from collections.abc import Callable, Sequence

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from gemini_proxy.config import Config
from gemini_proxy.errors import BadRequest, EngineUnavailable, Unavailable
from gemini_proxy.gemini.references import after_earlier
from gemini_proxy.gemini.request import GeminiRequest
from gemini_proxy.gemini.uploads import UploadedFile, read_file
from gemini_proxy.gemini.wires import passed_request, read_request
from gemini_proxy.guardrails.header_policy import with_header
from gemini_proxy.guardrails.rules import HEADER_NAME, GuardrailSet
from gemini_proxy.guardrails.workers import Workers
from gemini_proxy.http.request_body import check_type, read_body
from gemini_proxy.proxy.credentials import goes_as_bearer
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.handle_keeper import HandleKeeper
from gemini_proxy.proxy.upstream import upstream_headers
from gemini_proxy.sections import Guardrails
from gemini_proxy.traces.dataset_rules import DatasetRules
from gemini_proxy.traces.datasets import UNNAMED
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.headline import CONVERSATION_HEADER
from gemini_proxy.traces.redact import redact

Headers = CIMultiDictProxy[str] | CIMultiDict[str]

_CONVERSATION = re.compile(r"[\x21-\x7e]{1,128}")
_LARGE = 524_288
"""Bytes of body whose reading takes more than the five milliseconds that the loop may lose."""
_SHOWN = 100
"""Characters of a field's address that an error repeats."""
_MANY = 10_000
"""Values in a body (its objects, lists and members) whose reading takes tens of milliseconds, however small it is."""
_READ_SECONDS = 10.0
"""Seconds for reading a large body, including the wait for a process: several times what the largest takes."""
_SETTINGS = {
    "request.agent": "agents",
    "request.environment": "environments",
    "request.environment_id": "environments",
}
"""Fields of a request that name what runs at Google, and the settings that allow them."""


class RequestReader:
    """Fill an exchange from its request, or raise the error that the client gets."""

    def __init__(
        self,
        config: Config,
        rules: GuardrailSet,
        dataset_rules: DatasetRules,
        workers: Workers,
        keeper: HandleKeeper,
    ) -> None:
        self._server = config.server
        self._forwarded = config.upstream.forward_headers
        self._header_mode = config.guardrails.header_policies
        self._outbound = config.guardrails.outbound_fields
        self._guardrails = config.guardrails
        self._rules = rules
        self._dataset_rules = dataset_rules
        self._workers = workers
        self._keeper = keeper

    async def read(self, exchange: Exchange, request: web.Request) -> None:
        """Read rules, headers and body. Raises BadRequest and its kinds, and Unavailable for rules not to be had."""
        call, credentials, server = exchange.call, exchange.credentials, self._server
        if call.guarded:
            exchange.rules = await self.read_rules(exchange, request.headers)
        exchange.conversation = _conversation(request)
        bearer = goes_as_bearer(credentials, call)
        exchange.headers = upstream_headers(request.headers, credentials.gemini or "", self._forwarded, bearer=bearer)
        if call.row.transport == "json":
            check_type(request)
        exchange.body = await read_body(request, server.max_request_bytes, server.request_timeout)
        exchange.size = len(exchange.body)
        if not call.guarded:
            exchange.request = passed_request(call)
            return
        exchange.request = await self._read(exchange)
        await self.follow_references(exchange)

    async def read_file(self, exchange: Exchange, headers: Headers, file: UploadedFile) -> None:
        """Read a file whose upload was begun with ``headers``. Raises as ``read`` does."""
        exchange.rules = await self.read_rules(exchange, headers)
        exchange.headers = upstream_headers(headers, exchange.credentials.gemini or "", self._forwarded)
        exchange.file = file
        exchange.request = await self._read(exchange)
        await self.follow_references(exchange)

    async def follow_references(self, exchange: Exchange) -> None:
        """Put before the request what its references stand for.

        Raises BadRequest for a reference that cannot be checked, and for where the request sends its response.
        """
        request = exchange.checked_request
        # A request that rules can read whole refers to nothing.
        if request.unchecked:
            await self._bring_back(exchange)
        if request.outbound and self._outbound == "refuse":
            raise BadRequest(
                f'The field "{request.outbound[0][:_SHOWN]}" sends the response elsewhere, unchecked; '
                'this server accepts it only with guardrails.outbound_fields = "allow"'
            )

    async def _bring_back(self, exchange: Exchange) -> None:
        """Put the content of a request's references before it. Raises BadRequest for content that cannot be checked."""
        for unread in exchange.checked_request.unchecked:
            if unread.reference is not None and not unread.reference.name:
                raise BadRequest("The URI of a file is ambiguous; send it exactly as Google returned it")
        exchange.earlier = await self._keeper.bring_back(exchange)
        exchange.request = after_earlier(exchange.checked_request, exchange.earlier)
        for unread in exchange.request.unchecked:
            if unread.reference is not None and unread.reference.of_requests:
                raise BadRequest(
                    f"No rule has checked the requests in {unread.reference.name}: upload the file through this "
                    "proxy, with the type application/jsonl"
                )
        _refuse_unopened(exchange.request, self._guardrails)

    async def read_rules(self, exchange: Exchange, headers: Headers) -> GuardrailSet:
        """Return the rules that hold for a request. Raises BadRequest, and Unavailable for rules not to be had."""
        rules, dataset = self._rules, exchange.call.dataset
        if dataset is not None:
            rules = await self._stored_rules(exchange, rules, dataset)
        if given := headers.getall(HEADER_NAME, ()):
            rules = await self._with_header(exchange, given, rules)
        if dataset is None and rules.compares_tools:
            rules = await self._stored_rules(exchange, rules, UNNAMED)
        return rules

    async def read_again(self, exchange: Exchange) -> GeminiRequest:
        """Return the request that the body or file, which has changed, holds now. Raises as ``read`` does."""
        return after_earlier(await self._read(exchange), exchange.earlier)

    async def _stored_rules(self, exchange: Exchange, rules: GuardrailSet, dataset: str) -> GuardrailSet:
        """Return ``rules`` with a dataset's own in place of those of the same action."""
        try:
            return await self._dataset_rules.of(exchange.owner, dataset, rules)
        except StoreError:
            raise Unavailable("The rules of the dataset cannot be read now") from None

    async def _with_header(self, exchange: Exchange, given: Sequence[str], stored: GuardrailSet) -> GuardrailSet:
        if len(given) > 1:
            raise BadRequest(f"The header {HEADER_NAME} is given more than once")
        try:
            return await with_header(stored, given[0], self._header_mode, exchange.client)
        except UnicodeEncodeError:
            raise BadRequest(f"The header {HEADER_NAME} holds half a character (a lone surrogate)") from None

    async def _read(self, exchange: Exchange) -> GeminiRequest:
        body, file = exchange.body, exchange.file
        if file is not None:
            if file.data is None or len(file.data) < _LARGE:
                return read_file(file)
            return await self._apart(exchange, read_file, file)
        # No body has more values than bytes.
        if len(body) < _MANY or (len(body) < _LARGE and _values(body) < _MANY):
            return read_request(exchange.call, body)
        return await self._apart(exchange, read_request, exchange.call, body)

    async def _apart(self, exchange: Exchange, work: Callable[..., GeminiRequest], *arguments: object) -> GeminiRequest:
        """Return what ``work`` reads in another process. Raises as it does, and Unavailable if it takes too long."""
        try:
            return await self._workers.run_within(exchange.client, _READ_SECONDS, work, *arguments)
        except EngineUnavailable as error:
            raise Unavailable(f"The body could not be read in time: {error.message}") from None


def _values(body: bytes) -> int:
    """Return an upper bound of the objects, lists and members of a body: it does not recognize strings."""
    return body.count(b"{") + body.count(b"[") + body.count(b":")


def _refuse_unopened(request: GeminiRequest, guardrails: Guardrails) -> None:
    """Raise BadRequest for a request that names an agent or an environment where the settings do not allow it."""
    for unchecked in request.unchecked:
        setting = _SETTINGS.get(unchecked.address)
        if setting is not None and getattr(guardrails, setting) == "refuse":
            name = unchecked.address.removeprefix("request.")
            raise BadRequest(
                f'The field "{name}" makes Gemini run something that the proxy cannot see; '
                f'this server accepts it only with guardrails.{setting} = "allow"'
            )


def _conversation(request: web.Request) -> str:
    """Return the client's own name for the conversation, "" if it gives none. Raises BadRequest."""
    given = request.headers.getall(CONVERSATION_HEADER, ())
    if not given:
        return ""
    if len(given) > 1 or not _CONVERSATION.fullmatch(given[0]):
        raise BadRequest(f"The header {CONVERSATION_HEADER} must be given once, with 1 to 128 visible ASCII characters")
    return str(redact(given[0]))
