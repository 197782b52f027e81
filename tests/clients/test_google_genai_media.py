"""The real google-genai SDK asking for pictures, videos and decisions through the proxy."""

import asyncio
import base64
from typing import Any

import aiohttp
import pytest
from google import genai
from google.genai import errors, types
from google.genai._gaos.types.decisions import NoulCriteriaParam, NoulQuestionParam
from google.oauth2.credentials import Credentials

from gemini_proxy.traces.keys import Keys
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.support.proxy import Proxy
from tests.support.upstream import Reply, ScriptedUpstream, unary

pytestmark = pytest.mark.filterwarnings("ignore:The generate_images method is deprecated")

POLICY = 'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m\n'


NAME = "projects/p/locations/us-central1/publishers/google/models/veo-3/operations/abc"
PLACE = "/v1beta1/projects/p/locations/us-central1/publishers/google/models"


async def start(start_proxy: StartProxy, upstream: ScriptedUpstream) -> Proxy:
    return await start_proxy(policy=POLICY, upstream={"vertex": upstream.url})


def sdk(proxy: Proxy, **options: Any) -> genai.Client:
    return genai.Client(**options, http_options=types.HttpOptions(base_url=proxy.url))


def on_vertex(proxy: Proxy) -> genai.Client:
    """Pictures and videos are Vertex AI's alone, by the SDK."""
    token = Credentials(token="ya29.media")  # type: ignore[no-untyped-call]
    return sdk(proxy, vertexai=True, project="p", location="us-central1", credentials=token)


