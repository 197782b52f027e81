"""``python -m bench.fleet``: four machines of two processes each on one PostgreSQL, a million traces a day.

Half of the exchanges are unary, half streams of a second; one in twenty is refused by a rule of its dataset. Two
watchers read the feed of each machine. The database has traces past their time already; they are deleted meanwhile.
Then keys and rules are changed, and each process is asked until it knows; and at last the fleet gets as much as it
takes. All of it runs on this machine: clients, upstream, proxies and database share its processors, so what counts is
CPU and bytes for each exchange. PostgreSQL writes through to the disk. With ``--pooler`` all but the listening goes
through pgbouncer.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
from sqlalchemy import NullPool, insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from tests.cli.process import write_config
from tests.support.pooler import POOLER, Pooler, running_pooler
from tests.support.postgres import PostgresServer, find_programs, running_server

from bench.audience import Audience, watching
from bench.dataset import make_dataset
from bench.load import QUESTION
from bench.million import fill, index
from bench.million_traces import OWNER
from bench.peers import TWO_RULES, load
from bench.processes import ProcessError, ServerProcess, cpu_seconds, module, serving
from bench.workload import DATASET, KEY, Workload, spread
from gemini_proxy.traces.keys import Keys, digest
from gemini_proxy.traces.retention import DAY
from gemini_proxy.traces.schema import keys
from gemini_proxy.traces.store import TraceStore

MACHINES: Final = 4
PROCESSES: Final = 2
A_MILLION_A_DAY: Final = 1_000_000 / DAY
POOLED: Final = 20
"""Connections of the database that pgbouncer shares out."""
RETENTION_DAYS: Final = 30
_DATABASE: Final = "traces"
_OURS: Final = "bench.fleet"
"""By what name the database knows the connections of this measurement."""
_SETTINGS: Final = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "512MB", "max_wal_size": "4GB"}
_HEADERS: Final = {"x-goog-api-key": "bench", "content-type": "application/json"}
_STREAM: Final = Workload("stream", 0, 1, 1, events=20, interval_ms=50, dataset=DATASET)
_UNARY: Final = Workload("unary", 0, 1, 1, dataset=DATASET)
_FIRST: Final = Workload("unary", 0, 8, 200, dataset=DATASET, timeout=60)
_WORD: Final = "forbidden"
_RULE: Final = f'raise "{_WORD}" if:\n    (m: Message)\n    m.role == "user"\n    "{_WORD}" in m.content\n'
_REFUSAL: Final = f"The request did not pass the guardrails: {_WORD}".encode()
_REFUSED_ONE_IN: Final = 20
_LOST: Final = (aiohttp.ClientError, OSError, TimeoutError)
_SETTLED: Final = 3.0
"""Seconds in which indexing comes to rest."""
_LOOK: Final = 0.01
"""Seconds between two looks at what changes."""
_PATIENCE: Final = 30.0
_ROUNDS: Final = 10
"""Changes of each kind."""


@dataclass(frozen=True, slots=True)
class Used:
    """What has been used so far: seconds of CPU, bytes, and traces that are stored."""

    proxies: float
    database: float
    pooler: float
    log: int
    disk: int
    traces: int


@dataclass(slots=True)
class Seen:
    """What clients saw: nanoseconds to whole unary answers and to first events of streams, statuses, failures."""

    unary: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)


class Fleet:
    """The machines, their database, and who is asked for figures of them."""

    def __init__(self, machines: Sequence[ServerProcess], database: PostgresServer, pooler: Pooler | None) -> None:
        self.machines = machines
        self._database = database
        self._pooler = pooler
        # Of another database, so that what is counted there are the proxies alone.
        self._engine = create_async_engine(
            database.url("postgres"),
            isolation_level="AUTOCOMMIT",
            connect_args={"server_settings": {"application_name": _OURS}},
        )
        self._traces = create_async_engine(database.url(_DATABASE), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._begun = time.time()

    @contextlib.asynccontextmanager
    async def store(self) -> AsyncIterator[TraceStore]:
        """The traces, as another machine would open them."""
        store = await TraceStore.open(self._database.url(_DATABASE))
        try:
            yield store
        finally:
            await store.close()

    async def used(self) -> Used:
        new = f"SELECT count(*) FROM traces WHERE created > {self._begun}"
        return Used(
            proxies=sum(machine.cpu_seconds for machine in self.machines),
            database=cpu_seconds(_postmaster(self._database)) - await self._own_cpu_seconds(),
            pooler=cpu_seconds(self._pooler.pid) if self._pooler else 0.0,
            log=int(await self._ask("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')")),
            disk=await self._ask(f"SELECT pg_database_size('{_DATABASE}')"),
            traces=await self._ask(new, self._traces),
        )

    async def _own_cpu_seconds(self) -> float:
        """What those who look at the database for this measurement have taken of it."""
        query = f"SELECT array_agg(pid) FROM pg_stat_activity WHERE application_name = '{_OURS}'"
        return sum(cpu_seconds(pid) for pid in await self._ask(query))

    async def connections(self) -> int:
        """Connections that the proxies, or the pooler for them, have to the database."""
        query = (
            f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{_DATABASE}' AND backend_type = 'client backend'"
        )
        return int(await self._ask(query))

    async def lock(self) -> Sequence[tuple[bool, str, str | None]]:
        """Return who holds the advisory lock or waits for it: whether it is granted, state and what is waited for."""
        query = (
            "SELECT l.granted, a.state, a.wait_event FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
            f"WHERE l.locktype = 'advisory' AND a.datname = '{_DATABASE}'"
        )
        async with self._engine.connect() as connection:
            rows: Any = await connection.exec_driver_sql(query)
            return [tuple(row) for row in rows]

    async def close(self) -> None:
        await self._engine.dispose()
        await self._traces.dispose()

    async def _ask(self, query: str, engine: AsyncEngine | None = None) -> Any:
        async with (engine or self._engine).connect() as connection:
            return (await connection.exec_driver_sql(query)).scalar_one()


def _postmaster(database: PostgresServer) -> int:
    return int((database.socket_folder / "data" / "postmaster.pid").read_text().split()[0])


class Client:
    """Sends exchanges of the mix, each to a machine that chance names."""

    def __init__(self, session: aiohttp.ClientSession, fleet: Fleet, seen: Seen) -> None:
        self._session = session
        self._urls = [f"http://127.0.0.1:{machine.port}" for machine in fleet.machines]
        self._seen = seen
        self._chance = random.Random(1)

    async def exchange(self) -> None:
        workload = self._chance.choice((_UNARY, _STREAM))
        refused = self._chance.randrange(_REFUSED_ONE_IN) == 0
        url = self._chance.choice(self._urls)
        begun = time.perf_counter_ns()
        try:
            async with self._session.post(url + workload.target, data=_body(refused=refused)) as response:
                content = await response.content.readany()
                first = time.perf_counter_ns()
                content += await response.read()
        except _LOST as error:
            self._seen.failures[type(error).__name__] += 1
            return
        self._seen.statuses[response.status] += 1
        if not _is_right(workload, response.status, content, refused=refused):
            self._seen.failures[str(response.status)] += 1
        elif not refused and workload is _UNARY:
            self._seen.unary.append(time.perf_counter_ns() - begun)
        elif not refused:
            self._seen.first.append(first - begun)

    async def paced(self, rate: float, seconds: float) -> None:
        """Send so many a second, at random moments, without waiting for those before."""
        loop = asyncio.get_running_loop()
        at, ends = loop.time(), loop.time() + seconds
        async with asyncio.TaskGroup() as tasks:
            while (at := at + self._chance.expovariate(rate)) < ends:
                await asyncio.sleep(at - loop.time())
                tasks.create_task(self.exchange())


def _is_right(workload: Workload, status: int, content: bytes, *, refused: bool) -> bool:
    """Tell whether an answer is what the request has to get."""
    if refused:
        return status == (400 if workload is _UNARY else 200) and _REFUSAL in content
    return status == 200 and content.count(b"finishReason") == 1


def _body(*, refused: bool) -> bytes:
    question = json.loads(json.dumps(QUESTION))
    if refused:
        question["contents"][-1]["parts"][0]["text"] += f" {_WORD}"
    return json.dumps(question).encode()


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        headers={**_HEADERS, "invariant-authorization": f"Bearer {KEY}", "authorization": f"Bearer {KEY}"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=_PATIENCE),
    )


@dataclass(slots=True)
class Turns:
    """Counts looks at the lock of writers: all, those in which it was held, and what its holder then waited for.

    ``waiting`` is how many others waited for it, summed over all looks.
    """

    looks: int = 0
    held: int = 0
    proxy: int = 0
    disk: int = 0
    waiting: int = 0

    async def watch(self, fleet: Fleet) -> None:
        """Look again and again, until cancelled."""
        while True:
            for granted, state, event in await fleet.lock():
                self.held += granted
                self.proxy += granted and state == "idle in transaction"
                self.disk += granted and event in ("WALSync", "WALWrite")
                self.waiting += not granted
            self.looks += 1
            await asyncio.sleep(_LOOK)

    def __str__(self) -> str:
        of_it = [f"{100 * part / (self.held or 1):.0f} %" for part in (self.proxy, self.disk)]
        return (
            f"held {100 * self.held / self.looks:.0f} % of the time; of that {of_it[0]} by a proxy between two "
            f"statements, {of_it[1]} until the disk has it; {self.waiting / self.looks:.1f} wait for it"
        )


Work = Callable[[], Awaitable[int]]


async def phase(title: str, fleet: Fleet, audience: Sequence[Audience], work: Work) -> None:
    """Run ``work``, which gives the number of exchanges that have a trace, and print what it took of the fleet."""
    click.echo(title)
    before, begun = await fleet.used(), time.perf_counter()
    turns = Turns()
    watching_lock = asyncio.create_task(turns.watch(fleet))
    done = await work()
    took = time.perf_counter() - begun
    watching_lock.cancel()
    await asyncio.gather(watching_lock, return_exceptions=True)
    connections = await fleet.connections()
    after = await fleet.used()
    if done:
        _say("exchanges", f"{done}, {done / took:.1f} a second")
        _say("the lock of writers", str(turns))
        told = [await asyncio.to_thread(one.told, done, done) for one in audience]
        unseen = done - (after.traces - before.traces)
        _say("without a trace", f"{unseen}; watchers not told of each once: {sum(one.failed for one in told)}")
        await asyncio.sleep(_SETTLED)
        after = await fleet.used()
    each = "ms an exchange" if done else "ms a second"
    parts = {"proxies": after.proxies - before.proxies, "PostgreSQL": after.database - before.database}
    if after.pooler:
        parts["pgbouncer"] = after.pooler - before.pooler
    _say("CPU", ", ".join(f"{name} {1e3 * used / (done or took):.2f}" for name, used in parts.items()) + f" {each}")
    _say("connections to the database", str(connections))
    if done:
        _say(
            "bytes a trace",
            f"{(after.log - before.log) / done:.0f} logged, {(after.disk - before.disk) / done:.0f} kept",
        )


def _say(what: str, how: str) -> None:
    click.echo(f"    {what}: {how}")


def _times(title: str, nanoseconds: Sequence[int]) -> None:
    if found := spread(nanoseconds):
        _say(title, f"{found.p50:.1f} ms at the median, p99 {found.p99:.1f}, most {found.most:.1f}")


async def paced(fleet: Fleet, factor: float, seconds: float, *, old: bool) -> int:
    """The load of ``factor`` million traces a day for so long; ``old`` traces are deleted meanwhile."""
    seen = Seen()
    async with _session() as session:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(Client(session, fleet, seen).paced(factor * A_MILLION_A_DAY, seconds))
            if old:
                tasks.create_task(delete_old(fleet))
    _times("unary", seen.unary)
    _times("first event of a stream", seen.first)
    _say("failed", str(dict(seen.failures) or "none"))
    return seen.statuses[200] + seen.statuses[400]


async def delete_old(fleet: Fleet) -> None:
    async with fleet.store() as store:
        begun = time.perf_counter()
        deleted = await store.delete_before(time.time() - RETENTION_DAYS * DAY)
        _say("traces past their time", f"{deleted} deleted in {time.perf_counter() - begun:.2f} s")


async def most(fleet: Fleet, workload: Workload) -> int:
    """As many exchanges as the fleet takes over ``workload.connections`` to each machine."""
    loads = [replace(workload, port=machine.port) for machine in fleet.machines]
    with ThreadPoolExecutor(MACHINES) as threads:
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(*(loop.run_in_executor(threads, load, one) for one in loads))
    _say("failed", str(sum(result.failed for result in results)))
    for number, result in enumerate(results, 1):
        if result.first:
            _say(f"machine {number}", f"{result.first.p50:.1f} ms at the median, p99 {result.first.p99:.1f}")
    return sum(result.done for result in results)


class Process:
    """A connection to one process of a machine."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def until(self, status: int, key: str, *, refused: bool, answers: Counter[int]) -> int:
        """Ask until it answers so; the moment of that answer. Raises ProcessError."""
        headers = {"invariant-authorization": f"Bearer {key}", "authorization": f"Bearer {key}"}
        content, last = "", 0
        ends = time.monotonic() + _PATIENCE
        while time.monotonic() < ends:
            async with self._session.post(self._url, data=_body(refused=refused), headers=headers) as response:
                content = await response.text()
            last = response.status
            answers[last] += 1
            if last == status:
                return time.perf_counter_ns()
            await asyncio.sleep(_LOOK)
        raise ProcessError(f"a change holds not everywhere: {last} instead of {status}: {content}")


