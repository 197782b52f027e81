"""The grammar in ``editors/`` is that of the language: made from the words of today, and true to the lexer."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from gemini_proxy.policy.parse.lexer import Token, tokenize

ROOT = Path(__file__).parents[1]
EDITORS = ROOT / "editors"
GRAMMAR: Any = json.loads((EDITORS / "vscode/syntaxes/policy.tmLanguage.json").read_text())
SAMPLE = '''\
from invariant.detectors import pii as found
LIMIT := 1_000.5 # "no text"
small(x: int) :=
    x <= LIMIT
raise PolicyViolation(f"it's {LIMIT}", from_="a\\"b") if:
    (c: ToolCall) ~> (o: ToolOutput)
    c is tool:send.mail({to: <EMAIL_ADDRESS>, text: """two
# lines"""}) or not c is not tool:x
    o.not == None
'''


def test_the_files_are_those_of_the_code() -> None:
    """``make grammar`` would write the same."""
    made: dict[Path, bytes] = runpy.run_path(str(EDITORS / "make.py"))["made"]()
    assert len(made) == 2
    for path, content in made.items():
        assert path.read_bytes() == content, f"{path.name} is old: make grammar"


def test_the_extension_names_its_files() -> None:
    package = json.loads((EDITORS / "vscode/package.json").read_text())
    [language], [grammar] = package["contributes"]["languages"], package["contributes"]["grammars"]
    assert (EDITORS / "vscode" / grammar["path"]).is_file() and (
        EDITORS / "vscode" / language["configuration"]
    ).is_file()
    assert (grammar["language"], grammar["scopeName"]) == (language["id"], GRAMMAR["scopeName"])


def scopes(text: str) -> list[str]:
    """The scope of each character, as editors find it: line by line, of the rules that match first the first one."""
    found: list[str] = []
    inside: dict[str, Any] | None = None
    for line in text.splitlines(keepends=True):
        at = 0
        names = [""] * len(line)
        while at <= len(line):
            rules = (
                GRAMMAR["patterns"] if inside is None else [{"match": inside["end"], "ends": True}, *inside["patterns"]]
            )
            matches = [(match, rule) for rule in rules if (match := _find(rule, line, at))]
            name = "" if inside is None else inside["name"]
            if not matches:
                names[at:] = [name] * (len(line) - at)
                break
            match, rule = min(matches, key=lambda pair: pair[0].start())
            names[at : match.start()] = [name] * (match.start() - at)
            names[match.start() : match.end()] = [rule.get("name", name)] * (match.end() - match.start())
            for group, capture in rule.get("captures", {}).items():
                start, end = match.span(int(group))
                names[start:end] = [capture["name"]] * (end - start)
            inside = rule if "begin" in rule else None if "ends" in rule else inside
            at = match.end() + (match.end() == match.start())
        found += names
    return found


def _find(rule: dict[str, Any], line: str, at: int) -> re.Match[str] | None:
    return re.compile(rule.get("match") or rule["begin"]).search(line.rstrip("\n"), at)


def expected(token: Token, before: Token | None) -> str:
    """The beginning of the scope that a token should have."""
    if token.kind == "name" and before is not None and before.text == ".":
        return "variable.other.property"
    if token.kind == "name" and token.text in {"from", "import", "raise", "if", "for", "in", "is", "not", "and", "or"}:
        return "keyword"
    kinds = {"number": "constant.numeric", "string": "string.quoted", "tool": "entity.name.tool"}
    return kinds.get(token.kind, "keyword.operator" if token.text in (":=", "->", "~>", "==", "<=") else "")


@pytest.mark.parametrize("file", [None, *sorted((ROOT / "policies").glob("*.gr"))], ids=lambda file: file and file.stem)
def test_each_token_has_its_colour(file: Path | None) -> None:
    """Of a sample with what is hard to tell apart, and of every policy that comes with the proxy."""
    text = SAMPLE if file is None else file.read_text()
    coloured = scopes(text)
    before = None
    for token in tokenize(text):
        if token.text.strip():
            assert coloured[token.start].startswith(expected(token, before)), (token, coloured[token.start])
            assert token.kind == "string" or not coloured[token.start].startswith(("string", "comment")), token
            before = token
    comments = [match.start() for match in re.finditer(r"^#.*", text, re.MULTILINE) if file is not None]
    assert {coloured[at] for at in comments} <= {"comment.line.number-sign.policy"}


def test_the_sample_shows_every_scope() -> None:
    """Each rule of the grammar holds somewhere: none is hidden by those before it."""
    named = {rule["name"] for rule in GRAMMAR["patterns"] if "name" in rule}
    named |= {capture["name"] for rule in GRAMMAR["patterns"] for capture in rule.get("captures", {}).values()}
    rest = "any(find('x', 1))\n'''a'''\n"
    assert named - set(scopes(SAMPLE + rest)) == set()