async def test_pictures(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """Prompts are checked, and so is the prompt that a model made of one; the picture is named as unchecked."""
    proxy = await start(start_proxy, upstream)
    client = on_vertex(proxy)
    picture = {"bytesBase64Encoded": base64.b64encode(b"png").decode(), "mimeType": "image/png"}
    upstream.reply(unary({"predictions": [picture]}))

    async def draw(prompt: str) -> types.GenerateImagesResponse:
        model = "imagen-4.0-generate-001"
        return await asyncio.to_thread(client.models.generate_images, model=model, prompt=prompt)

    response = await draw("a castle")
    assert response.generated_images and response.generated_images[0].image
    assert response.generated_images[0].image.image_bytes == b"png"
    assert upstream.calls[-1].target == f"{PLACE}/imagen-4.0-generate-001:predict"
    trace = await proxy.trace()
    assert trace.outcome is Outcome.COMPLETED
    assert "inline image/png" in str(trace.metadata["coverage"])
    with pytest.raises(errors.ClientError, match="The request did not pass the guardrails: no Dublin"):
        await draw("Dublin")
    upstream.reply(unary({"predictions": [{**picture, "prompt": "a castle in Dublin"}]}))
    with pytest.raises(errors.ClientError, match="The response did not pass the guardrails: no Dublin"):
        await draw("a castle")


async def test_videos(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """A video takes a while: it is asked for, and asked about."""
    proxy = await start(start_proxy, upstream)
    client = on_vertex(proxy)
    upstream.reply(unary({"name": NAME}))
    source = types.GenerateVideosSource(prompt="waves")
    operation = await asyncio.to_thread(client.models.generate_videos, model="veo-3", source=source)
    asked = len(upstream.calls)
    with pytest.raises(errors.ClientError, match="no Dublin"):
        source = types.GenerateVideosSource(prompt="Dublin")
        await asyncio.to_thread(client.models.generate_videos, model="veo-3", source=source)
    assert len(upstream.calls) == asked
    reasons = {"generateVideoResponse": {"raiMediaFilteredReasons": ["seen in Dublin"]}}
    upstream.reply(
        unary({"name": NAME}),
        unary({"name": NAME, "done": True, "response": reasons}),
    )
    assert not (await asyncio.to_thread(client.operations.get, operation)).done
    assert upstream.calls[-1].target == f"{PLACE}/veo-3:fetchPredictOperation"
    with pytest.raises(errors.ClientError, match="no Dublin"):
        await asyncio.to_thread(client.operations.get, operation)


@pytest.mark.parametrize("vertex", [True, False])
async def test_videos_are_their_makers(vertex: bool, start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """To somebody else an operation does not exist, by none of its names; who began it is judged with the prompt."""
    policy = (
        POLICY
        + 'raise "no rain after waves" if:\n    (m: Message) -> (n: Message)\n    "waves" in m\n    "rain" in n\n'
    )
    section = {"vertex": upstream.url, "api_key": "AIzaOperator"}
    proxy = await start_proxy(policy=policy, access={"mode": "keys"}, upstream=section)
    ann, bob = [(await Keys(proxy.store.database).add(name))[1] for name in ("ann", "bob")]
    models = f"{proxy.url}{PLACE}/veo-3" if vertex else f"{proxy.url}/v1beta/models/veo-3"
    name = NAME if vertex else "models/veo-3/operations/abc"

    async def ask(key: str, verb: str, token: str = "1", name: str = name, **body: Any) -> tuple[int, str]:
        headers = {"invariant-authorization": f"Bearer {key}"}
        if vertex:
            headers["authorization"] = f"Bearer ya29.{token}"
        method, url = "POST", f"{models}:predictLongRunning"
        if verb == "get" and vertex:
            url, body = f"{models}:fetchPredictOperation", {"operationName": name}
        elif verb == "get":
            method, url = "GET", f"{proxy.url}/v1beta/{name}"
        async with aiohttp.request(method, url, json=body or None, headers=headers) as response:
            return response.status, await response.text()

    upstream.reply(unary({"name": name}))
    status, body = await ask(ann, "begin", instances=[{"prompt": "waves"}])
    assert status == 200, body
    assert (await ask(ann, "get", token="2"))[0] == 200
    trace = await proxy.trace()
    assert "waves" in str(trace.messages) and trace.metadata["coverage"]["not_checked"] == []
    asked = len(upstream.calls)
    for other in (name, "operations/abc", NAME.replace("/p/", "/4711/")) if vertex else (name, "operations/abc"):
        status, body = await ask(bob, "get", name=other)
        assert (status, len(upstream.calls)) == (404, asked), body
    status, _ = await ask(bob, "get", name=name.replace("abc", "unknown"))
    assert (status, len(upstream.calls)) == ((200, asked + 1) if vertex else (404, asked))
    if vertex:
        assert "what an operation was asked for" in str((await proxy.trace()).metadata["coverage"])
        assert (await ask(ann, "get", name="abc"))[0] == 400
    video = {"uri": "https://generativelanguage.googleapis.com/v1beta/files/f:download?alt=media"}
    samples = {"generatedSamples": [{"video": video}]}
    upstream.reply(unary({"name": name, "done": True, "response": {"generateVideoResponse": samples}}))
    assert (await ask(ann, "get"))[0] == 200
    if not vertex:
        upstream.reply(Reply([b"\x00 a video"], content_type="video/mp4"))
        for key, status in ((ann, 200), (bob, 404)):
            headers = {"invariant-authorization": f"Bearer {key}"}
            async with aiohttp.request("GET", f"{proxy.url}/v1beta/files/f:download?alt=media", headers=headers) as got:
                assert got.status == status
    upstream.reply(unary({"name": name, "done": True, "response": {"raiMediaFilteredReasons": ["rain"]}}))
    status, body = await ask(ann, "get")
    assert status == 400 and "no rain after waves" in body


async def test_decisions(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """Input, instructions and criteria are checked; labels and numbers pass."""
    proxy = await start_proxy(policy=POLICY)
    client = sdk(proxy, api_key="AIzaMedia")
    answers = {"q": {"type": "noul", "noul": 0.9, "confidence": 0.9, "probabilities": {}, "legend": ""}}
    upstream.reply(unary({"answers": answers}))

    def ask(text: str, instructions: str = "Is it a city?", criterion: str = "it is") -> object:
        criteria = NoulCriteriaParam(true_description=criterion)
        question = NoulQuestionParam(type="noul", instructions=instructions, criteria=criteria)
        return client.decisions.create(model="models/gemini-decision-1", input=text, questions={"q": question})

    await asyncio.to_thread(ask, "Cork")
    trace = await proxy.trace()
    assert (trace.model, trace.outcome) == ("gemini-decision-1", Outcome.COMPLETED)
    asked = len(upstream.calls)
    for words in (("Dublin",), ("Cork", "Is it Dublin?"), ("Cork", "Is it?", "it is Dublin")):
        with pytest.raises(Exception, match="no Dublin"):
            await asyncio.to_thread(ask, *words)
    assert len(upstream.calls) == asked
