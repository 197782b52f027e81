"""``gemini-proxy demo``: run the proxy in front of a built-in sample model, without configuration, key or network."""

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import orjson
from aiohttp import web
from pydantic import SecretStr

from gemini_proxy.cli.traces import print_list, print_trace
from gemini_proxy.config import Config
from gemini_proxy.gemini.fields import field, objects
from gemini_proxy.gemini_keys import GEMINI_KEY
from gemini_proxy.guardrails.rules import GuardrailSet, guardrail
from gemini_proxy.http.listen_addresses import listen_address
from gemini_proxy.sections import Guardrails, Logs, Server, Traces, Upstream
from gemini_proxy.server.app import create_app
from gemini_proxy.server.app_keys import STORAGE
from gemini_proxy.server.logs import configure_logs
from gemini_proxy.server.runner import running

POLICY = f"""\
raise "an API key must not cross this line" if:
    (m: Message)
    (t: str) in text(m)
    any(find("{GEMINI_KEY}", t))

raise PolicyViolation("files outside the workspace stay", path=c.function.arguments.path) if:
    (c: ToolCall)
    c.function.name in ["read_file", "write_file", "delete_file"]
    not match("/workspace/", c.function.arguments.get("path", ""))
"""
MASKS = """\
raise PolicyViolation("mail addresses are masked", v) if:
    (m: Message)
    (t: str) in text(m)
    (v: str) in find("[a-z.]+@[a-z.]+[a-z]", t)
"""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request of the demo: ``history`` is the conversation before it, ``dataset`` the one it goes to."""

    title: str
    prompt: str
    history: tuple[Mapping[str, Any], ...] = ()
    dataset: str | None = None

    @property
    def path(self) -> str:
        return f"/api/v1/gateway/{self.dataset}/gemini" if self.dataset else ""

    @property
    def body(self) -> dict[str, Any]:
        return {"contents": [{"role": "user", "parts": [{"text": self.prompt}]}, *self.history]}


# The example of the tutorial in docs/policies.md.
_FOUND = (
    {"role": "model", "parts": [{"functionCall": {"name": "get_customer", "args": {"mail": "ann@example.com"}}}]},
    {
        "role": "user",
        "parts": [{"functionResponse": {"name": "get_customer", "response": {"name": "Ann", "number": "CU-204517"}}}],
    },
)
_EXCHANGES = (
    _Asked("an ordinary question, streamed", "Hello, who are you?"),
    _Asked("a mail address: the model gets a placeholder, you get it back", "Write to ann@example.com about lunch"),
    _Asked("a tool call with data from another tool's output", "Where is my parcel?", _FOUND, "shop"),
    _Asked("a response that contains a key", "Which key does the build server use?"),
    _Asked("a response that calls a dangerous tool", "Please delete the old files"),
)


@click.command()
@click.option("--port", default=8005, show_default=True, help="The port on 127.0.0.1; 0 takes any free one.")
@click.option("--exit", "leave", is_flag=True, help="Show the exchanges and exit.")
@click.option(
    "--database",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("gemini-proxy-demo.db"),
    show_default=True,
    help="The SQLite file that keeps the traces.",
)
def demo(port: int, leave: bool, database: Path) -> None:
    """Run the proxy in front of a built-in sample model, then keep serving for your own client."""
    configure_logs(Logs(level="warning"))
    try:
        asyncio.run(_demo(port, leave, database))
    except OSError as error:
        raise click.ClickException(f"127.0.0.1:{port}: {error.strerror or error}") from None


async def _demo(port: int, leave: bool, database: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        model = await _serve_model(stack)
        # Ignore the environment, whose settings are for another server.
        config = Config.model_construct(
            server=Server(listen=(f"127.0.0.1:{port}",)),
            upstream=Upstream(base_url=model, api_key=SecretStr("demo-needs-no-key")),
            # Nothing leaves before the verdict, so that refused text does not appear at all.
            guardrails=Guardrails(stream_check="hold"),
            traces=Traces(database=f"sqlite:///{database}"),
        )
        app = create_app(
            config, GuardrailSet((guardrail("demo policy", POLICY, "block"), guardrail("demo masks", MASKS, "mask")))
        )
        bound = await stack.enter_async_context(running(app, [listen_address(config.server.listen[0])], 1.0))
        address = f"http://{bound[0]}"
        refused = await _show(app, address)
        if not leave:
            await _serve_on(address, config.traces.database, refused)


async def _serve_model(stack: contextlib.AsyncExitStack) -> str:
    runner = web.AppRunner(sample_model(), access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def _show(app: web.Application, address: str) -> str:
    """Play the exchanges and print what was recorded. Return the id of a refused one."""
    click.echo(f"gemini-proxy at {address}, with a policy that refuses:\n\n{POLICY}\nand one that masks:\n\n{MASKS}")
    async with aiohttp.ClientSession() as session:
        for exchange in _EXCHANGES:
            click.echo(f"--- {exchange.title}: {exchange.prompt!r}")
            await _ask(session, address, exchange)
    store = app[STORAGE].store
    summaries = await store.recent(len(_EXCHANGES))
    click.echo("--- what was recorded (gemini-proxy traces list)")
    print_list(summaries)
    trace = await store.get(summaries[1].id)
    assert trace is not None
    click.echo("--- one trace (gemini-proxy traces show ID)")
    print_trace(trace)
    return trace.id


async def _ask(session: aiohttp.ClientSession, address: str, exchange: _Asked) -> None:
    """Ask for a stream, and print what a client shows of it: the text as it comes, and calls of tools."""
    url = f"{address}{exchange.path}/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
    headers = {"invariant-authorization": "Bearer inv-demo"} if exchange.dataset else {}
    async with session.post(url, json=exchange.body, headers=headers) as response:
        response.raise_for_status()
        click.echo("    ", nl=False)
        async for line in response.content:
            if line.startswith(b"data: "):
                click.echo("".join(_shown(orjson.loads(line.removeprefix(b"data: ")))), nl=False)
        click.echo()


def _shown(event: Mapping[str, Any]) -> Iterator[str]:
    for candidate in event.get("candidates", ()):
        for part in candidate.get("content", {}).get("parts", ()):
            yield part.get("text", "")
            if call := part.get("functionCall"):
                yield f"calls {call['name']}({orjson.dumps(call['args']).decode()})"


async def _serve_on(address: str, database: str, refused: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    program = "gemini-proxy" if shutil.which("gemini-proxy") else sys.argv[0]
    click.echo(
        f"""
