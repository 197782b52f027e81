"""Define the tables, in types that SQLite and PostgreSQL share. JSON is bytes that we write and read ourselves."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

# The newest migration, so that a reader can tell a foreign schema without loading Alembic.
HEAD = "0023"

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)

# A query must say so in these words for a database to use the index of such traces.
NOTABLE = "outcome <> 'completed'"

# The same for the index of annotations by what they say: PostgreSQL takes 2,700 bytes into an index.
MESSAGE = "substr(content, 1, 200)"

# SQLite numbers rows by itself only in a column typed INTEGER.
_Sequence = BigInteger().with_variant(Integer, "sqlite")

# ``owner`` is a user, or "" for exchanges that nobody's key came with. ``name`` is "" for those that named no dataset,
# and NULL once the dataset is deleted: its traces are then removed in small steps. ``size`` counts the traces ever put
# in.
datasets = Table(
    "datasets",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("owner", Text, nullable=False),
    Column("name", Text),
    Column("metadata", LargeBinary, nullable=False),
    Column("created", Double, nullable=False),
    Column("latest", Double),
    Column("size", Integer, nullable=False),
    Index(None, "owner", "name", unique=True),
    sqlite_autoincrement=True,
)

# ``position`` is a trace's place in its dataset, from 0.
#
# In PostgreSQL this table and the search index are partitioned, an id is unique within its partition, and there are no
# foreign keys to or from traces: see partitions.py.
traces = Table(
    "traces",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("dataset", _Sequence, ForeignKey("datasets.seq"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("created", Double, nullable=False),
    Column("updated", Double),
    Column("tenant", Text),
    Column("outcome", Text, nullable=False),
    Column("model", Text),
    Column("stream", Boolean, nullable=False),
    Column("duration_ms", Double, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    # Last, so that SQLite finds the other columns without walking the overflow pages of a long conversation.
    Column("messages", LargeBinary, nullable=False),
    # The listing of a dataset, with what it is filtered by: a million traces are looked through without reading one.
    Index("ix_traces_listing", "dataset", "position", "created", "outcome", "model"),
    # The few that did not simply complete, which users look for: found without scanning the others.
    Index(
        "ix_traces_notable",
        "dataset",
        "outcome",
        "position",
        "created",
        "model",
        sqlite_where=text(NOTABLE),
        postgresql_where=text(NOTABLE),
    ),
    # Without it SQLite would give the number of a deleted newest row to another trace.
    sqlite_autoincrement=True,
)

annotations = Table(
    "annotations",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("trace", _Sequence, ForeignKey("traces.seq", ondelete="CASCADE"), nullable=False, index=True),
    # The trace's: so that one index finds a rule in a dataset.
    Column("dataset", _Sequence, nullable=False),
    Column("content", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("source", Text, nullable=False),
    # The name of the rule, or the message where no rule is named; cut, see rows.py, for it is in an index.
    Column("rule", Text, nullable=False),
    Column("guardrail", LargeBinary, nullable=False),
    # Further data from a client that annotates.
    Column("extra", LargeBinary, nullable=False),
    Column("created", Double, nullable=False),
    Index(None, "dataset", "rule", "trace"),
    Index("ix_annotations_message", "dataset", text(MESSAGE), "trace"),
)

policies = Table(
    "policies",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("dataset", _Sequence, ForeignKey("datasets.seq", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("action", Text, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    Column("updated", Double, nullable=False),
)

# What policies have been, and removed ones were: see policies.py. A policy that is removed keeps its versions.
policy_versions = Table(
    "policy_versions",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("dataset", _Sequence, ForeignKey("datasets.seq", ondelete="CASCADE"), nullable=False, index=True),
    Column("policy", String(36), nullable=False),
    Column("number", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Column("by", Text, nullable=False),
    Column("removed", Boolean, nullable=False),
    Column("name", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("action", Text, nullable=False),
    Column("metadata", LargeBinary, nullable=False),
    UniqueConstraint("policy", "number"),
)

# What a policy may become, compared with what it is; and how often which of both found something: see shadows.py. A
# number is of one comparison: when a side of it changes, the row is made again.
policy_shadows = Table(
    "policy_shadows",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("dataset", _Sequence, ForeignKey("datasets.seq", ondelete="CASCADE"), nullable=False, index=True),
    Column("policy", String(36), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("share", Integer, nullable=False),
    Column("started", Double, nullable=False),
    Column("by", Text, nullable=False),
    Column("since", Double, nullable=False),
    Column("compared", BigInteger, nullable=False),
    Column("both", BigInteger, nullable=False),
    Column("only_old", BigInteger, nullable=False),
    Column("only_new", BigInteger, nullable=False),
    Column("action_differs", BigInteger, nullable=False),
    Column("ranges_differ", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    Column("skipped", BigInteger, nullable=False),
    Column("milliseconds", Double, nullable=False),
    Column("slowest", Double, nullable=False),
    Column("failure", Text, nullable=False),
    sqlite_autoincrement=True,
)

# Exchanges in which the two found something else; ``verdicts`` is what each found, as JSON.
shadow_differences = Table(
    "shadow_differences",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("shadow", _Sequence, ForeignKey("policy_shadows.seq", ondelete="CASCADE"), nullable=False),
    Column("trace", String(36), nullable=False, index=True),
    Column("at", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("verdicts", LargeBinary, nullable=False),
    Index(None, "shadow", "kind", "seq"),
)

# A tool as a dataset's exchanges first declared it, ``text`` as JSON, and the last declaration since that was another.
pinned_tools = Table(
    "pinned_tools",
    metadata,
    Column("dataset", _Sequence, ForeignKey("datasets.seq", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("text", LargeBinary, nullable=False),
    Column("at", Double, nullable=False),
    Column("changed_digest", String(64)),
    Column("changed_text", LargeBinary),
    Column("changed_at", Double),
)

# ``digest`` is the SHA-256 of a key in hexadecimal, ``hint`` its last four characters, ``role`` what it may do.
keys = Table(
    "keys",
    metadata,
    Column("id", String(8), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("hint", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("revoked", Double),
    # The default is for processes that do not know roles, while machines are updated one by one.
    Column("role", Text, nullable=False, server_default="operator"),
    # Written now and then, not with each request.
    Column("used", Double),
)

# Browsers that have signed in: the SHA-256 of the cookie, and the key it was given for.
sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("key", String(8), ForeignKey("keys.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("expires", Double, nullable=False),
)

# One row: a number that grows with every change of keys, policies and datasets, for those who keep them in memory.
revision = Table(
    "revision",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", _Sequence, nullable=False),
)

# How far work that follows the traces has come: the number of the last one it has seen.
progress = Table(
    "progress",
    metadata,
    Column("name", Text, primary_key=True),
    Column("seq", _Sequence, nullable=False),
)

# Which process does what one does for all that share the database, and until when by the clock that they share.
leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", String(36), nullable=False),
    Column("until", Double, nullable=False),
)

# What clients have taken of a limit that all processes share, until ``ends`` (Unix seconds): see budgets.py.
budgets = Table(
    "budgets",
    metadata,
    Column("client", String(64), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("ends", BigInteger, primary_key=True, autoincrement=False),
    Column("taken", Double, nullable=False),
    Index(None, "ends"),
)

# What the traces of a dataset add up to that began within ``seconds`` from ``start`` on (Unix seconds), as JSON; and
# their first and last position: a span of time is found among a million traces without an index of its own.
usage = Table(
    "usage",
    metadata,
    Column("dataset", _Sequence, ForeignKey("datasets.seq", ondelete="CASCADE"), primary_key=True),
    Column("seconds", Integer, primary_key=True, autoincrement=False),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("first", Integer, nullable=False),
    Column("last", Integer, nullable=False),
    Column("figures", LargeBinary, nullable=False),
)

# ``due`` is when a job may be taken: taking moves it ahead by a lease, so that two processes do not run the same one.
jobs = Table(
    "jobs",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("trace", _Sequence, ForeignKey("traces.seq", ondelete="CASCADE"), nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("created", Double, nullable=False),
    Column("due", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Index(None, "kind", "due"),
    # A finished job's number must not come back: a slow worker would finish another trace's job.
    sqlite_autoincrement=True,
)

# Texts that were refused, by keyed digests: see known_digests.py.
refused_texts = Table(
    "refused_texts",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("at", Double, nullable=False),
    Index(None, "at"),
)

# Conversations that passed, up to the end of a turn, in the same way.
allowed_turns = Table(
    "allowed_turns",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("at", Double, nullable=False),
    Index(None, "at"),
)

# Values behind placeholders, encrypted; ``holder`` and ``conversation`` are digests. See masked_values.py.
masked_values = Table(
    "masked_values",
    metadata,
    Column("holder", String(32), primary_key=True),
    Column("conversation", String(32), primary_key=True),
    Column("placeholder", Text, primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("key", String(8), nullable=False, index=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("expires", Double, nullable=False, index=True),
)

# What guardrails ask a person for; ``used`` once an allowance for one exchange has been taken. See approvals.py.
approvals = Table(
    "approvals",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("created", Double, nullable=False, index=True),
    Column("expires", Double, nullable=False, index=True),
    Column("owner", Text, nullable=False),
    Column("dataset", Text),
    Column("trace", String(36), nullable=False),
    Column("guardrail", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("subject", String(64), nullable=False, index=True),
    Column("shown", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("decided_at", Double),
    Column("decided_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("until", Double, nullable=False),
    Column("used", Boolean, nullable=False),
    Column("conversation", Text, nullable=False, server_default=""),
    Column("for_conversation", Boolean, nullable=False, server_default=false()),
)

# Names under which Gemini keeps something, and what was read of it: see handles.py.
handles = Table(
    "handles",
    metadata,
    Column("account", String(64), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("dataset", Text),
    Column("trace", String(36), nullable=False),
    Column("guardrails", String(64), nullable=False),
    Column("unchecked", Text, nullable=False),
    Column("refused", Boolean, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("details", LargeBinary, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double, nullable=False, index=True),
)

# What happened that alerts may tell of, until one process has gathered it; see alerts/outbox.py.
alert_notices = Table(
    "alert_notices",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("count", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Column("example", LargeBinary, nullable=False),
)

# What was gathered for an alert, as JSON; ``due`` is when its message is to be sent, if one is.
alert_states = Table(
    "alert_states",
    metadata,
    Column("alert", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("state", LargeBinary, nullable=False),
    Column("due", Double, index=True),
)

# Messages that wait to be sent, at most one of an alert, kind and key. ``due`` is as that of jobs.
alert_messages = Table(
    "alert_messages",
    metadata,
    Column("seq", _Sequence, primary_key=True),
    Column("id", String(40), nullable=False),
    Column("alert", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("count", Integer, nullable=False),
    Column("since", Double, nullable=False),
    Column("created", Double, nullable=False),
    Column("due", Double, nullable=False, index=True),
    Column("expires", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("example", LargeBinary, nullable=False),
    # As with jobs: the number of a message that was sent must not come back.
    sqlite_autoincrement=True,
)

# Changes of rules, keys and settings, and who made them: see audit.py. Triggers refuse to change or delete entries.
audit_log = Table(
    "audit_log",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("by", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("owner", Text),
    Column("details", LargeBinary, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Index(None, "action", "seq"),
    Index(None, "owner", "seq"),
)

# One row: the last entry's number and digest, so that a missing last entry is noticed.
audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", _Sequence, nullable=False),
    Column("digest", String(64), nullable=False),
)

# Traces that were sealed together: their numbers and digests, whose own digest is in the audit log. See seals.py.
trace_seals = Table(
    "trace_seals",
    metadata,
    Column("first", _Sequence, primary_key=True, autoincrement=False),
    Column("last", _Sequence, nullable=False),
    Column("leaves", LargeBinary, nullable=False),
)

# One row: what both clocks said at the last look, and for how many seconds they had agreed; see retention.py.
clock_mark = Table(
    "clock_mark",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("boot", Text, nullable=False),
    Column("wall", Double, nullable=False),
    Column("monotonic", Double, nullable=False),
    Column("agreed", Double, nullable=False),
)

# One row, rewritten to find out whether the database takes writes.
probe = Table(
    "probe",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
)
