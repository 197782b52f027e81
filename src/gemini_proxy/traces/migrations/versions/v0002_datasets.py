"""Datasets with owners, their policies and figures; keys and sessions; a search index; what annotations say."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels: str | None = None
depends_on: str | None = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MOVED = ("traces", "annotations", "jobs")


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    _put_aside(sqlite)
    _create_datasets()
    _create_traces()
    _create_annotations()
    _create_jobs()
    _create_policies()
    _create_keys()
    _create_progress()
    _create_search(sqlite)
    if sqlite:
        _copy()
        for table in reversed(_MOVED):
            op.drop_table(f"{table}_v1")


def _put_aside(sqlite: bool) -> None:
    """Keep what SQLite holds for the copy below. No version has written the first schema to another database."""
    for index, table in (
        ("ix_traces_dataset_seq", "traces"),
        ("ix_annotations_trace", "annotations"),
        ("ix_jobs_trace", "jobs"),
        ("ix_jobs_kind_due", "jobs"),
    ):
        op.drop_index(index, table)
    for table in _MOVED if sqlite else reversed(_MOVED):
        if sqlite:
            op.rename_table(table, f"{table}_v1")
        else:
            op.drop_table(table)


def _create_datasets() -> None:
    op.create_table(
        "datasets",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("name", sa.Text()),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("latest", sa.Double()),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_datasets"),
        sa.UniqueConstraint("id", name="uq_datasets_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_datasets_owner_name", "datasets", ["owner", "name"], unique=True)


def _create_traces() -> None:
    op.create_table(
        "traces",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("dataset", _SEQUENCE, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("updated", sa.Double()),
        sa.Column("tenant", sa.Text()),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("model", sa.Text()),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("duration_ms", sa.Double(), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.Column("messages", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_traces"),
        sa.UniqueConstraint("id", name="uq_traces_id"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.seq"], name="fk_traces_dataset"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_traces_listing", "traces", ["dataset", "position", "created", "outcome", "model"])
    notable = sa.text("outcome <> 'completed'")
    op.create_index(
        "ix_traces_notable",
        "traces",
        ["dataset", "outcome", "position", "created", "model"],
        sqlite_where=notable,
        postgresql_where=notable,
    )


def _create_annotations() -> None:
    op.create_table(
        "annotations",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("trace", _SEQUENCE, nullable=False),
        sa.Column("dataset", _SEQUENCE, nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("rule", sa.Text(), nullable=False),
        sa.Column("guardrail", sa.LargeBinary(), nullable=False),
        sa.Column("extra", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_annotations"),
        sa.ForeignKeyConstraint(["trace"], ["traces.seq"], name="fk_annotations_trace", ondelete="CASCADE"),
    )
    op.create_index("ix_annotations_trace", "annotations", ["trace"])
    op.create_index("ix_annotations_dataset_rule_trace", "annotations", ["dataset", "rule", "trace"])


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("trace", _SEQUENCE, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("due", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_jobs"),
        sa.ForeignKeyConstraint(["trace"], ["traces.seq"], name="fk_jobs_trace", ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_trace", "jobs", ["trace"])
    op.create_index("ix_jobs_kind_due", "jobs", ["kind", "due"])


def _create_policies() -> None:
    op.create_table(
        "policies",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("dataset", _SEQUENCE, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.Column("updated", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_policies"),
        sa.UniqueConstraint("id", name="uq_policies_id"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.seq"], name="fk_policies_dataset", ondelete="CASCADE"),
    )
    op.create_index("ix_policies_dataset", "policies", ["dataset"])


def _create_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(8), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("revoked", sa.Double()),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.UniqueConstraint("digest", name="uq_keys_digest"),
    )
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("key", sa.String(8), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_sessions"),
        sa.ForeignKeyConstraint(["key"], ["keys.id"], name="fk_sessions_key", ondelete="CASCADE"),
    )
    op.create_index("ix_sessions_key", "sessions", ["key"])


def _create_progress() -> None:
    revisions = op.create_table(
        "revision",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", _SEQUENCE, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revision"),
    )
    op.bulk_insert(revisions, [{"id": 1, "number": 1}])
    op.create_table(
        "progress",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_progress"),
    )
    op.create_table(
        "usage",
        sa.Column("dataset", _SEQUENCE, nullable=False, autoincrement=False),
        sa.Column("seconds", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.Column("figures", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", "seconds", "start", name="pk_usage"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.seq"], name="fk_usage_dataset", ondelete="CASCADE"),
    )


def _create_search(sqlite: bool) -> None:
    if sqlite:
        # Nothing is ranked: the sizes of the columns are not kept. Beginnings of four letters have an index of their
        # own: thousands of words may have one.
        op.execute("CREATE VIRTUAL TABLE search USING fts5(body, facets, prefix = '4', columnsize = 0)")
        return
    op.execute(
        "CREATE TABLE search (trace BIGINT CONSTRAINT pk_search PRIMARY KEY "
        "CONSTRAINT fk_search_trace REFERENCES traces (seq) ON DELETE CASCADE, body TSVECTOR NOT NULL)"
    )
    op.execute("CREATE INDEX ix_search_body ON search USING gin (body)")


def _copy() -> None:
    """Copy the traces of the first schema, which had a single user: keys had no names yet."""
    bind = op.get_bind()
    for (name,) in bind.exec_driver_sql("SELECT DISTINCT coalesce(dataset, '') FROM traces_v1").fetchall():
        bind.exec_driver_sql(
            "INSERT INTO datasets (id, owner, name, metadata, created, latest, size) SELECT ?, 'developer', ?, ?,"
            " min(created), max(created), count(*) FROM traces_v1 WHERE coalesce(dataset, '') = ?",
            (str(uuid.uuid4()), name, b"{}", name),
        )
    op.execute(
        "INSERT INTO traces (seq, id, dataset, position, created, tenant, outcome, model, stream, duration_ms,"
        " metadata, messages) SELECT old.seq, old.id, datasets.seq,"
        " row_number() OVER (PARTITION BY datasets.seq ORDER BY old.seq) - 1, old.created, tenant, outcome, model,"
        " stream, duration_ms, old.metadata, messages FROM traces_v1 AS old"
        " JOIN datasets ON datasets.name = coalesce(old.dataset, '') ORDER BY old.seq"
    )
    op.execute(
        "INSERT INTO annotations (seq, trace, dataset, content, address, source, rule, guardrail, extra, created)"
        " SELECT old.seq, trace, dataset, content, address, source,"
        " substr(coalesce(CAST(guardrail AS TEXT) ->> '$.name', content), 1, 200), guardrail, CAST('{}' AS BLOB),"
        " old.created FROM annotations_v1 AS old JOIN traces ON traces.seq = trace ORDER BY old.seq"
    )
    op.execute(
        "INSERT INTO jobs (seq, trace, kind, payload, created, due, attempts)"
        " SELECT seq, trace, kind, payload, created, due, attempts FROM jobs_v1 ORDER BY seq"
    )


def downgrade() -> None:
    raise NotImplementedError("the first schema cannot hold the data of the second one")