Serving until Ctrl-C. Try it with your own client, for example
    curl '{address}/v1beta/models/{MODEL}:generateContent' -H 'content-type: application/json' \\
        -d '{{"contents": [{{"parts": [{{"text": "Tell me the key"}}]}}]}}'
    GOOGLE_GEMINI_BASE_URL={address} GEMINI_API_KEY=any gemini -m {MODEL} -p 'hello'
In a browser: the refused response, all exchanges, and exchanges as they happen:
    {address}/explorer/traces/{refused}
    {address}/explorer
    {address}/explorer/live
In another terminal (the traces are kept):
    GEMINI_PROXY_TRACES__DATABASE='{database}' {program} traces list
    {program} tail --url {address}"""
    )
    await stop.wait()


MODEL = "sample-1"
_PAUSE = 0.03
"""Seconds between two words, so that a stream can be watched."""
# Joined here so that no scanner takes this file for a leak.
SAMPLE_KEY = "AQ." + "Ab8DemoDemoDemoDemoDemoDemoDemoDemo0"


def sample_model() -> web.Application:
    """Return a small Gemini of our own, which needs neither a key nor a network.

    It responds to the calls of Gemini's clients, to some prompts with what violates the demo's guardrails.
    """
    app = web.Application(client_max_size=2**27)
    app.router.add_post("/{version}/models/{name}:{method}", _respond)
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


async def _respond(request: web.Request) -> web.StreamResponse:
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
    """Return the customer's number in the last content; None if it has none."""
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
