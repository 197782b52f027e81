"""What a database file that is no longer at its path leaves to the one that takes its place."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from gemini_proxy.traces.schema import revision, traces


@dataclass(frozen=True, slots=True)
class Left:
    """``traces``: how many there are in the file; ``last`` number that one was given, and the ``revision``."""

    traces: int = 0
    last: int = 0
    revision: int = 0


def left_in(connection: Connection) -> Left:
    """What a database holds, as a connection to it still sees it."""
    count = connection.scalar(select(func.count()).select_from(traces)) or 0
    last = connection.exec_driver_sql("SELECT max(seq) FROM sqlite_sequence WHERE name = 'traces'").scalar()
    return Left(count, last or 0, connection.scalar(select(revision.c.number)) or 0)


def follow(connection: Connection, left: Left) -> int:
    """Let a SQLite database go on where another one was: its numbers are not given again, and who keeps keys or rules
    in memory reads them anew. How many traces of the other one are not here.
    """
    here = left_in(connection)
    last = max(here.last, left.last)
    connection.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = 'traces'")
    connection.exec_driver_sql("INSERT INTO sqlite_sequence (name, seq) VALUES ('traces', ?)", (last,))
    connection.execute(revision.update().values(number=max(here.revision, left.revision) + 1))
    return max(0, left.traces - here.traces)
