"""Which path is whose."""

from collections.abc import Iterable, Mapping
from typing import Final

from aiohttp import web

from gemini_proxy.errors import MethodNotAllowed, NotFound, ProxyError
from gemini_proxy.explorer import feed
from gemini_proxy.explorer.api import check, datasets, policies, push, tools, traces, user
from gemini_proxy.explorer.api.contract import Answers, Handler, api
from gemini_proxy.explorer.api.contract import error_response as api_error
from gemini_proxy.explorer.pages.routes import add_page_routes
from gemini_proxy.explorer.pages.site import error_page

_API: Final = "/api/v1"
_CALLS: Final[Mapping[str, Mapping[str, Answers]]] = {
    "/user/identity": {"GET": user.identity},
    "/dataset/create": {"POST": datasets.create},
    "/dataset/list": {"GET": datasets.listed},
    "/dataset/byid/{dataset_id}": {"GET": datasets.by_id, "DELETE": datasets.delete_by_id},
    "/dataset/byid/{dataset_id}/traces": {"GET": traces.listed_by_id},
    "/dataset/byuser/{user}/{dataset}": {"GET": datasets.by_name, "DELETE": datasets.delete_by_name},
    "/dataset/byuser/{user}/{dataset}/traces": {"GET": traces.listed_by_name},
    "/dataset/byuser/{user}/{dataset}/policy": {"GET": policies.listed},
    "/dataset/byuser/{user}/{dataset}/tools": {"GET": tools.listed},
    "/dataset/{dataset_id}/tools/accept": {"POST": tools.accept},
    "/dataset/{dataset_id}/tools/forget": {"POST": tools.forget},
    "/dataset/metadata/{dataset}": {"GET": datasets.metadata, "PUT": datasets.update_metadata},
    "/dataset/{dataset_id}/policy": {"POST": policies.create},
    "/dataset/{dataset_id}/policy/{policy_id}": {"PUT": policies.update, "DELETE": policies.remove},
    "/push/trace": {"POST": push.push_trace},
    "/trace/{trace_id}": {"GET": traces.whole},
    "/trace/{trace_id}/messages": {"GET": traces.messages, "POST": traces.append},
    "/trace/{trace_id}/annotations": {"GET": traces.annotations},
    "/trace/{trace_id}/annotate": {"POST": traces.annotate},
    "/trace/{trace_id}/annotations/update": {"POST": traces.update_annotations},
    "/policy/load": {"POST": check.load},
    "/policy/check": {"POST": check.check},
    "/policy/check/batch": {"POST": check.check_batch},
}
_AREAS: Final = ("user", "dataset", "push", "trace", "policy")


def add_routes(app: web.Application) -> None:
    """Add the Explorer's routes. They go before a route that takes every path."""
    for path, calls in _CALLS.items():
        _add_call(app, f"{_API}{path}", calls)
    _add_handler(app, f"{_API}/feed", "GET", feed.feed)
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
