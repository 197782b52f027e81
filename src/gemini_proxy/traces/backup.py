"""A copy of a SQLite database while it is written to: as it was at one moment, by SQLite's own online backup."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL

from gemini_proxy.traces.database import parsed_url
from gemini_proxy.traces.errors import StoreError


def back_up(url: str, target: Path) -> None:
    """Copy the database of ``url`` into the new file ``target``. Raises StoreError, also if the file already exists.

    Writers continue meanwhile: the copy reads one state of the write-ahead log.
    """
    source = _file(parsed_url(url))
    try:
        # Private, like the database; and if two processes create it at once, one is refused.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise StoreError(f"{target} already exists; a backup does not overwrite files") from None
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror}") from None
    try:
        _copy(source, target)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"the backup failed ({error.sqlite_errorname})") from None
        raise


def _copy(source: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as running,
        closing(sqlite3.connect(target)) as copy,
    ):
        running.backup(copy)
        # A single file, without a log beside it, until a server opens it.
        copy.execute("PRAGMA journal_mode = DELETE")


def _file(url: URL) -> Path:
    if url.get_backend_name() != "sqlite":
        raise StoreError("this command backs up SQLite databases only; for PostgreSQL use pg_dump")
    path = Path(url.database or "")
    if not path.is_file():
        raise StoreError(f"there is no trace database at {path}")
    return path
