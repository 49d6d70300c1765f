"""What a database may fail with, whichever it is; a disk's failures are those of maas_runtime/storage.py."""

from sqlalchemy.exc import DontWrapMixin

from maas_runtime.failures import DataCorrupt, InvalidInput, NotAllowedNow, Overloaded, Unavailable


class DatabaseBusy(Overloaded):
    """Too many transactions wait for their turn."""

    reason = "DATABASE_BUSY"


class DatabaseUnavailable(Unavailable):
    """The server of the database is away, or does not let this process in."""

    reason = "DATABASE_UNAVAILABLE"


class DatabaseCorrupt(DataCorrupt):
    """The stored tables are damaged."""

    reason = "DATABASE_CORRUPT"


class DatabaseOfOtherRelease(NotAllowedNow):
    """The tables were made by a release that this one does not know, or by another program."""

    reason = "DATABASE_OF_OTHER_RELEASE"


class TextNotStorable(InvalidInput, DontWrapMixin):
    """A text holds the character NUL, which PostgreSQL does not store; so no database takes it."""

    reason = "TEXT_NOT_STORABLE"


def database_busy() -> DatabaseBusy:
    """Return the failure of a wait that took too long."""
    return DatabaseBusy("the database is busy: try again in a moment")
