"""What a request gives Gemini's servers to identify with elsewhere: rules see it, Gemini gets it, nobody keeps it."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from click.testing import CliRunner

from gemini_proxy.cli import main
from gemini_proxy.traces.trace import Outcome
from tests.conftest import StartProxy
from tests.explorer.api import Api
from tests.server.test_key_leaks import stored_bytes
from tests.support.keys import GEMINI_KEYS
from tests.support.proxy import prompt
from tests.support.upstream import ScriptedUpstream, candidate, unary

SECRETS = (*GEMINI_KEYS, "zqsecretqz-of-no-known-form", "zqtokenqz+/==")
IN_QUERY = "zqqueryqz0123456789=="
TOOLS = [
    {
        "mcpServers": [
            {
                "name": "m",
                "streamableHttpTransport": {
                    "url": f"https://m.example/sse?v=2&token={IN_QUERY}",
                    "headers": {"authorization": f"Bearer {SECRETS[3]}", "x-tenant": SECRETS[2]},
                },
            }
        ]
    },
    {"exaAiSearch": {"apiKey": SECRETS[0]}},
    {"parallelAiSearch": {"api_key": SECRETS[1]}},
]
REPEATS = """
raise f"a tool says {t.description}" if:
    (t: Tool)
    "zqsecretqz" in t
"""


def asking(text: str) -> dict[str, Any]:
    return {**prompt(text), "tools": TOOLS}


@pytest.mark.parametrize("text", ["hi", "hi " * 200_000], ids=["here", "in a process of its own"])
@pytest.mark.parametrize("policy", [None, REPEATS], ids=["allowed", "refused"])
async def test_no_trace_has_what_a_request_identifies_with_elsewhere(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    client: aiohttp.ClientSession,
    tmp_path: Path,
    text: str,
    policy: str | None,
) -> None:
    """Not in its messages, settings, rules' words or index, and so in nothing that is made of it; Gemini gets it."""
    upstream.reply(unary(candidate("fine", "STOP")))
    proxy = await start_proxy(policy=policy)
    async with client.post(proxy.method(), json=asking(text)) as response:
        assert response.status == (400 if policy else 200)
    trace = await proxy.trace()
    assert trace.outcome is (Outcome.REFUSED_REQUEST if policy else Outcome.COMPLETED)
    assert [annotation.content.startswith("a tool says ") for annotation in trace.annotations] == [True] * bool(policy)
    shown = await Api(client, proxy.url).get(f"/trace/{trace.id}")
    database = {"GEMINI_PROXY_TRACES__DATABASE": proxy.database}
    exported = await asyncio.to_thread(CliRunner().invoke, main, ["traces", "export"], env=database)
    assert trace.id in exported.output
    kept = stored_bytes(tmp_path).decode(errors="replace") + orjson.dumps(shown).decode() + exported.output
    assert [secret for secret in (*SECRETS, IN_QUERY) if secret in kept] == []
    assert kept.count("[redacted]") > 5 and "m.example" in kept
    assert [secret for call in upstream.calls for secret in SECRETS if secret not in call.body.decode()] == []


async def test_rules_see_it_when_they_check_and_a_placeholder_afterwards(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """A rule that only logs reads what the trace keeps; so would a backtest."""
    upstream.reply(unary(candidate("fine", "STOP")))
    sees = 'raise "sees {0}" if:\n    (t: Tool)\n    "{0}" in t\n'
    proxy = await start_proxy(log_policy=sees.format("zqsecretqz") + sees.format("[redacted]"))
    async with client.post(proxy.method(), json=asking("hi")) as response:
        assert response.status == 200
    trace = await proxy.eventually(lambda trace: trace.annotations)
    assert {annotation.content for annotation in trace.annotations} == {"sees [redacted]"}


async def test_the_library_finds_a_key_in_a_declaration(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """In the headers of a server that Gemini is to ask, and the trace points at the place without the key."""
    policy = (Path(__file__).parents[2] / "policies" / "secrets.gr").read_text()
    proxy = await start_proxy(policy=policy, guardrails={"request_check": "before"})
    for key in GEMINI_KEYS:
        transport = {"url": "https://m.example", "headers": {"authorization": f"Bearer {key}"}}
        tools = [{"mcpServers": [{"name": "m", "streamableHttpTransport": transport}]}]
        async with client.post(proxy.method(), json={**prompt("hi"), "tools": tools}) as response:
            assert (response.status, key in await response.text()) == (400, False)
        trace = await proxy.trace()
        [annotation] = trace.annotations
        path, _, place = annotation.address.partition(":")
        start, end = map(int, place.split("-"))
        assert (path, end - start) == ("messages.0.tools.0.description", len(key))
        said = trace.messages[0]["tools"][0]["description"]
        assert said[:end].endswith("[redacted]" + "*" * (len(f"Bearer {key}") - 10)) and len(said) == end
    assert upstream.calls == []


async def test_many_secrets_cost_nobody_time(
    start_proxy: StartProxy, upstream: ScriptedUpstream, client: aiohttp.ClientSession
) -> None:
    """Where looking for each in a rule's words would take long, the words go as a whole."""
    upstream.reply(unary(candidate("fine", "STOP")))
    headers = {f"h{number}": f"zqsecretqz-{number:06}" for number in range(20_000)}
    tools = [{"mcpServers": [{"name": "m", "streamableHttpTransport": {"url": "https://x", "headers": headers}}]}]
    proxy = await start_proxy(policy=REPEATS, guardrails={"request_check": "before"})
    async with client.post(proxy.method(), json={**prompt("hi"), "tools": tools}) as response:
        assert response.status == 400
    trace = await proxy.trace()
    assert {annotation.content for annotation in trace.annotations} == {"[redacted]"}
    assert trace.metadata["refusal"]["text"] == "[redacted]"
    assert "zqsecretqz-0" not in orjson.dumps([trace.messages, trace.metadata]).decode()
