"""A text rendered as Markdown says what the text says, with its ranges marked, and is never more than text."""

import re
from html import unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemini_proxy.explorer.pages.annotated_text import annotate_text
from gemini_proxy.explorer.pages.markdown_text import MarkdownTexts
from gemini_proxy.traces.annotation_ranges import AnnotationRanges
from gemini_proxy.traces.trace import Annotation
from tests.explorer.browsing import Browser, mine, record
from tests.explorer.markup import PAYLOADS
from tests.support.proxy import Proxy

ADDRESS = "messages.0.content"
TAG = re.compile(
    r"</?(?:p|ul|li|blockquote|table|thead|tbody|tr|th|td|em|strong|s|code|pre|mark|span)>|<(?:hr|br)>"
    r"|<(?:p|span|pre) class=(?:heading|target|code tabindex=0)>|<ol start=\d+>|</ol>"
    r'|<span class="(?:anchor" id="a\d+|code-[cksn])">'
    r'|<mark class="[a-z ]+"(?: data-(?:marks|ends)="[\d ]+")*>'
)


def _rendered(text: str, *ranges: tuple[int, int]) -> str | None:
    marks = AnnotationRanges([Annotation("x", f"{ADDRESS}:{start}-{end}") for start, end in ranges]).on(ADDRESS)
    html = MarkdownTexts().render(annotate_text(text, ADDRESS, marks))
    return None if html is None else str(html)


def _letters(html: str) -> str:
    return "".join(char for char in unescape(TAG.sub("", html)) if char.isalpha())


WORDS = st.sampled_from(
    "ab cd ef # - * ** _ ` ``` > | 1. ~~ ![a](b) [c](d) <b> & \n \n\n \t".split(" ") + [" ", "\n", "\n\n"]
)


@settings(max_examples=75)
@given(
    st.lists(WORDS, max_size=25).map("".join), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=3)
)
def test_every_letter_stays_and_every_range_is_marked(text: str, ranges: list[tuple[int, int]]) -> None:
    spans = [(start, start + length) for start, length in ranges]
    html = _rendered(text, *spans)
    if html is None:
        return
    assert _letters(html) == "".join(char for char in text if char.isalpha())
    marked = "".join(_letters(one) for one in re.findall(r"<mark[^>]*>(.*?)</mark>", html, re.DOTALL))
    inside = [char for at, char in enumerate(text) if any(start <= at < end for start, end in spans)]
    assert marked == "".join(char for char in inside if char.isalpha())
    assert "<" not in TAG.sub("", html)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_becomes_markup(payload: str) -> None:
    for text in (
        f"# {payload}",
        f"`{payload}`",
        f"```python\n{payload}\n```",
        f"- [x]({payload}) ![y]({payload}) **z**",
    ):
        html = _rendered(text, (2, 9))
        assert html is None or "<" not in TAG.sub("", html), html


def test_what_would_hide_something_is_shown_as_it_is() -> None:
    """References, characters that stand for borders, a range within an address; and what has no syntax at all."""
    for text in ("[a]: https://x.example/\n\n**b**", "**\ue000**", "no syntax"):
        assert _rendered(text) is None
    assert _rendered("[a](https://x.example/secret)", (10, 15)) is None
    html = _rendered('[a](https://x.example/y "t") **b**')
    assert html is not None and "https://x.example/y &#34;t&#34;" in html and "href" not in html


def test_a_page_renders_so_much_and_no_more() -> None:
    texts = MarkdownTexts(left=12)
    text = annotate_text("**a** b", ADDRESS, ())
    assert [texts.render(text) is not None for _ in range(3)] == [True, False, False]


async def test_a_trace_is_rendered_or_shown_as_checked(proxy: Proxy, browser: Browser) -> None:
    said = "**bold** and\n\n```python\nx = 1  # why\n```\n"
    found = Annotation("why", "messages.0.content:2-6", guardrail={"name": "r"})
    (one,) = await record(proxy, mine(messages=[{"role": "assistant", "content": said}], annotations=(found,)))
    here = f"/explorer/traces/{one.id}"
    page = await browser.get(here)
    assert re.search(r'<strong>.*<mark class="block" data-marks="1" data-ends="1">bold</mark>.*</strong>', page.body)
    assert '<span class="code-c"># why</span>' in page.body and "**" not in page.text
    page = await browser.get(f"{here}?view=checked")
    assert "**" in page.text and "<strong>" not in page.body and here in page.links()