@contextlib.asynccontextmanager
async def each_process(fleet: Fleet) -> AsyncIterator[list[Process]]:
    """Connect to every process of every machine: the others of a machine stand still while one accepts."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for machine in fleet.machines:
            url = f"http://127.0.0.1:{machine.port}"
            for process in machine.children:
                session = await stack.enter_async_context(_session())
                with _stopped([other for other in machine.children if other != process]):
                    async with session.get(f"{url}/healthz") as response:
                        await response.read()
                found.append(Process(session, url + _UNARY.target))
        yield found


@contextlib.contextmanager
def _stopped(processes: Sequence[int]) -> Iterator[None]:
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


async def changes(fleet: Fleet) -> int:
    """Change keys and rules, and print how long it takes until the change holds in every process."""
    answers: Counter[int] = Counter()
    took: dict[str, list[int]] = {"key added": [], "key revoked": [], "rule added": [], "rule removed": []}
    async with fleet.store() as store, _session() as session, each_process(fleet) as processes:

        async def holds(what: str, status: int, key: str = KEY, *, refused: bool = False) -> None:
            begun = time.perf_counter_ns()
            known = [one.until(status, key, refused=refused, answers=answers) for one in processes]
            took[what].append(max(await asyncio.gather(*known)) - begun)

        rules = Rules(session, f"http://127.0.0.1:{fleet.machines[0].port}")
        await rules.find()
        for _ in range(_ROUNDS):
            record, key = await Keys(store.database).add(OWNER)
            await holds("key added", 200, key)
            await Keys(store.database).revoke(record.id)
            await holds("key revoked", 401, key)
            await rules.remove()
            await holds("rule removed", 200, refused=True)
            await rules.add()
            await holds("rule added", 400, refused=True)
    for what, times in took.items():
        _times(f"{what}, until all {len(processes)} processes know", times)
    return answers[200] + answers[400]


class Rules:
    """A rule of the dataset that comes and goes, by the API of one machine."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = f"{url}/api/v1/dataset"
        self._dataset = ""
        self._rule = ""

    async def find(self) -> None:
        """Find the dataset, and the rule if it is there."""
        dataset = await self._call("GET", f"/byuser/{OWNER}/{DATASET}")
        self._dataset = dataset["id"]
        self._rule = _rule(dataset)

    async def add(self) -> None:
        rule = {"name": _WORD, "policy": _RULE, "action": "block"}
        dataset = await self._call("POST", f"/{self._dataset}/policy", rule)
        self._rule = _rule(dataset)

    async def remove(self) -> None:
        await self._call("DELETE", f"/{self._dataset}/policy/{self._rule}")

    async def _call(self, method: str, path: str, body: object = None) -> Any:
        async with self._session.request(method, self._url + path, json=body) as response:
            response.raise_for_status()
            return await response.json()


