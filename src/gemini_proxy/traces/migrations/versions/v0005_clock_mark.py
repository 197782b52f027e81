"""The clock mark: how long the wall clock has agreed with a clock that nobody sets."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "clock_mark",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("wall", sa.Double(), nullable=False),
        sa.Column("monotonic", sa.Double(), nullable=False),
        sa.Column("agreed", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_clock_mark"),
    )


def downgrade() -> None:
    op.drop_table("clock_mark")
