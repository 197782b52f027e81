"""The real google-genai SDK on Vertex AI, through the proxy: projects, locations, tokens of OAuth, express keys."""

import asyncio
from typing import Any

import aiohttp
import pytest
from google import genai
from google.genai import errors, types
from google.oauth2.credentials import Credentials

from gemini_proxy.errors import NotFound
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.doors import DEFAULT_DUTIES, Duty
from gemini_proxy.proxy.upstream import vertex_url
from gemini_proxy.sections import Limits
from gemini_proxy.server.limiter import Limiter, Visit
from gemini_proxy.traces.keys import Keys
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.proxy.test_masking import EMAIL, TO_THE_MODEL
from tests.support.proxy import MODEL, Proxy, prompt
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

POLICY = 'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m.content\n'
TOKEN = "ya29.canary-canary-canary-canary"
PLACE = "/v1beta1/projects/my-project/locations/europe-west4"
MODELS = f"{PLACE}/publishers/google/models/{MODEL}"
NOWHERE = "http://127.0.0.1:9"


async def start(start_proxy: StartProxy, upstream: ScriptedUpstream, **upstream_section: Any) -> Proxy:
    """A proxy for which nothing but Vertex AI is there."""
    section = {"vertex": upstream.url, "base_url": NOWHERE, "api_key": "AIzaOperators", **upstream_section}
    return await start_proxy(policy=POLICY, upstream=section)


def sdk(proxy: Proxy, location: str = "europe-west4", invariant: str = "") -> genai.Client:
    headers = {"invariant-authorization": f"Bearer {invariant}"} if invariant else None
    return genai.Client(
        vertexai=True,
        project="my-project",
        location=location,
        credentials=Credentials(token=TOKEN, quota_project_id="payer"),  # type: ignore[no-untyped-call]
        http_options=types.HttpOptions(base_url=proxy.url, headers=headers),
    )


