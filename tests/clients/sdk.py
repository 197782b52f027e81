"""The google-genai SDK as its users have it, with one face for its two halves."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google import genai
from google.genai import types

from tests.support.proxy import MODEL, Proxy

KEY = "AIzaTestKey"
Connect = Callable[..., "Sdk"]
QUIET = "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
"""A filter for what the SDK's own asyncio half does, which aiohttp discourages."""


async def recorded(proxy: Proxy) -> int:
    """How many requests the proxy had: each leaves one trace."""
    return len(await proxy.store.recent(1000))


@dataclass(frozen=True)
class Sdk:
    """Calls made by the SDK's blocking half (in a thread) or by its asyncio half; streams are read to their end."""

    client: genai.Client
    blocking: bool

    async def generate(self, contents: Any, **arguments: Any) -> types.GenerateContentResponse:
        call = {"model": MODEL, "contents": contents, **arguments}
        if self.blocking:
            return await asyncio.to_thread(self.client.models.generate_content, **call)
        return await self.client.aio.models.generate_content(**call)

    async def stream(self, contents: Any, **arguments: Any) -> list[types.GenerateContentResponse]:
        call = {"model": MODEL, "contents": contents, **arguments}
        if self.blocking:
            return await asyncio.to_thread(lambda: list(self.client.models.generate_content_stream(**call)))
        return [chunk async for chunk in await self.client.aio.models.generate_content_stream(**call)]

    async def count_tokens(self, contents: Any) -> types.CountTokensResponse:
        if self.blocking:
            return await asyncio.to_thread(self.client.models.count_tokens, model=MODEL, contents=contents)
        return await self.client.aio.models.count_tokens(model=MODEL, contents=contents)

    async def embed(self, contents: Any) -> types.EmbedContentResponse:
        if self.blocking:
            return await asyncio.to_thread(self.client.models.embed_content, model=MODEL, contents=contents)
        return await self.client.aio.models.embed_content(model=MODEL, contents=contents)

    async def models(self) -> list[str | None]:
        if self.blocking:
            return await asyncio.to_thread(lambda: [model.name for model in self.client.models.list()])
        return [model.name async for model in await self.client.aio.models.list()]

    async def model(self, name: str) -> types.Model:
        if self.blocking:
            return await asyncio.to_thread(self.client.models.get, model=name)
        return await self.client.aio.models.get(model=name)

    def chat(self) -> "Chat":
        if self.blocking:
            return _BlockingChat(self.client)
        return _AsyncChat(self.client)


class Chat:
    """A conversation that the SDK keeps."""

    def history(self) -> list[types.Content]:
        raise NotImplementedError

    async def send(self, text: str) -> types.GenerateContentResponse:
        raise NotImplementedError

    async def send_streaming(self, text: str) -> list[types.GenerateContentResponse]:
        raise NotImplementedError

    def said(self) -> list[tuple[str | None, str]]:
        """Role and text of every turn."""
        return [(turn.role, "".join(part.text or "" for part in turn.parts or ())) for turn in self.history()]


class _BlockingChat(Chat):
    def __init__(self, client: genai.Client) -> None:
        self._chat = client.chats.create(model=MODEL)

    def history(self) -> list[types.Content]:
        return self._chat.get_history(curated=True)

    async def send(self, text: str) -> types.GenerateContentResponse:
        return await asyncio.to_thread(self._chat.send_message, text)

    async def send_streaming(self, text: str) -> list[types.GenerateContentResponse]:
        return await asyncio.to_thread(lambda: list(self._chat.send_message_stream(text)))


class _AsyncChat(Chat):
    def __init__(self, client: genai.Client) -> None:
        self._chat = client.aio.chats.create(model=MODEL)

    def history(self) -> list[types.Content]:
        return self._chat.get_history(curated=True)

    async def send(self, text: str) -> types.GenerateContentResponse:
        return await self._chat.send_message(text)

    async def send_streaming(self, text: str) -> list[types.GenerateContentResponse]:
        return [chunk async for chunk in await self._chat.send_message_stream(text)]
