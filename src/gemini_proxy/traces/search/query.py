"""Translate the text of a search box into a query of the database's full-text index. No I/O.

Words must all occur, in any order. ``"words in quotes"`` must stand side by side, ``word*`` is the beginning of a word,
and what follows a ``-`` must not occur. Upper and lower case are the same, and so are letters with and without accents.
Everything else that is typed is text to look for: no input is an error.

A word is a run of letters and digits. Scripts that put no spaces between words are found by the beginning of a run.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

# Far more than anyone types; the rest is not looked for.
MAX_CHARACTERS: Final = 1_000
MAX_TERMS: Final = 32
# Of a word, in PostgreSQL, which takes 2,046 bytes; longer ones are cut, in the index and in the query.
MAX_WORD: Final = 250
# Letters that a beginning has at least, as SQLite has an index of those; a shorter one is looked for as a word. Scripts
# that have no spaces between words may say much in one letter.
MIN_PREFIX: Final = 4

_TYPED = re.compile(r'(?P<minus>-?)(?:"(?P<quoted>[^"]*)"?|(?P<word>[^\s"]+))(?P<star>\*?)')
_WORD = re.compile(r"[^\W_]+")
# For a text of ASCII only, in a fifth of the time.
_SPACES: Final = {code: " " for code in range(128) if not chr(code).isalnum()}


@dataclass(frozen=True, slots=True)
class Term:
    """Words that must stand side by side; with ``prefix`` the last one may go on."""

    words: tuple[str, ...]
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms that must occur, and those that must not."""

    wanted: tuple[Term, ...]
    unwanted: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class Facets:
    """Terms of the index beside a trace's text, so that a search skips other users' traces.

    A search that names several outcomes finds traces with any of them. ``key`` tells which key the exchange came with.
    """

    dataset: int
    outcome: str | Sequence[str] | None = None
    model: str | None = None
    status: int | None = None
    tools: Sequence[str] = ()
    key: str | None = None
    conversation: str | None = None

    @property
    def clauses(self) -> tuple[tuple[str, ...], ...]:
        """Return the clauses, each as words of letters and digits of which a trace must have one."""
        outcomes = () if self.outcome is None else (self.outcome,) if isinstance(self.outcome, str) else self.outcome
        clauses: list[tuple[str, ...]] = [(f"d{self.dataset}",)]
        if outcomes:
            clauses.append(tuple(["o" + outcome.replace("_", "") for outcome in outcomes]))
        named = (("m", self.model), *[("t", tool) for tool in self.tools], ("k", self.key), ("c", self.conversation))
        clauses += [(_token(kind, name),) for kind, name in named if name]
        if self.status is not None:
            clauses.append((f"s{self.status}",))
        return tuple(clauses)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return all words: what a trace with these facets is found by."""
        return tuple(chain.from_iterable(self.clauses))

    @property
    def selective(self) -> bool:
        """Return whether they ask for what only this index knows."""
        return bool(self.status is not None or self.tools or self.key or self.conversation)


def _token(kind: str, name: str) -> str:
    return kind + name.encode(errors="replace").hex()[:200]


def parse(typed: str) -> Terms | None:
    """Return the terms of what a user typed, None where there is nothing in it to look for."""
    wanted: list[Term] = []
    unwanted: list[Term] = []
    for found in _TYPED.finditer(typed[:MAX_CHARACTERS]):
        term = _term(found)
        if term is not None:
            (unwanted if found["minus"] else wanted).append(term)
    terms = Terms(tuple(wanted[:MAX_TERMS]), tuple(unwanted[:MAX_TERMS]))
    return terms if wanted or unwanted else None


def _term(found: re.Match[str]) -> Term | None:
    text = found["quoted"] if found["word"] is None else found["word"]
    words = words_of(text)
    if not words:
        return None
    # The pattern for a word takes the asterisk with it.
    prefix = bool(found["star"]) or (found["word"] or "").endswith("*")
    return Term(words, prefix and (len(words[-1]) >= MIN_PREFIX or not words[-1].isascii()))


def loosened(terms: Terms, prefix: int) -> tuple[Terms, Terms]:
    """Terms that are found at the same cost however often their words occur, and those left to check on what they find.

    ``prefix`` is the length of the beginnings that an index has, 0 where it has none: others are put together of every
    word that begins so, wherever it was said.
    """

    def is_costly(term: Term) -> bool:
        return term.prefix and len(term.words[-1]) != prefix

    left = Terms(tuple(filter(is_costly, terms.wanted)), tuple(filter(is_costly, terms.unwanted)))
    cheap = [term for term in terms.wanted if not is_costly(term)]
    cheap += [found for term in left.wanted if (found := _shortened(term, prefix))]
    return Terms(tuple(cheap), tuple(term for term in terms.unwanted if not is_costly(term))), left


def _shortened(term: Term, length: int) -> Term | None:
    """Return what is true where ``term`` is."""
    *before, last = term.words
    if length and len(last) >= length:
        return Term((*before, last[:length]), prefix=True)
    return Term(tuple(before)) if before else None


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text as they are indexed and looked for: small letters without accents."""
    if text.isascii():
        text = text.lower().translate(_SPACES)
        words = text.split()
        are_short = not may_have_longer(text, MAX_WORD)
    else:
        words = _WORD.findall(_plain(text))
        are_short = max(map(len, words), default=0) <= MAX_WORD
    return tuple(words) if are_short else tuple([word[:MAX_WORD] for word in words])


