"""Pinned tools: how each tool of a dataset was first declared, and the last declaration that was another."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "pinned_tools",
        sa.Column("dataset", _SEQUENCE, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("text", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("changed_digest", sa.String(64)),
        sa.Column("changed_text", sa.LargeBinary()),
        sa.Column("changed_at", sa.Double()),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.seq"], name="fk_pinned_tools_dataset", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("dataset", "name", name="pk_pinned_tools"),
    )


def downgrade() -> None:
    op.drop_table("pinned_tools")
