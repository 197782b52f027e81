"""What every command takes: ``--config`` before or after it, ``-h``; the program's ``-V``; and what it imports."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main
from tests.support.sqlite import make_database


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that lead to ``command`` and to each one below it."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, (*path, name))


def invoke(*words: str, **variables: str) -> Result:
    return CliRunner(env={"GEMINI_PROXY_CONFIG": None, "COLUMNS": "120", **variables}).invoke(main, words)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two configurations, each with a database of its own that is not there."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(f'[traces]\ndatabase = "sqlite:///{name}.db"\n')
    return tmp_path


@pytest.mark.parametrize("path", list(commands(main)), ids=" ".join)
def test_every_command_has_help_and_takes_a_configuration(path: tuple[str, ...]) -> None:
    for flag in ("-h", "--help"):
        result = invoke(*path, flag)
        assert result.exit_code == 0
        assert "--config PATH" in result.output and "-h, --help" in result.output


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "a.toml", "traces", "list"],
        ["traces", "--config", "a.toml", "list"],
        ["traces", "list", "--config", "a.toml"],
        ["traces", "list", "--config=a.toml", "--limit", "1"],
        ["--config", "a.toml", "traces", "--config", "./a.toml", "list", "--config", "a.toml"],
    ],
)
def test_a_configuration_is_given_before_or_after_the_command(folder: Path, words: list[str]) -> None:
    """What is named on the command line holds, not what a variable names."""
    for variables in ({}, {"GEMINI_PROXY_CONFIG": "b.toml"}):
        result = invoke(*words, **variables)
        assert (result.exit_code, result.output) == (1, "Error: there is no trace database at a.db\n")


def test_a_variable_names_the_configuration(folder: Path) -> None:
    assert "at b.db" in invoke("traces", "list", GEMINI_PROXY_CONFIG="b.toml").output


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "a.toml", "traces", "list", "--config", "b.toml"],
        ["traces", "--config", "a.toml", "list", "--config", "b.toml"],
        ["--config", "a.toml", "serve", "--config", "b.toml"],
        ["--config", "a.toml", "check-config", "--config", "b.toml"],
    ],
)
def test_two_configurations_are_wrong_usage(folder: Path, words: list[str]) -> None:
    result = invoke(*words)
    assert result.exit_code == 2
    assert result.output.endswith("Error: --config is given twice: a.toml and b.toml\n")


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version(flag: str) -> None:
    result = invoke(flag)
    assert (result.exit_code, result.output) == (0, f"gemini-proxy, version {version('gemini-proxy')}\n")


def imported_by(*words: str) -> set[str]:
    """The top-level modules that ``gemini-proxy WORDS`` has imported when it ends."""
    program = """
import sys
from gemini_proxy.cli import main
try:
    main(sys.argv[1:], prog_name="gemini-proxy")
finally:
    print("imported", *{name.partition(".")[0] for name in sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split()[1:])


# What takes longer to import than the whole of the program before it does anything.
HEAVY = {
    "aiohttp",
    "alembic",
    "jinja2",
    "orjson",
    "prometheus_client",
    "pydantic",
    "re2",
    "rich",
    "sqlalchemy",
    "structlog",
}


@pytest.mark.parametrize("words", [["--version"], ["--help"], []], ids=str)
def test_asking_for_words_imports_nothing_heavy(words: list[str]) -> None:
    """Neither the server nor the store."""
    assert imported_by(*words) & HEAVY == set()


def test_a_healthcheck_imports_no_server_and_no_store(folder: Path) -> None:
    """Containers run it every few seconds."""
    imported = imported_by("--config", "a.toml", "healthcheck", "--timeout", "0.01")
    assert "pydantic" in imported
    assert imported & {"aiohttp", "alembic", "jinja2", "re2", "rich", "sqlalchemy"} == set()


def test_a_database_of_the_present_schema_is_opened_without_alembic(folder: Path) -> None:
    """Importing it is a tenth of a start."""
    make_database(folder / "a.db")
    imported = imported_by("--config", "a.toml", "keys", "add", "me")
    assert "sqlalchemy" in imported and "alembic" not in imported


def test_help_says_of_commands_what_they_say_themselves() -> None:
    """The lines of the list, which is made without them, are the first sentences of their own help."""
    context = click.Context(main)
    for name, entry in main.entries.items():
        command = main.get_command(context, name)
        assert command is not None and command.help is not None
        summary = " ".join(command.help.partition("\n\n")[0].split())
        assert summary.startswith(entry.summary), name
