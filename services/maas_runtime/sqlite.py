"""A process's own SQLite database: what was committed survives kill -9 and power loss, and waits are bounded."""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Dialect, Integer, MetaData, Table, TypeDecorator, event, exc, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from maas_runtime.failures import DataCorrupt, Failure, NotAllowedNow, Overloaded
from maas_runtime.storage import storage_failed, storage_full, storage_read_only

_READERS = 4
_WAIT_SECONDS = 10.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class DatabaseBusy(Overloaded):
    """Too many transactions wait for their turn."""

    reason = "DATABASE_BUSY"


class DatabaseCorrupt(DataCorrupt):
    """The database file is damaged."""

    reason = "DATABASE_CORRUPT"


class DatabaseOfOtherRelease(NotAllowedNow):
    """The tables were made by a release that this one does not know."""

    reason = "DATABASE_OF_OTHER_RELEASE"


class UtcTime(TypeDecorator[datetime]):
    """A point in time, as whole microseconds since 1970."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        """Return what is stored."""
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return what was meant."""
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Database:
    """One file with one connection that writes and a few that read, each on a thread of its own (aiosqlite's).

    Writers take turns in a queue of this process instead of meeting in SQLite, which would let them poll.
    """

    def __init__(self, path: Path, writer: AsyncEngine, readers: AsyncEngine) -> None:
        self._path = path
        self._writer = writer
        self._readers = readers

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Give the one transaction that may write; committed and on disk when the context ends without exception.

        Raises StorageFull, StorageReadOnly, StorageFailed, DatabaseBusy or DatabaseCorrupt.
        """
        with self._translated_errors():
            async with self._writer.begin() as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Give a transaction that sees one state of the whole database. Raises what `writing` does."""
        with self._translated_errors():
            async with self._readers.connect() as connection:
                yield connection

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except exc.TimeoutError as error:
            raise DatabaseBusy("the database is busy: try again in a moment") from error
        except exc.DBAPIError as error:
            failure = failure_of(error, self._path)
            if failure is None:
                raise
            raise failure from error


@asynccontextmanager
async def open_database(path: Path, metadata: MetaData, schema_version: int) -> AsyncIterator[Database]:
    """Open the database at `path`, with the tables of `metadata`, until the context ends.

    Raises DatabaseOfOtherRelease when its tables are of another schema version, and what `Database.writing` does.
    """
    writer = _engine(path, connections=1, begin="BEGIN IMMEDIATE")
    readers = _engine(path, connections=_READERS, begin="BEGIN")
    database = Database(path, writer, readers)
    try:
        async with database.writing() as connection:
            await _prepare(connection, path, metadata, schema_version)
        yield database
    finally:
        await readers.dispose()
        await writer.dispose()


def _engine(path: Path, connections: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        poolclass=AsyncAdaptedQueuePool,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=_WAIT_SECONDS,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        # Python's own transactions begin late and without a lock; ours begin where SQLAlchemy says, below.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


async def _prepare(connection: AsyncConnection, path: Path, metadata: MetaData, schema_version: int) -> None:
    versions = Table("schema_version", MetaData(), Column("version", Integer, nullable=False))
    await connection.run_sync(versions.create, checkfirst=True)
    found = (await connection.execute(select(versions.c.version))).scalar()
    if found is None:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(versions).values(version=schema_version))
    elif found != schema_version:
        raise DatabaseOfOtherRelease(
            f"{path} has tables of version {found}, this program knows {schema_version}: run the release that made it, "
            "or choose another MAAS_HOME",
            name=str(path),
        )


def failure_of(error: exc.DBAPIError, path: Path) -> Failure | None:
    """Return the failure that an error of SQLite's stands for; None when it is a bug of ours."""
    # The low byte is the kind; the others say which operation met it.
    code = getattr(error.orig, "sqlite_errorcode", None)
    match None if code is None else code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return storage_full(path.parent)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return storage_read_only(path.parent)
        case sqlite3.SQLITE_IOERR:
            return storage_failed(path.parent, str(error.orig))
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return DatabaseBusy("the database is busy: try again in a moment")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return DatabaseCorrupt(f"{path} is damaged: restore it from a backup", name=str(path))
        case _:
            return None
