"""What the trace store raises.

    StoreError              the database cannot be used now, or at all
    ├── RowRejected         the database works, but not with this row
    └── AmbiguousTraceId    an id prefix that several traces share

Messages name the kind of failure and never a row's contents, a parameter or a password.
"""


class StoreError(Exception):
    """The database could not do what was asked: locked, full, gone, read-only, or of another version."""


class RowRejected(StoreError):
    """A value that cannot be serialised or stored; the same batch without its row may succeed."""


class AmbiguousTraceId(StoreError):
    """More than one trace's id begins with the given prefix."""
