"""Keep a number that grows with every change of keys, policies and datasets, for caches of them."""

from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy import Connection, func, select, update

from gemini_proxy.traces.schema import revision

T = TypeVar("T")

CURRENT: Final = "SELECT number FROM revision"
"""As text: every request to a dataset asks for it."""
CHANNEL: Final = "gemini_proxy"
"""The PostgreSQL channel that announces that the number has grown. The same in every version."""
CHANGED: Final = "changed"


def current(connection: Connection) -> int:
    """Return the number now."""
    number: int = connection.exec_driver_sql(CURRENT).scalar_one()
    return number


def stamped(load: Callable[[Connection], T]) -> Callable[[Connection], tuple[int, T]]:
    """Return what ``load`` reads, with the revision it belongs to."""
    # The revision first: what changes between the two is read again next time.
    return lambda connection: (current(connection), load(connection))


def advance(connection: Connection) -> None:
    """Say, in the transaction that changes something, that it has changed."""
    connection.execute(update(revision).values(number=revision.c.number + 1))
    if connection.dialect.name == "postgresql":
        notify(connection, CHANGED)


def notify(connection: Connection, said: str) -> None:
    """Tell all who listen to a PostgreSQL database, once the transaction is committed."""
    connection.execute(select(func.pg_notify(CHANNEL, said)))
