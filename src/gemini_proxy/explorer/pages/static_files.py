"""Serve the files that pages load, from memory; browsers cache them until they change."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from aiohttp import web

from gemini_proxy.errors import NotFound
from gemini_proxy.explorer.pages.site import guarded
from gemini_proxy.http.browser_guard import BROWSER_HEADERS

_TYPES: Final = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_FOREVER: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file; ``version`` changes with the content."""

    content: bytes
    content_type: str
    version: str


@cache
def static_files() -> dict[str, StaticFile]:
    """Return the static files of this package, by name; third-party files begin with ``vendor/``.

    They are read once: pages and files of one process are of one version, whatever is installed meanwhile.
    """
    loaded: dict[str, StaticFile] = {}
    static = files("gemini_proxy.explorer.pages") / "static"
    for folder, prefix in ((static, ""), (static / "vendor", "vendor/")):
        for entry in folder.iterdir():
            kind = _TYPES.get(entry.name.rpartition(".")[2])
            if kind is not None:
                content = entry.read_bytes()
                loaded[prefix + entry.name] = StaticFile(content, kind, hashlib.sha256(content).hexdigest()[:16])
    return loaded


def static_path(name: str) -> str:
    """Return the URL path of a file, with its version."""
    return f"/explorer/static/{name}?v={static_files()[name].version}"


@guarded
async def static_file(request: web.Request) -> web.StreamResponse:
    """Send one file. A request for another version gets the current one, which browsers do not cache then."""
    file = static_files().get(request.match_info["file"])
    if file is None:
        raise NotFound("There is no such file")
    cached = request.query.get("v") == file.version
    headers = {**BROWSER_HEADERS, "cache-control": _FOREVER if cached else "no-cache"}
    return web.Response(body=file.content, content_type=file.content_type, charset="utf-8", headers=headers)
