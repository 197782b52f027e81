"""Batches with the real google-genai SDK, before a Gemini that keeps them."""

import asyncio
import contextlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from google import genai
from google.genai import errors, types

from gemini_proxy.traces.keys import Keys
from gemini_proxy.traces.trace import Outcome
from tests.clients.kept import Google
from tests.clients.sdk import KEY, QUIET
from tests.clients.test_google_genai_kept import client_of
from tests.conftest import StartProxy
from tests.proxy.test_kept_values import KEPT
from tests.support.proxy import MODEL, Proxy
from tests.support.upstream import Call, Reply, ScriptedUpstream, candidate, unary

pytestmark = [
    pytest.mark.filterwarnings(QUIET),
    pytest.mark.filterwarnings("ignore:batches.create_embeddings"),
]

POLICY = """
raise "no Dublin" if:
    (m: Message)
    "Dublin" in m.content

raise "out after Cork" if:
    (asked: Message) -> (said: Message)
    asked.role == "user"
    "Cork" in asked.content
    said.role == "assistant"
    "send" in said.content
"""


@dataclass
class Batches:
    """A Google with batches, which are done once ``answers`` has what was said."""

    google: Google = field(default_factory=Google)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    answers: list[dict[str, Any]] | None = None
    output: dict[str, Any] | None = None

    def __call__(self, call: Call) -> Reply:
        path = urlsplit(call.target).path
        if "batch" not in path.lower():
            return self.google(call)
        if path.endswith((":batchGenerateContent", ":asyncBatchEmbedContent")):
            name = f"batches/b{len(self.kept)}"
            shown = call.json["batch"].get("displayName", "mine")
            metadata = {"model": f"models/{MODEL}", "displayName": shown, "state": "BATCH_STATE_PENDING"}
            self.kept[name] = {"name": name, "metadata": {"@type": "x", **metadata, "name": name}}
            return unary(self.kept[name])
        if path.endswith("/batches"):
            return unary({"operations": [self._state(name) for name in self.kept]})
        name = path.split("/", 2)[2].removesuffix(":cancel")
        if name not in self.kept:
            return unary({"error": {"code": 404, "message": "gone", "status": "NOT_FOUND"}}, status=404)
        if call.method == "POST":
            self.kept[name]["metadata"]["state"] = "BATCH_STATE_CANCELLED"
            return unary({})
        return unary(self.kept.pop(name) and {}) if call.method == "DELETE" else unary(self._state(name))

    def _state(self, name: str) -> dict[str, Any]:
        state = self.kept[name]
        if self.answers is None and self.output is None:
            return state
        output = self.output or {"inlinedResponses": {"inlinedResponses": self.answers}}
        metadata = {**state["metadata"], "state": "BATCH_STATE_SUCCEEDED", "output": output}
        return {**state, "metadata": metadata, "done": True, "response": {"@type": "y", **output}}


Connect = Callable[..., genai.Client]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make SDK clients for proxies, closed after the test: an open connection holds up the server's end."""
    with contextlib.ExitStack() as stack:

        def make(proxy: Proxy, key: str = KEY) -> genai.Client:
            client = client_of(proxy, key)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def batches(upstream: ScriptedUpstream) -> Batches:
    world = Batches()
    upstream.reply(world)
    return world


@pytest.fixture
async def proxy(start_proxy: StartProxy, batches: Batches) -> Proxy:
    return await start_proxy(policy=POLICY)


def asks(*texts: str) -> list[types.InlinedRequest]:
    return [types.InlinedRequest(contents=text, metadata={"key": str(at)}) for at, text in enumerate(texts)]


def says(text: str) -> dict[str, Any]:
    return {"response": candidate(text, "STOP"), "metadata": {"key": "0"}}


def made(client: genai.Client, *texts: str) -> str:
    name = client.batches.create(model=MODEL, src=asks(*texts)).name
    assert name is not None
    return name


async def test_a_batch_from_its_begin_to_its_end(proxy: Proxy, batches: Batches, connect: Connect) -> None:
    """While nothing has come of it there is no exchange to record; its responses are one with its requests."""
    client = connect(proxy)

    def begin() -> str:
        name = made(client, "all of Cork", "and Kerry")
        state = client.batches.get(name=name).state
        assert state is not None and state.name == "JOB_STATE_PENDING"
        return name

    name = await asyncio.to_thread(begin)
    begun = await proxy.trace()
    assert (begun.metadata["method"], len(await proxy.store.recent(9))) == ("batchGenerateContent", 1)
    assert [message["content"][0]["text"] for message in begun.messages] == [
        "key\n0",
        "all of Cork",
        "key\n1",
        "and Kerry",
    ]
    batches.answers = [says("It rains."), says("There as well.")]

    def end() -> None:
        job = client.batches.get(name=name)
        assert job.dest is not None and job.dest.inlined_responses is not None
        answers = [one.response.text for one in job.dest.inlined_responses if one.response]
        assert answers == ["It rains.", "There as well."]
        [listed] = client.batches.list()
        assert (listed.name, listed.dest) == (name, None)
        client.batches.cancel(name=name)
        client.batches.delete(name=name)
        with pytest.raises(errors.ClientError, match="404"):
            client.batches.get(name=name)

    await asyncio.to_thread(end)
    ended = await proxy.trace()
    assert (ended.outcome, ended.metadata["method"]) == (Outcome.COMPLETED, "getBatch")
    assert ended.metadata["coverage"]["not_checked"] == []
    said = [message["content"] for message in ended.messages if message.get("role") == "assistant"]
    assert {"It rains.", "There as well."} <= set(said)
    assert ended.messages[:4] == begun.messages


