"""``init``, ``policy list`` and ``policy copy``: users get what comes with the program, and nothing is overwritten."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def test_the_ready_policies_are_listed() -> None:
    """Each with the first line of its comment."""
    listed = [line.split(maxsplit=1) for line in run("policy", "list").output.splitlines()]
    for (name, title), file in zip(listed, sorted((ROOT / "policies").glob("*.gr")), strict=True):
        assert file.read_text().startswith(f"# {title}\n")
        assert file.stem == name


def test_policies_are_copied_with_their_cases(folder: Path) -> None:
    result = run("policy", "copy", "pii", "loop", "--to", "a/b")
    assert result.output.split() == [f"a/b/{name}.{kind}" for name in ("pii", "loop") for kind in ("gr", "cases.yaml")]
    for file in (folder / "a" / "b").iterdir():
        assert file.read_bytes() == (ROOT / "policies" / file.name).read_bytes()
    assert run("policy", "copy", "--all").exit_code == 0
    assert {file.name for file in (folder / "policies").iterdir()} == {
        file.name for file in (ROOT / "policies").iterdir()
    }


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "name policies, or use --all"),
        (["pii", "--all"], "name policies, or use --all"),
        (["nowhere"], 'there is no ready-made policy "nowhere": canary,'),
        (["../policies/pii"], "there is no ready-made policy"),
    ],
)
def test_wrong_names_copy_nothing(folder: Path, words: list[str], reason: str) -> None:
    result = run("policy", "copy", *words)
    assert result.exit_code == 2 and reason in result.output
    assert list(folder.iterdir()) == []


def test_nothing_is_overwritten(folder: Path) -> None:
    """Neither a configuration nor a policy; and then nothing is written at all. A link that leads nowhere is a file."""
    (folder / "config.toml").symlink_to("elsewhere.toml")
    (folder / "policies").mkdir()
    (folder / "policies" / "pii.cases.yaml").write_text("mine")
    for words, existing in ((["init"], "config.toml"), (["policy", "copy", "--all"], "policies/pii.cases.yaml")):
        result = run(*words)
        assert (result.exit_code, result.output) == (1, f"Error: already exists, not overwritten: {existing}\n")
    assert {str(file.relative_to(folder)) for file in folder.rglob("*")} == {
        "config.toml", "policies", "policies/pii.cases.yaml"
    }  # fmt: skip


def test_a_folder_that_cannot_be_made_is_said(folder: Path) -> None:
    (folder / "file").write_text("")
    for words in (["init", "file/conf"], ["policy", "copy", "pii", "--to", "file/policies"]):
        result = run(*words)
        assert result.exit_code == 1 and result.output.startswith("Error: cannot write file/")


def test_a_configuration_is_its_owners_alone(folder: Path) -> None:
    """It is where a key may end up."""
    assert run("init", "new").exit_code == 0
    assert (folder / "new" / "config.toml").stat().st_mode & 0o777 == 0o600
    assert (folder / "new" / "config.toml").read_bytes() == (ROOT / "config.example.toml").read_bytes()
