"""The unmodified Invariant SDK, blocking and asyncio, against this server in the place of Invariant's."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import requests
from invariant_sdk.async_client import AsyncClient
from invariant_sdk.client import Client
from invariant_sdk.types.append_messages import AppendMessagesRequest
from invariant_sdk.types.exceptions import InvariantAuthError, InvariantError, InvariantNotFoundError
from invariant_sdk.types.push_traces import PushTracesRequest, PushTracesResponse
from invariant_sdk.types.update_dataset_metadata import MetadataUpdate, UpdateDatasetMetadataRequest

from tests.conftest import StartProxy
from tests.explorer.api import KEY, OPEN_USER, SAMPLE
from tests.support.proxy import Proxy

GUARDRAIL = {"id": "1", "name": "rule", "content": "raise ...", "action": "block"}
NOTE = {
    "content": "found",
    "address": "messages.0.content:0-5",
    "extra_metadata": {"source": "guardrails-error", "guardrail": GUARDRAIL},
}
UNKNOWN = "00000000-0000-0000-0000-000000000000"
Connect = Callable[..., "Sdk"]


class Sdk:
    """One face for the two halves: a call of the blocking one runs in a thread."""

    def __init__(self, client: Any, blocking: bool) -> None:
        self._client = client
        self._blocking = blocking

    async def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self._client, name)
        return await (asyncio.to_thread(method, *args, **kwargs) if self._blocking else method(*args, **kwargs))

    async def get(self, path: str) -> Any:
        """What the SDK has no call for, with its own means."""
        return (await self("request", "GET", f"/api/v1{path}")).json()


@pytest.fixture
async def proxy(start_proxy: StartProxy) -> Proxy:
    return await start_proxy()


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest, proxy: Proxy) -> AsyncIterator[Connect]:
    """Make an SDK client for the server, told nothing but where it is and which key to send."""
    async with contextlib.AsyncExitStack() as stack:

        def make(key: str = KEY, *, send_key: bool = True) -> Sdk:
            if request.param == "blocking":
                session = stack.enter_context(requests.Session())
                session.auth = None if send_key else _without_key
                return Sdk(Client(proxy.url, key, session=session), True)
            opened = httpx.AsyncClient(auth=None if send_key else _without_key)
            stack.push_async_callback(opened.aclose)
            return Sdk(AsyncClient(proxy.url, key, session=opened), False)

        yield make


def _without_key(request: Any) -> Any:
    """The request as one that has no key sends it, for both HTTP libraries."""
    del request.headers["authorization"]
    return request


async def test_traces_are_pushed(connect: Connect) -> None:
    """``create_request_and_push_trace`` and ``push_trace`` answer with ids, dataset and user; the traces are there."""
    sdk = connect()
    made: PushTracesResponse = await sdk(
        "create_request_and_push_trace",
        messages=[SAMPLE, []],
        annotations=[[NOTE], []],
        metadata=[{"name": "first"}, {}],
        dataset="sdk",
    )
    assert (len(made.id), made.dataset, made.username) == (2, "sdk", OPEN_USER)
    trace = await sdk.get(f"/trace/{made.id[0]}")
    assert (trace["messages"], trace["name"]) == (SAMPLE, "first")
    assert trace["annotations"][0].items() >= NOTE.items()
    bare: PushTracesResponse = await sdk("push_trace", PushTracesRequest(messages=[SAMPLE]))
    assert (len(bare.id), bare.dataset, bare.username) == (1, None, OPEN_USER)


async def test_messages_are_appended(connect: Connect) -> None:
    """``create_request_and_append_messages`` and ``append_messages`` answer with success and keep the order of time."""
    sdk = connect()
    trace = (await sdk("create_request_and_push_trace", messages=[SAMPLE])).id[0]
    added = [{"role": "user", "content": "and now?"}]
    assert await sdk("create_request_and_append_messages", added, trace, [NOTE]) == {"success": True}
    early = [{"role": "system", "content": "be brief", "timestamp": "2020-01-01T00:00:00Z"}]
    request = AppendMessagesRequest(trace_id=trace, messages=early)
    assert await sdk("append_messages", request) == {"success": True}
    found = await sdk.get(f"/trace/{trace}")
    assert [message["content"] for message in found["messages"]] == ["be brief", "hello", "good day", "and now?"]
    assert [one["content"] for one in found["annotations"]] == ["found"]


async def test_dataset_metadata_is_read_and_changed(connect: Connect) -> None:
    """All four calls answer with the metadata; with the owner's name, which each half sends under another name, too."""
    sdk = connect()
    await sdk("create_request_and_push_trace", messages=[SAMPLE], dataset="sdk")
    assert await sdk("get_dataset_metadata", "sdk") == {}
    first = {"benchmark": "b", "accuracy": 0.5}
    assert await sdk("create_request_and_update_dataset_metadata", "sdk", metadata=first) == first
    results = {"invariant.test_results": {"num_tests": 3, "num_passed": 2}}
    request = UpdateDatasetMetadataRequest(dataset_name="sdk", metadata=MetadataUpdate.model_validate(results))
    assert await sdk("update_dataset_metadata", request) == {**first, **results}
    assert await sdk("get_dataset_metadata", "sdk", OPEN_USER) == {**first, **results}
    replaced = await sdk("create_request_and_update_dataset_metadata", "sdk", replace_all=True, metadata={"name": "n"})
    assert replaced == {"name": "n"} == await sdk("get_dataset_metadata", "sdk")


async def test_a_bad_key_is_the_sdks_auth_error(connect: Connect) -> None:
    """401, whatever is called."""
    sdk = connect(key="not-one-of-ours")
    with pytest.raises(InvariantAuthError):
        await sdk("create_request_and_push_trace", messages=[SAMPLE])
    with pytest.raises(InvariantAuthError):
        await sdk("get_dataset_metadata", "sdk")


async def test_a_server_that_is_open_serves_the_sdk_without_a_key(connect: Connect) -> None:
    """The SDK insists on being given one: what it sends of it is taken off on the way here."""
    sdk = connect(send_key=False)
    made: PushTracesResponse = await sdk("create_request_and_push_trace", messages=[SAMPLE], dataset="sdk")
    assert made.username == OPEN_USER
    assert await sdk("create_request_and_append_messages", SAMPLE, made.id[0]) == {"success": True}
    assert await sdk("get_dataset_metadata", "sdk") == {}


async def test_what_is_not_there_is_the_sdks_not_found_error(connect: Connect) -> None:
    """404 for a trace, a dataset, and another user's dataset."""
    sdk = connect()
    await sdk("create_request_and_push_trace", messages=[SAMPLE], dataset="sdk")
    with pytest.raises(InvariantNotFoundError):
        await sdk("create_request_and_append_messages", [{"role": "user"}], UNKNOWN)
    with pytest.raises(InvariantNotFoundError):
        await sdk("get_dataset_metadata", "other")
    with pytest.raises(InvariantNotFoundError):
        await sdk("get_dataset_metadata", "sdk", "somebody")
    with pytest.raises(InvariantNotFoundError):
        await sdk("create_request_and_update_dataset_metadata", "other", metadata={"name": "n"})


async def test_what_is_refused_is_the_sdks_plain_error(connect: Connect) -> None:
    """400 is neither of its special ones: here a timestamp that is none, which the SDK lets through."""
    sdk = connect()
    trace = (await sdk("create_request_and_push_trace", messages=[SAMPLE])).id[0]
    with pytest.raises(InvariantError) as refused:
        await sdk("create_request_and_append_messages", [{"timestamp": "soon"}], trace)
    assert type(refused.value) is InvariantError
