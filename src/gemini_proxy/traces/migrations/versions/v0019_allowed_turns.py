"""Allowed turns: digests of conversations that passed, so that rules need not find the same in them again."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision: str | None = "0018"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "allowed_turns",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_allowed_turns"),
    )
    op.create_index("ix_allowed_turns_at", "allowed_turns", ["at"])


def downgrade() -> None:
    op.drop_table("allowed_turns")
