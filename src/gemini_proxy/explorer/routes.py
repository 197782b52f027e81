"""Map the Explorer's paths to handlers: the endpoints of the API, also for its OpenAPI document, and the pages."""

import asyncio
from collections.abc import Iterable
from functools import cache
from typing import Any, Final

from aiohttp import web

from gemini_proxy.errors import MethodNotAllowed, NotFound, ProxyError
from gemini_proxy.explorer.api import (
    approval_api,
    audit_api,
    check_api,
    dataset_api,
    feed_api,
    policy_api,
    push_api,
    shadow_api,
    tool_api,
    trace_api,
)
from gemini_proxy.explorer.api.endpoints import ApiCall, Endpoint, Handler, QueryParameter, api, document_response
from gemini_proxy.explorer.api.endpoints import error_response as api_error
from gemini_proxy.explorer.api.openapi import openapi_document
from gemini_proxy.explorer.api.request_bodies import (
    AnnotationCreation,
    AnnotationReplacement,
    ApprovalDecision,
    BatchCheck,
    DatasetCreation,
    MessageAppend,
    MessageCheck,
    MetadataChange,
    PlaceholderChoice,
    PolicyChange,
    PolicyCreation,
    PolicyLoad,
    ShadowPromotion,
    ShadowShare,
    ShadowStart,
    ToolAcceptance,
    ToolRemoval,
    TracePush,
)
from gemini_proxy.explorer.api.response_bodies import (
    AnnotationView,
    ApprovalView,
    AuditEntryView,
    BatchView,
    CheckView,
    DatasetView,
    IdentityView,
    LoadView,
    MaskedValueView,
    MessageView,
    PoliciesView,
    PolicyVersionView,
    PushView,
    ReplacedView,
    ShadowDifferenceView,
    ShadowView,
    SuccessView,
    ToolsView,
    TraceOutlineView,
    TraceView,
    TriedGuardrailView,
)
from gemini_proxy.explorer.app_keys import ACCESS
from gemini_proxy.explorer.pages import (
    approval_pages,
    audit_pages,
    conversation_pages,
    dashboard,
    dataset_pages,
    guardrail_pages,
    key_pages,
    listing_pages,
    rule_pages,
    shadow_pages,
    sign_in,
    tool_pages,
    trace_pages,
    trace_reruns,
)
from gemini_proxy.explorer.pages.site import error_page, missing
from gemini_proxy.explorer.pages.static_files import static_file, static_files
from gemini_proxy.explorer.pages.templating import set_up
from gemini_proxy.traces.feed import MAX_REPLAYED
from gemini_proxy.traces.rows import dump
from gemini_proxy.traces.shadows import DIFFERENCE_KINDS

_API: Final = "/api/v1"
_BY_ID: Final = f"{_API}/dataset/byid/{{dataset_id}}"
_BY_NAME: Final = f"{_API}/dataset/byuser/{{user}}/{{dataset}}"
_OWN: Final = f"{_API}/dataset/{{dataset_id}}"
_VERSIONS: Final = f"{_OWN}/policy/{{policy_id}}/versions"
_SHADOWS: Final = f"{_OWN}/shadows"
_SHADOW: Final = f"{_SHADOWS}/{{policy_id}}"
_METADATA: Final = f"{_API}/dataset/metadata/{{dataset}}"
_APPROVAL: Final = f"{_API}/approvals/{{approval_id}}"
_TRACE: Final = f"{_API}/trace/{{trace_id}}"
_AREAS: Final = ("user", "approvals", "audit", "dataset", "push", "trace", "policy")

JsonObject = dict[str, Any]


async def show_identity(call: ApiCall) -> IdentityView:
    """Show the user of the key."""
    return {"username": call.user}


async def show_openapi(call: ApiCall) -> web.Response:
    """Show this document."""
    return document_response(await asyncio.to_thread(_openapi, open_access=call.app[ACCESS].mode == "open"))


def _number(name: str, description: str, most: int | None = None) -> QueryParameter:
    bound = {} if most is None else {"maximum": most, "default": most}
    return QueryParameter(name, description, {"type": "integer", "minimum": 0, **bound})


def _text(name: str, description: str, **schema: Any) -> QueryParameter:
    return QueryParameter(name, description, {"type": "string", **schema})


_OFFSET: Final = _number("offset", "How many traces to skip.")
_TRACES: Final = (
    _text("indices", "Only the traces at these positions in the dataset: at most 1,000 numbers, separated by commas."),
    _number("limit", "How many to list.", trace_api.MAX_TRACES_LISTED),
    _OFFSET,
)
_OWNER: Final = "The owner. Any user other than the caller is not found (404)."

