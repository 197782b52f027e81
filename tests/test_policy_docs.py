"""Everything that docs/policies.md shows is so: its policies load, its commands print what it says."""

import asyncio
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gemini_proxy.cli import main
from gemini_proxy.guardrails.header_policy import MAX_HEADER_POLICY
from gemini_proxy.guardrails.plugins import load_policy
from gemini_proxy.policy import OUTSIDE, Budget, format_policy
from gemini_proxy.policy.compile.compiler import MAX_CHARS
from gemini_proxy.policy.compile.imports import UNAVAILABLE
from gemini_proxy.policy.detectors.builtin import BUILTIN
from gemini_proxy.policy.detectors.pii import ENTITIES
from gemini_proxy.policy.policy import MAX_VIOLATIONS
from gemini_proxy.policy.run.builtins import FUNCTIONS
from gemini_proxy.policy.run.events import FIELDS
from gemini_proxy.policy.run.methods import ARITY
from gemini_proxy.policy.run.ranges import MAX_RANGES
from gemini_proxy.traces.store import TraceStore
from gemini_proxy.traces.trace import Outcome, Trace
from tests.traces.samples import url

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "policies.md").read_text()


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it stands for (if any), and its text."""

    language: str
    file: str
    text: str


BLOCKS = [
    Block(language, file.strip(), text)
    for language, file, text in re.findall(r"^```(\w+)( [\w.-]+)?\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
]


def traces() -> Iterator[Trace]:
    """The shop's: the leak of the tutorial, and two exchanges that are as they should be."""

    def call(number: int, name: str, **arguments: str) -> dict[str, object]:
        function = {"name": name, "arguments": arguments}
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}],
        }

    def output(number: int, content: object) -> dict[str, object]:
        return {"role": "tool", "tool_call_id": f"call_{number}", "content": content}

    asked: list[dict[str, object]] = [
        {"role": "user", "content": "Where is my parcel?"},
        call(1, "get_customer", mail="ann@example.com"),
    ]
    known = [*asked, output(1, {"name": "Ann", "number": "CU-204517"})]
    conversations: list[list[dict[str, object]]] = [
        [*known, call(2, "web_search", query="parcel of customer CU-204517")],
        [*known, call(2, "find_parcel", customer="CU-204517")],
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello."}],
    ]
    for number, messages in enumerate(conversations):
        identity = f"7c1d200{number}-0000-4000-8000-000000000000"
        yield Trace(identity, 1_790_000_000.0, Outcome.COMPLETED, messages, dataset="shop", model="gemini-2.5-flash")


def fits(expected: str, printed: str) -> bool:
    """Line by line but for trailing space; ``...`` stands for anything, alone on a line for any lines."""
    wanted = [line.rstrip() for line in expected.rstrip().splitlines()]
    pattern = "".join(
        r"(?:.*\n)*" if line == "..." else f"{re.escape(line).replace(re.escape('...'), '.*')} *\n" for line in wanted
    )
    return re.fullmatch(pattern, f"{printed.rstrip()}\n" if printed.strip() else "") is not None


def shown(console: str) -> Iterator[tuple[list[str], str]]:
    """Each ``$ command`` of a console block with the output below it."""
    for piece in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        command, _, output = piece.partition("\n")
        yield shlex.split(command), output


def test_the_tutorial_is_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is written where it is shown, and each command prints what is shown below it."""
    monkeypatch.chdir(tmp_path)

    async def record() -> None:
        store = await TraceStore.open(url(tmp_path / "gemini-proxy.db"))
        await store.add(list(traces()))
        await store.close()

    asyncio.run(record())
    ran = 0
    for block in BLOCKS:
        if block.file:
            (tmp_path / block.file).write_text(block.text)
        elif block.language == "console":
            for (program, *arguments), expected in shown(block.text):
                assert program == "gemini-proxy"
                result = CliRunner(env={"COLUMNS": "120"}).invoke(main, arguments)
                assert fits(expected, result.output), f"{arguments}\n{result.output}\nis not\n{expected}"
                ran += 1
    assert ran >= 6


def test_fits_tells_outputs_apart() -> None:
    """The comparison above can fail."""
    assert fits("a ... c\n...\nd\n", "a b c  \nx\ny\nd\n")
    assert not fits("a\n", "b\n")
    assert not fits("a\n", "a\nb\n")
    assert not fits("a ... c\n", "a\nc\n")
    assert fits("", "") and not fits("", "a\n")


@pytest.mark.parametrize(
    "text", [block.text for block in BLOCKS if block.language == "policy"], ids=lambda text: text.split("\n")[2]
)
def test_policies_load(text: str) -> None:
    """Every policy shown loads without a warning, but for those with the mistakes that are shown to be found."""
    meant = text.replace("serach", "search").replace('role == "model"', 'role == "assistant"')
    assert load_policy(meant, "shown", asks=True).warnings == ()


@pytest.mark.parametrize(
    "text", [block.text for block in BLOCKS if block.language == "policy"], ids=lambda text: text.split("\n")[2]
)
def test_policies_are_in_the_standard_form(text: str) -> None:
    assert format_policy(text, "shown") == text


def test_every_command_of_the_group_is_shown() -> None:
    """check, fmt, test, backtest, list and copy."""
    group = main.get_command(click.Context(main), "policy")
    assert isinstance(group, click.Group)
    for name in group.commands:
        assert re.search(rf"^\$ gemini-proxy policy {name}\b", TEXT, re.MULTILINE), name


def test_the_reference_names_everything() -> None:
    """Kinds and fields, functions, methods, detectors with their options, entities: all stand there as code."""
    named = set(re.findall(r"[A-Za-z_]+", " ".join(re.findall(r"`([^`\n]+)`", TEXT))))
    language = {
        *FIELDS,
        *FUNCTIONS,
        *ARITY,
        *BUILTIN.names,
        *(detector.name for detector in OUTSIDE),
        *ENTITIES,
        *UNAVAILABLE,
        "find",
        "match",
        "count",
        "forall",
    }
    language |= {field for fields in FIELDS.values() for field in fields}
    language |= {option for detector in (*BUILTIN.detectors.values(), *OUTSIDE) for option in detector.options}
    # A module of its own name in the stock language, which does what semgrep does.
    language.discard("is_dangerous_code")
    assert language - named == set()


def test_the_library_is_listed() -> None:
    """Every policy that comes with the proxy, and none that does not."""
    listed = re.findall(r"^\| `([\w-]+\.gr)` \|", TEXT, re.MULTILINE)
    assert sorted(listed) == sorted(file.name for file in (ROOT / "policies").glob("*.gr"))


def test_bounds_are_as_stated() -> None:
    """The table of budgets has the engine's numbers."""
    budgets = TEXT.partition("### Budgets")[2].partition("\n## ")[0]
    stated = {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d", budgets)}
    budget = Budget()
    bounds = {budget.steps, budget.max_chars, budget.max_total_chars, budget.max_items}
    assert bounds | {MAX_VIOLATIONS, MAX_RANGES, MAX_CHARS, MAX_HEADER_POLICY} <= stated


def test_links_within_the_document_lead_somewhere() -> None:
    """Each anchor is a heading's."""
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) - anchors == set()
