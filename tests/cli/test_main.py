"""What every command takes: ``--config`` before or after it, ``-h``; and the program's ``-V``."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that lead to ``command`` and to each one below it."""
    yield path
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
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
