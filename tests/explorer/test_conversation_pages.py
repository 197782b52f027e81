"""A conversation is shown once, with where each exchange began."""

import asyncio
import re
from typing import Any

from gemini_proxy.explorer.app_keys import DATABASE
from gemini_proxy.explorer.pages.conversation_pages import steps
from gemini_proxy.traces.catalogue import StoredTrace
from gemini_proxy.traces.rows import dump_messages
from gemini_proxy.traces.search.indexer import Indexer
from gemini_proxy.traces.trace import Outcome
from tests.explorer.browsing import Browser, mine, record
from tests.support.proxy import Proxy
from tests.traces.samples import ANNOTATION, trace

Messages = list[dict[str, Any]]


def _said(role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


FIRST: Messages = [_said("user", "one"), _said("assistant", "hm", thought=True), _said("assistant", "two", candidate=0)]
SECOND: Messages = [_said("user", "one"), _said("assistant", "two"), _said("user", "three"), _said("assistant", "four")]


def _stored(messages: Messages) -> StoredTrace:
    return StoredTrace(trace(), dump_messages(messages), ())


def test_each_exchange_shows_what_it_added() -> None:
    """Thoughts and candidates make no difference; one that repeats nothing shows all of it; a long one is named."""
    other = [_said("user", "five")]
    made = steps([_stored(FIRST), _stored(SECOND), _stored(SECOND), _stored(other), StoredTrace(trace(), b"", ())])
    assert [[message.index for message in step.messages] for step in made] == [[0, 1, 2], [2, 3], [], [0], []]
    assert [step.repeated for step in made] == [0, 2, 4, 0, 0]
    assert made[-1].missing


async def test_the_page_shows_a_conversation(proxy: Proxy, browser: Browser) -> None:
    """Whatever its id is; exchanges of others are not in it; the trace leads to it."""
    name = "c/1 ü"
    one, two = await record(
        proxy,
        mine(messages=FIRST, metadata={"conversation": name}, created=1.0),
        mine(
            messages=SECOND[:3],
            metadata={"conversation": name, "refusal": {"text": "no, thanks"}},
            annotations=(ANNOTATION,),
            outcome=Outcome.REFUSED_REQUEST,
            dataset="other",
            created=2.0,
        ),
    )
    await record(proxy, trace(owner="somebody", metadata={"conversation": name}), mine(metadata={"conversation": "x"}))
    await Indexer(proxy.app[DATABASE], asyncio.Event()).catch_up()
    link = next(link for link in (await browser.get(f"/explorer/traces/{one.id}")).links() if "conversations" in link)
    page = await browser.get(link)
    assert page.status == 200 and "2 exchanges" in page.text
    assert [page.text.count(word) for word in ("one", "two", "three")] == [1, 1, 1]
    assert "continues from 2 messages" in page.text and "no, thanks" in page.text and "no secrets" in page.text
    assert page.links().index(f"/explorer/traces/{one.id}") < page.links().index(f"/explorer/traces/{two.id}")
    identifiers = re.findall(r'id="([^"]*)"', page.body)
    assert len(identifiers) == len(set(identifiers))
    assert (await browser.get("/explorer/conversations/none")).status == 404
