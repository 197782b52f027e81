"""An index for what the pages show of the audit log to one user."""

from alembic import op

revision = "0023"
down_revision: str | None = "0022"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_index("ix_audit_log_owner_seq", "audit_log", ["owner", "seq"])


def downgrade() -> None:
    op.drop_index("ix_audit_log_owner_seq", "audit_log")
