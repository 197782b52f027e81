"""Makes the pages of the documentation that come from the code, and mends the links that lead out of ``docs/``.

A hook of MkDocs (``mkdocs.yml``): ``on_files`` adds pages, ``on_page_markdown`` rewrites links.
"""

import asyncio
import posixpath
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp.test_utils import TestServer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from gemini_proxy.config import Config
from gemini_proxy.explorer.api.openapi import openapi_document
from gemini_proxy.explorer.routes import ENDPOINTS
from gemini_proxy.guardrails.rules import GuardrailSet
from gemini_proxy.sections import Traces
from gemini_proxy.server.app import create_app

_ROOT: Final = Path(__file__).resolve().parents[1]
_COPIED: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
}
_LINK: Final = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
_NOWHERE: Final = "about:blank"
_DEAD: Final = re.compile(rf"\[([^\]\[]*)\]\({_NOWHERE}\)")
_FENCE: Final = re.compile(r"^(```[a-z]+) (\S+)$", re.MULTILINE)
"""A block with the name of a file behind its language, which GitHub shows as well."""
_HELP: Final = re.compile(r"# HELP (\S+) (.*)\n# TYPE \S+ (\S+)\n((?:[^#\n].*\n)*)")
_LABEL: Final = re.compile(r"[{,]([a-z_]+)=")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere in the repository, and those that are made from the code."""
    for source, name in _COPIED.items():
        files.append(File.generated(config, name, content=(_ROOT / source).read_text()))
    for name, text in _made():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site's own pages. What has none is named without a link."""
    folder = "" if page.file.src_uri in _COPIED.values() else f"docs/{posixpath.dirname(page.file.src_uri)}"

    def mended(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        target = _target(path)
        if target is None or files.get_file_from_path(target) is None:
            return f"]({_NOWHERE})"
        return f"]({posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or '.')}{match[2] or ''})"

    return _FENCE.sub(r'\1 title="\2"', _DEAD.sub(r"\1", _LINK.sub(mended, markdown)))


def _target(path: str) -> str | None:
    """Return the site's page of a path of the repository, None where there is none."""
    if path in _COPIED:
        return _COPIED[path]
    if path.startswith("policies"):
        return "reference/library.md"
    if path == "config.example.toml":
        return "reference/settings.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else None


def _made() -> Iterator[tuple[str, str]]:
    yield "settings", _settings((_ROOT / "config.example.toml").read_text())
    yield "library", _library(sorted((_ROOT / "policies").glob("*.gr")))
    yield "metrics", _metrics(asyncio.run(_shown_metrics()))
    yield "api", _api(openapi_document(ENDPOINTS, open_access=False))


def _settings(example: str) -> str:
    return f"# Settings\n\n`config.example.toml`, which `gemini-proxy init` writes:\n\n```toml\n{example}```\n"


def _library(policies: Iterable[Path]) -> str:
    parts = [
        "# The policies that come with the proxy\n\n`gemini-proxy policy copy NAME` writes one out, with its cases.\n"
    ]
    parts += [f"## {policy.stem}\n\n```python\n{policy.read_text()}```\n" for policy in policies]
    return "\n".join(parts)


async def _shown_metrics() -> str:
    """Return what ``/metrics`` of a server says that has just started."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_construct(traces=Traces(database=f"sqlite:///{folder}/traces.db"))
        async with TestServer(create_app(config, GuardrailSet(()))) as server, aiohttp.ClientSession() as session:
            async with session.get(server.make_url("/metrics")) as response:
                return await response.text()


def _metrics(shown: str) -> str:
    rows = []
    for name, about, kind, lines in _HELP.findall(shown):
        labels = sorted(set(_LABEL.findall(lines)) - {"le"})
        rows.append(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {about} |")
    head = (
        "# Metrics\n\n`GET /metrics`, in Prometheus' text format.\n\n| metric | type | labels | |\n|---|---|---|---|\n"
    )
    return head + "\n".join(sorted(rows)) + "\n"


def _api(document: dict[str, Any]) -> str:
    rows = [
        f"| `{method.upper()}` | `{path}` | {operation.get('summary', operation.get('description', ''))} |"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    head = "# HTTP API\n\nA server describes it at `/api/openapi.json`.\n\n| method | path | |\n|---|---|---|\n"
    return head + "\n".join(rows) + "\n"
