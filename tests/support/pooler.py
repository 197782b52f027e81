"""A pgbouncer of the tests' own, before their PostgreSQL server."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import make_url

from tests.support.postgres import SUPERUSER, PostgresServer

POOLER: Final = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
"""None where it is not installed."""
_PORT: Final = 6432


@dataclass(frozen=True, slots=True)
class Pooler:
    """A running pgbouncer, and the folder of its socket."""

    pid: int
    folder: Path

    def url(self, direct: str) -> str:
        """Return the URL of the database at ``direct`` by way of the pooler, for the configuration."""
        options = {"host": str(self.folder), "port": str(_PORT), "pooler": "transaction"}
        return make_url(direct).update_query_dict(options).render_as_string(hide_password=False)


@contextmanager
def running_pooler(program: str, server: PostgresServer, connections: int) -> Iterator[Pooler]:
    """Start ``program``, which gives so many connections of the server's by the transaction. It may not listen yet."""
    folder = Path(server.socket_folder)
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={folder} port={server.port} user={SUPERUSER}\n"
        f"[pgbouncer]\nlisten_port = {_PORT}\nunix_socket_dir = {folder}\nauth_type = any\n"
        f"pool_mode = transaction\ndefault_pool_size = {connections}\nmax_client_conn = 1000\n"
    )
    user = ["-u", pwd.getpwnam("nobody").pw_name] if os.geteuid() == 0 else []
    command = [program, *user, str(settings)]
    with subprocess.Popen(command, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield Pooler(process.pid, folder)
        finally:
            process.kill()
