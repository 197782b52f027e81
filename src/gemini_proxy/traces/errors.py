"""Define the errors of the trace store.

    StoreError              the database cannot be used now, or at all
    ├── StoreUnavailable    the database takes nothing now, whatever it is; later it may
    ├── RowRejected         the database works, but not with this row
    ├── AmbiguousTraceId    an id prefix that several traces share
    ├── AmbiguousDataset    a name that several users' datasets share
    ├── NameTaken           a dataset is to be made that is there
    ├── DatasetGone         a dataset was deleted meanwhile
    ├── TooMany             more datasets, policies or annotations than there may be
    └── TooMuchAtOnce       an answer that would not fit into memory

Messages name the kind of failure and never a row's contents, a parameter or a password.
"""


class StoreError(Exception):
    """The database could not do what was asked: locked, full, gone, read-only, or of another version."""


class StoreUnavailable(StoreError):
    """The database takes nothing now: it starts, is locked, full, or out of reach. The same may succeed later."""


class RowRejected(StoreError):
    """A value that cannot be serialized or stored; the same batch without its row may succeed."""


class AmbiguousTraceId(StoreError):
    """More than one trace's id begins with the given prefix."""


class AmbiguousDataset(StoreError):
    """Several users have a dataset of the name."""


class NameTaken(StoreError):
    """The user has a dataset of that name already."""


class DatasetGone(StoreError):
    """The dataset was deleted meanwhile."""


class TooMany(StoreError):
    """A limit on the number of objects is reached; the message is for the caller."""


class TooMuchAtOnce(StoreError):
    """The request is for more than may be read at a time."""
