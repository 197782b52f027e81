"""Limits that processes on one database share: never much more than the limit in all, and never less to one client."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemini_proxy.sections import Limits
from gemini_proxy.server.limiter import Limiter
from gemini_proxy.server.limits import MINUTE, Budgets, Sharing, Spending
from gemini_proxy.traces.budgets import Answer, Ask, SharedBudgets, answer, client_digest
from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.store import TraceStore
from tests.conftest import StartProxy
from tests.server.test_limits import answer as answered
from tests.server.test_limits import ask, counted
from tests.support.proxy import Proxy, proxy_before
from tests.support.upstream import ScriptedUpstream, candidate, unary

NOON = 1_800_014_400.0
OPERATOR = {"api_key": "AIzaOperator"}
GOOD = unary(candidate("hello", "STOP"))
USAGE = {"promptTokenCount": 60, "toolUsePromptTokenCount": 10, "candidatesTokenCount": 20}
SPENT = unary({**candidate("hello", "STOP"), "usageMetadata": USAGE})


class Process:
    """One process of a simulation: its budgets, and what it has asked and not yet been told."""

    def __init__(self, processes: int, *, long_known: bool) -> None:
        sharing = Sharing()
        sharing.joined(processes, NOON - MINUTE if long_known else NOON)
        self.budgets = Budgets("requests", MINUTE, sharing)
        self.asked: list[tuple[Ask, Answer]] = []


class Simulation:
    def __init__(self, processes: int, limit: int, known: list[bool]) -> None:
        self.processes = [Process(processes, long_known=known[number]) for number in range(processes)]
        self.limit = limit
        self.taken: Counter[str] = Counter()
        self.granted: Counter[str] = Counter()
        self.now = NOON

    def request(self, process: Process, client: str) -> bool:
        budgets = process.budgets
        if budgets.lacks(client, self.limit, self.now):
            return False
        granted = budgets.take(client, 1, self.limit, self.now)
        self.granted[client] += granted
        return granted

    def ask(self, process: Process) -> None:
        """The database answers, and the process is not told yet."""
        if not process.asked:
            for asked in process.budgets.asks(100, self.now):
                told = answer(asked, self.taken[asked.client], len(self.processes))
                self.taken[asked.client] = int(told.taken)
                process.asked.append((asked, told))

    def told(self, process: Process) -> None:
        for asked, told in process.asked:
            process.budgets.answered(asked, told, self.now)
        process.asked.clear()


steps = st.lists(
    st.tuples(
        st.integers(0, 7), st.sampled_from(["ask", "told", "ann", "bob"]), st.integers(1, 200), st.floats(0, 1.5)
    ),
    max_size=80,
)


@given(st.integers(1, 8), st.integers(100, 2000), st.lists(st.booleans(), min_size=8, max_size=8), steps)
def test_whatever_the_order_little_more_than_the_limit_is_granted(
    processes: int, limit: int, known: list[bool], steps: list[tuple[int, str, int, float]]
) -> None:
    simulation = Simulation(processes, limit, known)
    for number, what, count, later in steps:
        process = simulation.processes[number % processes]
        if simulation.now + later < NOON + MINUTE:
            simulation.now += later
        if what == "ask":
            simulation.ask(process)
        elif what == "told":
            simulation.told(process)
        else:
            for _ in range(count):
                simulation.request(process, what)
    assert max(simulation.granted.values(), default=0) <= 1.1 * limit


@given(st.integers(1, 8), st.integers(1, 3000), st.booleans())
def test_a_lone_client_gets_its_whole_limit(processes: int, limit: int, known: bool) -> None:
    """Of one process, whatever the others could have had; and no more."""
    simulation = Simulation(processes, limit, [known] * 8)
    process = simulation.processes[0]
    for _ in range(limit + 500):
        if not simulation.request(process, "ann"):
            simulation.ask(process)
            simulation.told(process)
    assert simulation.granted["ann"] == limit


def test_a_client_that_moves_to_another_process_gets_what_is_left() -> None:
    """What its first process had leased and did not use is given back, and the other has it."""
    simulation = Simulation(2, 1000, [True] * 8)
    first, second = simulation.processes
    for process, most in ((first, 100), (second, 2000)):
        for _ in range(most):
            if not simulation.request(process, "ann"):
                simulation.now += 0.1
                for one in (first, second):
                    simulation.ask(one)
                    simulation.told(one)
    assert 900 <= simulation.granted["ann"] <= 1100


def test_a_process_that_was_alone_settles_what_it_granted_meanwhile() -> None:
    sharing = Sharing()
    sharing.joined(2, NOON)
    budgets = Budgets("requests", MINUTE, sharing)
    sharing.left()
    assert [budgets.take("ann", 1, 100, NOON) for _ in range(60)] == [True] * 60
    sharing.joined(2, NOON)
    assert budgets.lacks("ann", 100, NOON)
    (asked,) = budgets.asks(10, NOON)
    assert asked.settle == 60
    assert answer(asked, 30, 2).taken > 90


def test_a_client_is_not_refused_because_the_database_is_slow() -> None:
    """What others have used is not known in time: then the process's own limit holds, and it is settled later."""
    sharing = Sharing()
    sharing.joined(2, NOON)
    budgets = Budgets("requests", MINUTE, sharing)
    assert budgets.lacks("ann", 100, NOON) and not budgets.take("ann", 1, 100, NOON)
    assert [budgets.take("ann", 1, 100, NOON, known=False) for _ in range(101)] == [True] * 100 + [False]
    assert [asked.settle for asked in budgets.asks(10, NOON)] == [100]


