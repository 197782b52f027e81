"""Tell where a text points, and what HTML shows only to machines: ``links``, ``images`` and ``html_code``."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import unescape
from typing import TYPE_CHECKING, Any, Final

from gemini_proxy.policy.detectors import Finding, Parsed
from gemini_proxy.policy.errors import BudgetExceeded
from gemini_proxy.policy.run.budget import Meter
from gemini_proxy.policy.run.regex import Regex
from gemini_proxy.policy.run.values import Record, cut

_LINK = Regex(r"(?i)https?://[^\s\"'<>\x60)\]}]+", "find", tame=True)
# The standard library's HTML parser takes time that grows with the square of a hostile page; RE2 does not.
_COMMENT = Regex(r"(?s)<!--.*?-->", "find", tame=True)
_TAG = Regex(r"<[A-Za-z][^<>\"']*(?:\"[^\"]*\"[^<>\"']*|'[^']*'[^<>\"']*)*>", "find", tame=True)
_ATTRIBUTE = Regex(
    r"(?i)\b(?:alt|href|src|srcset|action|data)[ \t\n]*=[ \t\n]*(?:\"[^\"]*\"|'[^']*'|[^ \t\n\"'>]+)", "find", tame=True
)

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

# The parser of Markdown cannot be interrupted: steps for a character, and for the brackets that it may try to match.
_LONGEST_MARKDOWN: Final = 200_000
_STEPS_PER_CHARACTER: Final = 5
_PAIRS_PER_STEP: Final = 100
# Elements that make a browser fetch something without a user's action.
_FETCHING: Final = (
    r"<\s*/?(?:img|image|picture|source|video|audio|track|iframe|frame|object|embed|link|input|svg|use|style|script|body|"
    r"table|td|th)\b"
)
_FETCHING_TAG: Final = re.compile(rf"(?i){_FETCHING}[^>]*")
_FETCHING_HTML: Final = re.compile(rf"(?i){_FETCHING}|url\s*\(|\bsrcset\b|\bbackground\b")
_ADDRESS: Final = re.compile(r"(?i)(?:(?:https?|ftp):[/\\]*|[/\\]{2})[^\s\"'<>()\x60]+")
_HOST_FOLLOWS: Final = re.compile(r"(?i)(https?|ftp):[/\\]*|[/\\]{2,}")
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_UNSEEN: Final = "".join(map(chr, range(33)))


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
        return Parsed([cut(texts[finding.text], finding.start, finding.end) for finding in findings], findings)


@dataclass(frozen=True, slots=True)
class Images:
    """A list of the addresses on other hosts that a client fetches to show the texts as Markdown, HTML in it included.

    Addresses are as browsers read them: with a scheme, without white space, backslashes as slashes, entities decoded.
    The lines of the block with such an address are marked.
    """

    name: str = "images"
    options: frozenset[str] = frozenset()

    def parse(self, texts: Sequence[str], args: Sequence[Any], options: Mapping[str, Any], meter: Meter) -> Parsed:
        """Raise BudgetExceeded for a text of more than 200,000 characters that may hold an image."""
        addresses: list[str] = []
        findings: list[Finding] = []
        for index, text in enumerate(texts):
            if "![" not in text and "<" not in text:
                continue
            if len(text) > _LONGEST_MARKDOWN:
                raise BudgetExceeded(f"the Markdown has more than {_LONGEST_MARKDOWN} characters")
            brackets = text.count("[") + text.count("<")
            meter.charge(20 + len(text) * _STEPS_PER_CHARACTER + brackets * brackets // _PAIRS_PER_STEP)
            for start, end, address in _fetched(text):
                addresses.append(address)
                findings.append(Finding(index, start, end, "IMAGE"))
        return Parsed(addresses, meter.take(findings))


@cache
def _markdown() -> "MarkdownIt":
    # The import takes a quarter of a second, and most policies do not need it.
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": True}).enable("table")


def _fetched(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the span of each block that fetches something, and what it fetches."""
    begins = [0, *(match.end() for match in _LINE_END.finditer(text)), len(text)]
    start, end = 0, len(text)
    for token in _markdown().parse(text):
        if token.map is not None:
            start, end = (begins[min(line, len(begins) - 1)] for line in token.map)
        for source in _sources(token):
            address = _as_read(source)
            if address:
                yield start, end, address


def _sources(token: "Token") -> Iterable[str]:
    if token.type == "html_block":
        return _in_html(token.content)
    if token.type != "inline" or not token.children:
        return ()
    images = [str(child.attrGet("src") or "") for child in token.children if child.type == "image"]
    tags = "".join(child.content for child in token.children if child.type == "html_inline")
    # Browsers accept more as a tag than Markdown does, such as one with "=" in an unquoted value.
    text = "".join(child.content for child in token.children if child.type in ("text", "softbreak"))
    return [*images, *_in_html(tags), *_in_html("".join(_FETCHING_TAG.findall(text)))]


def _in_html(html: str) -> list[str]:
    """Yield every address in HTML that a browser fetches."""
    plain = unescape(html)
    return _ADDRESS.findall(_without_breaks(plain)) if _FETCHING_HTML.search(plain) else []


def _without_breaks(text: str) -> str:
    """Remove tabs and line ends from an address, as browsers do."""
    return re.sub(r"[\t\r\n]", "", text)


def _as_read(source: str) -> str:
    """Return an address on another host as browsers read it (URL Standard); empty if it has no host."""
    # The parser of Markdown has percent-encoded the backslash.
    plain = _without_breaks(source).strip(_UNSEEN).replace("%5C", "\\")
    match = _HOST_FOLLOWS.match(plain)
    if match is None:
        return ""
    return f"{(match[1] or 'https').lower()}://{plain[match.end() :]}".replace("\\", "/")


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
