"""Caches and files with the real google-genai SDK, before a Gemini that keeps them."""

import asyncio
import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from google import genai
from google.genai import errors, types

from tests.clients.kept import Google
from tests.clients.sdk import KEY, QUIET
from tests.conftest import StartProxy
from tests.support.proxy import MODEL, Proxy
from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.filterwarnings(QUIET)

POLICY = 'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m.content\n'
PNG = b"\x89PNG\r\n\x1a\n\x00\xff"


@pytest.fixture
def google(upstream: ScriptedUpstream) -> Google:
    world = Google()
    upstream.reply(world)
    return world


@pytest.fixture
async def proxy(start_proxy: StartProxy, google: Google, tmp_path: Path) -> Proxy:
    return await start_proxy(policy=POLICY, files={"folder": str(tmp_path)})


Connected = Callable[..., genai.Client]


def client_of(proxy: Proxy, key: str = KEY, prefix: str = "") -> genai.Client:
    return genai.Client(api_key=key, http_options=types.HttpOptions(base_url=proxy.url + prefix))


@pytest.fixture
def connected() -> Iterator[Connected]:
    """Make clients that are closed after the test: a proxy that stops waits for idle connections."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(contextlib.closing(client_of(*arguments, **options)))


async def test_caches(proxy: Proxy, google: Google, upstream: ScriptedUpstream, connected: Connected) -> None:
    """Made, shown, listed, changed and deleted; what they hold is checked again where they are used."""
    client = connected(proxy)

    def work() -> None:
        config = types.CreateCachedContentConfig(contents=["all of Cork"], display_name="c", ttl="60s")
        made = client.caches.create(model=MODEL, config=config)
        assert made.name is not None
        assert client.caches.get(name=made.name).name == made.name
        assert [one.name for one in client.caches.list()] == [made.name]
        changed = client.caches.update(name=made.name, config=types.UpdateCachedContentConfig(ttl="120s"))
        assert changed.expire_time is not None
        use = types.GenerateContentConfig(cached_content=made.name)
        assert client.models.generate_content(model=MODEL, contents="hi", config=use).text == "fine"
        client.caches.delete(name=made.name)
        with pytest.raises(errors.ClientError, match="404"):
            client.caches.get(name=made.name)

    await asyncio.to_thread(work)
    assert [one.model for one in await proxy.store.recent(2)] == [MODEL, MODEL]
    trace = await proxy.trace()
    assert (len(trace.messages), trace.metadata["coverage"]["not_checked"]) == (4, [])


@pytest.mark.parametrize(
    "config",
    [
        types.CreateCachedContentConfig(contents=["all of Dublin"]),
        types.CreateCachedContentConfig(contents=["x"], system_instruction="like Dublin"),
        types.CreateCachedContentConfig(contents=["x"], display_name="Dublin"),
    ],
)
async def test_a_cache_that_is_refused_never_gets_to_google(
    proxy: Proxy, upstream: ScriptedUpstream, config: types.CreateCachedContentConfig, connected: Connected
) -> None:
    client = connected(proxy)
    with pytest.raises(errors.ClientError, match="no Dublin"):
        await asyncio.to_thread(client.caches.create, model=MODEL, config=config)
    assert upstream.calls == []


async def test_files(
    proxy: Proxy, google: Google, upstream: ScriptedUpstream, tmp_path: Path, connected: Connected
) -> None:
    """Text is checked and known where it is used; a picture is known by its digest alone."""
    client = connected(proxy, prefix="/api/v1/gateway/gemini")
    (tmp_path / "notes.txt").write_text("all of Cork")
    seen: list[Any] = []
    # Of two chunks.
    picture_of = PNG * 1_000_000

    def work() -> None:
        made = client.files.upload(file=tmp_path / "notes.txt", config=types.UploadFileConfig(display_name="notes"))
        assert made.name is not None and made.uri is not None
        assert client.files.get(name=made.name).uri == made.uri
        picture = client.files.upload(file=io.BytesIO(picture_of), config=types.UploadFileConfig(mime_type="image/png"))
        assert {one.name for one in client.files.list()} == {made.name, picture.name}
        assert client.models.generate_content(model=MODEL, contents=["read", made]).text == "fine"
        seen.append(made.name)
        assert client.models.generate_content(model=MODEL, contents=["see", picture]).text == "fine"
        assert picture.name is not None
        assert client.files.download(file=picture.name) == picture_of
        with pytest.raises(errors.ClientError, match="did not pass the guardrails"):
            client.files.download(file=made.name)
        client.files.delete(name=made.name)

    await asyncio.to_thread(work)
    assert google.bytes_of[seen[0]] == b"all of Cork"
    assert all(KEY not in call.target for call in upstream.calls)
    traces = [await proxy.store.get(one.id) for one in await proxy.store.recent(10)]
    pictured = next(one.metadata for one in traces if one and one.metadata["method"] == "generateContent")
    assert [one["reason"] for one in pictured["coverage"]["not_checked"]] == ["a file seen only by digest"]
    uploaded = next(one for one in traces if one and one.metadata["method"] == "uploadFile" and len(one.messages) > 2)
    assert [message["content"][0]["text"][:11] for message in uploaded.messages] == [
        "notes",
        "notes.txt",
        "all of Cork",
    ]


async def test_what_is_masked_in_a_cache_is_known_as_it_was_sent(
    start_proxy: StartProxy, google: Google, upstream: ScriptedUpstream, connected: Connected
) -> None:
    """The cache holds the placeholder, and so does what is remembered of it: nothing is found in it again.

    It is there at once, even where traces are written after their answers.
    """
    proxy = await start_proxy(mask_policy=POLICY, traces={"durability": "deferred"})
    client = connected(proxy)
    config = types.CreateCachedContentConfig(contents=["all of Dublin"])
    made = await asyncio.to_thread(client.caches.create, model=MODEL, config=config)
    assert b"Dublin" not in upstream.calls[0].body
    use = types.GenerateContentConfig(cached_content=made.name)
    found = await asyncio.to_thread(client.models.generate_content, model=MODEL, contents="hi", config=use)
    assert found.text == "fine"
    trace = await proxy.eventually(lambda trace: trace.metadata["method"] == "generateContent")
    assert (trace.metadata["coverage"]["not_checked"], len(trace.messages)) == ([], 3)
    assert "Dublin" not in str(trace.messages)


async def test_what_is_masked_in_a_file_is_known_as_it_was_sent(
    start_proxy: StartProxy, google: Google, upstream: ScriptedUpstream, connected: Connected, tmp_path: Path
) -> None:
    """Names and text; the SDK takes the size for what it is, and gets the name back that it gave."""
    proxy = await start_proxy(mask_policy=POLICY)
    client = connected(proxy)
    text = "all of Dublin\r\nand Dublin"
    (tmp_path / "Dublin.txt").write_bytes(text.encode())
    config = types.UploadFileConfig(mime_type="text/plain", display_name="of Dublin")
    made = await asyncio.to_thread(client.files.upload, file=tmp_path / "Dublin.txt", config=config)
    assert made.display_name == "of Dublin" and made.name is not None
    assert not [call for call in upstream.calls if b"Dublin" in call.raw_head + call.body]
    [placeholder] = set(re.findall("<MASKED_[0-9a-f]{10}>", google.bytes_of[made.name].decode()))
    assert google.bytes_of[made.name].decode() == text.replace("Dublin", placeholder)
    use = [types.Part.from_uri(file_uri=made.uri or "", mime_type="text/plain"), "hi"]
    assert (await asyncio.to_thread(client.models.generate_content, model=MODEL, contents=use)).text == "fine"
    trace = await proxy.trace()
    assert trace.metadata["coverage"]["not_checked"] == [] and "Dublin" not in str(trace.messages)


@pytest.mark.parametrize(
    ("data", "mime_type", "names", "said"),
    [
        (b"all of Dublin", "text/plain", {}, "no Dublin"),
        (b"all of Dublin", "application/octet-stream", {}, "no Dublin"),
        (b"fine", "text/plain", {"display_name": "Dublin"}, "no Dublin"),
        (b"all of Dublin", "image/png", {}, "declare it as text/plain"),
        (PNG, "text/plain", {}, "not text in UTF-8"),
        (b'{"request": {"contents": [{"parts": [{"text": "\\u0044ublin"}]}]}}\n', "jsonl", {}, "no Dublin"),
        (b'{"key": "a"}\n', "application/jsonl", {}, "Line 1"),
    ],
)
async def test_a_file_that_is_refused_never_gets_to_google(
    proxy: Proxy,
    upstream: ScriptedUpstream,
    data: bytes,
    mime_type: str,
    names: dict[str, str],
    said: str,
    connected: Connected,
) -> None:
    """At once, without the SDK sending it again."""
    config = types.UploadFileConfig(mime_type=mime_type, **names)  # type: ignore[arg-type]
    client = connected(proxy)
    with pytest.raises(errors.ClientError, match=said):
        await asyncio.to_thread(client.files.upload, file=io.BytesIO(data), config=config)
    assert upstream.calls == []


async def test_one_users_things_are_not_anothers(start_proxy: StartProxy, google: Google, connected: Connected) -> None:
    """Two users who share the operator's Gemini key see their own; what nobody is known to have made is nobody's."""
    from gemini_proxy.traces.keys import Keys

    shared = {"upstream": {"api_key": "AIzaShared"}, "access": {"mode": "keys"}}
    proxy = await start_proxy(policy=POLICY, **shared)
    keys = Keys(proxy.store.database)
    # Bob's is another server on the same database.
    proxies = {"ann": proxy, "bob": await start_proxy(policy=POLICY, **shared)}
    ann, bob = [connected(at, (await keys.add(name))[1]) for name, at in proxies.items()]
    google.kept["cachedContents/old"] = {"name": "cachedContents/old"}

    def work() -> None:
        made = ann.caches.create(model=MODEL, config=types.CreateCachedContentConfig(contents=["Cork"]))
        file = ann.files.upload(file=io.BytesIO(b"Cork"), config=types.UploadFileConfig(mime_type="text/plain"))
        assert made.name is not None and file.name is not None
        assert [one.name for one in ann.caches.list()] == [made.name]
        assert (list(bob.caches.list()), list(bob.files.list())) == ([], [])
        use = types.GenerateContentConfig(cached_content=made.name)
        for attempt in (
            lambda: bob.caches.get(name=made.name),
            lambda: bob.caches.delete(name=made.name),
            lambda: bob.caches.update(name=made.name, config=types.UpdateCachedContentConfig(ttl="9s")),
            lambda: bob.files.get(name=file.name),
            lambda: bob.files.delete(name=file.name),
            lambda: bob.files.download(file=file.name),
            lambda: bob.models.generate_content(model=MODEL, contents="hi", config=use),
            lambda: bob.models.generate_content(model=MODEL, contents=["hi", file]),
            lambda: ann.caches.get(name="cachedContents/old"),
        ):
            with pytest.raises(errors.ClientError, match="404"):
                attempt()

    await asyncio.to_thread(work)
    assert {"cachedContents/old", "cachedContents/c1"} <= google.kept.keys()
    assert orjson.dumps(google.kept)
