"""The OpenAPI document says what the API does: every route, and the JSON that really comes back."""

from typing import Any

import aiohttp
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from gemini_proxy.explorer.app_keys import APPROVALS
from gemini_proxy.explorer.routes import ENDPOINTS
from tests.explorer.api import OPEN_USER, SAMPLE, SECRETIVE, Api
from tests.explorer.asking import asked_for
from tests.explorer.browsing import declare, tool
from tests.support.proxy import Proxy

PATH = "/api/openapi.json"


async def document(session: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, Any]:
    async with session.get(f"{url}{PATH}", headers=headers) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def test_the_document_is_openapi(proxy: Proxy, session: aiohttp.ClientSession) -> None:
    status, said = await document(session, proxy.url)
    assert status == 200
    OpenAPIV31SpecValidator(said).validate()
    operations = [operation for path in said["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations) == len(ENDPOINTS)
    assert all(operation["summary"].endswith(".") for operation in operations)


async def test_every_route_of_the_api_is_in_the_document(proxy: Proxy, session: aiohttp.ClientSession) -> None:
    """And nothing else: the health check is the server's own, and the other paths below /api/ are model calls."""
    _, said = await document(session, proxy.url)
    described = {(path, method.upper()) for path, operations in said["paths"].items() for method in operations}
    served = {
        (route.resource.canonical, route.method)
        for route in proxy.app.router.routes()
        if route.resource is not None and route.resource.canonical.startswith("/api/") and route.method != "*"
    }
    health = {("/api/v1/gateway/health", method) for method in ("GET", "HEAD")}
    assert described == served - health


async def test_the_document_is_for_who_may_call_the_api(
    proxy: Proxy, closed: Proxy, alice: Api, session: aiohttp.ClientSession
) -> None:
    """Without a key where access is open, with one where it is not, and never for pages of other sites."""
    status, said = await document(session, proxy.url)
    assert status == 200 and {} in said["security"]
    assert (await document(session, proxy.url, origin="https://evil.example"))[0] == 401
    assert (await document(session, proxy.url, host="evil.example"))[0] == 421
    assert (await document(session, closed.url))[0] == 401
    status, said = await document(session, closed.url, authorization=f"Bearer {alice.key}")
    assert status == 200 and {} not in said["security"]
    async with session.post(f"{proxy.url}{PATH}") as response:
        assert (response.status, response.headers["allow"]) == (405, "GET")
        assert await response.json() == {"detail": "Method Not Allowed"}


async def test_responses_are_as_the_document_says(proxy: Proxy, checker: Api, session: aiohttp.ClientSession) -> None:
    """Each endpoint's response to a request that succeeds, and an error."""
    _, said = await document(session, proxy.url)
    note = {"content": "seen", "address": "messages.0.content:0-5", "extra_metadata": {"source": "me", "x": 1}}
    checked = {"messages": SAMPLE, "policy": SECRETIVE}
    [trace] = await checker.push(SAMPLE, dataset="there", annotations=[[note]], metadata=[{"name": "n"}])
    dataset = (await checker.get(checker.at("there")))["id"]
    await declare(proxy, tool("Send a mail."), dataset="there")
    await declare(proxy, tool("Send a mail, and a copy to me."), dataset="there")
    [changed] = (await checker.get(f"{checker.at('there')}/tools"))["tools"]
    byid, own = "/dataset/byid/{dataset_id}", "/dataset/{dataset_id}"
    byuser = "/dataset/byuser/{user}/{dataset}"
    asked: list[tuple[str, str, Any]] = [
        ("GET", "/user/identity", None),
        ("POST", "/dataset/create", {"name": "made", "metadata": {"a": 1}}),
        ("GET", "/dataset/list", None),
        ("GET", byid, None),
        ("GET", f"{byid}/traces", None),
        ("GET", byuser, None),
        ("GET", f"{byuser}/traces", None),
        ("GET", f"{byuser}/policy", None),
        ("GET", f"{byuser}/tools", None),
        ("POST", f"{own}/tools/accept", {"name": "send", "digest": changed["changed"]["digest"]}),
        ("POST", f"{own}/tools/forget", {"name": "send"}),
        ("GET", "/dataset/metadata/{dataset}", None),
        ("PUT", "/dataset/metadata/{dataset}", {"metadata": {"b": 2}}),
        ("POST", f"{own}/policy", {"name": "p", "policy": SECRETIVE}),
        ("GET", f"{byuser}/policy", None),
        ("PUT", f"{own}/policy/{{policy_id}}", {"enabled": False}),
        ("GET", f"{own}/policy/{{policy_id}}/versions", None),
        ("POST", f"{own}/policy/{{policy_id}}/versions/{{version}}/restore", None),
        ("POST", f"{own}/shadows", {"policy": SECRETIVE, "share": 5, "policy_id": "{policy_id}"}),
        ("GET", f"{own}/shadows", None),
        ("PUT", f"{own}/shadows/{{policy_id}}", {"share": 50}),
        ("GET", f"{own}/shadows/{{policy_id}}/differences", None),
        ("POST", f"{own}/shadows/{{policy_id}}/promote", {"id": "{id}"}),
        ("POST", f"{own}/shadows", {"policy": SECRETIVE, "share": 5, "policy_id": "{policy_id}"}),
        ("DELETE", f"{own}/shadows/{{policy_id}}", None),
        ("DELETE", f"{own}/policy/{{policy_id}}", None),
        ("POST", "/push/trace", {"messages": [SAMPLE], "annotations": [[]], "metadata": [None]}),
        ("GET", "/trace/{trace_id}", None),
        ("GET", "/trace/{trace_id}/messages", None),
        ("GET", "/trace/{trace_id}/try", None),
        ("POST", "/trace/{trace_id}/messages", {"messages": SAMPLE, "annotations": [note]}),
        ("POST", "/trace/{trace_id}/value", {"placeholder": "<EMAIL_ADDRESS_0123456789>"}),
        ("GET", "/trace/{trace_id}/annotations", None),
        ("POST", "/trace/{trace_id}/annotate", note),
        ("POST", "/trace/{trace_id}/annotations/update", {"source": "me", "annotations": [note]}),
        ("POST", "/policy/load", {"policy": SECRETIVE}),
        ("POST", "/policy/check", checked),
        ("POST", "/policy/check/batch", {"messages": SAMPLE, "policies": [SECRETIVE, "raise"]}),
        ("GET", "/approvals", None),
        ("GET", "/approvals/{approval_id}", None),
        ("GET", "/audit", None),
        ("DELETE", byuser, None),
    ]
    parts: dict[str, Any] = {
        "user": checker.user,
        "dataset": "there",
        "dataset_id": dataset,
        "trace_id": trace,
        "policy_id": "",
    }
    parts["version"] = "1"
    parts["approval_id"] = (await asked_for(proxy.app[APPROVALS], OPEN_USER)).id
    for method, path, body in asked:
        operation = said["paths"][f"/api/v1{path}"][method.lower()]
        body = {**body, **{name: parts[name] for name in body if body[name] == f"{{{name}}}"}} if body else body
        if body is not None:
            check(said, operation["requestBody"]["content"]["application/json"]["schema"], body)
        status, response = await checker.call(method, path.format(**parts), body)
        assert status == 200, (method, path, response)
        check(said, operation["responses"]["200"]["content"]["application/json"]["schema"], response)
        if path == f"{own}/policy":
            parts["policy_id"] = response["extra_metadata"]["policies"][0]["id"]
        if path == f"{own}/shadows" and method == "POST":
            parts["id"] = response["id"]
    untried = {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS} - {
        (method, f"/api/v1{path}") for method, path, _ in asked
    }
    # Where access is open nobody decides an approval by API.
    decide = ("POST", "/api/v1/approvals/{approval_id}")
    assert untried == {("GET", PATH), ("GET", "/api/v1/feed"), ("DELETE", f"/api/v1{byid}"), decide}
    _, error = await checker.call("GET", byuser.format(**parts))
    check(said, said["components"]["responses"]["Error"]["content"]["application/json"]["schema"], error)


WRONG = [
    ("DatasetCreation", {}),
    ("DatasetCreation", {"name": "a b"}),
    ("PolicyCreation", {"name": "n" * 257, "policy": "x"}),
    ("PolicyChange", {"name": None}),
    ("TracePush", {"messages": []}),
    ("TracePush", {"messages": [["x"]]}),
    ("TracePush", {"messages": [[]], "annotations": [[{"content": "c"}]]}),
    ("TracePush", {"messages": [[]], "metadata": [{"gemini_proxy": {"id": "a/b"}}]}),
    ("ApprovalDecision", {}),
    ("ApprovalDecision", {"decision": "maybe"}),
    ("ApprovalDecision", {"decision": "allow", "seconds": 0}),
    ("ApprovalDecision", {"decision": "deny", "reason": "x" * 1001}),
    ("PlaceholderChoice", {"placeholder": "<EMAIL_ADDRESS>"}),
    ("AnnotationReplacement", {"source": "me"}),
    ("BatchCheck", {"messages": [], "policies": ["x"] * 101}),
]


@pytest.mark.parametrize(("model", "body"), WRONG)
async def test_the_document_refuses_what_the_api_does(
    proxy: Proxy, session: aiohttp.ClientSession, model: str, body: object
) -> None:
    _, said = await document(session, proxy.url)
    schema = {"$ref": f"#/components/schemas/{model}", "components": said["components"]}
    assert not OAS31Validator(schema).is_valid(body)


def check(said: Any, schema: Any, value: object) -> None:
    """Fail unless ``value`` is as ``schema`` says."""
    OAS31Validator({**schema, "components": said["components"]}).validate(value)