async def test_one_request_that_is_refused_refuses_all(
    proxy: Proxy, upstream: ScriptedUpstream, connect: Connect
) -> None:
    client = connect(proxy)

    def work() -> None:
        for texts in (("fine", "all of Dublin"), ("Dublin",)):
            with pytest.raises(errors.ClientError, match="no Dublin"):
                made(client, *texts)
        with pytest.raises(errors.ClientError, match="no Dublin"):
            client.batches.create(model=MODEL, src=asks("x"), config=types.CreateBatchJobConfig(display_name="Dublin"))
        embed = types.EmbeddingsBatchJobSource(inlined_requests=types.EmbedContentBatch(contents=["fine", "Dublin"]))
        with pytest.raises(errors.ClientError, match="no Dublin"):
            client.batches.create_embeddings(model="gemini-embedding-001", src=embed)
        hook = types.CreateBatchJobConfig(webhook_config=types.WebhookConfig(uris=["https://a.example"]))
        with pytest.raises(errors.ClientError, match="sends the response elsewhere"):
            client.batches.create(model=MODEL, src=asks("x"), config=hook)
        with pytest.raises(errors.ClientError, match="No rule has checked the requests in files/unknown"):
            client.batches.create(model=MODEL, src="files/unknown")

    await asyncio.to_thread(work)
    assert upstream.calls == []


@pytest.mark.parametrize("answer", ["It is Dublin.", "I send it on."])
async def test_responses_are_checked_with_their_requests(
    proxy: Proxy, batches: Batches, answer: str, connect: Connect
) -> None:
    """Also by a rule over what was asked and what came of it; the answer says so each time, and nothing leaves."""
    client = connect(proxy)
    name = await asyncio.to_thread(made, client, "all of Cork")
    batches.answers = [says("fine"), says(answer)]
    for _ in range(2):
        with pytest.raises(errors.ClientError, match="400"):
            await asyncio.to_thread(client.batches.get, name=name)
    refused = await proxy.trace()
    assert refused.outcome is Outcome.REFUSED_RESPONSE
    assert await asyncio.to_thread(lambda: [one.dest for one in client.batches.list()]) == [None]


async def test_a_file_of_requests_that_was_checked(start_proxy: StartProxy, batches: Batches, connect: Connect) -> None:
    """Uploaded as such, it may be used; as any other text it was read as something else. Masked values come back."""
    client = connect(await start_proxy(mask_policy=POLICY, guardrails=KEPT))
    line = b'{"key": "a", "request": {"contents": [{"parts": [{"text": "all of Dublin"}]}]}}\n'

    def upload(mime_type: str) -> str:
        file = client.files.upload(file=io.BytesIO(line), config=types.UploadFileConfig(mime_type=mime_type))
        assert file.name is not None
        return file.name

    def work() -> None:
        file = upload("jsonl")
        name = client.batches.create(model=MODEL, src=file).name
        [placeholder] = set(re.findall("<MASKED_[0-9a-f]{10}>", batches.google.bytes_of[file].decode()))
        assert batches.google.bytes_of[file] == line.replace(b"Dublin", placeholder.encode())
        batches.answers = [says(f"to {placeholder}")]
        job = client.batches.get(name=name or "")
        assert job.dest is not None and job.dest.inlined_responses is not None
        assert [one.response.text for one in job.dest.inlined_responses if one.response] == ["to Dublin"]
        with pytest.raises(errors.ClientError, match="application/jsonl"):
            client.batches.create(model=MODEL, src=upload("text/plain"))

    await asyncio.to_thread(work)
    assert len(batches.kept) == 1


