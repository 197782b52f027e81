"""Runs a real nginx, unprivileged, with everything it touches in one folder."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SHIPPED = Path(__file__).parents[2] / "deploy" / "nginx.conf"
_PATIENCE = 10.0
"""Seconds after which an nginx that has not started will not."""

_MAIN = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr info;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{site}
}}
"""
_STOCK_SITE = """\
    server {{
        listen unix:{folder}/nginx.sock;
        location / {{ proxy_pass http://unix:{folder}/gemini-proxy.sock; }}
    }}
"""


def shipped_site(folder: Path) -> str:
    """deploy/nginx.conf with its three places moved into ``folder``."""
    text = SHIPPED.read_text()
    for place, moved in (
        ("listen 127.0.0.1:8080;", f"listen unix:{folder}/nginx.sock;"),
        ("unix:/run/gemini-proxy/", f"unix:{folder}/"),
        ("/var/log/nginx/", f"{folder}/"),
    ):
        assert place in text, f"{place} is no longer in {SHIPPED.name}"
        text = text.replace(place, moved)
    return text


def several(folder: Path, names: Sequence[str]) -> str:
    """Return the shipped configuration with a line for each of several servers."""
    line = f"server unix:{folder}/gemini-proxy.sock max_fails=0;"
    site = shipped_site(folder)
    assert line in site
    return site.replace(line, " ".join(line.replace("gemini-proxy.sock", f"{name}.sock") for name in names))


def stock_site(folder: Path) -> str:
    """What someone writes who has read nothing: a bare ``proxy_pass``, with nginx's buffering on."""
    return _STOCK_SITE.format(folder=folder)


def write_config(folder: Path, site: str) -> Path:
    """A whole configuration around ``site``."""
    file = folder / "nginx.conf"
    file.write_text(_MAIN.format(folder=folder, site=site))
    return file


@dataclass(slots=True)
class Nginx:
    """A running nginx. ``log`` is its main error log, whole once it has ended."""

    socket: Path
    log: bytes = b""


@contextlib.asynccontextmanager
async def running_nginx(folder: Path, site: str) -> AsyncIterator[Nginx]:
    """Serve ``site`` on ``folder/nginx.sock``."""
    assert NGINX is not None
    config = write_config(folder, site)
    process = await asyncio.create_subprocess_exec(
        NGINX, "-p", str(folder), "-e", "stderr", "-c", str(config), stderr=asyncio.subprocess.PIPE
    )
    nginx = Nginx(folder / "nginx.sock")
    try:
        assert process.stderr is not None
        # Said once the sockets are open.
        async with asyncio.timeout(_PATIENCE):
            while b"event method" not in nginx.log:
                line = await process.stderr.readline()
                assert line, f"nginx did not start: {nginx.log.decode()}"
                nginx.log += line
        yield nginx
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        nginx.log += (await process.communicate())[1]
