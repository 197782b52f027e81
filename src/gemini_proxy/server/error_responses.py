"""Write every error of the proxy as Google error JSON, by a middleware."""

import logging

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from gemini_proxy.errors import LimitExceeded, MethodNotAllowed, NotFound, PayloadTooLarge, ProxyError, Unavailable
from gemini_proxy.gemini.calls import NOT_SERVED
from gemini_proxy.gemini.generate_wire import GENERATE
from gemini_proxy.gemini.refusal import JSON_TYPE, retry_info
from gemini_proxy.gemini.wire import Wire
from gemini_proxy.gemini.wires import wire_of, wire_of_path
from gemini_proxy.http.request_body import MEMORY_BUDGET
from gemini_proxy.proxy.response import break_off
from gemini_proxy.server.app_keys import CALL, CONFIG, EXCHANGE, MEMORY, STATE

log = logging.getLogger(__name__)


def error_response(error: ProxyError, wire: Wire = GENERATE) -> web.Response:
    """Return ``error`` as the client sees it, in the words of its ``wire``. The rest of a body is not waited for."""
    details = [retry_info(error.retry_after)] if isinstance(error, LimitExceeded) else ()
    body = orjson.dumps(wire.error_body(error.status, error.message, error.code, details))
    response = web.Response(status=error.status, body=body, headers={"content-type": JSON_TYPE})
    response.headers.update(error.headers)
    if isinstance(error, PayloadTooLarge | LimitExceeded):
        # Reading the rest of its body would be useless.
        response.force_close()
    if error.retry_after is not None:
        response.headers["retry-after"] = str(error.retry_after)
    return response


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn any escaped exception into a response in the door's form; once bytes were sent, break off the body."""
    app = request.app
    state = app[STATE]
    if state.in_flight >= app[CONFIG].server.max_exchanges:
        return error_response(
            Unavailable("The proxy is handling as many requests as server.max_exchanges allows; try again later"),
            _wire(request),
        )
    state.in_flight += 1
    try:
        return await handler(request)
    except ProxyError as error:
        log.info("request refused", extra={"status": error.status, "reason": error.message, **_trace_id(request)})
        return _answer(request, error)
    except web.HTTPException as error:
        return _answer(request, _translated(error))
    except (ConnectionError, TimeoutError):
        raise ConnectionError("the client is gone") from None
    except Exception as error:
        log.error("unexpected error", exc_info=error, extra={"status": 500, **_trace_id(request)})
        return _answer(request, ProxyError("The proxy failed on this request"))
    finally:
        state.in_flight -= 1
        # An idle connection keeps its last request alive, and with it the whole conversation.
        request.pop(EXCHANGE, None)
        if reserved := app[MEMORY_BUDGET].release(request):
            app[MEMORY].freed(reserved)


def _answer(request: web.Request, error: ProxyError) -> web.Response:
    if request.writer.output_size > 0:
        break_off(request)
        raise ConnectionError("the response broke off")
    return error_response(error, _wire(request))


def _wire(request: web.Request) -> Wire:
    return wire_of(request[CALL]) if CALL in request else wire_of_path(request.raw_path)


def _translated(error: web.HTTPException) -> ProxyError:
    if error.status == 405:
        return MethodNotAllowed("This path does not take that HTTP method")
    if error.status == 404:
        # A target that is no path, such as that of OPTIONS *: ``read_call`` refuses the others.
        return NotFound(NOT_SERVED)
    return ProxyError("The proxy failed on this request")


def _trace_id(request: web.Request) -> dict[str, str]:
    """Return the field of a log line that leads to the trace, if there may be one."""
    return {"trace_id": request[EXCHANGE].id} if EXCHANGE in request else {}
