"""``python -m tests.clients.matrix [CLIENT ...]``: install the clients, run them, print the table.

Exit code 1 where something that has to hold does not, 2 where a client could not be installed.
"""

import asyncio
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.clients.matrix.clients import CLIENTS, Client
from tests.clients.matrix.environments import ENVIRONMENTS, NotInstalled, install, version
from tests.clients.matrix.matrix import Row, row, table
from tests.clients.matrix.setting import setting


def main(wanted: Sequence[str]) -> int:
    """Run all clients, or those that are named; the exit code."""
    clients = [client for client in CLIENTS if not wanted or {client.driver, client.name} & set(wanted)]
    ENVIRONMENTS.mkdir(exist_ok=True)
    rows = asyncio.run(run(clients, ENVIRONMENTS))
    print(table(rows))
    for one in rows:
        if one.failed:
            print(f"does not hold: {one.client.name}: {', '.join(one.failed)}", file=sys.stderr)
    return exit_code(rows)


async def run(clients: Sequence[Client], logs: Path, versions: Mapping[Client, str] | None = None) -> list[Row]:
    """A row for each client, one after the other. ``versions`` are known of clients that need not be installed."""
    rows: list[Row] = []
    known = versions or {}
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        async with setting(Path(folder)) as before:
            for client in clients:
                print(f"{client.name} ...", file=sys.stderr, flush=True)
                try:
                    if client not in known:
                        await asyncio.to_thread(install, client)
                except NotInstalled as error:
                    rows.append(Row(client, "", missing=str(error)))
                    continue
                log = logs / f"{client.driver}-{client.kind}.log"
                rows.append(await row(client, known.get(client) or version(client), before, log))
    return rows


def exit_code(rows: Sequence[Row]) -> int:
    """1 where something that has to hold does not, 2 where a client is missing, else 0."""
    if any(one.failed for one in rows):
        return 1
    return 2 if any(one.missing for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
