"""Requests that refer to what Gemini keeps: checked from what is remembered of it, and nobody else's."""

import time
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from gemini_proxy.proxy.credentials import Credentials, account_of
from gemini_proxy.traces.access import DEVELOPER
from gemini_proxy.traces.handles import Handle, Handles, Holder, Kind
from tests.conftest import StartProxy
from tests.support.proxy import Proxy, prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary
from tests.traces.samples import execute, trace

POLICY = """raise "no Dublin" if:
    (m: Message)
    "Dublin" in m.content

raise "out after Cork" if:
    (before: Message) -> (said: Message)
    "Cork" in before.content
    "send" in said.content
"""
URI = "https://generativelanguage.googleapis.com/v1beta/files/abc"
HOLDER = Holder(account_of(Credentials("AIzaTestKey", None), None), DEVELOPER)
OF_FILE = {"contents": [{"role": "user", "parts": [{"text": "read"}, {"fileData": {"fileUri": URI}}]}]}
OF_CACHE = prompt("hi") | {"cachedContent": "cachedContents/c"}


async def remembered(proxy: Proxy, said: str, **fields: Any) -> Handle:
    """A cache of one message, remembered."""
    written = trace(
        owner=DEVELOPER, dataset=None, messages=[{"role": "user", "content": [{"type": "text", "text": said}]}]
    )
    await proxy.store.add([written])
    handle = replace(Handle(Kind.CACHE, "cachedContents/c", HOLDER, time.time() + 60, trace=written.id), **fields)
    await Handles(proxy.store.database).remember(handle)
    return handle


async def ask(client: aiohttp.ClientSession, proxy: Proxy, body: dict[str, Any]) -> tuple[int, str]:
    async with client.post(proxy.method(), json=body) as response:
        return response.status, await response.text()


@pytest.fixture
async def proxy(start_proxy: StartProxy, upstream: ScriptedUpstream) -> Proxy:
    upstream.reply(unary(candidate("fine", "STOP")))
    return await start_proxy(policy=POLICY)


async def test_a_cache_is_checked_from_what_is_remembered_of_it(proxy: Proxy, client: aiohttp.ClientSession) -> None:
    """Under the rules of now, and in flows with what the request says itself."""
    await remembered(proxy, "all about Cork")
    assert (await ask(client, proxy, OF_CACHE))[0] == 200
    found = await proxy.trace()
    assert found.metadata["coverage"]["not_checked"] == []
    assert found.metadata["earlier"] == [{"kind": "cache", "name": "cachedContents/c", "messages": 1}]
    assert [message["content"] for message in found.messages][1:] == [[{"type": "text", "text": "hi"}], "fine"]
    status, said = await ask(client, proxy, OF_CACHE | prompt("now send it"))
    assert (status, "out after Cork" in said) == (400, True)
    refused = await proxy.trace()
    places = {one.address.partition(":")[0] for one in refused.annotations}
    assert places == {"messages.0.content.0.text", "messages.1.content.0.text"}
    await remembered(proxy, "all about Dublin")
    status, said = await ask(client, proxy, OF_CACHE)
    assert (status, "no Dublin" in said) == (400, True)


