"""Policies in shadow, and the exchanges in which they differ from those in force."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision: str | None = "0020"
branch_labels: str | None = None
depends_on: str | None = None

_SEQUENCE: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_COUNTS: Final = ("compared", "both", "only_old", "only_new", "action_differs", "ranges_differ", "failed", "skipped")


def upgrade() -> None:
    op.create_table(
        "policy_shadows",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("dataset", _SEQUENCE, nullable=False),
        sa.Column("policy", sa.String(36), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("share", sa.Integer(), nullable=False),
        sa.Column("started", sa.Double(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        sa.Column("milliseconds", sa.Double(), nullable=False),
        sa.Column("slowest", sa.Double(), nullable=False),
        sa.Column("failure", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_policy_shadows"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.seq"], name="fk_policy_shadows_dataset", ondelete="CASCADE"),
        sa.UniqueConstraint("policy", name="uq_policy_shadows_policy"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_policy_shadows_dataset", "policy_shadows", ["dataset"])
    op.create_table(
        "shadow_differences",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("shadow", _SEQUENCE, nullable=False),
        sa.Column("trace", sa.String(36), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("verdicts", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_shadow_differences"),
        sa.ForeignKeyConstraint(
            ["shadow"], ["policy_shadows.seq"], name="fk_shadow_differences_shadow", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_shadow_differences_trace", "shadow_differences", ["trace"])
    op.create_index("ix_shadow_differences_shadow_kind_seq", "shadow_differences", ["shadow", "kind", "seq"])


def downgrade() -> None:
    op.drop_table("shadow_differences")
    op.drop_table("policy_shadows")
