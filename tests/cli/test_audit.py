"""``gemini-proxy audit`` on a database that a server may be using."""

import json
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main
from tests.support.sqlite import make_database


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration whose database holds three changes."""
    file = tmp_path / "config.toml"
    file.write_text(f'[traces]\ndatabase = "{make_database(tmp_path / "traces.db")}"\n')
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["DELETE FROM audit_log WHERE seq = 3", "DELETE FROM audit_head"], "entries 1 to 2 are beyond the end"),
        (["UPDATE audit_head SET seq = 2, digest = (SELECT digest FROM audit_log WHERE seq = 2)"], "entry 3 is beyond"),
        (["UPDATE audit_log SET seq = -1 WHERE seq = 1"], "entry -1 is out of order"),
        (["INSERT INTO trace_seals VALUES (7, 9999, '')"], "the seal of traces 7 to 9999 is not in the log"),
    ],
    ids=["removed with the head", "written past the head", "before the first", "a seal that nobody made"],
)
def test_what_was_made_up_is_named(config: Path, changes: list[str], said: str) -> None:
    """Also where the record of the log's end is gone, or a seal keeps traces from being sealed."""
    database = sqlite3.connect(config.parent / "traces.db")
    for change in ("DROP TRIGGER audit_log_is_kept_update", "DROP TRIGGER audit_log_is_kept_delete", *changes):
        database.execute(change)
    database.commit()
    database.close()
    result = run(config, "verify")
    assert result.exit_code == 1 and said in result.output
