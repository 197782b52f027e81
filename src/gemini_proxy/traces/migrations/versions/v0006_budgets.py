"""Budgets: what clients have taken of the limits that all processes share."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "budgets",
        sa.Column("client", sa.String(64), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("ends", sa.BigInteger(), nullable=False),
        sa.Column("taken", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("client", "kind", "ends", name="pk_budgets"),
    )
    op.create_index("ix_budgets_ends", "budgets", ["ends"])


def downgrade() -> None:
    op.drop_table("budgets")
