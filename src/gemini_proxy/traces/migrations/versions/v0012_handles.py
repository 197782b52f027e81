"""Handles: names under which Gemini keeps something, and what was read of it."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision: str | None = "0011"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "handles",
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("dataset", sa.Text()),
        sa.Column("trace", sa.String(36), nullable=False),
        sa.Column("guardrails", sa.String(64), nullable=False),
        sa.Column("unchecked", sa.Text(), nullable=False),
        sa.Column("refused", sa.Boolean(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("details", sa.LargeBinary(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("account", "kind", "name", name="pk_handles"),
    )
    op.create_index("ix_handles_expires", "handles", ["expires"])


def downgrade() -> None:
    op.drop_table("handles")
