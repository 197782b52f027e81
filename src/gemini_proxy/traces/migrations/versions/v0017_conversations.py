"""Approvals for a conversation: which one asks, and whether an allowance holds for it."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision: str | None = "0016"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("approvals", sa.Column("conversation", sa.Text(), nullable=False, server_default=""))
    op.add_column("approvals", sa.Column("for_conversation", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("approvals", "for_conversation")
    op.drop_column("approvals", "conversation")
