from pathlib import Path

import pytest

from tests.cli.policy_runs import CASES, LEAK


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a policy and its cases; the configuration is what the defaults are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leak.gr").write_text(LEAK)
    (tmp_path / "leak.yaml").write_text(CASES)
    return tmp_path


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    """Each event loop that ``server.loop`` may name."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return str(request.param)
