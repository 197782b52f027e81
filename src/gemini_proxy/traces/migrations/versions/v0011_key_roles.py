"""Roles of keys. Keys from before can do what they could: they are the operator's."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision: str | None = "0010"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("role", sa.Text(), nullable=False, server_default="operator"))
    op.create_index("ix_approvals_expires", "approvals", ["expires"])


def downgrade() -> None:
    op.drop_index("ix_approvals_expires", "approvals")
    op.drop_column("keys", "role")
