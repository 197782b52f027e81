"""The measure of how many of the stock engine's own policies load here: what it reads, and what it found."""

import textwrap
from pathlib import Path

import pytest

from tests.differential.compatibility import SOURCES, Row, Text, blocks, collect, compare, report, strings
from tests.differential.oracle import MISSING, PYTHON, running_oracle

RULE = 'raise "x" if:\n    (m: Message)\n    True\n'


def test_policies_in_python_are_found() -> None:
    """What a loader is given, and any string with a rule."""
    source = f"p = Policy.from_string('x := 1')\ntext = {RULE!r}\nother = 'nothing'\n"
    assert {(1, "x := 1"), (2, RULE)} == set(strings(source))


def test_policies_in_markdown_are_found() -> None:
    """Fenced blocks with a rule, and those in a block of Python."""
    python = f'policy = """\n{RULE}"""\n'
    source = (
        f"# A\n\n```guardrail\n{RULE}```\n\n```json\n[]\n```\n\n  ```python\n{textwrap.indent(python, '  ')}  ```\n"
    )
    assert [(4, RULE), (14, f"\n{RULE}")] == list(blocks(source))


def test_a_text_is_collected_once(tmp_path: Path) -> None:
    """From whatever files."""
    for name in ("a.gr", "b.gr"):
        (tmp_path / name).write_text(RULE)
    assert [Text("a.gr:1", RULE)] == collect([tmp_path])


def test_the_report_counts_what_needs_no_more() -> None:
    """Policies that need a model, or reach for files, are told apart, and each that does not load has its reason."""
    rows = [
        Row(Text("a", RULE), None, None),
        Row(Text("b", "llm(x)"), None, "1:1 no"),
        Row(Text("c", ""), "bad", None),
        Row(Text("d", "from invariant.files import tree"), None, "1:13 no"),
    ]
    assert report(rows).splitlines() == [
        "all 4 texts: 3 load there, 1 of them here (33.3 %)",
        "without a model, a program or a network: 2 load there, 1 of them here (50.0 %)",
        "without files and the process either: 1 load there, 1 of them here (100.0 %)",
        "b (needs more): 1:1 no",
        "d: 1:13 no",
    ]


def test_the_stock_engines_own_policies_load() -> None:
    """At least 19 of 20 of those that ask for no file; what is left means nothing, or not what it says."""
    if not PYTHON.exists() or not SOURCES.exists():
        pytest.skip(MISSING)
    with running_oracle() as oracle:
        rows = [row for row in compare(collect([SOURCES]), oracle) if row.there is None and not row.needs_more]
    inside = [row for row in rows if not row.reaches_out]
    assert len(inside) > 100
    assert sum(row.here is None for row in inside) >= 0.95 * len(inside), report(rows)
