"""Render a text as Markdown, with its marked ranges still marked. Everything in it is text: no HTML, links or images.

A character of Unicode's private use area stands at each border of a range while the text is parsed. If the parser
loses one or moves it, the text is not rendered.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token as Piece
from markupsafe import Markup, escape
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Number, String
from pygments.util import ClassNotFound

from gemini_proxy.explorer.pages.annotated_text import AnnotatedText, StyledRun
from gemini_proxy.traces.visible import VISIBLE

MAX_RENDERED: Final = 60_000
"""Characters of one page that are rendered; the rest is shown as it is."""
_FIRST: Final = 0xE000
_MOST: Final = 0x1800
_BORDER = re.compile("([\ue000-\uf7ff])")
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_SYNTAX = re.compile(r"^ {0,3}(?:#{1,6} |[-*+] |\d{1,9}[.)] |>|```|~~~|\|)|\*\*|__|`[^`\n]|\]\(", re.MULTILINE)
_LEXED: Final = 4_000
"""Characters of code that are colored: lexers take longer for some texts than for others."""
_LANGUAGES: Final = frozenset(
    "python py json bash sh shell javascript js typescript ts sql yaml toml html css diff go rust java c cpp".split()
)
_COLOURS: Final = ((Comment, "c"), (Keyword, "k"), (String, "s"), (Number, "n"))
_TAGS: Final = {
    "paragraph": "p",
    "bullet_list": "ul",
    "ordered_list": "ol",
    "list_item": "li",
    "blockquote": "blockquote",
    "table": "table",
    "thead": "thead",
    "tbody": "tbody",
    "tr": "tr",
    "th": "th",
    "td": "td",
    "em": "em",
    "strong": "strong",
    "s": "s",
}


@dataclass(slots=True)
class MarkdownTexts:
    """Render the texts of one page until it has rendered enough."""

    left: int = MAX_RENDERED

    def render(self, text: AnnotatedText) -> Markup | None:
        """Return the text as HTML; None to show it as it is: it has no Markdown, is too long, or would lose a mark."""
        runs = text.runs
        if len(runs) > _MOST or any(run.skipped for run in runs) or text.length > self.left:
            return None
        source = text.text
        if not _SYNTAX.search(source) or _PRIVATE.search(source):
            return None
        self.left -= len(source)
        borders = [chr(_FIRST + index) for index in range(len(runs) - 1)]
        marked = "".join(f"{run.text}{border}" for run, border in zip(runs, [*borders, ""], strict=True))
        writer = _Writer(runs)
        # Markdown does not show definitions of references, but nothing may be hidden.
        environment: dict[str, object] = {}
        tokens = _parser().parse(marked, environment)
        if environment.get("references"):
            return None
        html = Markup("").join(writer.blocks(tokens))
        return html if writer.passed == borders else None


def _parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])


class _Writer:
    """Write tokens as HTML. ``passed`` are the borders met so far, in order."""

    def __init__(self, runs: Sequence[StyledRun]) -> None:
        self.passed: list[str] = []
        self._runs = runs
        self._entered = -1
        self._targets: list[str] = []

    def blocks(self, tokens: Sequence[Piece]) -> Iterator[Markup]:
        for token in tokens:
            name, _, side = token.type.rpartition("_")
            if token.type == "inline":
                yield from self._inline(token.children or ())
            elif token.type in ("fence", "code_block"):
                label = Markup("<span class=target>{}</span>\n").format(self._say(token.info)) if token.info else ""
                yield Markup("<pre class=code tabindex=0>{}{}</pre>").format(label, self._code(token))
            elif token.type == "hr":
                yield Markup("<hr>")
            elif name == "heading":
                yield Markup("<p class=heading>") if side == "open" else Markup("</p>")
            elif token.type == "ordered_list_open":
                yield Markup("<ol start={}>").format(int(token.attrs.get("start", 1)))
            elif name in _TAGS and not token.hidden:
                yield self._tag(name, side)
            elif token.content:
                yield self._say(token.content)

    def _inline(self, tokens: Sequence[Piece]) -> Iterator[Markup]:
        for token in tokens:
            name, _, side = token.type.rpartition("_")
            if token.type in ("softbreak", "hardbreak"):
                yield Markup("<br>") if token.type == "hardbreak" else Markup("\n")
            elif token.type == "code_inline":
                yield Markup("<code>{}</code>").format(self._say(token.content))
            elif token.type == "link_open":
                self._targets.append(_target(token, "href"))
            elif token.type == "link_close":
                # Its target is shown, but not as a link.
                yield Markup(" <span class=target>({})</span>").format(self._run(self._targets.pop(), last=False))
            elif token.type == "image":
                yield from self._inline(token.children or ())
                yield Markup(" <span class=target>[{}]</span>").format(self._run(_target(token, "src"), last=False))
            elif name in _TAGS:
                yield self._tag(name, side)
            else:
                yield self._say(token.content)

    def _tag(self, name: str, side: str) -> Markup:
        return Markup(f"<{'/' if side == 'close' else ''}{_TAGS[name]}>")

    def _code(self, token: Piece) -> Markup:
        language = token.info.strip().partition(" ")[0].lower()
        plain = not _BORDER.search(token.content) and not self._current.style
        if plain and language in _LANGUAGES and len(token.content) <= _LEXED:
            return _coloured(token.content, language)
        return self._say(token.content)

    @property
    def _current(self) -> StyledRun:
        return self._runs[len(self.passed)] if len(self.passed) < len(self._runs) else StyledRun(0, "")

    def _say(self, text: str) -> Markup:
        pieces = _BORDER.split(text)
        html = Markup("")
        for index in range(0, len(pieces), 2):
            html += self._run(pieces[index], last=index + 1 < len(pieces))
            if index + 1 < len(pieces):
                self.passed.append(pieces[index + 1])
        return html

    def _run(self, text: str, *, last: bool) -> Markup:
        run = self._current
        html = Markup("")
        if text and self._entered != len(self.passed):
            self._entered = len(self.passed)
            html += Markup("").join(Markup('<span class="anchor" id="a{}"></span>').format(one) for one in run.starts)
        shown = escape(text.translate(VISIBLE))
        if not text or not run.style:
            return html + shown
        classes = f"{run.style} wide" if run.wide else run.style
        marks = "" if run.wide else " ".join(map(str, run.marks))
        ends = " ".join(map(str, run.ends)) if last else ""
        return html + Markup('<mark class="{}"{}{}>{}</mark>').format(
            classes,
            Markup(' data-marks="{}"').format(marks) if marks else "",
            Markup(' data-ends="{}"').format(ends) if ends else "",
            shown,
        )


def _coloured(code: str, language: str) -> Markup:
    try:
        lexer = get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return escape(code.translate(VISIBLE))
    html = Markup("")
    for kind, text in lexer.get_tokens(code):
        style = next((name for base, name in _COLOURS if kind in base), "")
        shown = escape(text.translate(VISIBLE))
        html += Markup('<span class="code-{}">{}</span>').format(style, shown) if style else shown
    return html


def _target(token: Piece, name: str) -> str:
    """Return the address of a link or an image, with its title."""
    title = token.attrs.get("title")
    return f'{token.attrs.get(name, "")} "{title}"' if title else str(token.attrs.get(name, ""))
