"""Annotations are found by their message, too."""

from alembic import op
from sqlalchemy import text

revision = "0014"
down_revision: str | None = "0013"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_index("ix_annotations_message", "annotations", ["dataset", text("substr(content, 1, 200)"), "trace"])


def downgrade() -> None:
    op.drop_index("ix_annotations_message", "annotations")