def may_have_longer(text: str, most: int) -> bool:
    """Return False if no word of a text is longer than ``most`` characters: then a space comes at least that often."""
    place = 0
    while len(text) - place > most:
        space = text.rfind(" ", place, place + most + 1)
        if space < 0:
            return True
        place = space + 1
    return False


def _plain(text: str) -> str:
    # One character can become eighteen.
    decomposed = unicodedata.normalize("NFKD", text.lower())[: 2 * len(text) + 100]
    return "".join([character for character in decomposed if not unicodedata.combining(character)]).lower()


def fts5_query(terms: Terms, facets: Facets, blocks: Sequence[str] = ()) -> str:
    """Return an expression for ``MATCH`` of SQLite's FTS5, over the columns ``body`` and ``facets``.

    Where ``blocks`` are given a trace must be in one of them.
    """
    within = ["(" + " OR ".join(_quoted(block) for block in blocks) + ")"] if blocks else []
    parts = [
        "facets : ("
        + " AND ".join([*within, *(_one_of([_quoted(token) for token in clause], " OR ") for clause in facets.clauses)])
        + ")"
    ]
    if terms.wanted:
        parts.append("body : (" + " AND ".join(_fts5(term) for term in terms.wanted) + ")")
    query = " AND ".join(parts)
    if terms.unwanted:
        query = f"({query}) NOT body : (" + " OR ".join(_fts5(term) for term in terms.unwanted) + ")"
    return query


def _one_of(alternatives: Sequence[str], joint: str) -> str:
    return alternatives[0] if len(alternatives) == 1 else "(" + joint.join(alternatives) + ")"


def _fts5(term: Term) -> str:
    return _quoted(" ".join(term.words)) + (" *" if term.prefix else "")


def _quoted(text: str) -> str:
    return f'"{text}"'


def tsquery(terms: Terms, facets: Facets, blocks: Sequence[str] = ()) -> str:
    """Return the text of a PostgreSQL ``tsquery`` over what ``tsvector`` gives; ``blocks`` as for ``fts5_query``."""
    within = ["(" + " | ".join(f"'={block}'" for block in blocks) + ")"] if blocks else []
    parts = [*within, *(_one_of([f"'={token}'" for token in clause], " | ") for clause in facets.clauses)]
    parts += [_tsquery(term) for term in terms.wanted]
    parts += [f"!({_tsquery(term)})" for term in terms.unwanted]
    return " & ".join(parts)


def _tsquery(term: Term) -> str:
    return "(" + " <-> ".join(f"'{word}'" for word in term.words) + (":*)" if term.prefix else ")")


def tsvector(words: Sequence[str], labels: Sequence[str]) -> str:
    """Return the text of a ``tsvector`` of PostgreSQL: words with their positions, and labels, which no word can be.

    Words, not text: the database's own parser takes addresses and paths for one word, and fails on long ones.
    """
    positions: dict[str, list[int]] = {}
    for position, word in enumerate(words, start=1):
        positions.setdefault(word, []).append(position)
    return " ".join([*_vector(positions.items()), *(f"'={label}'" for label in labels)])


# What PostgreSQL keeps of a text: it cuts larger positions itself, and leaves out further ones of the same word.
_LAST_POSITION: Final = 16_383
_MOST_POSITIONS: Final = 255


def _vector(positions: Iterable[tuple[str, list[int]]]) -> Iterable[str]:
    for word, places in positions:
        kept = sorted({min(place, _LAST_POSITION) for place in places})[:_MOST_POSITIONS]
        yield f"'{word}':" + ",".join(map(str, kept))
