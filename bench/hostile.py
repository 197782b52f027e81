"""Policies and texts made to hold up a server: what ``bench.loop_lag`` sends, each a header policy and a body."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

_NUMBERS: Final = itertools.count()
_HEADER: Final = 7_900
"""Characters of a header policy: what fits into one header line of 8,190 bytes."""
_BODY: Final = 500_000
"""Characters of a text, just below what is read in another process."""


@dataclass(frozen=True, slots=True)
class Attack:
    """``policy`` gives a header value, ``body`` a request body; the upstream answers ``answer`` characters."""

    name: str
    policy: Callable[[], str]
    body: bytes
    answer: int = 0


def attacks() -> Iterator[Attack]:
    """Loads that hurt, checks that hurt, and texts that hurt."""
    small = _body("hello world")
    for name, piece in _PIECES.items():
        yield Attack(f"load: {name}", _fresh(piece * (_HEADER // len(_escaped(piece)) - 1)), small)
    texts = {
        "a's": "a" * _BODY, "mails": "a@b.co " * (_BODY // 7), "tags": "<a href=" * (_BODY // 8),
        "spaces": " " * _BODY, "quotes": "'\"" * (_BODY // 2), "dotless": "İ\u200b" * (_BODY // 8),
        "tokens": "xoxb-1-a " * (_BODY // 9), "digits": "4111 1111 1111 1111 " * (_BODY // 20),
        "code": "f(x);" * 39_000, "brackets": "(" * 190_000, "json": "[" * 900 + "]" * 900,
        "lines": "\n" * _BODY,
    }  # fmt: skip
    for rule, lines in _RULES.items():
        for name, text in texts.items():
            yield Attack(f"check: {rule} of {name}", _fixed(lines), _body(text))
    many = _body(*(f"hello world {number}" for number in range(300)))
    crowd = _body(*("x" for _ in range(3_000)))
    for name, lines in _MANY.items():
        yield Attack(f"check: {name}, 300 messages", _fixed(lines), many)
        yield Attack(f"check: {name}, 3,000 messages", _fixed(lines), crowd)
    yield Attack("text: 5 MB", _fixed(_RULES["find"]), _body("a@b.co " * 700_000))
    yield Attack("text: many parts", _fixed(_RULES["find"]), _body(*("x" for _ in range(20_000))))
    yield Attack("answer: 3 MB", _fixed(_RULES["find"]), small, answer=3_000_000)
    yield Attack("answer: 300 kB", _fixed(_RULES["detectors"]), small, answer=300_000)


def _rule(*lines: str, head: str = "") -> str:
    body = "\n".join(f"    {line}" for line in lines)
    return f'{head}\nraise PolicyViolation("x", m, m.content) if:\n{body}\n'


_PIECES: Final = {
    "parentheses": "(", "not": "not ", "lists": "[x for x in ", "names": "A := 1\n", "strings": '"""', "braces": "{a: ",
    "rules": 'raise "x" if: (m: Message)\n', "texts": "A", "members": "m.a.a.a.a.", "f-strings": "f'{x}{",
    "calls": "f(f(",
    "patterns": 'raise "x" if:\n    (m: Message)\n    match("(a{0,900}|b){0,1}", m.content)\n',
    "classes": 'raise "x" if:\n    (m: Message)\n    match("[\\\\w\\\\d]{0,60}\\\\W", m.content)\n',
    "case": 'raise "x" if:\n    (m: Message)\n    match("(?i)[a-zß-ÿ]{0,99}", m.content)\n',
    "plus": "A := 1" + " + 1" * 400 + "\n", "predicates": "p(a: str) :=\n    match(a, a)\n",
    "long names": "x" * 3000 + " := 1\n",
}  # fmt: skip

_M: Final = "(m: Message)"
_DETECTORS: Final = "from invariant.detectors import secrets, pii, unicode, copyright, prompt_injection, python_code"
_RULES: Final = {
    "find": _rule(_M, 'find("[a-z]+@[a-z]+[.][a-z]+", m.content)'),
    "evil find": _rule(_M, 'find("(?s)(.+)+(.+)+(.+)+=", m.content)', 'find("([a-z]+)*$", m.content)'),
    "unbreakable find": _rule(_M, 'find("(?:a?){400}(?:a){400}b", m.content)'),
    "quadratic find": _rule(_M, 'len(find("a.*z|a", m.content)) < 0'),
    "detectors": _rule(_M, "any(secrets(m)) or any(pii(m)) or any(unicode(m)) or any(copyright(m))",
                       "prompt_injection(m)", head=_DETECTORS),
    "python": _rule(_M, "(t: str) in text(m)", "p := python_code(t)", "p.syntax_error", head=_DETECTORS),
    "html": _rule(_M, "(t: str) in text(m)", "h := html_code(t)", "len(h.links) < 0",
                  head="from invariant.parsers import html_code"),
    "fuzzy": _rule(_M, 'any(fuzzy_contains(m.content, "ignore all of the previous instructions"))',
                   head="from invariant.detectors import fuzzy_contains"),
    "methods": _rule(_M, 'len(m.content.lower().upper().replace("a", "bb").split("b").strip()) < 0'),
    "words": _rule(_M, 'len(m.content.split()) + len(m.content.splitlines()) < 0'),
    "characters": _rule(_M, "len([c for c in m.content if (c in m.content) and (c == 1)]) > 0"),
    "itself": _rule(_M, 'm.content + "x" in m.content + m.content + m.content'),
    "format": _rule(_M, 'len("{}{}{}{}".format(m, m, m, m)) < 0', 'json_loads(f"{m}{m}")'),
    "json": _rule(_M, "json_loads(m.content) == json_loads(m.content)"),
    "all": _rule(_M),
}  # fmt: skip
_MANY: Final = {
    "four messages": _rule(_M, "(b: Message)", "(c: Message)", "(d: Message)", "m.content + d.content == b.content"),
    "flow": _rule("(m: Message) -> (b: Message) -> (c: Message)", "m.content + b.content == c.content"),
    "count": _rule(_M, "count(max=0):", "    (a: Message)", "    (b: Message)",
                   "    a.content + b.content == m.content", head="from invariant import count"),
    "every pair": _rule("(m: Message) -> (b: Message)", 'find("h|x", m.content)'),
    "whole input": _rule(_M, "(i: Input)", 'len(f"{i}") < 0'),
}  # fmt: skip


def _escaped(policy: str) -> str:
    return policy.encode("unicode_escape").decode()[:_HEADER]


def _fixed(policy: str) -> Callable[[], str]:
    escaped = _escaped(policy)
    return lambda: escaped


def _fresh(policy: str) -> Callable[[], str]:
    """Never the same twice, so that it is compiled each time."""
    return lambda: _escaped(f"# {next(_NUMBERS)}\n{policy}")


def _body(*texts: str) -> bytes:
    contents: list[Any] = [{"role": "user", "parts": [{"text": text}]} for text in texts]
    return json.dumps({"contents": contents}, ensure_ascii=False).encode()
