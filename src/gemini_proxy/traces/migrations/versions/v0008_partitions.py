"""Partitions, for PostgreSQL: the tables of traces and of search become the first partitions of tables in their place.

Nothing is rewritten. The traces are read once, for the checks that allow them to be attached, while others write.
"""

from alembic import op

from gemini_proxy.traces.database import serialise_writers

revision = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None

_END = 1 << 40

# The id is looked for with the snapshot of this query, not of the statement that inserts, which may be older.
_REFUSE = """
CREATE FUNCTION refuse_repeated_trace() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    first bigint := NEW.seq / 1099511627776 * 1099511627776;
BEGIN
    IF EXISTS (SELECT FROM traces WHERE id = NEW.id AND seq >= first - 1099511627776 AND seq < first) THEN
        RAISE unique_violation USING MESSAGE = 'the trace is in the partition before';
    END IF;
    RETURN NEW;
END
$$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in ("traces", "search"):
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT ck_{table}_0")
    # From here on it is quick, and takes locks in another order than writers do.
    serialise_writers(op.get_bind())
    op.execute("LOCK TABLE datasets, traces, annotations, jobs, search IN ACCESS EXCLUSIVE MODE")
    for table, key in (
        ("annotations", "fk_annotations_trace"),
        ("jobs", "fk_jobs_trace"),
        ("search", "fk_search_trace"),
        ("traces", "fk_traces_dataset"),
    ):
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {key}")
    _partition_traces()
    _partition_search()
    op.execute(_REFUSE)


def _partition_traces() -> None:
    op.execute("ALTER TABLE traces RENAME TO traces_0")
    for constraint, name in (("pk_traces", "traces_0_pkey"), ("uq_traces_id", "uq_traces_0_id")):
        op.execute(f"ALTER TABLE traces_0 RENAME CONSTRAINT {constraint} TO {name}")
    for index in ("listing", "notable"):
        op.execute(f"ALTER INDEX ix_traces_{index} RENAME TO ix_traces_0_{index}")
    op.execute("CREATE TABLE traces (LIKE traces_0 INCLUDING DEFAULTS) PARTITION BY RANGE (seq)")
    op.execute("ALTER TABLE traces ADD CONSTRAINT pk_traces PRIMARY KEY (seq)")
    op.execute("CREATE INDEX ix_traces_listing ON traces (dataset, position, created, outcome, model)")
    op.execute(
        "CREATE INDEX ix_traces_notable ON traces (dataset, outcome, position, created, model)"
        " WHERE outcome <> 'completed'"
    )
    op.execute("ALTER SEQUENCE traces_seq_seq OWNED BY traces.seq")
    op.execute(f"ALTER TABLE traces ATTACH PARTITION traces_0 FOR VALUES FROM (MINVALUE) TO ({_END})")
    op.execute("ALTER TABLE traces_0 DROP CONSTRAINT ck_traces_0")


def _partition_search() -> None:
    op.execute("ALTER TABLE search RENAME TO search_0")
    op.execute("ALTER TABLE search_0 RENAME CONSTRAINT pk_search TO search_0_pkey")
    op.execute("ALTER INDEX ix_search_body RENAME TO ix_search_0_body")
    op.execute("CREATE TABLE search (LIKE search_0) PARTITION BY RANGE (trace)")
    op.execute("ALTER TABLE search ADD CONSTRAINT pk_search PRIMARY KEY (trace)")
    op.execute("CREATE INDEX ix_search_body ON search USING gin (body)")
    op.execute(f"ALTER TABLE search ATTACH PARTITION search_0 FOR VALUES FROM (MINVALUE) TO ({_END})")
    op.execute("ALTER TABLE search_0 DROP CONSTRAINT ck_search_0")


def downgrade() -> None:
    raise NotImplementedError(
        "the previous schema has no partitions: restore the backup that was made before the upgrade"
    )
