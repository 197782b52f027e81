"""Which page is where."""

from typing import Final

from aiohttp import web

from gemini_proxy.explorer.pages import dashboard, datasets, rules, sign_in, tools, traces
from gemini_proxy.explorer.pages.site import Handler, missing
from gemini_proxy.explorer.pages.static_files import STATIC, static_file, static_files
from gemini_proxy.explorer.pages.templating import set_up

_DATASET: Final = "/explorer/datasets/{dataset}"
_RULE: Final = f"{_DATASET}/rules/{{id}}"
_GET: Final[dict[str, Handler]] = {
    "/": datasets.home,
    "/explorer": datasets.datasets,
    "/explorer/traces": traces.traces,
    "/explorer/traces/rules": rules.rules,
    "/explorer/traces/tools": tools.tools,
    "/explorer/traces/{id}": traces.trace,
    "/explorer/traces/{id}/json": traces.trace_raw,
    "/explorer/traces/{id}/text": traces.trace_text,
    "/explorer/live": dashboard.live,
    "/explorer/dashboard": dashboard.dashboard,
    "/explorer/sign-in": sign_in.sign_in_form,
    "/explorer/static/{file}": static_file,
    _DATASET: traces.traces,
    f"{_DATASET}/delete": datasets.ask_delete,
    f"{_DATASET}/tools": tools.tools,
    f"{_DATASET}/rules": rules.rules,
    f"{_DATASET}/rules/new": rules.new,
    _RULE: rules.edit,
    f"{_RULE}/delete": rules.ask_delete,
}
_POST: Final[dict[str, Handler]] = {
    "/explorer": datasets.create,
    "/explorer/sign-in": sign_in.sign_in,
    "/explorer/sign-out": sign_in.sign_out,
    "/explorer/api/check-policy": rules.check_policy,
    "/explorer/api/try-policy": rules.try_policy,
    f"{_DATASET}/delete": datasets.delete,
    "/explorer/traces/tools/accept": tools.accept,
    "/explorer/traces/tools/forget": tools.forget,
    f"{_DATASET}/tools/accept": tools.accept,
    f"{_DATASET}/tools/forget": tools.forget,
    f"{_DATASET}/tools/labels": tools.label,
    f"{_DATASET}/rules": rules.add,
    _RULE: rules.save,
    f"{_RULE}/switch": rules.switch,
    f"{_RULE}/delete": rules.delete,
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
