"""Which path is whose."""

from collections.abc import Iterable, Mapping
from typing import Final

from aiohttp import web

from gemini_proxy.errors import MethodNotAllowed, NotFound, ProxyError
from gemini_proxy.explorer.api import (
    check_api,
    dataset_api,
    feed_stream,
    policy_api,
    push_api,
    tool_api,
    trace_api,
    user_api,
)
from gemini_proxy.explorer.api.endpoints import Answers, Handler, api
from gemini_proxy.explorer.api.endpoints import error_response as api_error
from gemini_proxy.explorer.pages import dashboard, dataset_pages, rule_pages, sign_in, tool_pages, trace_pages
from gemini_proxy.explorer.pages.site import error_page, missing
from gemini_proxy.explorer.pages.static_files import STATIC, static_file, static_files
from gemini_proxy.explorer.pages.templating import set_up

_API: Final = "/api/v1"
_CALLS: Final[Mapping[str, Mapping[str, Answers]]] = {
    "/user/identity": {"GET": user_api.identity},
    "/dataset/create": {"POST": dataset_api.create},
    "/dataset/list": {"GET": dataset_api.listed},
    "/dataset/byid/{dataset_id}": {"GET": dataset_api.by_id, "DELETE": dataset_api.delete_by_id},
    "/dataset/byid/{dataset_id}/traces": {"GET": trace_api.listed_by_id},
    "/dataset/byuser/{user}/{dataset}": {"GET": dataset_api.by_name, "DELETE": dataset_api.delete_by_name},
    "/dataset/byuser/{user}/{dataset}/traces": {"GET": trace_api.listed_by_name},
    "/dataset/byuser/{user}/{dataset}/policy": {"GET": policy_api.listed},
    "/dataset/byuser/{user}/{dataset}/tools": {"GET": tool_api.listed},
    "/dataset/{dataset_id}/tools/accept": {"POST": tool_api.accept},
    "/dataset/{dataset_id}/tools/forget": {"POST": tool_api.forget},
    "/dataset/metadata/{dataset}": {"GET": dataset_api.metadata, "PUT": dataset_api.update_metadata},
    "/dataset/{dataset_id}/policy": {"POST": policy_api.create},
    "/dataset/{dataset_id}/policy/{policy_id}": {"PUT": policy_api.update, "DELETE": policy_api.remove},
    "/push/trace": {"POST": push_api.push_trace},
    "/trace/{trace_id}": {"GET": trace_api.whole},
    "/trace/{trace_id}/messages": {"GET": trace_api.messages, "POST": trace_api.append},
    "/trace/{trace_id}/annotations": {"GET": trace_api.annotations},
    "/trace/{trace_id}/annotate": {"POST": trace_api.annotate},
    "/trace/{trace_id}/annotations/update": {"POST": trace_api.update_annotations},
    "/policy/load": {"POST": check_api.load},
    "/policy/check": {"POST": check_api.check},
    "/policy/check/batch": {"POST": check_api.check_batch},
}
_AREAS: Final = ("user", "dataset", "push", "trace", "policy")


def add_routes(app: web.Application) -> None:
    """Add the Explorer's routes. They go before a route that takes every path."""
    for path, calls in _CALLS.items():
        _add_call(app, f"{_API}{path}", calls)
    _add_handler(app, f"{_API}/feed", "GET", feed_stream.feed)
    for area in _AREAS:
        app.router.add_route("*", f"{_API}/{area}{{rest:(/.*)?}}", _not_found)
    add_page_routes(app)


def is_api(request: web.Request) -> bool:
    """Whether a request to the Explorer is a call of its API; else it is one for a page."""
    return request.path.startswith(f"{_API}/")


def error_response(request: web.Request, error: ProxyError) -> web.Response:
    """Write an error that keeps a request from its handler, in the form of the handler's own errors."""
    return api_error(error) if is_api(request) else error_page(request, error)


def _add_call(app: web.Application, path: str, calls: Mapping[str, Answers]) -> None:
    resource = app.router.add_resource(path)
    for method, answers in calls.items():
        resource.add_route(method, api(answers))
    resource.add_route("*", _not_allowed(calls))


def _add_handler(app: web.Application, path: str, method: str, handler: Handler) -> None:
    resource = app.router.add_resource(path)
    resource.add_route(method, handler)
    resource.add_route("*", _not_allowed([method]))


async def _not_found(request: web.Request) -> web.StreamResponse:
    return api_error(NotFound("Not Found"))


def _not_allowed(methods: Iterable[str]) -> Handler:
    allowed = ", ".join(methods)

    async def refuse(request: web.Request) -> web.StreamResponse:
        response = api_error(MethodNotAllowed("Method Not Allowed"))
        # RFC 9110, section 15.5.6: an answer 405 has it.
        response.headers["allow"] = allowed
        return response

    return refuse


_DATASET: Final = "/explorer/datasets/{dataset}"
_RULE: Final = f"{_DATASET}/rules/{{id}}"
_GET: Final[dict[str, Handler]] = {
    "/": dataset_pages.home,
    "/explorer": dataset_pages.datasets,
    "/explorer/traces": trace_pages.traces,
    "/explorer/traces/rules": rule_pages.rules,
    "/explorer/traces/tools": tool_pages.tools,
    "/explorer/traces/{id}": trace_pages.trace,
    "/explorer/traces/{id}/json": trace_pages.trace_raw,
    "/explorer/traces/{id}/text": trace_pages.trace_text,
    "/explorer/live": dashboard.live,
    "/explorer/dashboard": dashboard.dashboard,
    "/explorer/sign-in": sign_in.sign_in_form,
    "/explorer/static/{file}": static_file,
    _DATASET: trace_pages.traces,
    f"{_DATASET}/delete": dataset_pages.ask_delete,
    f"{_DATASET}/tools": tool_pages.tools,
    f"{_DATASET}/rules": rule_pages.rules,
    f"{_DATASET}/rules/new": rule_pages.new,
    _RULE: rule_pages.edit,
    f"{_RULE}/delete": rule_pages.ask_delete,
}
_POST: Final[dict[str, Handler]] = {
    "/explorer": dataset_pages.create,
    "/explorer/sign-in": sign_in.sign_in,
    "/explorer/sign-out": sign_in.sign_out,
    "/explorer/api/check-policy": rule_pages.check_policy,
    "/explorer/api/try-policy": rule_pages.try_policy,
    f"{_DATASET}/delete": dataset_pages.delete,
    "/explorer/traces/tools/accept": tool_pages.accept,
    "/explorer/traces/tools/forget": tool_pages.forget,
    f"{_DATASET}/tools/accept": tool_pages.accept,
    f"{_DATASET}/tools/forget": tool_pages.forget,
    f"{_DATASET}/tools/labels": tool_pages.label,
    f"{_DATASET}/rules": rule_pages.add,
    _RULE: rule_pages.save,
    f"{_RULE}/switch": rule_pages.switch,
    f"{_RULE}/delete": rule_pages.delete,
}


def add_page_routes(app: web.Application) -> None:
    """Add the pages. They go before a route that takes every path."""
    app[STATIC] = static_files()
    set_up(app)
    for path, handler in _GET.items():
        app.router.add_get(path, handler)
    for path, handler in _POST.items():
        app.router.add_post(path, handler)
    app.router.add_route("*", "/explorer{rest:(/.*)?}", missing)
