"""What the repository says about itself is so."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic import BaseModel

from gemini_proxy.cli import main
from gemini_proxy.cli.demo import POLICY as DEMO
from gemini_proxy.config import Config, load_config
from gemini_proxy.policy import Conversation, compile_policy
from tests.support.keys import each_kind

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "config.example.toml"


def defaults(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Every key of the configuration with its value, sections taken apart: ``{"server.loop": "asyncio"}``."""
    found: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            found |= defaults(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


DEFAULTS = defaults(Config.model_construct())


def example_values() -> dict[str, Any]:
    """What the example sets, in the form of ``defaults``."""
    found = flat(tomllib.loads(EXAMPLE.read_text()))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A table's keys with those of the sections within it; a table that is one key's value stays whole."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        key = prefix + name
        found |= flat(value, f"{key}.") if isinstance(value, dict) and key not in DEFAULTS else {key: value}
    return found


def commented_keys() -> list[str]:
    """The keys that the example shows in a comment, such as ``# api_key = "..."``."""
    section = ""
    found: list[str] = []
    for line in EXAMPLE.read_text().splitlines():
        if header := re.fullmatch(r"\[([a-z._]+)\]", line):
            section = header[1]
        elif key := re.match(r"# ([a-z_]+) = ", line):
            found.append(f"{section}.{key[1]}")
    return found


def test_the_example_configuration_has_every_key_with_its_default() -> None:
    """A key that has no default is shown in a comment; there is nothing else in the file."""
    unset = sorted(key for key, value in DEFAULTS.items() if value is None)
    assert sorted(commented_keys()) == unset
    assert example_values() == {key: value for key, value in DEFAULTS.items() if value is not None}


def test_the_example_configuration_changes_nothing() -> None:
    """Loading it is loading none."""
    assert load_config(EXAMPLE) == load_config()


def limits() -> list[tuple[str, str]]:
    """The rows of SECURITY.md that name a limit: its name and its value."""
    text = (ROOT / "SECURITY.md").read_text()
    return re.findall(r"^\| `([\w.]+)` \| ([\d.]+) \|", text.partition("## Limits")[2], re.MULTILINE)


def value_of(name: str) -> object:
    """The value of a configuration key, of a constant, or of the default of a value's field."""
    if name in DEFAULTS:
        return DEFAULTS[name]
    module, _, attribute = name.rpartition(".")
    if module.rpartition(".")[2][0].isupper():
        module, _, kind = module.rpartition(".")
        return getattr(getattr(importlib.import_module(module), kind)(), attribute)
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(("name", "stated"), limits())
def test_limits_are_as_stated(name: str, stated: str) -> None:
    """Each limit of SECURITY.md exists and has the stated value."""
    assert float(stated) == value_of(name)


def test_all_limits_are_stated() -> None:
    """SECURITY.md lists every configured number that bounds something, and every public ``MAX_`` constant."""
    configured = {key for key, value in DEFAULTS.items() if isinstance(value, int | float) and type(value) is not bool}
    # How much stays behind is no bound.
    configured.discard("guardrails.window_overlap")
    public = {
        f"{'.'.join(file.relative_to(ROOT / 'src').with_suffix('').parts)}.{name}"
        for file in (ROOT / "src").rglob("*.py")
        for name in re.findall(r"^(MAX_\w+)\b.* = ", file.read_text(), re.MULTILINE)
    }
    assert (configured | public) - {name for name, _ in limits()} == set()


def test_configuration_keys_in_prose_exist() -> None:
    """Whatever a document calls ``section.key`` is a key."""
    sections = "|".join(Config.model_fields)
    for document in (
        "SECURITY.md",
        "README.md",
        "CHANGELOG.md",
        "docs/policies.md",
        "docs/explorer.md",
        "docs/operations.md",
    ):
        named = re.findall(rf"`((?:{sections})\.[a-z_.]+)(?: = [^`]*)?`", (ROOT / document).read_text())
        assert set(named) - set(DEFAULTS) == set(), document


def test_the_readme_names_make_targets_that_exist() -> None:
    """A newcomer finds how to run, see and check the project, and make knows every word shown."""
    shown = set(re.findall(r"^\s*make ([a-z]+)", code_of((ROOT / "README.md").read_text()), re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"run", "demo", "test"} - shown == set()
    assert shown - targets == set()


@each_kind
def test_the_first_policies_know_the_keys_of_today(key: str) -> None:
    """Those of the README and of the demo: a newcomer tries them with a key of their own."""
    shown = re.search(r"as `first[.]gr`:\n\n((?: {4}.*\n|\n)+)", (ROOT / "README.md").read_text())
    assert shown is not None
    said = Conversation.of([{"role": "user", "content": f"Is {key} still valid?"}])
    for policy in (textwrap.dedent(shown[1]), DEMO):
        assert [violation.ranges for violation in compile_policy(policy).check(said)] == [
            (f"messages.0.content:3-{3 + len(key)}",)
        ]


def code_of(text: str) -> str:
    """The lines of a Markdown document that are code: fenced, indented by four, or a span of their own."""
    code = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    code += re.findall(r"^ {4}.*", text, re.MULTILINE)
    code += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    return "\n".join(code).replace("\\\n", " ")


def shown_commands(text: str) -> Iterator[list[str]]:
    """The words behind ``gemini-proxy`` in each command line of a document's code, up to a shell operator."""
    command = re.compile(r"^\s*(?:\$ )?(?:\w+=\S+ )*(?:[\w./-]+/)?gemini-proxy (.*)$", re.MULTILINE)
    for line in command.findall(code_of(text)):
        yield shlex.split(re.split(r"\s[|&;>#]", f" {line}")[0].replace("[", "").replace("]", ""))


def refuse_unknown(words: list[str], command: click.Command = main) -> None:
    """Raise AssertionError for a subcommand or an option that the command line does not have."""
    rest = list(words)
    options = {name: option for option in command.params for name in (*option.opts, *option.secondary_opts)}
    while rest:
        word = rest.pop(0)
        if word.startswith("-") and word != "-":
            name, _, value = word.partition("=")
            assert name in options or name == "--help", f"{command.name} has no {name}"
            option = options.get(name)
            if isinstance(option, click.Option) and not option.is_flag and not value:
                rest.pop(0)
        elif isinstance(command, click.Group):
            for choice in word.split("|"):
                chosen = command.get_command(click.Context(command), choice)
                assert chosen is not None, f"{command.name} has no {choice}"
                refuse_unknown(rest, chosen)
            return


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CHANGELOG.md",
        "config.example.toml",
        "deploy/gemini-proxy.service",
        "docs/policies.md",
        "docs/explorer.md",
        "docs/operations.md",
    ],
)
def test_shown_commands_exist(document: str) -> None:
    """Every ``gemini-proxy ...`` in a document's code is a command, with options that it takes."""
    text = (ROOT / document).read_text()
    if not document.endswith(".md"):
        text = f"```\n{re.sub('^(?:#   |ExecStart=)', '', text, flags=re.MULTILINE)}\n```\n"
    commands = list(shown_commands(text))
    assert commands
    for words in commands:
        refuse_unknown(words)


