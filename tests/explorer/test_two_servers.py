"""Two of our own servers: one checks for the other and keeps its traces."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gemini_proxy.server.app_keys import STORAGE
from gemini_proxy.traces.push.answers import Delivered
from gemini_proxy.traces.push.queue import push_document
from gemini_proxy.traces.push.service import ExplorerService
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.explorer.api import KEY, Api
from tests.support.proxy import MODEL, Proxy, prompt
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

POLICY = """raise "no spells" if:
    (msg: Message)
    (found: str) in find("abra\\w+", msg)
"""
LOG_POLICY = 'raise "a greeting" if:\n    (msg: Message)\n    "hello" in msg.content\n'
OTHERS = "inv-" + "f" * 64


@pytest.fixture
async def back(start_proxy: StartProxy, tmp_path: Path) -> Proxy:
    """The server that is Explorer and Guardrails for the other."""
    return await start_proxy(traces={"database": f"sqlite:///{tmp_path / 'back.db'}"})


@pytest.fixture
async def front(start_proxy: StartProxy, back: Proxy) -> Proxy:
    """The server that clients call."""
    return await start_front(start_proxy, back.url)


async def start_front(start_proxy: StartProxy, url: str) -> Proxy:
    return await start_proxy(
        policy=POLICY,
        log_policy=LOG_POLICY,
        guardrails={"engine": "remote", "remote": {"url": url, "api_key": KEY}},
        explorer={"push": {"url": url, "api_key": KEY}},
    )


@pytest.fixture
async def alone(start_proxy: StartProxy, tmp_path: Path) -> Proxy:
    """A server with the same rules that checks by itself."""
    database = f"sqlite:///{tmp_path / 'alone.db'}"
    return await start_proxy(policy=POLICY, log_policy=LOG_POLICY, traces={"database": database})


async def ask(client: aiohttp.ClientSession, proxy: Proxy, text: str, verb: str = "generateContent") -> tuple[int, Any]:
    """Status and body of an answer, without what is another's in each: the trace's id."""
    url = f"{proxy.url}/api/v1/gateway/demo/gemini/v1beta/models/{MODEL}:{verb}"
    headers = {"invariant-authorization": f"Bearer {OTHERS}"}
    async with client.post(url, json=prompt(text), headers=headers) as response:
        body = await response.read()
    trace = (await proxy.trace()).id.encode()
    return response.status, body.replace(trace, b"TRACE")


async def delivered(proxy: Proxy, count: int) -> None:
    storage = proxy.app[STORAGE]
    assert storage.push is not None
    async with asyncio.timeout(10):
        while storage.push.delivered < count:
            await storage.push.queue.queued()
    assert storage.push.delivered == count


async def kept(api: Api) -> list[Any]:
    listed = await api.get(f"{api.at('demo')}/traces")
    return [await api.get(f"/trace/{one['id']}") for one in listed]


def marks(trace: Any) -> Sequence[tuple[str, str, str]]:
    return [
        (one["content"], one["address"], one["extra_metadata"]["guardrail"]["name"]) for one in trace["annotations"]
    ]


async def test_an_exchange_is_checked_refused_and_shown_by_the_other_server(
    front: Proxy, back: Proxy, alone: Proxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    """The refusal is byte for byte that of a server which checks itself, the marks are those of its trace."""
    upstream.reply(unary(candidate("say abracadabra!", "STOP")))
    refused = await ask(client, front, "hello")
    assert refused == await ask(client, alone, "hello")
    assert refused[0] == 400 and b"no spells" in refused[1]
    await delivered(front, 1)
    [shown] = await kept(Api(client, back.url))
    ours, theirs = await front.trace(), await alone.eventually(lambda trace: len(trace.annotations) == 2)
    assert marks(shown) == [(one.content, one.address, one.guardrail["name"]) for one in ours.annotations]
    assert marks(shown) == [(one.content, one.address, one.guardrail["name"]) for one in theirs.annotations]
    assert [(content, address) for content, address, _ in marks(shown)] == [
        ("no spells", "messages.1.content:4-15"),
        ("a greeting", "messages.0.content.0.text:0-5"),
    ]
    assert shown["messages"] == orjson.loads(orjson.dumps(ours.messages))
    assert shown["extra_metadata"]["gemini_proxy"]["id"] == ours.id
    there = await back.trace()
    assert (there.outcome, there.model, there.stream) == (Outcome.REFUSED_RESPONSE, MODEL, False)
    assert (there.created, there.duration_ms, there.dataset) == (ours.created, ours.duration_ms, "demo")


async def test_a_refused_prompt_and_a_stream_arrive_as_well_each_once(
    front: Proxy, back: Proxy, alone: Proxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    upstream.reply(stream(*sse(candidate("fine", "STOP"))))
    for text, verb in (("abracadabra", "generateContent"), ("what", "streamGenerateContent?alt=sse")):
        assert await ask(client, front, text, verb) == await ask(client, alone, text, verb)
    await delivered(front, 2)
    shown = await kept(Api(client, back.url))
    assert [one["extra_metadata"]["gemini_proxy"]["outcome"] for one in shown] == ["refused_request", "completed"]
    assert [marks(one) for one in shown] == [[("no spells", "messages.0.content.0.text:0-11", "test policy")], []]


async def test_a_second_delivery_of_a_trace_is_recognised(
    front: Proxy, back: Proxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    """As after an answer that was lost on its way."""
    upstream.reply(unary(candidate("fine", "STOP")))
    await ask(client, front, "what")
    await delivered(front, 1)
    async with ExplorerService(back.url, KEY) as service:
        assert await service.send(push_document(await front.trace())) == Delivered()
    assert len(await kept(Api(client, back.url))) == 1


async def test_no_key_of_a_client_reaches_the_other_servers_traces(
    front: Proxy, back: Proxy, client: aiohttp.ClientSession, upstream: ScriptedUpstream
) -> None:
    upstream.reply(unary(candidate("fine", "STOP")))
    await ask(client, front, "what")
    await delivered(front, 1)
    shown = orjson.dumps(await kept(Api(client, back.url)))
    assert [secret for secret in (b"AIzaTestKey", OTHERS.encode(), KEY.encode()) if secret in shown] == []
