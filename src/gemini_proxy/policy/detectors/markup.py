"""``links`` and ``html_code``: where a text points, and what HTML shows only to machines."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any

from gemini_proxy.policy.budget import Meter
from gemini_proxy.policy.detectors import Finding, Parsed
from gemini_proxy.policy.regex import Regex
from gemini_proxy.policy.values import Record, cut

_LINK = Regex(r"(?i)https?://[^\s\"'<>\x60)\]}]+", "find", tame=True)
# The standard library's HTML parser takes time that grows with the square of a hostile page; RE2 does not.
_COMMENT = Regex(r"(?s)<!--.*?-->", "find", tame=True)
_TAG = Regex(r"<[A-Za-z][^<>\"']*(?:\"[^\"]*\"[^<>\"']*|'[^']*'[^<>\"']*)*>", "find", tame=True)
_ATTRIBUTE = Regex(
    r"(?i)\b(?:alt|href|src|srcset|action|data)[ \t\n]*=[ \t\n]*(?:\"[^\"]*\"|'[^']*'|[^ \t\n\"'>]+)", "find", tame=True
)


def _links(texts: Sequence[str], meter: Meter) -> list[Finding]:
    return meter.take(
        Finding(index, start, end, "LINK")
        for index, text in enumerate(texts)
        if "://" in text
        for start, end in _LINK.spans(text, meter)
    )


@dataclass(frozen=True, slots=True)
class Links:
    """A list of the links in the texts, each remembering where it stands."""

    name: str = "links"
    options: frozenset[str] = frozenset()

    def parse(self, texts: Sequence[str], args: Sequence[Any], options: Mapping[str, Any], meter: Meter) -> Parsed:
        findings = _links(texts, meter)
        return Parsed([cut(texts[each.text], each.start, each.end) for each in findings], findings)


@dataclass(frozen=True, slots=True)
class HtmlCode:
    """A record with ``alt_texts``, ``links`` and ``comments``: what a page tells machines only."""

    name: str = "html_code"
    options: frozenset[str] = frozenset()

    def parse(self, texts: Sequence[str], args: Sequence[Any], options: Mapping[str, Any], meter: Meter) -> Parsed:
        alt_texts: list[str] = []
        links: list[str] = []
        comments: list[str] = []
        for text in texts:
            comments.extend(text[start + 4 : end - 3] for start, end in meter.take(_COMMENT.spans(text, meter)))
            for name, value in _attributes(text, meter):
                (alt_texts if name == "alt" else links).append(value)
        links.extend(cut(texts[each.text], each.start, each.end) for each in _links(texts, meter))
        return Parsed(Record(alt_texts=alt_texts, links=list(dict.fromkeys(links)), comments=comments))


def _attributes(text: str, meter: Meter) -> Iterator[tuple[str, str]]:
    """Alternative texts and targets of the tags, in order."""
    for start, end in meter.take(_TAG.spans(text, meter)):
        tag = text[start:end]
        for first, last in meter.take(_ATTRIBUTE.spans(tag, meter)):
            name, _, value = tag[first:last].partition("=")
            yield name.strip().lower(), unescape(value.strip().strip("\"'"))
