"""``gemini-proxy demo``: run the proxy in front of a built-in sample model, without configuration, key or network."""

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import orjson
from aiohttp import web
from pydantic import SecretStr

from gemini_proxy.cli.sample_model import MODEL, sample_model
from gemini_proxy.cli.traces import print_list, print_trace
from gemini_proxy.config import Config
from gemini_proxy.gemini_keys import GEMINI_KEY
from gemini_proxy.guardrails.rules import GuardrailSet, guardrail
from gemini_proxy.http.addresses import listen_address
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
