"""The versions of policies; what each policy is now becomes its first one."""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision: str | None = "0017"
branch_labels: str | None = None
depends_on: str | None = None

_SEQUENCE: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SHARED: Final = ("dataset", "name", "content", "enabled", "action", "metadata")


def upgrade() -> None:
    versions = op.create_table(
        "policy_versions",
        sa.Column("seq", _SEQUENCE, nullable=False),
        sa.Column("dataset", _SEQUENCE, nullable=False),
        sa.Column("policy", sa.String(36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("removed", sa.Boolean(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("metadata", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_policy_versions"),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.seq"], name="fk_policy_versions_dataset", ondelete="CASCADE"),
        sa.UniqueConstraint("policy", "number", name="uq_policy_versions_policy"),
    )
    op.create_index("ix_policy_versions_dataset", "policy_versions", ["dataset"])
    shared: list[Any] = [sa.column(name) for name in _SHARED]
    policies = sa.table("policies", sa.column("id"), sa.column("updated"), *shared)
    first = sa.select(
        policies.c.id,
        sa.literal(1),
        policies.c.updated,
        sa.literal("unknown"),
        sa.false(),
        *(policies.c[name] for name in _SHARED),
    )
    op.execute(versions.insert().from_select(["policy", "number", "at", "by", "removed", *_SHARED], first))


def downgrade() -> None:
    op.drop_table("policy_versions")