ENDPOINTS: Final = (
    Endpoint("GET", "/api/openapi.json", show_openapi, JsonObject),
    Endpoint("GET", f"{_API}/user/identity", show_identity, IdentityView),
    Endpoint("POST", f"{_API}/dataset/create", dataset_api.create_dataset, DatasetView, DatasetCreation),
    Endpoint(
        "GET",
        f"{_API}/dataset/list",
        dataset_api.list_datasets,
        list[DatasetView],
        query=(
            _text("kind", "Which kind.", enum=list(dataset_api.DATASET_KINDS), default="any"),
            _text("q", "Text that the names contain."),
            _number("limit", "How many to list.", dataset_api.MAX_DATASETS_LISTED),
        ),
    ),
    Endpoint("GET", _BY_ID, dataset_api.show_dataset_by_id, DatasetView),
    Endpoint("DELETE", _BY_ID, dataset_api.delete_dataset_by_id, MessageView),
    Endpoint("GET", f"{_BY_ID}/traces", trace_api.list_traces_by_id, list[TraceOutlineView], query=_TRACES),
    Endpoint("GET", _BY_NAME, dataset_api.show_dataset_by_name, DatasetView),
    Endpoint("DELETE", _BY_NAME, dataset_api.delete_dataset_by_name, MessageView),
    Endpoint("GET", f"{_BY_NAME}/traces", trace_api.list_traces_by_name, list[TraceOutlineView], query=_TRACES),
    Endpoint("GET", f"{_BY_NAME}/policy", policy_api.list_policies, PoliciesView),
    Endpoint(
        "GET",
        f"{_BY_NAME}/tools",
        tool_api.list_tools,
        ToolsView,
        query=(_number("limit", "How many to list.", tool_api.MAX_TOOLS_LISTED), _OFFSET),
    ),
    Endpoint("POST", f"{_OWN}/tools/accept", tool_api.accept_tool, MessageView, ToolAcceptance),
    Endpoint("POST", f"{_OWN}/tools/forget", tool_api.forget_tool, MessageView, ToolRemoval),
    Endpoint(
        "GET",
        _METADATA,
        dataset_api.show_metadata,
        JsonObject,
        query=(_text("owner_username", _OWNER), _text("owner", _OWNER)),
    ),
    Endpoint("PUT", _METADATA, dataset_api.change_metadata, JsonObject, MetadataChange),
    Endpoint("POST", f"{_OWN}/policy", policy_api.add_policy, DatasetView, PolicyCreation),
    Endpoint("PUT", f"{_OWN}/policy/{{policy_id}}", policy_api.change_policy, DatasetView, PolicyChange),
    Endpoint("DELETE", f"{_OWN}/policy/{{policy_id}}", policy_api.remove_policy, DatasetView),
    Endpoint(
        "GET",
        _VERSIONS,
        policy_api.list_versions,
        list[PolicyVersionView],
        query=(
            _number("limit", "How many to list.", policy_api.MAX_VERSIONS_LISTED),
            _number("before", "Only versions before the one with this number."),
        ),
    ),
    Endpoint("POST", f"{_VERSIONS}/{{version}}/restore", policy_api.restore_version, DatasetView),
    Endpoint("GET", _SHADOWS, shadow_api.list_shadows, list[ShadowView]),
    Endpoint("POST", _SHADOWS, shadow_api.start_shadow, ShadowView, ShadowStart),
    Endpoint("PUT", _SHADOW, shadow_api.change_share, ShadowView, ShadowShare),
    Endpoint("DELETE", _SHADOW, shadow_api.end_shadow, MessageView),
    Endpoint("POST", f"{_SHADOW}/promote", shadow_api.promote_shadow, DatasetView, ShadowPromotion),
    Endpoint(
        "GET",
        f"{_SHADOW}/differences",
        shadow_api.list_differences,
        list[ShadowDifferenceView],
        query=(
            _text("kind", "Only differences of this kind.", enum=list(DIFFERENCE_KINDS)),
            _number("limit", "How many to list.", shadow_api.MAX_DIFFERENCES_LISTED),
            _number("before", "Only differences before the one with this number."),
        ),
    ),
    Endpoint(
        "GET",
        f"{_API}/approvals",
        approval_api.list_approvals,
        list[ApprovalView],
        query=(
            _text("state", "Only approvals in this state.", enum=list(approval_api.STATES), default="any"),
            _number("limit", "How many to list.", approval_api.MAX_APPROVALS_LISTED),
        ),
    ),
    Endpoint("GET", _APPROVAL, approval_api.show_approval, ApprovalView),
    Endpoint("POST", _APPROVAL, approval_api.decide_approval, ApprovalView, ApprovalDecision),
    Endpoint(
        "GET",
        f"{_API}/audit",
        audit_api.list_entries,
        list[AuditEntryView],
        query=(
            _number("limit", "How many to list.", audit_api.MAX_ENTRIES_LISTED),
            _number("before", "Only entries before the one with this number."),
        ),
    ),
    Endpoint("POST", f"{_API}/push/trace", push_api.push_traces, PushView, TracePush),
    Endpoint("GET", _TRACE, trace_api.show_trace, TraceView),
    Endpoint("GET", f"{_TRACE}/messages", trace_api.show_messages, list[JsonObject]),
    Endpoint("GET", f"{_TRACE}/try", trace_api.try_rules, list[TriedGuardrailView]),
    Endpoint("POST", f"{_TRACE}/messages", trace_api.append_messages, SuccessView, MessageAppend),
    Endpoint("POST", f"{_TRACE}/value", trace_api.reveal_value, MaskedValueView, PlaceholderChoice),
    Endpoint("GET", f"{_TRACE}/annotations", trace_api.show_annotations, list[AnnotationView]),
    Endpoint("POST", f"{_TRACE}/annotate", trace_api.annotate_trace, AnnotationView, AnnotationCreation),
    Endpoint(
        "POST", f"{_TRACE}/annotations/update", trace_api.replace_annotations, ReplacedView, AnnotationReplacement
    ),
    Endpoint("POST", f"{_API}/policy/load", check_api.load_policy, LoadView, PolicyLoad),
    Endpoint("POST", f"{_API}/policy/check", check_api.check_messages, CheckView, MessageCheck),
    Endpoint("POST", f"{_API}/policy/check/batch", check_api.check_batch, BatchView, BatchCheck),
    Endpoint(
        "GET",
        f"{_API}/feed",
        feed_api.stream_feed,
        str,
        query=(
            _text("dataset", "Only exchanges of this dataset."),
            _text("refused", "Only refused exchanges, unless it is 0 or false.", default="0"),
            _number("after", "Begin after the event with this id."),
            QueryParameter(
                "last",
                "Start with this many of the most recent exchanges.",
                {"type": "integer", "minimum": 0, "maximum": MAX_REPLAYED, "default": 0},
            ),
        ),
        content_type="text/event-stream",
    ),
)

