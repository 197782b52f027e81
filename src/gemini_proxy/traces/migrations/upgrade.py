"""Bring a database to the newest schema, without an alembic.ini."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from gemini_proxy.traces.errors import StoreError
from gemini_proxy.traces.schema import HEAD

# The migration that adds checks, each of which the one after it makes valid.
_CHECKS: Final = "0007"


def scripts() -> Config:
    """Return Alembic's configuration for the migrations of this package."""
    config = Config()
    # The configuration file's parser takes a percent sign for an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def upgrade(connection: Connection) -> bool:
    """Run the missing migrations in the caller's transaction; return True if more are left for a later transaction.

    Raises StoreError if an unknown version has written the database.
    """
    config = scripts()
    config.attributes["connection"] = connection
    with _known_schema():
        if _has_unchecked_traces(connection):
            command.upgrade(config, _CHECKS)
            return True
        command.upgrade(config, "head")
        return False


def _has_unchecked_traces(connection: Connection) -> bool:
    """Return whether traces have to be looked through before they become a partition: others may write meanwhile."""
    present = MigrationContext.configure(connection).get_current_revision()
    if connection.dialect.name != "postgresql" or present is None:
        return False
    older = ScriptDirectory.from_config(scripts()).iterate_revisions(_CHECKS, "base")
    return present in {script.revision for script in older} - {_CHECKS}


def try_upgrade(connection: Connection) -> None:
    """Raise the errors that ``upgrade`` would raise, in a transaction that the caller rolls back.

    Traces of an older schema are not upgraded for this: that may take long, and would block a running server's writes.
    """
    with _known_schema():
        present = MigrationContext.configure(connection).get_current_revision()
        if present in (None, HEAD):
            upgrade(connection)
        else:
            ScriptDirectory.from_config(scripts()).get_revision(present)


@contextmanager
def _known_schema() -> Iterator[None]:
    try:
        yield
    except CommandError:
        raise StoreError("the database's schema is not known to this version of gemini-proxy") from None
