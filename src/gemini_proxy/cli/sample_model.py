"""Answer as a small Gemini of our own for ``gemini-proxy demo``, with what violates the demo's guardrails."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
from aiohttp import web

from gemini_proxy.gemini.fields import field, objects

MODEL = "sample-1"
_PAUSE = 0.03
"""Seconds between two words, so that a stream can be watched."""
# Joined here so that no scanner takes this file for a leak.
SAMPLE_KEY = "AQ." + "Ab8DemoDemoDemoDemoDemoDemoDemoDemo0"


def sample_model() -> web.Application:
    """Return an application that answers the calls a Gemini client makes, without a key and without a network."""
    app = web.Application(client_max_size=2**27)
    app.router.add_post("/{version}/models/{name}:{method}", _answer)
    app.router.add_get("/{version}/models", _models)
    app.router.add_get("/{version}/models/{name}", _model)
    return app


async def _models(request: web.Request) -> web.Response:
    return _json({"models": [_described(MODEL)]})


async def _model(request: web.Request) -> web.Response:
    return _json(_described(request.match_info["name"]))


def _described(name: str) -> dict[str, Any]:
    methods = ["generateContent", "streamGenerateContent", "countTokens", "embedContent"]
    return {"name": f"models/{name}", "displayName": "Sample model", "supportedGenerationMethods": methods}


async def _answer(request: web.Request) -> web.StreamResponse:
    body = orjson.loads(await request.read())
    method = request.match_info["method"]
    if method == "generateContent":
        return _json(_whole(body))
    if method == "streamGenerateContent":
        return await _stream(request, body, sse=request.query.get("alt") == "sse")
    if method == "countTokens":
        return _json({"totalTokens": len(_last_text(body).split())})
    if method == "embedContent":
        return _json({"embedding": _embedding(field(body, "content"))})
    if method == "batchEmbedContents":
        contents = [field(one, "content") for one in objects(body.get("requests"), "requests")]
        return _json({"embeddings": [_embedding(content) for content in contents]})
    return _json({"error": {"code": 404, "message": f"no method {method}", "status": "NOT_FOUND"}}, 404)


def _json(value: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json", charset="UTF-8")


def _last_text(body: Mapping[str, Any]) -> str:
    """Return the last text part: some clients put facts about their environment before the user's text."""
    contents = objects(field(body, "contents"), "contents")
    texts = _texts(contents[-1]) if contents else []
    return texts[-1] if texts else ""


def _texts(content: Any) -> list[str]:
    return [str(part["text"]) for part in objects(field(content or {}, "parts"), "parts") if part.get("text")]


def _embedding(content: Any) -> dict[str, list[float]]:
    """Return three numbers about the text, enough to see that they arrived."""
    text = " ".join(_texts(content))
    return {"values": [float(len(text)), float(len(text.split())), 1.0]}


def _parts(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the model says to the last text: mostly an echo, with a few words it reacts to."""
    prompt = _last_text(body)
    folded = prompt.lower()
    if "key" in folded:
        return [{"text": f"Of course. The key of the build server is {SAMPLE_KEY}, keep it safe."}]
    if "delete" in folded:
        return [{"functionCall": {"name": "delete_file", "args": {"path": "/etc/passwd"}}}]
    if (number := _customer(body)) is not None:
        return [{"functionCall": {"name": "web_search", "args": {"query": f"parcel of customer {number}"}}}]
    settings = field(body, "generationConfig") or {}
    if field(settings, "responseMimeType") == "application/json":
        schema = field(settings, "responseJsonSchema") or field(settings, "responseSchema") or {}
        return [{"text": orjson.dumps(_example(schema)).decode()}]
    return [{"text": f"You said: {prompt[:500]} That is all a sample model can say about it."}]


def _customer(body: Mapping[str, Any]) -> Any:
    """Return the number that the last content has of a customer, None where it has none."""
    contents = objects(field(body, "contents"), "contents")
    for part in objects(field(contents[-1], "parts"), "parts") if contents else ():
        response = field(field(part, "functionResponse") or {}, "response")
        if isinstance(response, dict) and "number" in response:
            return response["number"]
    return None


def _example(schema: Mapping[str, Any]) -> Any:
    """Return a value of the shape that ``schema`` (JSON Schema, or Gemini's own with types in capitals) asks for."""
    if choices := schema.get("enum"):
        return choices[0]
    match str(schema.get("type", "object")).lower():
        case "object":
            properties = schema.get("properties") or {"answer": {"type": "string"}}
            return {name: _example(kind) for name, kind in properties.items()}
        case "array":
            return [_example(schema.get("items") or {})]
        case "integer" | "number":
            return schema.get("minimum", 1)
        case "boolean":
            return False
    return "a sample model has no opinion"


def _usage(body: Mapping[str, Any], words: int) -> dict[str, int]:
    asked = len(_last_text(body).split())
    return {"promptTokenCount": asked, "candidatesTokenCount": words, "totalTokenCount": asked + words}


def _response(parts: list[dict[str, Any]], usage: Mapping[str, int], *, last: bool) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if last:
        candidate["finishReason"] = "STOP"
    return {"candidates": [candidate], "usageMetadata": dict(usage), "modelVersion": MODEL, "responseId": "sample"}


def _whole(body: Mapping[str, Any]) -> dict[str, Any]:
    parts = _parts(body)
    return _response(parts, _usage(body, sum(len(part.get("text", "").split()) for part in parts)), last=True)


def _pieces(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the response as the events of a stream, a few words each."""
    parts = _parts(body)
    if "text" not in parts[0]:
        return [_response(parts, _usage(body, 1), last=True)]
    words = parts[0]["text"].split(" ")
    groups = [" ".join(words[at : at + 3]) + (" " if at + 3 < len(words) else "") for at in range(0, len(words), 3)]
    return [
        _response([{"text": group}], _usage(body, 3 * place), last=place == len(groups))
        for place, group in enumerate(groups, start=1)
    ]


async def _stream(request: web.Request, body: Mapping[str, Any], *, sse: bool) -> web.StreamResponse:
    kind = "text/event-stream" if sse else "application/json; charset=UTF-8"
    response = web.StreamResponse(headers={"content-type": kind})
    await response.prepare(request)
    async for data in _framed(_pieces(body), sse=sse):
        await response.write(data)
    return response


async def _framed(pieces: list[dict[str, Any]], *, sse: bool) -> AsyncIterator[bytes]:
    for place, piece in enumerate(pieces):
        event = orjson.dumps(piece)
        yield b"data: " + event + b"\r\n\r\n" if sse else (b"\n,\r\n" if place else b"[") + event
        await asyncio.sleep(_PAUSE)
    if not sse:
        yield b"\n]"
