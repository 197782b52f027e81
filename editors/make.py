"""Writes the TextMate grammar of policies from the words of the compiler: ``make grammar``.

As JSON for Visual Studio Code and JetBrains, and as a property list for Sublime Text and other editors.
"""

import json
import plistlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from gemini_proxy.policy import BUILTIN, OUTSIDE
from gemini_proxy.policy.vocabulary import Vocabulary, vocabulary

_HERE: Final = Path(__file__).parent
_SCOPE: Final = "source.gemini-proxy-policy"
_STRINGS: Final = {
    "double.block": ('"""', '"""'),
    "single.block": ("'''", "'''"),
    # A text ends with its line, unless a backslash stands before the line end.
    "double": ('"', r'"|(?<!\\)$'),
    "single": ("'", r"'|(?<!\\)$"),
}


def grammar(words: Vocabulary) -> dict[str, Any]:
    """Return the grammar. Of rules that match at one place the first one holds."""
    name = words.patterns["name"]
    called = [word.name for word in words.callables if word.role != "detector"]
    detectors = [word.name for word in words.callables if word.role == "detector"]
    return {
        "name": "gemini-proxy policy",
        "scopeName": _SCOPE,
        "fileTypes": ["gr"],
        "patterns": [
            _match("comment.line.number-sign", "#.*$"),
            *(_string(kind, start, end) for kind, (start, end) in _STRINGS.items()),
            _captured(
                r"\b(is)(?:\s+(not))?\s+" + _group(words.patterns["tool"]), "keyword", "keyword", "entity.name.tool"
            ),
            _captured(rf"(\.)\s*({name})", "punctuation.accessor", "variable.other.property"),
            _captured(rf"<({_one_of(words.entities)})>", "constant.other.entity"),
            _match("keyword", _word(words.keywords)),
            _match("constant.language", _word(words.constants)),
            _match("support.type", _word((*words.kinds, *words.types))),
            _match("support.class.detector", _word(detectors)),
            _match("support.function", _word(called)),
            _captured(rf"^\s*({name})\s*(?=\([^)]*\)\s*:=)", "entity.name.function"),
            _match("constant.numeric", rf"\b(?:{words.patterns['number']})|(?<!\w)\.\d+"),
            _match("variable.other", name),
            _match("keyword.operator", _operators(words.patterns["operator"])),
        ],
    }


def _group(pattern: str) -> str:
    """Return a pattern as one group: groups within it capture nothing."""
    return "(" + re.sub(r"(?<!\\)\((?!\?)", "(?:", pattern) + ")"


def _operators(pattern: str) -> str:
    """Return the pattern of operators without punctuation, which has no color."""
    return rf"(?![()\[\]{{}},.]|:(?!=))(?:{pattern})"


def _match(scope: str, pattern: str) -> dict[str, Any]:
    return {"name": f"{scope}.policy", "match": pattern}


def _captured(pattern: str, *scopes: str) -> dict[str, Any]:
    return {
        "match": pattern,
        "captures": {str(number): {"name": f"{scope}.policy"} for number, scope in enumerate(scopes, start=1)},
    }


def _string(kind: str, start: str, end: str) -> dict[str, Any]:
    return {
        "name": f"string.quoted.{kind}.policy",
        "begin": f"(?:\\b[rRfF]{{1,2}})?{start}",
        "end": end,
        "patterns": [_match("constant.character.escape", r"\\.")],
    }


def _one_of(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words)))


def _word(words: Iterable[str]) -> str:
    return rf"\b(?:{_one_of(words)})\b"


def made() -> Mapping[Path, bytes]:
    """Return the files by their paths."""
    rules = grammar(vocabulary(BUILTIN.with_detectors(*OUTSIDE)))
    return {
        _HERE / "vscode/syntaxes/policy.tmLanguage.json": f"{json.dumps(rules, indent=2)}\n".encode(),
        _HERE / "policy.tmLanguage": plistlib.dumps(rules, sort_keys=False),
    }


if __name__ == "__main__":
    for path, content in made().items():
        path.write_bytes(content)
