"""Write the OpenAPI document of the API from its endpoints and the types of their JSON."""

import inspect
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from gemini_proxy.explorer.api.endpoints import Endpoint
from gemini_proxy.explorer.api.response_bodies import ErrorView
from gemini_proxy.explorer.app_keys import SESSION_COOKIE

_JSON: Final = "application/json"
_PART: Final = re.compile(r"\{([a-z_]+)\}")
_REF: Final = "#/components/schemas/{model}"
_PARTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "user": {"schema": {"type": "string"}, "description": "The user who owns the dataset: always the caller."},
    "dataset": {"schema": {"type": "string"}, "description": "The dataset's name."},
    "dataset_id": {"schema": {"type": "string", "format": "uuid"}},
    "policy_id": {"schema": {"type": "string", "format": "uuid"}},
    "version": {"schema": {"type": "integer", "minimum": 1}},
    "approval_id": {"schema": {"type": "string"}},
    "trace_id": {"schema": {"type": "string", "format": "uuid"}},
}
_DESCRIPTION: Final = """\
The Explorer's API, in the form that Invariant's clients use. Another user's data is not found (404). A request at \
fault gets one of 400, 401, 403, 404, 405, 409, 413, 415 and 421; 429 says that a limit is reached, and 503 that the \
database or a check is not available."""


def openapi_document(endpoints: Iterable[Endpoint], *, open_access: bool) -> dict[str, Any]:
    """Return the OpenAPI document of ``endpoints``. It says that calls need no key if access is open."""
    listed = list(endpoints)
    schemas, components = _schemas(listed)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in listed:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    security: list[dict[str, list[str]]] = [{"bearer": []}, {"session": []}]
    return {
        "openapi": "3.1.0",
        "info": {"title": "gemini-proxy Explorer", "version": version("gemini-proxy"), "description": _DESCRIPTION},
        "paths": paths,
        "security": [*security, {}] if open_access else security,
        "components": {
            "schemas": components,
            "responses": {
                "Error": {"description": ErrorView.__doc__, "content": {_JSON: {"schema": schemas[_key(ErrorView)]}}}
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "An Invariant key, such as inv-..."},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": SESSION_COOKIE,
                    "description": "The session cookie of the pages.",
                },
            },
        },
    }


def _operation(endpoint: Endpoint, schemas: Mapping[int, Any]) -> dict[str, Any]:
    summary, _, description = _plain(inspect.getdoc(endpoint.handler) or "").partition("\n\n")
    path = [{"name": part, "in": "path", "required": True, **_PARTS[part]} for part in _PART.findall(endpoint.path)]
    query = [
        {"name": parameter.name, "in": "query", "description": parameter.description, "schema": dict(parameter.schema)}
        for parameter in endpoint.query
    ]
    operation: dict[str, Any] = {
        "operationId": getattr(endpoint.handler, "__name__", ""),
        "summary": summary.replace("\n", " "),
        "parameters": path + query,
        "responses": {
            "200": {
                "description": "Done",
                "content": {endpoint.content_type: {"schema": schemas[_key(endpoint.response)]}},
            },
            "default": {"$ref": "#/components/responses/Error"},
        },
    }
    if description:
        operation["description"] = description
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": schemas[_key(endpoint.body)]}}}
    return operation


def _schemas(endpoints: Iterable[Endpoint]) -> tuple[dict[int, Any], dict[str, Any]]:
    """Return the schema of each type that endpoints read and return, and those that schemas refer to by name."""
    types: list[Any] = [ErrorView]
    for endpoint in endpoints:
        types += [endpoint.response, *([endpoint.body] if endpoint.body is not None else [])]
    mode: JsonSchemaMode = "validation"
    adapters = {_key(kind): TypeAdapter(kind) for kind in types}
    schemas, definitions = TypeAdapter.json_schemas(
        [(key, mode, adapter) for key, adapter in adapters.items()], ref_template=_REF
    )
    return {key: _untitled(schema) for (key, _), schema in schemas.items()}, _untitled(definitions["$defs"])


def _key(kind: Any) -> int:
    """Return a key for a type: its identity, since generic types are not always hashable and may equal others."""
    return id(kind)


def _untitled(schema: Any) -> Any:
    """Leave out titles, which pydantic makes of the names of members, and write names in descriptions as Markdown."""
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _plain(value) if key == "description" and isinstance(value, str) else _untitled(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
    }


def _plain(docstring: str) -> str:
    return docstring.replace("``", "`")
