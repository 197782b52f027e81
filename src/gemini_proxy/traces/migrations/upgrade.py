"""Bring a database to the newest schema, without an alembic.ini."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from gemini_proxy.traces.errors import StoreError


def scripts() -> Config:
    """Alembic's configuration for the migrations of this package."""
    config = Config()
    # The configuration file's parser takes a percent sign for an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config


def upgrade(connection: Connection) -> None:
    """Run what is missing, in the caller's transaction.

    Raises StoreError when the database was written by a version that this one does not know.
    """
    config = scripts()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise StoreError("the database's schema is not known to this version of gemini-proxy") from None