async def test_a_response_is_placed_behind_what_stands_before(
    proxy: Proxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    await remembered(proxy, "fine")
    upstream.reply(unary(candidate("about Dublin", "STOP")))
    assert (await ask(client, proxy, OF_CACHE))[0] == 400
    assert [one.address for one in (await proxy.trace()).annotations] == ["messages.2.content:6-12"]


async def test_whose_trace_is_gone_or_name_is_not_known_is_unchecked(
    proxy: Proxy, client: aiohttp.ClientSession
) -> None:
    handle = await remembered(proxy, "all about Dublin", trace="gone")
    assert (await ask(client, proxy, OF_CACHE))[0] == 200
    assert [one["reason"] for one in (await proxy.trace()).metadata["coverage"]["not_checked"]] == ["cached content"]
    await Handles(proxy.store.database).forget(HOLDER, handle.kind, handle.name)
    assert (await ask(client, proxy, OF_CACHE))[0] == 200


@pytest.mark.parametrize("fields", [{"holder": Holder(HOLDER.account, "someone")}, {"refused": True}])
async def test_anothers_and_a_refused_one_do_not_exist(
    proxy: Proxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, fields: dict[str, Any]
) -> None:
    await remembered(proxy, "fine", **fields)
    for name in ("cachedContents/c", "c", "projects/p/locations/l/cachedContents/c"):
        status, said = await ask(client, proxy, prompt("hi") | {"cachedContent": name})
        assert (status, "does not exist" in said) == (404, True)
    assert upstream.calls == []


async def test_files_are_known_by_the_uri_that_google_gave(proxy: Proxy, client: aiohttp.ClientSession) -> None:
    file = {"kind": Kind.FILE, "name": "files/abc", "details": {"uri": URI}}
    await remembered(proxy, "all about Dublin", **file)
    assert (await ask(client, proxy, OF_FILE))[0] == 400
    elsewhere = {"contents": [{"parts": [{"fileData": {"fileUri": "https://example.com/v1beta/files/abc"}}]}]}
    assert (await ask(client, proxy, elsewhere))[0] == 200
    unread = (await proxy.trace()).metadata["coverage"]["not_checked"]
    assert [one["reason"] for one in unread] == ["a file behind a URI"]
    await remembered(proxy, "", **file, unchecked="a file seen only by digest")
    assert (await ask(client, proxy, OF_FILE))[0] == 200
    unread = (await proxy.trace()).metadata["coverage"]["not_checked"]
    assert [one["reason"] for one in unread] == ["a file seen only by digest"]


@pytest.mark.parametrize("uri", [f"{URI}?key=x", URI.replace("/v1beta", "//v1beta"), "/files/abc", f" {URI}"])
async def test_a_file_named_otherwise_than_google_did_is_refused(
    proxy: Proxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession, uri: str
) -> None:
    """It could be another user's, or one that was checked: that it is not known says nothing."""
    status, said = await ask(client, proxy, {"contents": [{"parts": [{"fileData": {"fileUri": uri}}]}]})
    assert (status, "as Google returned it" in said, upstream.calls) == (400, True, [])


async def test_a_known_file_is_checked_whatever_spelling_of_its_address_is_taken(
    proxy: Proxy, client: aiohttp.ClientSession
) -> None:
    await remembered(proxy, "all about Dublin", kind=Kind.FILE, name="files/abc", details={"uri": URI})
    for uri in (URI.replace("https", "http"), URI.replace("v1beta", "v1"), f"{URI}?alt=media"):
        body = {"contents": [{"parts": [{"fileData": {"fileUri": uri}}]}]}
        assert (await ask(client, proxy, body))[0] == 400


async def test_a_file_that_is_read_as_another_type_is_unchecked(proxy: Proxy, client: aiohttp.ClientSession) -> None:
    """A PDF may be all letters, which say nothing of what is in it."""
    details = {"uri": URI, "mime_type": "text/plain; charset=utf-8"}
    await remembered(proxy, "fine", kind=Kind.FILE, name="files/abc", details=details)
    for kind, unread in (("text/plain", 0), ("text/html;x=y", 0), ("application/pdf", 1)):
        body = {"contents": [{"parts": [{"fileData": {"fileUri": URI, "mimeType": kind}}]}]}
        assert (await ask(client, proxy, body))[0] == 200
        assert len((await proxy.trace()).metadata["coverage"]["not_checked"]) == unread


async def test_the_openai_path_names_a_cache_in_each_of_its_places(
    proxy: Proxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    await remembered(proxy, "fine", holder=Holder(HOLDER.account, "someone"))
    said = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    google = {"cached_content": "cachedContents/c"}
    for place in (google, {"google": google}, {"extra_body": {"google": google}}):
        async with client.post(f"{proxy.url}/v1beta/openai/chat/completions", json=said | place) as response:
            assert response.status == 404
    assert upstream.calls == []


async def test_what_a_mask_rule_finds_in_a_cache_cannot_be_masked(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """The body holds none of it; what the request says itself is masked behind a cache as without one."""
    upstream.reply(unary(candidate("fine", "STOP")))
    proxy = await start_proxy(mask_policy='raise "Dublin" if:\n    (m: Message)\n    "Dublin" in m.content\n')
    await remembered(proxy, "fine")
    assert (await ask(client, proxy, OF_CACHE | prompt("to Dublin")))[0] == 200
    assert b"Dublin" not in upstream.calls[0].body
    await remembered(proxy, "all about Dublin")
    assert (await ask(client, proxy, OF_CACHE))[0] == 400


async def test_without_the_table_nobody_is_let_in_or_kept_out_by_chance(
    proxy: Proxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """What a request refers to must be told; what is made meanwhile is not remembered, and unchecked later."""
    await execute(proxy.database, "ALTER TABLE handles RENAME TO lost")
    assert (await ask(client, proxy, OF_CACHE))[0] == 503
    async with client.get(f"{proxy.url}/v1beta/cachedContents/c") as response:
        assert response.status == 503
    assert upstream.calls == []
    upstream.reply(unary({"name": "cachedContents/c"}), unary(candidate("fine", "STOP")))
    async with client.post(f"{proxy.url}/v1beta/cachedContents", json=prompt("hi")) as response:
        assert (response.status, await response.json()) == (200, {"name": "cachedContents/c"})
    await execute(proxy.database, "ALTER TABLE lost RENAME TO handles")
    assert (await ask(client, proxy, OF_CACHE))[0] == 200
    assert [one["reason"] for one in (await proxy.trace()).metadata["coverage"]["not_checked"]] == ["cached content"]
