"""``gemini-proxy tail``: print the exchanges of a running server as they happen."""

import asyncio
import contextlib
import signal
from dataclasses import dataclass
from typing import TextIO

import aiohttp
import click
from click.core import ParameterSource
from rich.console import Console
from rich.text import Text

from gemini_proxy.cli.feed_client import FeedClient, FeedExchange, FeedRefused, Missed
from gemini_proxy.cli.settings import Settings
from gemini_proxy.cli.terminal import line, local_time, terminal
from gemini_proxy.http.listen_addresses import ListenAddress, listen_address
from gemini_proxy.sections import service_url
from gemini_proxy.traces.feed import MAX_REPLAYED

# With open access any key of this form is accepted, and stands for the only user.
_OPEN_KEY = "inv-local"
_KEY_VARIABLE = "INVARIANT_API_KEY"
_LONGEST_KEY = 4_096
_STYLES = {"completed": "green", "refused_request": "bold red", "refused_response": "bold red", "pushed": "cyan"}


def _not_as_argument(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
        raise click.UsageError(f"everybody on this machine can read a command line: use --key-file or ${_KEY_VARIABLE}")
    return value


@dataclass(frozen=True, slots=True)
class _Target:
    """The address of a server: the URL for requests, and the unix socket that they go through."""

    url: str
    socket: str = ""

    def session(self) -> aiohttp.ClientSession:
        connector = aiohttp.UnixConnector(self.socket) if self.socket else aiohttp.TCPConnector()
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    def __str__(self) -> str:
        return f"unix:{self.socket}" if self.socket else self.url


def _read_server(_: click.Context, __: click.Parameter, value: str | None) -> _Target | None:
    if value is None:
        return None
    try:
        return _at(listen_address(value)) if value.startswith("unix:") else _Target(service_url(value))
    except ValueError as error:
        raise click.BadParameter(f'expected {error}, or "unix:/path"') from None


def _at(address: ListenAddress) -> _Target:
    """Return the server that listens at an address of this machine."""
    if address.path:
        return _Target("http://localhost", address.path)
    if not address.port:
        raise click.UsageError("the configured server listens on any free port: give its address with --url")
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return _Target(f"http://{ListenAddress(everywhere.get(address.host, address.host), address.port)}")


@click.command()
@click.option(
    "--url",
    "server",
    callback=_read_server,
    help='The server: "http://127.0.0.1:8005" or "unix:/path". Default: the first address in the configuration.',
)
@click.option("--dataset", help="Only exchanges of this dataset.")
@click.option("--refused", is_flag=True, help="Only exchanges that were refused.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option(
    "--last",
    type=click.IntRange(0, MAX_REPLAYED),
    default=0,
    show_default=True,
    help="Start with this many of the most recent exchanges.",
)
@click.option(
    "--key-file",
    type=click.File(errors="replace"),
    help=f"A file with the key, or - for standard input. Default: ${_KEY_VARIABLE}. A server with open access "
    "needs neither.",
)
@click.option("--key", envvar=_KEY_VARIABLE, hidden=True, callback=_not_as_argument)
@click.pass_obj
def tail(
    settings: Settings,
    server: _Target | None,
    dataset: str | None,
    refused: bool,
    as_json: bool,
    last: int,
    key_file: TextIO | None,
    key: str | None,
) -> None:
    """Print exchanges as they happen, one per line, until Ctrl-C.

    Time, the beginning of the trace's id, dataset, model, outcome, milliseconds and the first rule's message. It
    survives a restart of the server, and says when it missed something.
    """
    key = _checked(key_file.read(_LONGEST_KEY) if key_file else key or _OPEN_KEY)
    query = {"dataset": dataset or "", "refused": "1" if refused else "0", "last": str(last)}
    where = server or _at(listen_address(settings.config.server.listen[0]))
    try:
        asyncio.run(_follow(where, query, key, _JsonLines() if as_json else _Lines()))
    except FeedRefused as error:
        raise click.ClickException(f"{where}: {error}") from None


def _checked(key: str) -> str:
    key = key.strip()
    if not key.isascii() or not key.isprintable() or not key:
        raise click.UsageError("the key is not one line of ASCII")
    return key


class _Lines:
    def __init__(self) -> None:
        self._console: Console = terminal()

    def print(self, exchange: FeedExchange) -> None:
        words = (
            line(local_time(exchange.created), "dim"),
            line(exchange.id[:8], "dim"),
            _column(exchange.dataset or "-", 16),
            _column(exchange.model or "-", 22),
            _column(exchange.outcome, 16, _STYLES.get(exchange.outcome, "yellow")),
            line(f"{f'{exchange.duration_ms:.0f}':>6} ms"),
            line(exchange.rule or "-"),
        )
        self._console.print(Text("  ").join(words), soft_wrap=True)


def _column(value: str, width: int, style: str = "") -> Text:
    """Return a value with as much space behind it as the column has left: a longer one is not cut."""
    return line(f"{value:<{width}}", style)


class _JsonLines:
    def print(self, exchange: FeedExchange) -> None:
        click.echo(exchange.text)


async def _follow(server: _Target, query: dict[str, str], key: str, output: _Lines | _JsonLines) -> None:
    """Print the events of the feed until the program is told to stop."""
    main = asyncio.current_task()
    assert main is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, main.cancel)

    def tell(words: str) -> None:
        click.echo(f"{server}: {line(words).plain}", err=True)

    with contextlib.suppress(asyncio.CancelledError):
        async with server.session() as session:
            client = FeedClient(session, f"{server.url}/api/v1/feed", query, key, tell)
            async with contextlib.aclosing(client.events()) as events:
                async for event in events:
                    if isinstance(event, Missed):
                        tell(f"missed {'' if event.exact else 'at most '}{event.count} exchanges")
                    else:
                        output.print(event)
