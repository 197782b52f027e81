"""Refused texts: digests of what was refused, so that a chat whose history holds it can go on."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision: str | None = "0008"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "refused_texts",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_refused_texts"),
    )
    op.create_index("ix_refused_texts_at", "refused_texts", ["at"])


def downgrade() -> None:
    op.drop_table("refused_texts")