@pytest.mark.parametrize(
    "line",
    ["gemini-proxy nowhere", "gemini-proxy traces lost", "gemini-proxy serve --fast", "$ .venv/bin/gemini-proxy x"],
)
def test_commands_that_do_not_exist_are_found(line: str) -> None:
    """The reader of the documents is not blind."""
    (words,) = shown_commands(f"```sh\n{line} | cat\n```\n")
    with pytest.raises(AssertionError):
        refuse_unknown(words)


def repository_files() -> list[Path]:
    """What git tracks or would track; in a bare source tree, what is not made by tools."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if (ROOT / ".git").exists() and shutil.which("git"):
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True)
        found = [ROOT / name.decode() for name in done.stdout.split(b"\0") if name]
    else:
        folders = ("src", "tests", "bench", "deploy", "docs", "policies", ".ci")
        found = [*ROOT.glob("*.*"), *(file for folder in folders for file in (ROOT / folder).rglob("*"))]
    return [file for file in found if file.is_file() and file.suffix not in (".pyc", ".png")]


def test_nothing_depends_on_the_machine_it_was_written_on() -> None:
    """No file names the author's folders, or a package registry: both are the user's own choice."""
    # In pieces, for this file is looked at as well.
    foreign = re.compile(
        rb"(?<![\w.-])/wo"
        + rb"rk(?![\w-])|/root"
        + rb"/|pypi\."
        + rb"org|pythonhost"
        + rb"ed\.org|npmjs\."
        + rb"(?:com|org)"
        rb"|deb\.deb" + rb"ian\.org|archive\.ubu" + rb"ntu\.com"
    )
    files = repository_files()
    assert EXAMPLE in files
    assert [str(file.relative_to(ROOT)) for file in files if foreign.search(file.read_bytes())] == []


def test_scripts_of_others_are_named_with_their_licences() -> None:
    """What the pages load of npm's packages: each in the version of the lock file, and none is missing."""
    lock = json.loads((ROOT / "vendor/package-lock.json").read_text())["packages"]
    versions = {path.removeprefix("node_modules/"): package["version"] for path, package in lock.items() if path}
    text = (ROOT / "src/gemini_proxy/explorer/pages/static/vendor/codemirror.LICENSE").read_text()
    named = dict(re.findall(r"^((?:@[a-z]+/)?[a-z0-9-]+) (\d+\.\d+\.\d+)$", text, re.MULTILINE))
    assert named.items() <= versions.items() and lock[""]["dependencies"].items() <= named.items()
    assert text.count("Permission is hereby granted, free of charge") >= 1


def test_every_document_is_a_page_of_the_site() -> None:
    """By name in the navigation, or it would be built and found by nobody."""
    listed = set(re.findall(r"^ +- [^:]+: ([a-z-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert {document.name for document in (ROOT / "docs").glob("*.md")} <= listed
