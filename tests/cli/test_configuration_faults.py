"""What is wrong with a configuration, in words and by exit code, from ``serve`` and ``check-config`` alike."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main
from tests.cli.process import write_config

COMMANDS = pytest.mark.parametrize("command", ["serve", "check-config"])


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GEMINI_PROXY_")]:
        monkeypatch.delenv(name)


def invoke(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), *arguments])


@COMMANDS
@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("server", {"listen": ["nonsense"]}, ["server.listen", "nonsense", '"host:port" or "unix:/path"']),
        ("server", {"listen": ["127.0.0.1:99999"]}, ["server.listen", "99999", "host:port"]),
        ("server", {"loop": "trio"}, ["server.loop", "'trio'", "'asyncio' or 'uvloop'"]),
        ("server", {"lisen": ["127.0.0.1:1"]}, ["server.lisen", "unknown key", 'did you mean "listen"']),
        ("server", {"max_request_bytes": "much"}, ["server.max_request_bytes", "'much'", "integer"]),
        ("upstream", {"base_url": "http://example.com"}, ["upstream.base_url", "http://example.com", "https"]),
        ("upstream", {"read_timeout": -1}, ["upstream.read_timeout", "-1", "greater than 0"]),
        ("guardrails", {"stream_check": "sometimes"}, ["guardrails.stream_check", "'sometimes'", "'hold'"]),
        ("guardrails", {"policies": ["gone/*.gr"]}, ["guardrails.policies", "gone/*.gr", "no file"]),
        ("traces", {"database": "mysql://x"}, ["traces.database", "'mysql://x'", "sqlite:///FILE"]),
        ("nonsense", {"a": 1}, ["nonsense", "unknown"]),
    ],
)
def test_a_fault_names_key_value_and_what_was_expected(
    tmp_path: Path, command: str, section: str, values: Mapping[str, object], expected: list[str]
) -> None:
    result = invoke(write_config(tmp_path, "config.toml", **{section: values}), command)
    assert result.exit_code == 78
    assert result.stdout == ""
    for words in expected:
        assert words in result.stderr


@COMMANDS
@pytest.mark.parametrize("address", ["0.0.0.0:8005", "[::]:8005", "192.0.2.1:80", "example.com:80"])
def test_open_access_is_for_this_machine_only(tmp_path: Path, command: str, address: str) -> None:
    """An address that others reach, with open access, does not start."""
    result = invoke(write_config(tmp_path, server={"listen": [address]}), command)
    assert result.exit_code == 78
    assert address in result.stderr and 'access.mode = "open"' in result.stderr


@COMMANDS
def test_a_policy_fault_names_file_line_column_and_reason(tmp_path: Path, command: str) -> None:
    """Every broken file is reported, with the line and a mark under the place."""
    (tmp_path / "one.gr").write_text('raise "no" if:\n    (m: Message)\n    m.content = 1\n')
    (tmp_path / "two.gr").write_text('raise "no" if:\n    (m: Mesage)\n')
    result = invoke(write_config(tmp_path, guardrails={"policies": ["*.gr"]}), command)
    assert result.exit_code == 78
    lines = result.stderr.splitlines()
    (first,) = [line for line in lines if line.startswith("one.gr:3:")]
    (second,) = [line for line in lines if line.startswith("two.gr:2:")]
    for fault in (first, second):
        _, line, column, reason = fault.split(":", 3)
        assert line.isdecimal() and column.isdecimal() and reason.strip()
    assert any(line.strip().strip("^~") == "" and "^" in line for line in lines)


def test_a_configuration_that_can_be_used(tmp_path: Path) -> None:
    """check-config says what it found, and makes no database."""
    (tmp_path / "rule.gr").write_text('raise "no" if:\n    (m: Message)\n    "x" in m.content\n')
    result = invoke(write_config(tmp_path, guardrails={"policies": ["rule.gr"]}), "check-config")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "1 blocking and 0 logging" in result.stdout
    assert not (tmp_path / "traces.db").exists()


@COMMANDS
@pytest.mark.parametrize(
    ("content", "words"), [(b"[server\n", "line 1"), (b"\xff\xfe", "not UTF-8"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read(tmp_path: Path, command: str, content: bytes | None, words: str) -> None:
    file = tmp_path / "config.toml"
    if content is not None:
        file.write_bytes(content)
    result = invoke(file, command)
    assert result.exit_code == 78
    assert str(file) in result.stderr and words in result.stderr


@COMMANDS
def test_a_variable_that_names_no_section(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error in a variable is a fault too, not a setting that silently does nothing."""
    monkeypatch.setenv("GEMINI_PROXY_SERVR__LOOP", "uvloop")
    result = invoke(write_config(tmp_path), command)
    assert result.exit_code == 78
    assert "GEMINI_PROXY_SERVR__LOOP" in result.stderr and "server" in result.stderr


@pytest.mark.parametrize("arguments", [["nonsense"], ["serve", "--nonsense"], ["serve", "more"]])
def test_usage(arguments: list[str]) -> None:
    """What is not a command, an option or an argument is exit code 2."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
