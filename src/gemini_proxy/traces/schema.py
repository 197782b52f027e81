"""The tables, in types that SQLite and PostgreSQL share. JSON is bytes that we write and read ourselves."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

# The newest migration, so that a reader can tell a foreign schema without loading Alembic.
HEAD = "0001"

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)

# SQLite numbers rows by itself only in a column typed INTEGER.
_Sequence = BigInteger().with_variant(Integer, "sqlite")

traces = Table(
    "traces",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("created", Double, nullable=False),
    Column("dataset", Text),
    Column("tenant", Text),
    Column("outcome", Text, nullable=False),
    Column("model", Text),
    Column("stream", Boolean, nullable=False),
    Column("duration_ms", Double, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    # Last, so that SQLite finds the other columns without walking the overflow pages of a long conversation.
    Column("messages", LargeBinary, nullable=False),
    Index(None, "dataset", "seq"),
    # Without it SQLite would give the number of a deleted newest row to another trace.
    sqlite_autoincrement=True,
)

annotations = Table(
    "annotations",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("trace", _Sequence, ForeignKey("traces.seq", ondelete="CASCADE"), nullable=False, index=True),
    Column("content", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("guardrail", LargeBinary, nullable=False),
    Column("created", Double, nullable=False),
)

# ``due`` is when a job may be taken: taking moves it ahead by a lease, so that two processes do not run the same one.
jobs = Table(
    "jobs",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("trace", _Sequence, ForeignKey("traces.seq", ondelete="CASCADE"), nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("created", Double, nullable=False),
    Column("due", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Index(None, "kind", "due"),
    # A finished job's number must not come back: a slow worker would finish another trace's job.
    sqlite_autoincrement=True,
)

# One row, rewritten to find out whether the database takes writes.
probe = Table(
    "probe",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
)
