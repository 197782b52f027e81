"""``gemini-proxy demo``, and the sample model it talks to."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result

from gemini_proxy.cli import main
from gemini_proxy.cli.demo import SAMPLE_KEY, sample_model
from tests.cli.process import run


async def test_demo_shows_what_is_allowed_masked_refused_and_recorded(tmp_path: Path) -> None:
    """With --exit it shows what a client sees and a trace with the place marked, ends, and keeps the traces."""
    database = tmp_path / "demo.db"
    code, out, err = await run("demo", "--port", "0", "--exit", "--database", str(database))
    assert (code, err) == (0, "")
    answers, _, records = out.partition("--- what was recorded")
    said = [line.strip() for line in answers.splitlines() if line.startswith("    ") and "---" not in line][-5:]
    assert said[0].startswith("You said: Hello, who are you?")
    assert said[1].startswith("You said: Write to ann@example.com about lunch")
    assert said[2] == 'calls web_search({"query":"parcel of customer CU-204517"})'
    assert said[3].startswith("[Invariant] The response did not pass the guardrails: an API key must not cross")
    assert said[4].startswith("[Invariant] The response did not pass the guardrails: files outside the workspace")
    assert SAMPLE_KEY not in answers
    assert records.count("refused_response") == 3 and records.count("completed") == 3
    assert SAMPLE_KEY in records and "messages.1.content:42-81" in records
    listed = await traces(database, "list", "--json")
    assert listed.exit_code == 0 and listed.stdout.count('"outcome"') == 5
    rows = map(orjson.loads, listed.stdout.splitlines())
    masked = next(row for row in rows if row["rule"] == "mail addresses are masked")
    shown = await traces(database, "show", masked["id"])
    assert shown.exit_code == 0 and "ann@example.com" not in shown.stdout


async def traces(database: Path, *arguments: str) -> Result:
    """Run ``gemini-proxy traces ARGUMENTS`` in this process, on the traces in ``database``."""
    runner = CliRunner(env={"GEMINI_PROXY_TRACES__DATABASE": f"sqlite:///{database}"})
    return await asyncio.to_thread(runner.invoke, main, ["traces", *arguments])


async def test_demo_is_not_set_up_by_what_is_for_another_server(tmp_path: Path) -> None:
    """Not even by the environment: it asks no real model, and writes into nobody's traces."""
    database = tmp_path / "mine.db"
    code, out, err = await run(
        *("demo", "--port", "0", "--exit", "--database", str(tmp_path / "demo.db")),
        GEMINI_PROXY_TRACES__DATABASE=f"sqlite:///{database}",
        GEMINI_PROXY_UPSTREAM__BASE_URL="http://127.0.0.1:1",
        GEMINI_PROXY_ACCESS__MODE="keys",
    )
    assert (code, err) == (0, "")
    assert "You said: Hello" in out and not database.exists()


async def test_a_port_in_use_is_said_in_a_line(tmp_path: Path) -> None:
    async with TestServer(web.Application()) as taken:
        port = str(taken.port)
        code, _, err = await run("demo", "--port", port, "--exit", "--database", str(tmp_path / "demo.db"))
    assert code == 1
    assert err.startswith(f"Error: 127.0.0.1:{port}: ") and "in use" in err and "Traceback" not in err


@pytest.fixture
async def model() -> AsyncIterator[str]:
    async with TestServer(sample_model()) as server:
        yield f"http://127.0.0.1:{server.port}/v1/models/sample-1"


async def ask(url: str, body: dict[str, Any]) -> Any:
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        assert response.status == 200
        return await response.json()


async def test_the_model_answers_the_last_text(model: str) -> None:
    """What a client says of its surroundings is not what the user asked."""
    parts = [{"text": "<context> key </context>"}, {"text": "hello"}]
    answer = await ask(f"{model}:generateContent", {"contents": [{"role": "user", "parts": parts}]})
    assert answer["candidates"][0]["content"]["parts"][0]["text"].startswith("You said: hello ")


@pytest.mark.parametrize("key", ["responseJsonSchema", "responseSchema", "response_schema"])
async def test_the_model_keeps_to_a_schema(model: str, key: str) -> None:
    """Clients that ask for JSON read it by the schema they sent."""
    schema = {
        "type": "OBJECT",
        "properties": {
            "why": {"type": "STRING"},
            "score": {"type": "INTEGER", "minimum": 3},
            "kind": {"type": "string", "enum": ["a", "b"]},
            "list": {"type": "array", "items": {"type": "boolean"}},
        },
    }
    config = {"responseMimeType": "application/json", key: schema}
    answer = await ask(f"{model}:generateContent", {"contents": {"parts": {"text": "x"}}, "generationConfig": config})
    found = orjson.loads(answer["candidates"][0]["content"]["parts"][0]["text"])
    assert found == {"why": "a sample model has no opinion", "score": 3, "kind": "a", "list": [False]}


async def test_the_model_embeds_and_counts(model: str) -> None:
    content = {"parts": [{"text": "two words"}]}
    one = await ask(f"{model}:embedContent", {"content": content})
    many = await ask(f"{model}:batchEmbedContents", {"requests": [{"content": content}, {"content": content}]})
    assert many["embeddings"] == [one["embedding"]] * 2
    assert len(one["embedding"]["values"]) == 3
    assert (await ask(f"{model}:countTokens", {"contents": [content]}))["totalTokens"] == 2