class Answering:
    """A database of fifty processes that gives every lease, and the minute is over each time that it has."""

    def __init__(self) -> None:
        self.now = NOON + 30

    async def settle(self, asks: Sequence[Ask], process: str, until: int, now: float) -> tuple[int, list[Answer]]:
        self.now += MINUTE
        return 50, [answer(asked, 0, 50) for asked in asks]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not asked for")


async def test_a_minute_that_begins_meanwhile_refuses_nobody() -> None:
    """The lease that was waited for is one of the minute before."""
    database: Any = Answering()
    limiter = Limiter(lambda: Limits(requests_per_minute=100), lambda: database.now)
    await limiter.learn(database)
    entering = asyncio.create_task(limiter.enter(limiter.client("inv-ann", None, "127.0.0.1"), 10))
    while not entering.done():
        await asyncio.sleep(0)
        await limiter.learn(database)
    await entering


def test_tokens_that_were_not_written_are_written_later() -> None:
    sharing = Sharing()
    sharing.joined(1, NOON)
    spending = Spending("input_tokens", sharing)
    spending.add("ann", 70, NOON)
    (asked,) = spending.asks(10, NOON)
    spending.add("ann", 5, NOON)
    spending.failed(asked)
    (asked,) = spending.asks(10, NOON)
    assert (asked.settle, spending.total("ann", NOON)) == (75, 75)
    spending.answered(asked, Answer(0, 100), NOON)
    assert spending.total("ann", NOON) == 100


async def two(start_proxy: StartProxy, database_url: str, **limits: int) -> list[Proxy]:
    """Two servers on one database, whose clock stands still."""
    return [
        await start_proxy(traces={"database": database_url}, limits=limits, upstream=OPERATOR, clock=lambda: NOON)
        for _ in range(2)
    ]


async def test_two_servers_grant_one_limit(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database_url: str
) -> None:
    """Whichever is asked, and whichever asks first: 100 in all, within a tenth."""
    upstream.reply(GOOD)
    servers = await two(start_proxy, database_url, requests_per_minute=100)
    statuses: list[int] = []

    async def ask_on(server: Proxy) -> None:
        for _ in range(14):
            statuses.append(await ask(server, "AIzaOperator"))

    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(ask_on(servers[number % 2]))
    granted = Counter(statuses)
    assert set(granted) == {200, 429} and 90 <= granted[200] <= 110
    assert sum([await counted(server, "requests") for server in servers]) == granted[429]


