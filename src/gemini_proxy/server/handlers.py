"""Relays calls to the upstream and their answers back, chunk by chunk through the gate. Knows nothing of rules."""

import asyncio
from functools import partial

from aiohttp import web
from multidict import CIMultiDict

from gemini_proxy.gemini.calls import ModelCall
from gemini_proxy.gemini.framing.frames import Framing
from gemini_proxy.gemini.framing.json_array import JsonArrayFraming
from gemini_proxy.gemini.framing.sse import SseFraming
from gemini_proxy.gemini.framing.whole_body import WholeBodyFraming
from gemini_proxy.guardrails.coverage import HEADER
from gemini_proxy.proxy.credentials import upstream_headers
from gemini_proxy.proxy.exchange import Exchange
from gemini_proxy.proxy.refuse import SSE_TYPE, refuses_by_event
from gemini_proxy.proxy.response import ClientAnswer
from gemini_proxy.proxy.upstream import Answer
from gemini_proxy.server.app_keys import ANSWER, CALL, CONFIG, CREDENTIALS, EXCHANGE, MEMORY, SETUP, TASKS, UPSTREAM


async def relay(request: web.Request) -> web.StreamResponse:
    """Any call the allow-list let through."""
    if EXCHANGE not in request:
        return await _relay_listing(request)
    exchange, answer = request[EXCHANGE], request[ANSWER]
    reply = await _open(request, exchange)
    try:
        exchange.upstream_status = reply.status
        if exchange.call.generates and reply.status < 400:
            await _relay_answer(request, exchange, answer, reply)
        else:
            answer.whole(reply.status, reply.headers, await reply.read(_limit(request)))
    finally:
        reply.close()
        request.app[MEMORY].freed(reply.received)
    return answer.response


async def _relay_answer(request: web.Request, exchange: Exchange, answer: ClientAnswer, reply: Answer) -> None:
    lifecycle = request[SETUP].lifecycle
    lifecycle.open_gate(exchange, _framing(exchange, reply))
    answer.head(reply.status, reply.headers, streams=exchange.call.streams or reply.content_type == SSE_TYPE)
    if exchange.framing == SSE_TYPE:
        exchange.keep_alive = partial(_keep_alive, request, exchange, answer)
    while data := await reply.receive():
        if leaving := await lifecycle.feed(exchange, data):
            _begin(request, exchange, answer)
            await answer.write(request, leaving)


def _begin(request: web.Request, exchange: Exchange, answer: ClientAnswer) -> None:
    """Note what the head is to say, before the first byte takes it along."""
    if not answer.begun:
        exchange.mark_first_byte()
        answer.note(HEADER, request[SETUP].scribe.coverage(exchange).header)


async def _keep_alive(request: web.Request, exchange: Exchange, answer: ClientAnswer, following: bytes) -> None:
    """A verdict takes long. Sending anything settles that a refusal is an event, so it must be one in any case."""
    if answer.begun or refuses_by_event(exchange, request[SETUP].config.refusals.before_stream):
        _begin(request, exchange, answer)
        await answer.keep_alive(request, following)


def _framing(exchange: Exchange, reply: Answer) -> Framing:
    """What the answer says it is decides: ``alt=sse`` works on unary calls too, and streams without it are arrays."""
    exchange.framing = reply.content_type
    if reply.content_type == SSE_TYPE:
        return SseFraming()
    return JsonArrayFraming() if exchange.call.streams else WholeBodyFraming()


async def _open(request: web.Request, exchange: Exchange) -> Answer:
    """Call the upstream; a request check under way beside it ends the call as soon as it refuses."""
    opening = request.app[UPSTREAM].open("POST", exchange.call.upstream_target, exchange.headers, exchange.body)
    if exchange.checking is None:
        reply = await opening
    else:
        call = request.app[TASKS].beside(opening, "upstream call")
        try:
            await asyncio.wait({call, exchange.checking}, return_when=asyncio.FIRST_COMPLETED)
            if exchange.checking.done():
                await request[SETUP].lifecycle.admit(exchange)
            reply = await call
        except BaseException:
            _abandon(call)
            raise
    exchange.mark_head()
    # The upstream has it; the answer may take minutes.
    exchange.body = b""
    return reply


def _abandon(call: "asyncio.Task[Answer]") -> None:
    if not call.cancel() and not call.cancelled() and call.exception() is None:
        call.result().close()


async def _relay_listing(request: web.Request) -> web.StreamResponse:
    """``GET models`` and ``GET models/{model}``: nothing of a user's is in them."""
    call: ModelCall = request[CALL]
    config = request.app[CONFIG]
    headers = upstream_headers(request.headers, request[CREDENTIALS].gemini or "", config.upstream.forward_headers)
    reply = await request.app[UPSTREAM].open("GET", call.upstream_target, headers, None)
    try:
        body = await reply.read(_limit(request))
        return web.Response(status=reply.status, headers=CIMultiDict(reply.headers), body=body)
    finally:
        reply.close()


def _limit(request: web.Request) -> int:
    return request.app[CONFIG].upstream.max_answer_bytes
