"""``gemini-proxy approvals`` on a database that a server may be using."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from click.testing import CliRunner, Result

from gemini_proxy.cli import main
from gemini_proxy.traces.approvals import Approval, ApprovalRequest, Approvals
from gemini_proxy.traces.store import TraceStore
from tests.support.sqlite import make_database

T = TypeVar("T")
ASKED = ApprovalRequest(
    "ada",
    "shop",
    "0" * 36,
    "payments.gr",
    "a payment",
    "d" * 64,
    {"asked": [{"tool": "pay", "arguments": {"to": "ACME\x1b[2J"}}]},
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(f'[traces]\ndatabase = "sqlite:///{tmp_path}/traces.db"\n')
    return file


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), "approvals", *arguments])


def on_store(config: Path, work: Callable[[Approvals], Awaitable[T]]) -> T:
    async def act() -> T:
        store = await TraceStore.open(make_database(config.parent / "traces.db"))
        try:
            return await work(Approvals(store.database))
        finally:
            await store.close()

    return asyncio.run(act())


def opened(config: Path, seconds: float = 60.0) -> Approval:
    return on_store(config, lambda approvals: approvals.open(ASKED, seconds))


def state(config: Path, approval: Approval) -> Approval:
    found = on_store(config, lambda approvals: approvals.get(approval.id))
    assert found is not None
    return found


def test_what_waits_is_listed_with_all_that_is_asked(config: Path) -> None:
    approval = opened(config)
    result = run(config, "list")
    assert result.exit_code == 0
    assert all(word in result.stdout for word in (approval.id, "a payment", "payments.gr", "shop", "pay", "ACME"))
    assert "\x1b" not in result.stdout


def test_nothing_waits(config: Path) -> None:
    opened(config, seconds=-1.0)
    result = run(config, "list")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "nothing waits\n")
    assert "expired" in run(config, "list", "--all").stdout


def test_it_is_allowed_in_its_conversation(config: Path) -> None:
    """Where that is known; else it is said that it is for one exchange."""
    known = on_store(config, lambda approvals: approvals.open(replace(ASKED, conversation="c1"), 60.0))
    assert run(config, "allow", known.id, "--conversation").stderr == ""
    assert state(config, known).for_conversation
    unknown = opened(config)
    assert "one exchange only" in run(config, "allow", unknown.id, "--conversation").stderr
    assert not state(config, unknown).for_conversation
    assert run(config, "allow", unknown.id, "--conversation", "--for", "5").exit_code == 2


@pytest.mark.parametrize(("options", "lasting"), [((), False), (("--for", "60"), True)])
def test_it_is_allowed(config: Path, options: tuple[str, ...], lasting: bool) -> None:
    approval = opened(config)
    result = run(config, "allow", approval.id, "--by", "grace", *options)
    assert (result.exit_code, result.stdout) == (0, f"allowed {approval.id}\n")
    found = state(config, approval)
    assert (found.state, found.decided_by, bool(found.until)) == ("allowed", "grace", lasting)


def test_it_is_denied_with_a_reason(config: Path) -> None:
    approval = opened(config)
    assert run(config, "deny", approval.id, "--reason", "not today").exit_code == 0
    found = state(config, approval)
    assert (found.state, found.reason) == ("denied", "not today")
    assert found.decided_by.endswith("(command line)")


def test_a_decision_is_made_once(config: Path) -> None:
    approval = opened(config)
    assert run(config, "deny", approval.id).exit_code == 0
    result = run(config, "allow", approval.id)
    assert (result.exit_code, "it is denied" in result.stderr) == (1, True)
    late = on_store(config, lambda approvals: approvals.open(ASKED, -1.0))
    assert "it is expired" in run(config, "allow", late.id).stderr
    assert "there is no approval" in run(config, "allow", "nothing").stderr