async def test_clients_are_not_named_in_the_database(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    upstream.reply(GOOD)
    proxy = await start_proxy(limits={"requests_per_minute": 3}, upstream=OPERATOR, clock=lambda: NOON)
    assert [await ask(proxy, "AIzaOperator") for _ in range(2)] == [200, 200]
    database = Path(proxy.database.removeprefix("sqlite:///"))
    stored = b"".join(file.read_bytes() for file in database.parent.glob("traces.db*"))
    assert client_digest("address 127.0.0.1").encode() in stored
    assert b"127.0.0.1" not in stored


async def test_old_budgets_are_deleted(database_url: str) -> None:
    store = await TraceStore.open(database_url)
    budgets = SharedBudgets(store.database)
    asked = [Ask("requests", "ann", int(NOON), 0, 100), Ask("input_tokens", "ann", int(NOON + 86_400), 7)]
    processes, told = await budgets.settle(asked, "one", int(NOON + 60), NOON - 1)
    assert (processes, [one.taken for one in told]) == (1, [50, 7])
    assert (await budgets.settle([], "two", int(NOON + 60), NOON))[0] == 2
    await budgets.forget(NOON + 1000)
    _, told = await budgets.settle(asked, "three", int(NOON + 2000), NOON + 1000)
    assert [one.taken for one in told] == [50, 14]
    await store.close()


async def test_without_its_database_a_server_holds_to_its_own_limit(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And says so once."""
    upstream.reply(GOOD)
    folder = tmp_path / "database"
    folder.mkdir()
    url = f"sqlite:///{folder / 'traces.db'}"
    async with proxy_before(
        upstream.url, folder, limits={"requests_per_minute": 3}, upstream=OPERATOR, traces={"database": url}
    ) as proxy:
        budgets = SharedBudgets(proxy.store.database)
        await budgets.settle([], "another", int(NOON), NOON)
        await proxy.store.database.write(lambda connection: connection.exec_driver_sql("DROP TABLE budgets"))
        with pytest.raises(StoreError):
            await budgets.settle([], "another", int(NOON), NOON)
        assert [await ask(proxy, "AIzaOperator") for _ in range(4)] == [200, 200, 200, 429]
        assert caplog.text.count("limits are counted in this process alone") == 1


async def test_a_hard_budget_of_tokens(
    start_proxy: StartProxy, upstream: ScriptedUpstream, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What one server has counted the other knows, and one that is started later: until the day ends."""
    upstream.reply(SPENT)
    limits = {"input_tokens_per_day": 200, "soft_input_tokens_per_day": 100}
    one, other = await two(start_proxy, database_url, **limits)
    # What is under way passes; so the servers are asked in turn until what they have counted is written.
    assert [await ask(one, "AIzaOperator") for _ in range(4)] == [200, 200, 200, 429]
    refused = await answered(one, "AIzaOperator")
    error = (await refused.json())["error"]
    assert (refused.status, error["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert "limits.input_tokens_per_day = 200" in error["message"]
    assert int(refused.headers["retry-after"]) == 86_400 - NOON % 86_400
    async with asyncio.timeout(10):
        while await ask(other, "AIzaOperator") != 429:
            pass
    (third, _) = await two(start_proxy, database_url, **limits)
    assert await ask(third, "AIzaOperator") == 429
    assert await ask(third, "AIzaOperator", address="127.0.0.2") == 200
    assert await counted(one, "input_tokens") == 2
    assert caplog.text.count("over limits.soft_input_tokens_per_day") == 1


async def test_tokens_that_nobody_counted_cost_nothing(start_proxy: StartProxy, upstream: ScriptedUpstream) -> None:
    upstream.reply(GOOD)
    proxy = await start_proxy(limits={"output_tokens_per_day": 1}, clock=lambda: NOON)
    assert [await ask(proxy, "good") for _ in range(3)] == [200] * 3
