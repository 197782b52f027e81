"""The real @google/genai, unmodified, pointed at the proxy. $TEST_NODE_MODULES names the folder it is in."""

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from gemini_proxy.traces.approvals import Approvals
from tests.clients.kept import Google
from tests.clients.sdk import KEY, recorded
from tests.conftest import StartProxy
from tests.proxy.test_approvals import WAIT, waiting
from tests.support.proxy import Proxy
from tests.support.upstream import ScriptedUpstream, candidate, sse, stream, unary

MODULES = Path(os.environ.get("TEST_NODE_MODULES", "/nonexistent"))
pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(not (MODULES / "@google" / "genai").is_dir(), reason="TEST_NODE_MODULES names no @google/genai"),
]
BASES = pytest.mark.parametrize(
    ("prefix", "key"), [("", KEY), ("/api/v1/gateway/my-set/gemini", f"{KEY};invariant-auth=inv-1234")]
)
POLICY = 'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m.content\n'


async def ask(proxy: Proxy, prefix: str, key: str, text: str) -> dict[str, Any]:
    """What the SDK made of one unary call, one stream and one streamed chat turn that say ``text``."""
    process = await asyncio.create_subprocess_exec(
        *("node", str(Path(__file__).with_name("node_genai.mjs")), proxy.url + prefix, key, text),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30 + WAIT)
    assert process.returncode == 0
    found: dict[str, Any] = orjson.loads(out)
    return found


@BASES
async def test_allowed(start_proxy: StartProxy, upstream: ScriptedUpstream, prefix: str, key: str) -> None:
    """Allowed answers are text, chunks and history, after one call each."""
    proxy = await start_proxy(policy=POLICY)
    events = sse(candidate("Cork "), candidate("it is", "STOP"))
    upstream.reply(unary(candidate("Cork", "STOP")), stream(*events))
    found = await ask(proxy, prefix, key, "Where?")
    assert found["text"] == "Cork"
    assert found["chunks"] == [["Cork ", None], ["it is", "STOP"]]
    assert "".join(text for _, text in found["history"]) == "Where?Cork it is"
    assert len(upstream.calls) == await recorded(proxy) == 3
    assert {call.headers["x-goog-api-key"] for call in upstream.calls} == {KEY}


async def test_it_waits_for_a_decision(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """A person allows what all three say; the first of them has waited for it."""
    proxy = await start_proxy(ask_policy=POLICY.replace("no Dublin", "asks about Dublin"))
    upstream.reply(unary(candidate("Dublin", "STOP")), stream(*sse(candidate("In "), candidate("Dublin", "STOP"))))
    asking = asyncio.create_task(ask(proxy, "", KEY, "Where?"))
    [approval] = await waiting(proxy)
    await asyncio.wait({asking}, timeout=WAIT)
    assert not asking.done()
    await Approvals(proxy.store.database).decide(approval.id, allow=True, by="ada", seconds=600.0)
    found = await asking
    assert found["text"] == "Dublin"
    assert found["chunks"] == [["In ", None], ["Dublin", "STOP"]]
    assert len(upstream.calls) == 3


@BASES
async def test_refused_response(start_proxy: StartProxy, upstream: ScriptedUpstream, prefix: str, key: str) -> None:
    """A refused response raises or is the stream's last chunk, and nothing is asked again."""
    proxy = await start_proxy(policy=POLICY)
    upstream.reply(unary(candidate("Dublin", "STOP")), stream(*sse(candidate("In "), candidate("Dublin", "STOP"))))
    found = await ask(proxy, prefix, key, "Where?")
    refused = "[Invariant] The response did not pass the guardrails: no Dublin"
    name, status, message = found["raised"]
    assert (name, status, orjson.loads(message)["error"]["message"]) == ("ApiError", 400, refused)
    assert found["chunks"] == [["In ", None], [refused, "SAFETY"]]
    assert "".join(text for _, text in found["history"]) == f"Where?In {refused}"
    assert len(upstream.calls) == await recorded(proxy) == 3


async def test_refused_request(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    """A refused prompt raises or is the stream's only chunk; the upstream is not asked."""
    proxy = await start_proxy(policy=POLICY)
    found = await ask(proxy, "", KEY, "Is it Dublin?")
    refused = "[Invariant] The request did not pass the guardrails: no Dublin"
    assert found["raised"][:2] == ["ApiError", 400]
    assert found["chunks"] == [[refused, "SAFETY"]]
    assert found["history"] == [["user", "Is it Dublin?"], ["model", refused]]
    assert not upstream.calls
    assert await recorded(proxy) == 3


@pytest.mark.parametrize(("text", "said"), [("Cork, masked Kerry", "fine"), ("all of Dublin", "no Dublin")])
async def test_caches_and_files(start_proxy: StartProxy, upstream: ScriptedUpstream, text: str, said: str) -> None:
    """Made, used and deleted; what is refused is an error at once. Neither that nor what is masked gets to Google."""
    upstream.reply(Google())
    proxy = await start_proxy(policy=POLICY, mask_policy=POLICY.replace("Dublin", "Kerry"))
    process = await asyncio.create_subprocess_exec(
        *("node", str(Path(__file__).with_name("node_genai_kept.mjs")), proxy.url, KEY, text),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30 + WAIT)
    found = orjson.loads(out)
    assert all(said in str(found[made]) for made in ("cache", "file")), found
    assert bool(upstream.calls) is (said == "fine")
    assert not [call for call in upstream.calls if b"Kerry" in call.body]
