"""Traces that are indexed are indexed again, so that filters find them by status, tool, key and conversation."""

from alembic import op

revision = "0022"
down_revision: str | None = "0021"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    # The mark from which the indexer goes down; "digest" is how far it has come up.
    op.execute(
        "INSERT INTO progress (name, seq) SELECT 'index again', seq + 1 FROM progress WHERE name = 'digest' AND seq > 0"
    )


def downgrade() -> None:
    op.execute("DELETE FROM progress WHERE name = 'index again'")
