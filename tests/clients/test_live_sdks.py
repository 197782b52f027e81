"""Live sessions of the real SDKs, google-genai through TLS (it speaks nothing else) and @google/genai."""

import asyncio
import contextlib
import os
import shutil
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from google import genai
from google.genai import errors, types

from tests.clients.sdk import KEY
from tests.conftest import StartProxy
from tests.proxy.test_masking import EMAIL, PLACEHOLDER, TO_THE_MODEL
from tests.support.live import Answer, Frame, LiveServer, calls, running_live, says
from tests.support.proxy import Proxy
from tests.support.relay import Relay

MODULES = Path(os.environ.get("TEST_NODE_MODULES", "/nonexistent"))
POLICY = """
raise "no Dublin" if:
    (m: Message)
    "Dublin" in m.content
raise "no deletion" if:
    (c: ToolCall)
    c is tool:delete_all
"""
NO_ANSWER = "[Invariant] The response did not pass the guardrails: no Dublin"
NO_QUESTION = "[Invariant] The request did not pass the guardrails: no Dublin"
TURNS = ("Where?", "Is it Dublin?", "Say Dub and lin", "How warm is it?", "Delete it all", "Count")


def model(frame: Frame) -> Sequence[Answer]:
    """The model of these tests."""
    said = str(frame)
    if frame.keys() & {"toolResponse", "tool_response"}:
        return [says("Then not." if "error" in said else "It is 12.", complete=True)]
    if placeholder := PLACEHOLDER.search(said):
        return [*map(says, (placeholder[0][:9], placeholder[0][9:])), calls("send", to=placeholder[0])]
    if "Say Dub" in said:
        return [says("Dub"), says("lin"), says(complete=True)]
    if "warm" in said:
        return [calls("weather", city="Cork")]
    if "Delete" in said:
        return [calls("delete_all", "call-2")]
    if "Count" in said:
        return [says("One, two"), says(interrupted=True), says(complete=True)]
    return [says("Co"), says("rk", complete=True)]


ANSWERS = [
    "Cork",
    NO_QUESTION,
    f"Dublin{NO_ANSWER}",
    "It is 12.",
    NO_ANSWER.replace("Dublin", "deletion") + "Then not.",
]


@pytest.fixture
async def live() -> AsyncIterator[LiveServer]:
    async with running_live(script=model) as server:
        yield server


@pytest.fixture
async def proxy(live: LiveServer, start_proxy: StartProxy) -> Proxy:
    return await start_proxy(policy=POLICY, upstream={"base_url": live.url})


@pytest.fixture
async def masking(live: LiveServer, start_proxy: StartProxy) -> Proxy:
    return await start_proxy(mask_policy=TO_THE_MODEL, upstream={"base_url": live.url})


@contextlib.asynccontextmanager
async def python_client(proxy: Proxy, certificate: tuple[Path, Path]) -> AsyncIterator[genai.Client]:
    """A client of google-genai, which speaks to the proxy through TLS."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    async with Relay(int(proxy.url.rpartition(":")[2]), tls) as relay:
        options = types.HttpOptions(base_url=f"https://127.0.0.1:{relay.port}")
        client = genai.Client(api_key=KEY, http_options=options)
        yield client
        await client.aio.aclose()


async def converse(client: genai.Client, turns: Sequence[str]) -> tuple[list[str], list[Any]]:
    """What the model says to each of the turns, and the calls that it makes."""
    found, called = [], []
    async with client.aio.live.connect(model="gemini-live-2.5-flash", config={"system_instruction": "x"}) as session:
        for turn in turns:
            content = types.Content(role="user", parts=[types.Part(text=turn)])
            await session.send_client_content(turns=content, turn_complete=True)
            text = ""
            async for message in session.receive():
                text += message.text or ""
                text += " (interrupted)" if message.server_content and message.server_content.interrupted else ""
                for call in message.tool_call.function_calls or () if message.tool_call else ():
                    called.append((call.name, call.args))
                    answer = types.FunctionResponse(id=call.id, name=call.name, response={"output": "12"})
                    await session.send_tool_response(function_responses=answer)
            found.append(text)
    return found, called


async def test_python(
    proxy: Proxy, live: LiveServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text, calls, refusals and an interruption look like a model's turns; a refused setup raises with the reason."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with python_client(proxy, certificate) as client:
        found, called = await converse(client, TURNS)
        with pytest.raises(errors.APIError) as refused:
            async with client.aio.live.connect(model="gemini-live", config={"system_instruction": "Dublin"}):
                pass
    assert found == [*ANSWERS, "One, two (interrupted)"]
    assert called == [("weather", {"city": "Cork"})]
    assert (refused.value.code, refused.value.details) == (1008, NO_QUESTION)
    assert len(live.targets) == 1


async def test_python_reads_what_was_masked(
    masking: Proxy, live: LiveServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text and the arguments of its calls have the value, which the model never read."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with python_client(masking, certificate) as client:
        assert await converse(client, [f"Mail {EMAIL}"]) == ([f"{EMAIL}It is 12."], [("send", {"to": EMAIL})])
    assert EMAIL.encode() not in b"".join(live.raw)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(not (MODULES / "@google" / "genai").is_dir(), reason="TEST_NODE_MODULES names no @google/genai")
async def test_node(proxy: Proxy, masking: Proxy, live: LiveServer) -> None:
    """The same, with the key in the query."""
    allowed, refused, masked = await asyncio.gather(
        hold(proxy, "x", *TURNS), hold(proxy, "Dublin", "Where?"), hold(masking, "x", f"Mail {EMAIL}")
    )
    assert allowed["turns"] == [*ANSWERS, "One, two (interrupted)"]
    assert allowed["calls"] == [["weather", {"city": "Cork"}]]
    assert allowed["errors"] == []
    assert refused["closed"] == [1008, NO_QUESTION]
    assert (masked["turns"], masked["calls"]) == ([f"{EMAIL}It is 12."], [["send", {"to": EMAIL}]])
    assert EMAIL.encode() not in b"".join(live.raw)
    assert live.headers[0]["x-goog-api-key"] == KEY


async def hold(proxy: Proxy, *arguments: str) -> dict[str, Any]:
    """What the SDK made of a session with that system instruction and those turns."""
    process = await asyncio.create_subprocess_exec(
        *("node", str(Path(__file__).with_name("live.mjs")), proxy.url, KEY, *arguments), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    # Node's own code for a promise that is never kept: the SDK's, where the setup is refused.
    assert process.returncode in (0, 13)
    found: dict[str, Any] = orjson.loads(out)
    return found
