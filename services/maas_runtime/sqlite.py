"""A process's own SQLite database: what was committed survives kill -9 and power loss, and waits are bounded."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import (
    Column,
    Dialect,
    Integer,
    MetaData,
    Row,
    Select,
    Table,
    TypeDecorator,
    event,
    exc,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from maas_runtime.completion import to_its_end
from maas_runtime.failures import DataCorrupt, Failure, NotAllowedNow, Overloaded
from maas_runtime.storage import storage_failed, storage_full, storage_read_only

_READERS = 4
_WAIT_SECONDS = 10.0
ResultT = TypeVar("ResultT")
Migrations: TypeAlias = Mapping[int, Sequence[str]]
"""The statements that turn tables of that schema version into those of the next."""
_NO_MIGRATIONS: Migrations = {}

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

    Transactions wait for their turn here, where a caller may leave, instead of in SQLite, which would let them poll.
    One that has begun comes to its end: a connection left in the middle of a statement can only be thrown away.
    Everything here raises StorageFull, StorageReadOnly, StorageFailed, DatabaseBusy or DatabaseCorrupt.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = _engine(path, connections=1, begin="BEGIN IMMEDIATE")
        self._readers = _engine(path, connections=_READERS, begin="BEGIN")
        self._writers_turn = asyncio.Semaphore(1)
        self._readers_turn = asyncio.Semaphore(_READERS)

    async def write(self, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
        """Return what `work` returns in the one transaction that may write; by then it is on disk.

        An exception of `work` undoes all of it.
        """
        return await self._transaction(self._writer, self._writers_turn, work)

    async def read(self, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
        """Return what `work` returns in a transaction that sees one state of the whole database."""
        return await self._transaction(self._readers, self._readers_turn, work)

    async def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        """Return what one query finds."""

        async def fetch(connection: AsyncConnection) -> Sequence[Row[Any]]:
            found: Sequence[Row[Any]] = (await connection.execute(query)).all()
            return found

        return await self.read(fetch)

    async def close(self) -> None:
        """Wait for the transactions that have begun, then close the file."""
        for _ in range(_READERS):
            await self._readers_turn.acquire()
        await self._writers_turn.acquire()
        await self._readers.dispose()
        await self._writer.dispose()

    async def _transaction(
        self, engine: AsyncEngine, turn: asyncio.Semaphore, work: Callable[[AsyncConnection], Awaitable[ResultT]]
    ) -> ResultT:
        async def run() -> ResultT:
            async with engine.begin() as connection:
                return await work(connection)

        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await turn.acquire()
        except TimeoutError as error:
            raise DatabaseBusy("the database is busy: try again in a moment") from error
        try:
            with _translated_errors(self._path):
                return await to_its_end(run())
        finally:
            turn.release()


@asynccontextmanager
async def open_database(
    path: Path, metadata: MetaData, schema_version: int, migrations: Migrations = _NO_MIGRATIONS
) -> AsyncIterator[Database]:
    """Open the database at `path`, with the tables of `metadata`, until the context ends.

    Tables of an older version are migrated. Raises DatabaseOfOtherRelease when their version is one that no migration
    leads away from, and what `Database` does.
    """
    with _translated_errors(path):
        # Before any connection with a thread of its own: one that fails to open leaves its thread to end when it likes.
        await to_its_end(asyncio.to_thread(_check_file, path))
    database = Database(path)
    try:
        await database.write(lambda connection: _prepare(connection, path, metadata, schema_version, migrations))
        yield database
    finally:
        await database.close()


def _check_file(path: Path) -> None:
    """Make the file if there is none. Raises what SQLite has against it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _engine(path: Path, connections: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        poolclass=AsyncAdaptedQueuePool,
        pool_size=connections,
        max_overflow=0,
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


async def _prepare(
    connection: AsyncConnection, path: Path, metadata: MetaData, schema_version: int, migrations: Migrations
) -> None:
    versions = Table("schema_version", MetaData(), Column("version", Integer, nullable=False))
    await connection.run_sync(versions.create, checkfirst=True)
    found = (await connection.execute(select(versions.c.version))).scalar()
    if found is None:
        await connection.run_sync(metadata.create_all)
        await connection.execute(insert(versions).values(version=schema_version))
        return
    while found < schema_version and found in migrations:
        for statement in migrations[found]:
            await connection.exec_driver_sql(statement)
        found += 1
        await connection.execute(update(versions).values(version=found))
    if found != schema_version:
        raise DatabaseOfOtherRelease(
            f"{path} has tables of version {found}, this program knows {schema_version}: run the release that made it, "
            "or choose another MAAS_HOME",
            name=str(path),
        )


@contextmanager
def _translated_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (exc.DBAPIError, sqlite3.Error) as error:
        failure = failure_of(error, path)
        if failure is None:
            raise
        raise failure from error


def failure_of(error: exc.DBAPIError | sqlite3.Error, path: Path) -> Failure | None:
    """Return the failure that an error of SQLite's stands for; None when it is a bug of ours."""
    # The low byte is the kind; the others say which operation met it.
    origin = error.orig if isinstance(error, exc.DBAPIError) else error
    code = getattr(origin, "sqlite_errorcode", None)
    match None if code is None else code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return storage_full(path.parent)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return storage_read_only(path.parent)
        case sqlite3.SQLITE_IOERR:
            return storage_failed(path.parent, str(origin))
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return DatabaseBusy("the database is busy: try again in a moment")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return DatabaseCorrupt(f"{path} is damaged: restore it from a backup", name=str(path))
        case _:
            return None
