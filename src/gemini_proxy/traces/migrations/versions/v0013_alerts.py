"""Alerts: what happened, what was gathered of it, and messages that wait to be sent."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision: str | None = "0012"
branch_labels: str | None = None
depends_on: str | None = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "alert_notices",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("example", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_alert_notices"),
    )
    op.create_table(
        "alert_states",
        sa.Column("alert", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("due", sa.Double()),
        sa.PrimaryKeyConstraint("alert", "kind", "key", name="pk_alert_states"),
    )
    op.create_index("ix_alert_states_due", "alert_states", ["due"])
    op.create_table(
        "alert_messages",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("alert", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("due", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("example", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_alert_messages"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alert_messages_due", "alert_messages", ["due"])


def downgrade() -> None:
    op.drop_table("alert_messages")
    op.drop_table("alert_states")
    op.drop_table("alert_notices")
