"""Values behind placeholders, encrypted."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision: str | None = "0019"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.create_table(
        "masked_values",
        sa.Column("holder", sa.String(32), nullable=False),
        sa.Column("conversation", sa.String(32), nullable=False),
        sa.Column("placeholder", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("key", sa.String(8), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("holder", "conversation", "placeholder", "kind", name="pk_masked_values"),
    )
    op.create_index("ix_masked_values_key", "masked_values", ["key"])
    op.create_index("ix_masked_values_expires", "masked_values", ["expires"])


def downgrade() -> None:
    op.drop_table("masked_values")