def _rule(dataset: Mapping[str, Any]) -> str:
    """The id of the rule of a dataset, "" where it has none."""
    return next((one["id"] for one in dataset["extra_metadata"].get("policies", ()) if one["name"] == _WORD), "")


async def idle(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return 0


async def add_key(store: TraceStore) -> None:
    """Make the key of the load's clients good."""
    key = insert(keys).values(id="bench", owner=OWNER, digest=digest(KEY), hint=KEY[-4:], created=time.time())
    await store.database.write(lambda connection: connection.execute(key))


async def prepare(database: PostgresServer, old: int) -> None:
    """Make the database, with a key and so many traces past their time."""
    store = await TraceStore.open(database.url(_DATABASE))
    try:
        await add_key(store)
        if old:
            await fill(store, old, time.time() - (RETENTION_DAYS + 1) * DAY)
            await index(store)
    finally:
        await store.close()


async def settle(database: PostgresServer) -> None:
    """Let the database write as it would where it matters. Its connections end."""
    await database.execute(*(f"ALTER SYSTEM SET {name} = '{value}'" for name, value in _SETTINGS.items()))
    await database.execute(f"CREATE DATABASE {_DATABASE}")
    await asyncio.to_thread(database.stop)
    await asyncio.to_thread(database.start)


async def measure(fleet: Fleet, audience: Sequence[Audience], seconds: float, factors: Sequence[float]) -> None:
    async with _session() as session:
        rules = Rules(session, f"http://127.0.0.1:{fleet.machines[0].port}")
        await rules.find()
        await rules.add()
    await phase("first exchanges", fleet, audience, partial(most, fleet, _FIRST))
    await phase("idle", fleet, audience, partial(idle, seconds / 3))
    for factor in factors:
        await phase(f"{factor:g} million a day", fleet, audience, partial(paced, fleet, factor, seconds, old=False))
    last = factors[-1]
    title = f"{last:g} million a day, old traces are deleted"
    await phase(title, fleet, audience, partial(paced, fleet, last, seconds, old=True))
    await phase("changes", fleet, audience, partial(changes, fleet))
    for workload in _most(seconds):
        await phase(f"most, {workload.kind}", fleet, audience, partial(most, fleet, workload))
    await fleet.close()


def _most(seconds: float) -> Sequence[Workload]:
    """What each machine gets at last, of a size that takes about so long on two processors."""
    unary = replace(_UNARY, connections=8, total=int(seconds * 60), timeout=300)
    stream = replace(_STREAM, connections=64, total=int(seconds * 15), spread_ms=1000, timeout=300)
    return unary, stream


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="Of each load.")
@click.option("--factor", "factors", default=(1.0, 5.0), multiple=True, show_default=True, help="Million traces a day.")
@click.option("--old", default=10_000, show_default=True, help="Traces past their time.")
@click.option("--watchers", default=2, show_default=True, help="Of each machine's feed.")
@click.option("--pooler", is_flag=True, help="Through pgbouncer.")
def main(seconds: float, factors: Sequence[float], old: int, watchers: int, *, pooler: bool) -> None:
    """Print what the fleet did."""
    programs = find_programs()
    if programs is None or (pooler and POOLER is None):
        raise click.ClickException(f"{'PostgreSQL' if programs is None else 'pgbouncer'} is not installed")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(running_server(programs))
        asyncio.run(settle(database))
        asyncio.run(prepare(database, old))
        upstream = stack.enter_context(serving(module("bench.upstream"), folder / "upstream.log"))
        traces: dict[str, str] = {"database": database.url(_DATABASE)}
        shared = None
        if pooler and POOLER is not None:
            shared = stack.enter_context(running_pooler(POOLER, database, POOLED))
            traces = {"database": shared.url(traces["database"]), "notify_database": traces["database"]}
        machines = [stack.enter_context(machine(folder, number, upstream.port, traces)) for number in range(MACHINES)]
        make_dataset(machines[0].port, TWO_RULES)
        audience = [stack.enter_context(watching(one.port, watchers)) for one in machines if watchers]
        asyncio.run(measure(Fleet(machines, database, shared), audience, seconds, factors))


def machine(
    folder: Path, number: int, upstream: int, traces: Mapping[str, object]
) -> contextlib.AbstractContextManager[ServerProcess]:
    """One of the servers."""
    config = write_config(
        folder,
        f"{number}.toml",
        server={"listen": ["127.0.0.1:0"], "processes": PROCESSES},
        upstream={"base_url": f"http://127.0.0.1:{upstream}"},
        access={"mode": "keys"},
        traces=traces,
        limits={"unproven_requests_per_minute": 0},
    )
    return serving(module("gemini_proxy", "--config", str(config), "serve"), folder / f"{number}.log", timeout=120)


if __name__ == "__main__":
    main()