async def test_results_in_a_file_are_checked_where_they_are_read(
    start_proxy: StartProxy, batches: Batches, connect: Connect
) -> None:
    """Behind the requests, all or nothing; the file is its owner's, who shares a key with another."""
    shared = {"upstream": {"api_key": "AIzaShared"}, "access": {"mode": "keys"}}
    proxy = await start_proxy(policy=POLICY, **shared)
    keys = Keys(proxy.store.database)
    ann, bob = [connect(proxy, (await keys.add(name))[1]) for name in ("ann", "bob")]
    lines = [orjson.dumps({"key": str(at), **says(said)}) for at, said in enumerate(("It rains.", "And \u00fc."))]
    results = b"\r\n".join(lines) + b"\n"
    batches.google.bytes_of["files/results"] = results
    batches.output = {"responsesFile": "files/results"}

    def work() -> None:
        name = made(ann, "all of Cork")
        with pytest.raises(errors.ClientError, match="404"):
            ann.files.download(file="files/results")
        job = ann.batches.get(name=name)
        assert job.dest is not None and job.dest.file_name == "files/results"
        assert ann.files.download(file="files/results") == results
        with pytest.raises(errors.ClientError, match="404"):
            bob.files.download(file="files/results")
        for line in (orjson.dumps(says("Dublin")), orjson.dumps(says("I send it on.")), b'{"response": "\xff"}'):
            batches.google.bytes_of["files/results"] = results + line
            with pytest.raises(errors.ClientError, match="did not pass"):
                ann.files.download(file="files/results")

    await asyncio.to_thread(work)
    refused, _, _, completed = [await proxy.store.get(one.id) for one in await proxy.store.recent(4)]
    assert refused is not None and refused.outcome is Outcome.REFUSED_RESPONSE
    assert completed is not None and completed.metadata["method"] == "downloadFile"
    assert completed.metadata["coverage"]["not_checked"] == []
    assert [message["content"] for message in completed.messages if message.get("role") == "assistant"][1::2] == [
        "It rains.",
        "And \u00fc.",
    ]


async def test_a_batch_goes_masked(
    start_proxy: StartProxy, batches: Batches, upstream: ScriptedUpstream, connect: Connect
) -> None:
    """Requests and names, here of two requests one; what a rule finds in the responses is masked there."""
    proxy = await start_proxy(policy=POLICY.replace("Dublin", "Galway"), mask_policy=POLICY)
    client = connect(proxy)
    with pytest.raises(errors.ClientError, match="no Galway"):
        await asyncio.to_thread(made, client, "in Dublin", "in Galway")
    assert upstream.calls == []
    config = types.CreateBatchJobConfig(display_name="of Dublin")
    job = await asyncio.to_thread(client.batches.create, model=MODEL, src=asks("fine", "in Dublin"), config=config)
    assert job.display_name == "of Dublin" and job.name is not None
    embed = types.EmbeddingsBatchJobSource(inlined_requests=types.EmbedContentBatch(contents=["fine", "Dublin"]))
    await asyncio.to_thread(client.batches.create_embeddings, model="gemini-embedding-001", src=embed)
    assert not [call for call in upstream.calls if b"Dublin" in call.body]
    [placeholder] = set(re.findall("<MASKED_[0-9a-f]{10}>", upstream.calls[0].body.decode()))
    trace = await proxy.trace()
    coverage = trace.metadata["coverage"]
    assert (coverage["masked_values"], coverage["values_kept"]) == (1, False) and "Dublin" not in str(trace.messages)
    batches.answers = [says(f"It is {placeholder}"), says("or Dublin.")]
    job = await asyncio.to_thread(client.batches.get, name=job.name)
    assert job.dest is not None and job.dest.inlined_responses is not None
    said = [one.response.text for one in job.dest.inlined_responses if one.response]
    assert said == [f"It is {placeholder}", f"or {placeholder}."]
    trace = await proxy.trace()
    assert trace.outcome is Outcome.COMPLETED and "Dublin" not in str(trace.messages)


async def test_one_users_batches_are_not_anothers(start_proxy: StartProxy, batches: Batches, connect: Connect) -> None:
    shared = {"upstream": {"api_key": "AIzaShared"}, "access": {"mode": "keys"}}
    proxy = await start_proxy(policy=POLICY, **shared)
    keys = Keys(proxy.store.database)
    ann, bob = [connect(proxy, (await keys.add(name))[1]) for name in ("ann", "bob")]
    batches.kept["batches/old"] = {"name": "batches/old", "metadata": {"state": "BATCH_STATE_PENDING"}}

    def work() -> None:
        name = made(ann, "Cork")
        assert [one.name for one in ann.batches.list()] == [name]
        assert list(bob.batches.list()) == []
        for attempt in (
            lambda: bob.batches.get(name=name),
            lambda: bob.batches.cancel(name=name),
            lambda: bob.batches.delete(name=name),
            lambda: ann.batches.get(name="batches/old"),
        ):
            with pytest.raises(errors.ClientError, match="404"):
                attempt()

    await asyncio.to_thread(work)
    assert batches.kept["batches/b1"]["metadata"]["state"] == "BATCH_STATE_PENDING"