async def test_caches_on_vertex(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """Checked where they are made and used, masked, and their owner's alone; the project has another name there."""
    keys = {"access": {"mode": "keys"}, "upstream": {"vertex": upstream.url, "base_url": NOWHERE}}
    proxy = await start_proxy(policy=POLICY, mask_policy=TO_THE_MODEL, **keys)
    stored = Keys(proxy.store.database)
    ann, bob = [sdk(proxy, invariant=(await stored.add(name))[1]) for name in ("ann", "bob")]
    kept = {"name": "projects/123/locations/europe-west4/cachedContents/77", "expireTime": "2100-01-01T00:00:00Z"}

    def work() -> None:
        config = types.CreateCachedContentConfig(contents=[f"of Cork, {EMAIL}"], display_name="c")
        with pytest.raises(errors.ClientError, match="no Dublin"):
            ann.caches.create(model=MODEL, config=types.CreateCachedContentConfig(contents=["Dublin"]))
        assert upstream.calls == []
        upstream.reply(unary(kept))
        made = ann.caches.create(model=MODEL, config=config)
        call = upstream.calls[-1]
        assert (call.target, call.headers["authorization"]) == (f"{PLACE}/cachedContents", f"Bearer {TOKEN}")
        assert EMAIL.encode() not in call.body
        assert made.name == kept["name"] and ann.caches.get(name=made.name).name == made.name
        assert upstream.calls[-1].target == f"/v1beta1/{made.name}"
        upstream.reply(unary({"cachedContents": [kept]}))
        assert ([one.name for one in ann.caches.list()], list(bob.caches.list())) == ([made.name], [])
        upstream.reply(unary(candidate("fine", "STOP")))
        use = types.GenerateContentConfig(cached_content=made.name)
        assert ann.models.generate_content(model=MODEL, contents="hi", config=use).text == "fine"
        reached = len(upstream.calls)
        for attempt in (
            lambda: bob.caches.get(name=kept["name"]),
            lambda: bob.caches.delete(name=kept["name"]),
            lambda: bob.models.generate_content(model=MODEL, contents="hi", config=use),
        ):
            with pytest.raises(errors.ClientError, match="404"):
                attempt()
        assert len(upstream.calls) == reached
        upstream.reply(unary({}))
        ann.caches.delete(name=made.name)
        # Open connections would hold up the server's end.
        ann.close()
        bob.close()

    await asyncio.to_thread(work)
    used = await proxy.trace()
    assert used.metadata["earlier"] == [{"kind": "cache", "name": "cachedContents/77", "messages": 2}]
    assert used.metadata["coverage"]["not_checked"] == [] and EMAIL not in str(used.messages)


async def test_the_sdk_on_vertex(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """Calls reach the place that they name with the token that they bring; rules see them as any other."""
    proxy = await start(start_proxy, upstream)
    client = sdk(proxy)
    upstream.reply(unary(candidate("Cork", "STOP")))
    response = await asyncio.to_thread(client.models.generate_content, model=MODEL, contents="where")
    assert response.text == "Cork"
    call = upstream.calls[-1]
    assert call.target == f"{MODELS}:generateContent"
    assert call.headers["authorization"] == f"Bearer {TOKEN}"
    assert call.headers["x-goog-user-project"] == "payer" and "x-goog-api-key" not in call.headers
    trace = await proxy.trace()
    assert trace.outcome is Outcome.COMPLETED and TOKEN not in repr(trace)
    assert trace.metadata["vertex"] == {"project": "my-project", "location": "europe-west4"}

    upstream.reply(stream(*sse(candidate("In "), candidate("Dublin", "STOP"))))
    chunks = await asyncio.to_thread(lambda: list(client.models.generate_content_stream(model=MODEL, contents="where")))
    assert chunks[-1].text == "[Invariant] The response did not pass the guardrails: no Dublin"
    assert upstream.calls[-1].target == f"{MODELS}:streamGenerateContent?alt=sse"

    upstream.reply(unary({"totalTokens": 3}))
    counted = await asyncio.to_thread(client.models.count_tokens, model=MODEL, contents="where")
    upstream.reply(unary({"tokensInfo": [{"role": "user", "tokens": ["d2hlcmU="], "tokenIds": ["1"]}]}))
    computed = await asyncio.to_thread(client.models.compute_tokens, model=MODEL, contents="where")
    assert counted.total_tokens == 3 and computed.tokens_info is not None
    upstream.reply(unary({"predictions": [{"embeddings": {"values": [0.5]}}]}))
    embedded = await asyncio.to_thread(client.models.embed_content, model="text-embedding-005", contents="where")
    assert embedded.embeddings and embedded.embeddings[0].values == [0.5]
    with pytest.raises(errors.ClientError, match="no Dublin"):
        await asyncio.to_thread(client.models.embed_content, model="text-embedding-005", contents="Dublin")
    for ask in (client.models.generate_content, client.models.count_tokens, client.models.compute_tokens):
        with pytest.raises(errors.ClientError, match="no Dublin"):
            await asyncio.to_thread(ask, model=MODEL, contents="Dublin")


async def test_an_express_key_goes_as_a_key(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    proxy = await start(start_proxy, upstream)
    client = genai.Client(vertexai=True, api_key="AQ.express", http_options=types.HttpOptions(base_url=proxy.url))
    upstream.reply(unary(candidate("Cork", "STOP")))
    await asyncio.to_thread(client.models.generate_content, model=MODEL, contents="where")
    call = upstream.calls[-1]
    assert call.target == f"/v1beta1/publishers/google/models/{MODEL}:generateContent"
    assert call.headers["x-goog-api-key"] == "AQ.express" and "authorization" not in call.headers


async def test_the_operators_key_is_for_the_gemini_api_alone(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """Nothing of the one API's credentials gets to the other."""
    proxy = await start(start_proxy, upstream)
    async with aiohttp.request("POST", f"{proxy.url}{MODELS}:generateContent", json=prompt("hi")) as response:
        assert (response.status, upstream.calls) == (400, [])
        assert "Missing LLM Provider API Key" in await response.text()


async def test_a_judge_gets_no_token(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """A judge without a key of its own would ask the Gemini API with the client's, which this one is not for."""
    judged = 'from invariant.detectors import decision\n\nraise "no" if:\n    (m: Message)\n    decision("Is it?", m)\n'
    places = {"vertex": NOWHERE, "base_url": upstream.url}
    proxy = await start_proxy(policy=judged, upstream=places, guardrails={"judge": {"model": "judge-1"}})
    headers, url = {"authorization": f"Bearer {TOKEN}"}, f"{proxy.url}{MODELS}:generateContent"
    async with aiohttp.request("POST", url, json=prompt("hi"), headers=headers) as response:
        assert response.status == 400 and "guardrails.judge.api_key" in await response.text()
    assert upstream.calls == []


@pytest.mark.parametrize(
    ("location", "host"),
    [
        ("europe-west4", "europe-west4-aiplatform.googleapis.com"),
        ("us", "aiplatform.us.rep.googleapis.com"),
        ("eu", "aiplatform.eu.rep.googleapis.com"),
        ("global", "aiplatform.googleapis.com"),
        (None, "aiplatform.googleapis.com"),
    ],
)
def test_hosts_are_built_from_locations(location: str | None, host: str) -> None:
    path = f"/v1/projects/p/locations/{location}" if location else "/v1"
    call = read_call("POST", f"{path}/publishers/google/models/m:generateContent")
    assert (call.host, vertex_url(call.location)) == ("vertex", f"https://{host}")


@pytest.mark.parametrize(
    "location",
    "evil.com a.b x@evil.com evil.com%2f evil.com%23 evil.com: evil:80 - a- -a A us_east 1 é".split() + ["a" * 41],
)
def test_hostile_locations_are_no_hosts(location: str) -> None:
    """A host is never made of what the client sends but for a location's letters."""
    for shape in ("/publishers/google/models/m:generateContent", "/endpoints/1:generateContent"):
        with pytest.raises(NotFound):
            read_call("POST", f"/v1/projects/p/locations/{location}{shape}")


def test_vertex_can_be_shut_and_its_other_methods_are() -> None:
    path = "/v1/projects/p/locations/us/publishers/google/models/m:generateContent"
    with pytest.raises(NotFound, match='doors.vertex = "guard"'):
        read_call("POST", path, {**DEFAULT_DUTIES, "vertex": Duty.DENY})
    for other in ("publishers/anthropic/models/m:rawPredict", "batchPredictionJobs", "tuningJobs"):
        with pytest.raises(NotFound, match="keeps shut"):
            read_call("POST", f"/v1/projects/p/locations/us/{other}")
    assert read_call("POST", "/publishers/google/models/m:generateContent").version == "v1beta1"


def test_tokens_prove_a_project_that_is_charged() -> None:
    """A new token every hour is the same client; one that is good for a project is nobody in another."""
    limiter = Limiter(Limits)
    tried = limiter.client(None, "ya29.first", "10.0.0.1", "mine")
    assert tried.name == "address 10.0.0.1" and tried.trying
    limiter.settle(Visit(tried, 0), 0, accepted=True)
    known = limiter.client(None, "ya29.first", "10.0.0.2", "mine")
    assert known.name == tried.account != tried.trying and not known.trying
    assert limiter.client(None, "ya29.first", "10.0.0.1", "yours").name == "address 10.0.0.1"
    again = limiter.client(None, "ya29.second", "10.0.0.1", "mine")
    assert (again.name, again.account) == ("address 10.0.0.1", known.name)
    assert limiter.client(None, "ya29.first", "10.0.0.1", "").account == "address 10.0.0.1"


async def test_a_client_cannot_outrun_its_limit_with_new_tokens(
    start_proxy: StartProxy, upstream: ScriptedUpstream
) -> None:
    """Tokens of the day are those of the project, whatever proves it."""
    limits = {"input_tokens_per_day": 10}
    proxy = await start_proxy(policy=POLICY, upstream={"vertex": upstream.url, "base_url": NOWHERE}, limits=limits)
    upstream.reply(unary({**candidate("hi", "STOP"), "usageMetadata": {"promptTokenCount": 11}}))

    async def ask(token: str) -> int:
        headers, url = {"authorization": f"Bearer {token}"}, f"{proxy.url}{MODELS}:generateContent"
        async with aiohttp.request("POST", url, json=prompt("hi"), headers=headers) as response:
            return response.status

    assert [await ask("ya29.first"), await ask("ya29.second")] == [200, 429]
