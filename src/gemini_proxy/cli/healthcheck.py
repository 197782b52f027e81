"""``gemini-proxy healthcheck``. Containers run it every few seconds, so it imports only what it needs."""

import socket
import sys
from http.client import HTTPConnection, HTTPException

import click

from gemini_proxy.cli.settings import Settings
from gemini_proxy.http.listen_addresses import ListenAddress, listen_address

_LONGEST = 65_536
"""Bytes of the response that are shown."""


@click.command()
@click.option("--timeout", default=3.0, show_default=True, help="Seconds to wait.")
@click.pass_obj
def healthcheck(settings: Settings, timeout: float) -> None:
    """Ask the configured server whether it is ready; exit code 1 if it is not."""
    address = listen_address(settings.config.server.listen[0])
    ready, response = _ask(address, timeout)
    click.echo(response, err=not ready)
    sys.exit(0 if ready else 1)


def _ask(address: ListenAddress, seconds: float) -> tuple[bool, str]:
    """Return whether the server at ``address`` is ready, and what it says. A silence of ``seconds`` is a no."""
    host = "localhost" if address.path else str(address)
    connection = _UnixConnection(host, address.path, seconds) if address.path else HTTPConnection(host, timeout=seconds)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return response.status == 200, response.read(_LONGEST).decode(errors="replace")
    except (HTTPException, OSError) as error:
        return False, f"{address}: {type(error).__name__}"
    finally:
        connection.close()


class _UnixConnection(HTTPConnection):
    def __init__(self, host: str, path: str, seconds: float) -> None:
        super().__init__(host, timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
