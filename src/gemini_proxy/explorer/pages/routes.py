"""Which page is where."""

from typing import Final

from aiohttp import web

from gemini_proxy.explorer.pages import dashboard, dataset_pages, rule_pages, sign_in, tool_pages, trace_pages
from gemini_proxy.explorer.pages.site import Handler, missing
from gemini_proxy.explorer.pages.static_files import STATIC, static_file, static_files
from gemini_proxy.explorer.pages.templating import set_up

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
