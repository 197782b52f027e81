"""A browser without a screen: pages asked for and forms sent, with what browsers say of themselves."""

import re
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy

from gemini_proxy.explorer.app_keys import DATASETS, PINNED_TOOLS, POLICIES, TRACES
from gemini_proxy.policy import tool_declaration, tool_digest
from gemini_proxy.traces.access import DEVELOPER
from gemini_proxy.traces.datasets import Dataset
from gemini_proxy.traces.pinned_tools import Declared, DeclaredTools
from gemini_proxy.traces.policies import StoredPolicy
from gemini_proxy.traces.trace import Trace
from tests.support.proxy import Proxy
from tests.traces.samples import ensured, trace

SECRETIVE = 'raise "a secret was asked for" if:\n    (m: Message)\n    any(find("secret", m.content))\n'


@dataclass(frozen=True)
class Page:
    """An answer as a browser gets it."""

    status: int
    headers: CIMultiDictProxy[str]
    body: str

    @property
    def location(self) -> str:
        return self.headers.get("location", "")

    @property
    def text(self) -> str:
        """What is to be read: without markup, scripts and attributes."""
        return unescape(re.sub(r"<[^>]*>", "", self.body))

    def links(self) -> list[str]:
        return [unescape(link) for link in re.findall(r'href="([^"]*)"', self.body)]


@dataclass
class Browser:
    """Keeps the cookies it is given, for all that it asks."""

    session: aiohttp.ClientSession
    url: str
    cookies: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str, **headers: str) -> Page:
        return await self.ask("GET", path, headers=headers)

    async def post(self, path: str, _headers: dict[str, str] | None = None, **fields: str) -> Page:
        """Send a form from one of our own pages."""
        return await self.ask("POST", path, headers={"origin": self.url, **(_headers or {})}, data=fields)

    async def ask(self, method: str, path: str, headers: dict[str, str], **more: Any) -> Page:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent = {**({"cookie": cookie} if cookie else {}), **headers}
        url = f"{self.url}{path}"
        async with self.session.request(method, url, headers=sent, allow_redirects=False, **more) as answer:
            for name, morsel in answer.cookies.items():
                self.cookies[name] = morsel.value
            return Page(answer.status, answer.headers, await answer.text())


async def record(proxy: Proxy, *recorded: Trace) -> list[Trace]:
    await proxy.app[TRACES].add(recorded)
    return list(recorded)


def mine(text: str | None = None, **fields: Any) -> Trace:
    return trace(text, **{"owner": DEVELOPER, **fields})


async def dataset(proxy: Proxy, name: str = "demo") -> Dataset:
    return await ensured(proxy.app[DATASETS], DEVELOPER, name)


async def rule(proxy: Proxy, name: str = "no secrets", content: str = SECRETIVE, **more: Any) -> StoredPolicy:
    return await proxy.app[POLICIES].add(await dataset(proxy), name, content, **{"action": "block", **more})


async def rules(proxy: Proxy) -> list[tuple[str, str, bool, str]]:
    found = await proxy.app[POLICIES].of(await dataset(proxy))
    return [(one.name, one.action, one.enabled, one.content) for one in found]


def tool(description: str, name: str = "send") -> dict[str, Any]:
    schema = {"type": "object", "properties": {"to": {"type": "string"}}}
    return {"name": name, "description": description, "inputSchema": schema}


async def declare(proxy: Proxy, *tools: dict[str, Any], dataset: str = "demo", owner: str = DEVELOPER) -> Dataset:
    """Have a dataset's exchange declare tools."""
    made = await ensured(proxy.app[DATASETS], owner, dataset)
    seen = {one["name"]: Declared(tool_digest(one), tool_declaration(one), 1_700_000_000.0) for one in tools}
    await proxy.app[PINNED_TOOLS].learn(DeclaredTools(owner, dataset, seen, allowed=True))
    return made


def rows(page: Page) -> list[str]:
    """The ids of the traces of a listing, shortened."""
    return re.findall(r'<td class="id">(\w+)</td>', page.body)
