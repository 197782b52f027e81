"""``gemini-proxy demo``: the proxy in front of a built-in sample model; no configuration, no key, no network."""

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

import aiohttp
import click
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

_EXCHANGES = (
    ("an ordinary question, streamed", "Hello, who are you?"),
    ("a response that gives a key away", "Which key does the build server use?"),
    ("a response that calls a dangerous tool", "Please delete the old files"),
)


@click.command()
@click.option("--port", default=8005, show_default=True, help="The port on 127.0.0.1; 0 takes any free one.")
@click.option("--exit", "leave", is_flag=True, help="Show the exchanges and stop.")
def demo(port: int, leave: bool) -> None:
    """Show the proxy at work in front of a built-in sample model, then keep serving for your own client."""
    configure_logs(Logs(level="warning"))
    try:
        asyncio.run(_demo(port, leave))
    except OSError as error:
        raise click.ClickException(f"127.0.0.1:{port}: {error.strerror or error}") from None


async def _demo(port: int, leave: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="gemini-proxy-demo-") as folder:
        async with contextlib.AsyncExitStack() as stack:
            model = await _serve_model(stack)
            # Without the environment, whose settings are for another server.
            config = Config.model_construct(
                server=Server(listen=(f"127.0.0.1:{port}",)),
                upstream=Upstream(base_url=model, api_key=SecretStr("demo-needs-no-key")),
                # Nothing leaves before the verdict, so that what is refused is not seen at all.
                guardrails=Guardrails(stream_check="hold"),
                traces=Traces(database=f"sqlite:///{Path(folder) / 'traces.db'}"),
            )
            app = create_app(config, GuardrailSet((guardrail("demo policy", POLICY, "block"),)))
            bound = await stack.enter_async_context(running(app, [listen_address(config.server.listen[0])], 1.0))
            address = f"http://{bound[0]}"
            await _show(app, address)
            if not leave:
                await _serve_on(address, config.traces.database)


async def _serve_model(stack: contextlib.AsyncExitStack) -> str:
    runner = web.AppRunner(sample_model(), access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


async def _show(app: web.Application, address: str) -> None:
    click.echo(f"gemini-proxy at {address}, with this policy:\n\n{POLICY}")
    async with aiohttp.ClientSession() as session:
        for title, prompt in _EXCHANGES:
            click.echo(f"--- {title}: {prompt!r}")
            await _ask(session, address, prompt)
    store = app[STORAGE].store
    summaries = await store.recent(len(_EXCHANGES))
    click.echo("--- what was recorded (gemini-proxy traces list)")
    print_list(summaries)
    trace = await store.get(summaries[1].id)
    assert trace is not None
    click.echo("--- one trace (gemini-proxy traces show ID)")
    print_trace(trace)


async def _ask(session: aiohttp.ClientSession, address: str, prompt: str) -> None:
    url = f"{address}/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
    async with session.post(url, json={"contents": [{"parts": [{"text": prompt}]}]}) as response:
        async for line in response.content:
            if line.strip():
                click.echo(f"    {line.decode().strip()[:300]}")


async def _serve_on(address: str, database: str) -> None:
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
Look at what was said, and what is said now, in a browser:
    {address}/explorer
    {address}/explorer/live
and in another terminal:
    GEMINI_PROXY_TRACES__DATABASE='{database}' {program} traces list
    {program} tail --url {address}"""
    )
    await stop.wait()
