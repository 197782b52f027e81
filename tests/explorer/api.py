"""A caller of the API, with the shortest way to say what is asked and what must come back."""

import io
from dataclasses import dataclass
from json import dumps
from typing import Any

import aiohttp

KEY = "inv-" + "0123456789abcdef" * 4
OPEN_USER = "developer"
SAMPLE = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
SECRETIVE = 'raise "a secret was asked for" if:\n    (m: Message)\n    "secret" in m.content\n'


@dataclass(frozen=True)
class Api:
    """One user's calls to one server, which are all answered in JSON."""

    session: aiohttp.ClientSession
    url: str
    key: str = KEY
    user: str = OPEN_USER

    async def call(self, method: str, path: str, json: Any = None, **options: Any) -> tuple[int, Any]:
        """Status and body. ``json`` is sent as it is; ``data``, ``headers`` and ``params`` go to aiohttp."""
        headers = {"authorization": f"Bearer {self.key}", **options.pop("headers", {})}
        if json is not None:
            # In a stream: aiohttp warns of large bodies that are sent as bytes.
            options["data"] = io.BytesIO(dumps(json).encode())
        url = f"{self.url}/api/v1{path}"
        async with self.session.request(method, url, headers=headers, **options) as answer:
            assert answer.content_type == "application/json", await answer.text()
            return answer.status, await answer.json()

    async def get(self, path: str, **options: Any) -> Any:
        return await self._ok("GET", path, **options)

    async def post(self, path: str, json: Any, **options: Any) -> Any:
        return await self._ok("POST", path, json, **options)

    async def put(self, path: str, json: Any, **options: Any) -> Any:
        return await self._ok("PUT", path, json, **options)

    async def delete(self, path: str) -> Any:
        return await self._ok("DELETE", path)

    async def refused(self, method: str, path: str, json: Any = None, **options: Any) -> tuple[int, str]:
        """Status and ``detail`` of an error, which says nothing else."""
        status, body = await self.call(method, path, json, **options)
        assert status >= 400 and list(body) == ["detail"], (status, body)
        return status, body["detail"]

    async def push(self, *conversations: Any, dataset: str | None = None, **more: Any) -> list[str]:
        """Push conversations; their ids."""
        body = {"messages": list(conversations) or [SAMPLE], "dataset": dataset, **more}
        ids: list[str] = (await self.post("/push/trace", body))["id"]
        return ids

    async def dataset(self, name: str = "dataset") -> dict[str, Any]:
        made: dict[str, Any] = await self.post("/dataset/create", {"name": name})
        return made

    def at(self, name: str) -> str:
        """The path of one's own dataset."""
        return f"/dataset/byuser/{self.user}/{name}"

    async def _ok(self, method: str, path: str, json: Any = None, **options: Any) -> Any:
        status, body = await self.call(method, path, json, **options)
        assert status == 200, (status, body)
        return body
