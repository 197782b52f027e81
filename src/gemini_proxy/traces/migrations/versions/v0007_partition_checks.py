"""Partition checks, for PostgreSQL: a transaction of its own, so that checking them keeps nobody from writing."""

from alembic import op

revision = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None

_END = 1 << 40


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, column in (("traces", "seq"), ("search", "trace")):
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT ck_{table}_0 CHECK ({column} < {_END}) NOT VALID")


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in ("traces", "search"):
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT ck_{table}_0")
