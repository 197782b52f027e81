"""``gemini-proxy audit`` on a database that a server may be using."""

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose database holds three changes."""
    file = tmp_path / "config.toml"
    file.write_text(f'[traces]\ndatabase = "sqlite:///{tmp_path}/traces.db"\n')
    for words in (("keys", "add", "ada"), ("keys", "revoke", "ada"), ("keys", "add", "bob", "--role", "client")):
        assert CliRunner().invoke(main, ["--config", str(file), *words]).exit_code == 0
    return file


def run(config: Path, *words: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), "audit", *words])


def test_changes_are_listed_exported_and_verified(config: Path) -> None:
    listed = run(config, "list", "--limit", "2").output
    assert "key.added" in listed and "user bob" in listed and "(command line)" in listed and "client" in listed
    exported = [json.loads(line) for line in run(config, "export").output.splitlines()]
    assert [entry["action"] for entry in exported] == ["key.added", "key.revoked", "key.added"]
    result = run(config, "verify")
    head = f"3:{exported[-1]['digest']}"
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, f"head {head}")
    assert run(config, "verify", "--no-traces", "--head", head, "--head", f"1:{exported[0]['digest']}").exit_code == 0
    other = run(config, "verify", "--head", f"2:{'0' * 64}")
    assert other.exit_code == 1 and "entry 2 is not the one" in other.output
    assert "as verify prints" in run(config, "verify", "--head", "3").output


def test_an_entry_that_was_changed_is_named(config: Path) -> None:
    database = sqlite3.connect(config.parent / "traces.db")
    with pytest.raises(sqlite3.IntegrityError, match="neither changed nor deleted"):
        database.execute("DELETE FROM audit_log")
    database.execute("DROP TRIGGER audit_log_is_kept_update")
    database.execute("UPDATE audit_log SET owner = 'eve' WHERE seq = 2")
    database.commit()
    database.close()
    result = run(config, "verify")
    assert result.exit_code == 1 and "entry 2 was changed" in result.output
