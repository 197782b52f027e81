"""How many policies of the stock engine's own tests and documentation load here.

Run as ``python -m tests.differential.compatibility [files]``.
Texts are read from the source distribution that ``make oracle`` unpacks, and from any files named as arguments:
strings handed to what loads or parses a policy, other strings that hold a rule, and fenced blocks of Markdown.
"""

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gemini_proxy.policy import PolicyError, compile_policy
from tests.differential.oracle import PYTHON, Oracle, OracleError, running_oracle

SOURCES: Final = PYTHON.parents[1] / "sources"
_LOADERS: Final = frozenset(("from_string", "parse"))
_RULE: Final = re.compile(r"^[ \t]*raise\b[^\n]*(?:\n[^\n]*)*?\bif[ \t]*:", re.MULTILINE)
_FENCE: Final = re.compile(r"^([ \t]*)(`{3,})[^\n]*\n(.*?)^[ \t]*\2", re.MULTILINE | re.DOTALL)
# What reaches files or the process: refused here whatever it would do.
_OUTSIDE: Final = re.compile(r"^[ \t]*(?:from|import)[ \t]+(?:invariant\.files|os)\b", re.MULTILINE)
# What needs a model, a program or a network: reported, and not part of the measure.
_ELSEWHERE: Final = re.compile(
    r"\b(semgrep|ocr|moderated|MODERATED|is_similar|embedding_similarity|llm|llm_confirm|ipython_code)\b"
)


@dataclass(frozen=True, slots=True)
class Text:
    """A policy, and the file and line it stands at."""

    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """What each engine says of a text: None where it loads, else why it does not."""

    text: Text
    there: str | None
    here: str | None

    @property
    def needs_more(self) -> bool:
        """Whether it uses what is not part of the measure."""
        return _ELSEWHERE.search(self.text.text) is not None

    @property
    def reaches_out(self) -> bool:
        """Whether it asks for files or the process."""
        return _OUTSIDE.search(self.text.text) is not None


def collect(paths: Iterable[Path]) -> list[Text]:
    """The policies in files and directories, each text once, in the order of their places."""
    files = sorted(file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]))
    found: dict[str, Text] = {}
    for file in files:
        if file.suffix in (".py", ".md", ".gr"):
            for line, text in _texts(file):
                found.setdefault(text, Text(f"{file.name}:{line}", text))
    return list(found.values())


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    source = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        yield from strings(source)
    elif file.suffix == ".md":
        yield from blocks(source)
    else:
        yield 1, source


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Policies in Python source, with their lines: what is handed to a loader, and strings that hold a rule."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _RULE.search(node.value):
            yield node.lineno, node.value
        elif isinstance(node, ast.Call) and _called(node.func) in _LOADERS and node.args:
            [text, *_] = node.args
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield text.lineno, text.value


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def blocks(source: str) -> Iterator[tuple[int, str]]:
    """Fenced blocks of Markdown that hold a rule, and policies in those that are Python, with their lines."""
    for fence in _FENCE.finditer(source):
        text = textwrap.dedent(fence.group(3))
        line = source.count("\n", 0, fence.start()) + 2
        if not _RULE.search(text):
            continue
        try:
            inner = list(strings(text))
        except SyntaxError:
            inner = []
        yield from ((line + at - 1, found) for at, found in inner) if inner else [(line, text)]


def compare(texts: Iterable[Text], oracle: Oracle) -> list[Row]:
    """Load each text in both engines."""
    return [Row(text, _there(text, oracle), _here(text)) for text in texts]


def _there(text: Text, oracle: Oracle) -> str | None:
    try:
        oracle.load(text.place, text.text)
    except OracleError as error:
        return str(error).splitlines()[0]
    return None


def _here(text: Text) -> str | None:
    try:
        compile_policy(text.text)
    except PolicyError as error:
        return f"{error.line}:{error.column} {error.reason}"
    return None


def report(rows: list[Row]) -> str:
    """The figures, and a line for each policy that loads there and not here."""
    loads = [row for row in rows if row.there is None]
    plain = [row for row in loads if not row.needs_more]
    lines = [
        f"all {len(rows)} texts: {_share(loads)}",
        f"without a model, a program or a network: {_share(plain)}",
        f"without files and the process either: {_share([row for row in plain if not row.reaches_out])}",
    ]
    for row in loads:
        if row.here is not None:
            lines.append(f"{row.text.place}{' (needs more)' if row.needs_more else ''}: {row.here}")
    return "\n".join(lines)


def _share(loads: list[Row]) -> str:
    both = sum(row.here is None for row in loads)
    return f"{len(loads)} load there, {both} of them here ({100 * both / max(1, len(loads)):.1f} %)"


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("paths", nargs="*", type=Path, default=[SOURCES], help="files and directories to read")
    arguments = parser.parse_args()
    try:
        with running_oracle() as oracle:
            print(report(compare(collect(arguments.paths), oracle)))
    except OracleError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