_DATASET: Final = "/explorer/datasets/{dataset}"
_RULE: Final = f"{_DATASET}/rules/{{id}}"
_GET: Final[dict[str, Handler]] = {
    "/": dataset_pages.home,
    "/explorer": dataset_pages.datasets,
    listing_pages.TRAFFIC: listing_pages.traffic,
    f"{listing_pages.TRAFFIC}/export": listing_pages.export_traffic,
    "/explorer/traces": listing_pages.traces,
    "/explorer/traces/export": listing_pages.export_traces,
    "/explorer/traces/rules": rule_pages.rules,
    "/explorer/traces/tools": tool_pages.tools,
    "/explorer/traces/{id}": trace_pages.trace,
    "/explorer/traces/{id}/json": trace_pages.trace_raw,
    "/explorer/traces/{id}/text": trace_pages.trace_text,
    "/explorer/traces/{id}/copy": trace_pages.copy,
    "/explorer/traces/{id}/try": trace_reruns.try_rules,
    "/explorer/traces/{id}/replay": trace_reruns.ask_replay,
    "/explorer/conversations/{id}": conversation_pages.conversation,
    guardrail_pages.PATH: guardrail_pages.guardrails,
    key_pages.PATH: key_pages.keys,
    "/explorer/live": dashboard.live,
    "/explorer/dashboard": dashboard.dashboard,
    approval_pages.PATH: approval_pages.approvals,
    audit_pages.PATH: audit_pages.audit,
    "/explorer/sign-in": sign_in.sign_in_form,
    "/explorer/static/{file:.+}": static_file,
    _DATASET: listing_pages.traces,
    f"{_DATASET}/export": listing_pages.export_traces,
    f"{_DATASET}/delete": dataset_pages.ask_delete,
    f"{_DATASET}/tools": tool_pages.tools,
    f"{_DATASET}/rules": rule_pages.rules,
    f"{_DATASET}/rules/new": rule_pages.new,
    _RULE: rule_pages.edit,
    f"{_RULE}/delete": rule_pages.ask_delete,
    f"{_RULE}/versions": rule_pages.versions,
    f"{_RULE}/shadow": shadow_pages.shadow,
    f"{_RULE}/shadow/edit": shadow_pages.edit,
}
_POST: Final[dict[str, Handler]] = {
    "/explorer": dataset_pages.create,
    "/explorer/sign-in": sign_in.sign_in,
    "/explorer/sign-out": sign_in.sign_out,
    f"{approval_pages.PATH}/{{id}}": approval_pages.decide,
    key_pages.PATH: key_pages.add,
    f"{key_pages.PATH}/{{id}}/revoke": key_pages.revoke,
    "/explorer/api/check-policy": rule_pages.check_policy,
    "/explorer/api/try-policy": rule_pages.try_policy,
    "/explorer/traces/{id}/replay": trace_reruns.replay,
    "/explorer/traces/{id}/notes": trace_pages.add_note,
    "/explorer/traces/{id}/value": trace_pages.reveal_value,
    "/explorer/traces/{id}/notes/{note}/remove": trace_pages.remove_note,
    f"{_DATASET}/delete": dataset_pages.delete,
    "/explorer/traces/tools/accept": tool_pages.accept,
    "/explorer/traces/tools/forget": tool_pages.forget,
    f"{_DATASET}/tools/accept": tool_pages.accept,
    f"{_DATASET}/tools/forget": tool_pages.forget,
    f"{_DATASET}/tools/labels": tool_pages.label,
    f"{_DATASET}/rules": rule_pages.add,
    f"{_DATASET}/rules/shadow": shadow_pages.start_new,
    _RULE: rule_pages.save,
    f"{_RULE}/switch": rule_pages.switch,
    f"{_RULE}/delete": rule_pages.delete,
    f"{_RULE}/versions/{{version}}": rule_pages.restore,
    f"{_RULE}/shadow": shadow_pages.start,
    f"{_RULE}/shadow/share": shadow_pages.change_share,
    f"{_RULE}/shadow/promote": shadow_pages.promote,
    f"{_RULE}/shadow/end": shadow_pages.end,
}


