"""When a key was last used."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision: str | None = "0015"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    op.add_column("keys", sa.Column("used", sa.Double()))


def downgrade() -> None:
    op.drop_column("keys", "used")
