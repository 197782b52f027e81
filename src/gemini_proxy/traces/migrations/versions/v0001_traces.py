"""Traces, their annotations, the queue of work on them, and the write probe."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _create_traces()
    _create_annotations()
    _create_jobs()
    op.create_table(
        "probe",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_probe"),
    )


def _create_traces() -> None:
    op.create_table(
        "traces",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("dataset", sa.Text()),
        sa.Column("tenant", sa.Text()),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("model", sa.Text()),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("duration_ms", sa.Double(), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.Column("messages", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_traces"),
        sa.UniqueConstraint("id", name="uq_traces_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_traces_dataset_seq", "traces", ["dataset", "seq"])


def _create_annotations() -> None:
    op.create_table(
        "annotations",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("trace", _SEQUENCE, nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("guardrail", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_annotations"),
        sa.ForeignKeyConstraint(["trace"], ["traces.seq"], name="fk_annotations_trace", ondelete="CASCADE"),
    )
    op.create_index("ix_annotations_trace", "annotations", ["trace"])


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


def downgrade() -> None:
    for table in ("probe", "jobs", "annotations", "traces"):
        op.drop_table(table)
