"""``links`` and ``html_code``: where a text points, and what HTML shows only to machines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

from gemini_proxy.policy.budget import Meter
from gemini_proxy.policy.detectors import Finding, Parsed
from gemini_proxy.policy.errors import BudgetExceeded
from gemini_proxy.policy.regex import Regex
from gemini_proxy.policy.values import Record, cut

_LINK = Regex(r"(?i)\bhttps?://[^\s\"'<>\x60)\]}]+", "find")
# The standard library's parser takes some 20 MB a second of ordinary pages and far less of hostile ones.
_LONGEST_PAGE = 1 << 20
_PIECE = 4096


def _links(texts: Sequence[str], meter: Meter) -> list[Finding]:
    return [
        Finding(index, start, end, "LINK")
        for index, text in enumerate(texts)
        if "://" in text
        for start, end in _LINK.spans(text, meter)
    ]


@dataclass(frozen=True, slots=True)
class Links:
    """A list of the links in the texts, each remembering where it stands."""

    name: str = "links"
    options: frozenset[str] = frozenset()

    def parse(self, texts: Sequence[str], args: Sequence[Any], options: Mapping[str, Any], meter: Meter) -> Parsed:
        findings = _links(texts, meter)
        return Parsed([cut(texts[each.text], each.start, each.end) for each in findings], findings)


class _Page(HTMLParser):
    """Collects what is not shown: alternative texts, comments, and the targets of links and images."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.alt_texts: list[str] = []
        self.links: list[str] = []
        self.comments: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name == "alt":
                self.alt_texts.append(value)
            elif value and name in ("href", "src", "action", "srcset", "data"):
                self.links.append(value)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


@dataclass(frozen=True, slots=True)
class HtmlCode:
    """A record with ``alt_texts``, ``links`` and ``comments``."""

    name: str = "html_code"
    options: frozenset[str] = frozenset()

    def parse(self, texts: Sequence[str], args: Sequence[Any], options: Mapping[str, Any], meter: Meter) -> Parsed:
        """Raises BudgetExceeded for a page of more than a megabyte."""
        page = _Page()
        for text in texts:
            if len(text) > _LONGEST_PAGE:
                raise BudgetExceeded("a page of more than a megabyte")
            _feed(page, text, meter)
        findings = _links(texts, meter)
        links = [*page.links, *(cut(texts[each.text], each.start, each.end) for each in findings)]
        value = Record(alt_texts=page.alt_texts, links=list(dict.fromkeys(links)), comments=page.comments)
        return Parsed(value)


def _feed(page: _Page, text: str, meter: Meter) -> None:
    """Feed by pieces, so that the clock is looked at. What the parser keeps unfinished it reads again each time."""
    for start in range(0, len(text), _PIECE):
        meter.charge(50 + (len(page.rawdata) >> 5))
        page.feed(text[start : start + _PIECE])
    page.close()
    page.reset()