def add_routes(app: web.Application) -> None:
    """Add the Explorer's routes to ``app``. Call it before a route that takes every path is added."""
    static_files()  # read now, not by the first page
    set_up(app)
    for resource in _resources():
        app.router.register_resource(resource)


@cache
def _resources() -> tuple[web.AbstractResource, ...]:
    """Create the resources. They refer to no application, so all applications of a process share them."""
    router = web.UrlDispatcher()
    by_path: dict[str, list[Endpoint]] = {}
    for endpoint in ENDPOINTS:
        by_path.setdefault(endpoint.path, []).append(endpoint)
    for path, endpoints in by_path.items():
        resource = router.add_resource(path)
        for endpoint in endpoints:
            resource.add_route(endpoint.method, api(endpoint.handler))
        resource.add_route("*", _not_allowed(endpoint.method for endpoint in endpoints))
    for area in _AREAS:
        router.add_route("*", f"{_API}/{area}{{rest:(/.*)?}}", _not_found)
    for path, handler in _GET.items():
        router.add_get(path, handler)
    for path, handler in _POST.items():
        router.add_post(path, handler)
    router.add_route("*", "/explorer{rest:(/.*)?}", missing)
    return tuple(router.resources())


def is_api(request: web.Request) -> bool:
    """Return whether a request to the Explorer is a call of its API; else it is one for a page."""
    return request.path.startswith("/api/")


def error_response(request: web.Request, error: ProxyError) -> web.Response:
    """Write an error that keeps a request from its handler, in the form of the handler's own errors."""
    return api_error(error) if is_api(request) else error_page(request, error)


@cache
def _openapi(*, open_access: bool) -> bytes:
    return dump(openapi_document(ENDPOINTS, open_access=open_access))


async def _not_found(request: web.Request) -> web.StreamResponse:
    return api_error(NotFound("Not Found"))


def _not_allowed(methods: Iterable[str]) -> Handler:
    allowed = ", ".join(methods)

    async def refuse(request: web.Request) -> web.StreamResponse:
        response = api_error(MethodNotAllowed("Method Not Allowed"))
        # RFC 9110, section 15.5.6, requires it with a 405.
        response.headers["allow"] = allowed
        return response

    return refuse
