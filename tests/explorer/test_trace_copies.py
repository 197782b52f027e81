"""What a person takes out of a trace, and what they say of it."""

import asyncio
import shlex
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.cli.policy_cases import read_cases, run_case
from gemini_proxy.explorer.app_keys import DATABASE
from gemini_proxy.explorer.pages.trace_copies import policy_case, request_body
from gemini_proxy.explorer.pages.trace_pages import MAX_NOTE
from gemini_proxy.gemini.calls import read_call
from gemini_proxy.gemini.request import read_request
from gemini_proxy.guardrails.plugins import load_policy
from gemini_proxy.traces.search.indexer import Indexer
from gemini_proxy.traces.trace import Annotation, Outcome
from tests.explorer.browsing import Browser, mine, record, rows
from tests.support.proxy import Proxy
from tests.traces.samples import trace

POLICY = 'raise "no Dublin" if:\n    (m: Message)\n    "Dublin" in m.content\n'
FOUND = Annotation("no Dublin", "messages.0.content.0.text:0-6", guardrail={"name": "cities", "action": "block"})
REQUEST: dict[str, Any] = {
    "systemInstruction": {"parts": [{"text": "Be kind"}]},
    "contents": [
        {"role": "user", "parts": [{"text": "Dublin?"}, {"inlineData": {"mimeType": "image/png", "data": "aGk="}}]},
        {"role": "model", "parts": [{"text": "I look."}, {"functionCall": {"name": "find", "args": {"q": "x"}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "find", "response": {"result": "rain"}}}]},
        {"role": "user", "parts": [{"fileData": {"mimeType": "text/plain", "fileUri": "https://x.example/f"}}]},
    ],
    "tools": [{"functionDeclarations": [{"name": "find", "description": "looks", "parameters": {"type": "OBJECT"}}]}],
}


def _messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    call = read_call("POST", "/v1beta/models/m:generateContent")
    return list(read_request(call, orjson.dumps(request)).stored)


def test_a_request_made_of_messages_is_read_as_the_same() -> None:
    messages = _messages(REQUEST)
    assert _messages(request_body(messages)) == messages


TEXTS = st.text(min_size=1, max_size=8)
PARTS = st.one_of(
    st.builds(lambda text: {"text": text}, TEXTS),
    st.builds(lambda text: {"functionCall": {"name": "f", "args": {text: text}}}, TEXTS),
)
TURNS = st.lists(st.tuples(st.lists(TEXTS, min_size=1, max_size=2), PARTS), min_size=1, max_size=3)


@settings(max_examples=40)
@given(TURNS)
def test_any_chat_is_read_as_the_same(turns: list[tuple[list[str], dict[str, Any]]]) -> None:
    contents: list[dict[str, Any]] = []
    for said, part in turns:
        contents.append({"role": "user", "parts": [{"text": text} for text in said]})
        contents.append({"role": "model", "parts": [part]})
    messages = _messages({"contents": contents})
    assert _messages(request_body(messages)) == messages


@pytest.mark.parametrize(("text", "annotations"), [("Dublin é\u2028", (FOUND,)), ("London: \ud800 - #", ())])
def test_a_case_holds_what_the_trace_shows(text: str, annotations: tuple[Annotation, ...], tmp_path: Path) -> None:
    """With the policy that found it, it passes; a trace without a finding is a case in which nothing may fire."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": text}]},
        {"role": "assistant", "content": "fine"},
    ]
    file = tmp_path / "cities.cases.yaml"
    file.write_text(policy_case(trace(messages=messages, annotations=annotations), messages))
    [case] = read_cases(file)
    assert run_case(load_policy(POLICY, "cities"), case).ok
    assert run_case(load_policy(POLICY.replace("Dublin", "fine"), "cities"), case).ok is False


async def test_the_page_gives_a_case_and_a_command(proxy: Proxy, browser: Browser) -> None:
    messages = _messages(REQUEST)
    metadata = {
        "method": "streamGenerateContent",
        "request_messages": len(messages),
        "generationConfig": {"temperature": 0.5},
        "coverage": {"verdict": "off", "not_checked": [{"address": "messages.1", "reason": "an image"}]},
        "upstream_status": 429,
        "upstream_error": {"status": "RESOURCE_EXHAUSTED", "message": "No quota is left."},
    }
    answered = [*messages, {"role": "assistant", "content": "It's fine"}]
    (one,) = await record(
        proxy, mine(messages=answered, annotations=(FOUND,), metadata=metadata, outcome=Outcome.UPSTREAM_ERROR)
    )
    page = await browser.get(f"/explorer/traces/{one.id}")
    for words in (
        "Nothing was checked",
        "1 part of this exchange that no rule has read",
        "an image",
        "No quota is left.",
    ):
        assert words in page.text
    assert "The upstream answered 429 RESOURCE_EXHAUSTED" in page.text and "generationConfig" in page.text
    case = await browser.get(f"/explorer/traces/{one.id}/copy?as=case")
    assert "fires:\n  - no Dublin" in case.text
    curl = await browser.get(f"/explorer/traces/{one.id}/copy?as=curl")
    command = shlex.split(curl.text.partition("curl ")[2].partition("\n\n")[0].replace("\\\n", ""))
    assert command[0].endswith(
        "/api/v1/gateway/demo/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    )
    assert command[2] == "x-goog-api-key: $GEMINI_API_KEY"
    sent = orjson.loads(command[6])
    assert sent["generationConfig"] == {"temperature": 0.5} and _messages(sent) == messages
    (other,) = await record(proxy, mine())
    statuses = [await browser.get(f"/explorer/traces/{other.id}/copy?as={kind}") for kind in ("curl", "x")]
    assert [answer.status for answer in statuses] == [404, 400]


async def test_people_say_something_of_a_trace(proxy: Proxy, browser: Browser) -> None:
    """Notes and labels with who wrote them; a label is a filter; they are removed, and another's trace has none."""
    one, other = await record(proxy, mine(), mine("x", owner="somebody"))
    here = f"/explorer/traces/{one.id}"
    page = await browser.post(f"{here}/notes", note=" <b>odd</b> ")
    assert (page.status, page.location) == (303, f"{here}#remarks")
    await browser.post(f"{here}/notes", note="to do", kind="label")
    page = await browser.get(here)
    assert "<b>odd</b>" in page.text and "/explorer/traffic?rule=to%20do" in page.links() and "developer," in page.text
    await Indexer(proxy.app[DATABASE], asyncio.Event()).catch_up()
    assert rows(await browser.get("/explorer/traffic?rule=to+do")) == [one.id[:8]]
    removals = [link.partition('"')[0] for link in page.body.split('action="')[1:] if "/remove" in link[:200]]
    assert len(removals) == 2
    for path in removals:
        assert (await browser.post(path)).status == 303
    assert "odd" not in (await browser.get(here)).text and (await browser.post(removals[0])).status == 404
    for path, note, status in (
        (f"/explorer/traces/{other.id}", "x", 404),
        (here, " ", 400),
        (here, "x" * (MAX_NOTE + 1), 400),
    ):
        assert (await browser.post(f"{path}/notes", note=note)).status == status
