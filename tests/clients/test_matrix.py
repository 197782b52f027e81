"""The matrix of clients where nothing has to be installed for it: those that are here, and its own judgment."""

import shutil
from pathlib import Path

import pytest

from tests.clients.matrix.__main__ import exit_code, run
from tests.clients.matrix.cases import CASES, Case, Cell, Outcome, Turn
from tests.clients.matrix.clients import CLIENTS, Client
from tests.clients.matrix.environments import DRIVERS, ROOT
from tests.clients.matrix.matrix import Row, table
from tests.clients.matrix.model import ALLOWED, REFUSED_REQUEST, TOOL

_OF_ITS_OWN = frozenset({"unary", "stream", "structured"})
HERE = [
    Client("google-genai", "own", "google_genai", operations=_OF_ITS_OWN | {"tool", "tool_stream", "chat"}),
    pytest.param(
        Client("curl", "own", "curl", operations=_OF_ITS_OWN),
        marks=pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
    ),
]
REFUSED = Turn(f"[Invariant] ... {REFUSED_REQUEST[1]}", None, ())


@pytest.mark.parametrize("client", HERE, ids=lambda client: client.name)
async def test_a_client_that_is_here_holds(client: Client, tmp_path: Path) -> None:
    """Every case that has to hold does, as a process before the real proxy."""
    [found] = await run([client], tmp_path, {client: "1"})
    assert (found.failed, found.notes, exit_code([found])) == ([], [], 0)
    assert {case.column for case in CASES if case.do in client.operations} == set(found.cells)


async def test_a_client_that_cannot_be_had_is_said_to_be_missing(tmp_path: Path) -> None:
    """It counts for nothing, and the command says so by its exit code."""
    [found] = await run([Client("nothing", "own", "no-such-program")], tmp_path)
    assert "no-such-program" in found.missing and found.cells == {}
    assert "| nothing  | not installed:" in table([found])
    assert exit_code([found]) == 2


def case(column: str) -> Case:
    return next(case for case in CASES if case.column == column)


@pytest.mark.parametrize(
    ("column", "outcome", "cell"),
    [
        ("refused request: stream", Outcome([REFUSED], 1, 0), Cell("text", True)),
        ("refused request: stream", Outcome([Turn("", f"E: {REFUSED_REQUEST[1]}", ())], 1, 0), Cell("error", True)),
        ("refused request: stream", Outcome([Turn("", "E: no JSON", ())], 1, 0), Cell("**hidden**", False, True)),
        ("refused request: stream", Outcome([REFUSED], 3, 0), Cell("text, 3 requests", False)),
        ("allowed: stream", Outcome([Turn(ALLOWED[1], None, ())], 1, 1), Cell("ok", True)),
        ("allowed: stream", Outcome([Turn(ALLOWED[1], "E: then it broke", ())], 1, 1), Cell("**no**", False)),
        ("allowed: stream", Outcome([Turn(ALLOWED[1], None, ())], 2, 2), Cell("**no**", False)),
        ("tool: unary", Outcome([Turn(TOOL[1], None, ("weather",))], 2, 2), Cell("ok", True)),
        ("tool: unary", Outcome([Turn(TOOL[1], None, ("weather", "weather"))], 2, 2), Cell("**no**", False)),
        ("tool: unary", Outcome([Turn(TOOL[1], None, ())], 2, 2), Cell("**no**", False)),
        ("without a policy it runs: unary", Outcome([Turn("", None, ())], 2, 2), Cell("**no**", False)),
        ("chat goes on: request", Outcome([REFUSED, Turn(ALLOWED[1], None, ())], 2, 1), Cell("yes", True)),
        ("chat goes on: request", Outcome([REFUSED, REFUSED], 2, 0), Cell("no", False)),
    ],
)
def test_a_case_is_judged_by_what_was_seen(column: str, outcome: Outcome, cell: Cell) -> None:
    assert case(column).judge(outcome) == cell


def test_what_is_held_must_not_be_shown() -> None:
    """Neither beside the reason nor in an error."""
    judge = case("with hold and http_400: stream").judge
    assert judge(Outcome([Turn("", "E: the city is secret", ())], 1, 1)).holds
    assert not judge(Outcome([Turn("It is Dublin", "E: the city is secret", ())], 1, 1)).holds


def test_a_forbidden_call_that_ran_does_not_hold() -> None:
    """Whatever is shown besides."""
    reason = "nothing is deleted"
    judge = case("forbidden call: stream").judge
    assert judge(Outcome([Turn(reason, None, ())], 1, 1)).holds
    for text in (reason, ""):
        cell = judge(Outcome([Turn(text, None, ("delete_file",))], 1, 1))
        assert not cell.holds and not cell.hidden


def test_what_must_hold_decides_over_the_exit_code() -> None:
    row = Row(
        CLIENTS[0], "1", {"refused request: stream": Cell("**hidden**", False)}, ["why"], ["refused request: stream"]
    )
    assert exit_code([row]) == 1
    assert "**hidden**" in table([row]) and table([row]).endswith("\n- why")


def test_every_client_has_a_driver_and_pinned_packages() -> None:
    """And no driver is left without a client."""
    endings = {"python": ".py", "own": ".py", "node": ".mjs"}
    drivers = {DRIVERS / f"{client.driver}{endings[client.kind]}" for client in CLIENTS}
    found = {file for file in DRIVERS.iterdir() if file.suffix in (".py", ".mjs")}
    assert found - drivers == {DRIVERS / name for name in ("__init__.py", "driver.py", "driver.mjs")}
    assert drivers <= found
    for client in CLIENTS:
        assert all("==" in package or package.rpartition("@")[0] for package in client.packages)
        assert client.hides <= {one.column for one in CASES}


def test_the_readme_names_every_client_with_its_setting() -> None:
    """A client that is run is one whose users are told how."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    for client in CLIENTS:
        name = client.name.partition(" (")[0]
        assert any(name in row and "localhost:8005" in row for row in rows), name
