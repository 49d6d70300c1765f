"""A database that is a file of this machine: what was committed survives kill -9 and power loss."""

import asyncio
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, Row, Select, create_engine, event, exc
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

from maas_runtime.completion import to_its_end
from maas_runtime.database.failures import DatabaseCorrupt, database_busy
from maas_runtime.failures import Failure
from maas_runtime.storage import storage_failed, storage_full, storage_read_only

_READERS = 4
_QUERY_THREADS = 2


@dataclass(frozen=True, slots=True)
class SqliteFile:
    """Where the database is. Each of its connections has a thread of its own, aiosqlite's."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def readers(self) -> int:
        """How many transactions read at once."""
        return _READERS

    @property
    def longest_seconds(self) -> None:
        """A thread that has begun comes to its end; SQLite waits for nobody but the disk."""
        return

    async def check(self) -> None:
        """Make the file if there is none. Raises what SQLite has against it.

        Before any connection with a thread of its own: one that fails to open leaves its thread to end when it likes.
        """

        def check() -> None:
            with closing(sqlite3.connect(self.path)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()

        await to_its_end(asyncio.to_thread(check))

    def migrating(self) -> AsyncEngine:
        """Return one connection that may rebuild tables which others refer to."""
        return self._engine(1, "BEGIN IMMEDIATE", foreign_keys="OFF")

    def writing(self) -> AsyncEngine:
        """Return the one connection that writes."""
        return self._engine(1, "BEGIN IMMEDIATE")

    def reading(self) -> AsyncEngine:
        """Return connections whose transactions see one state of the whole database."""
        return self._engine(_READERS, "BEGIN")

    def querying(self, reading: AsyncEngine) -> "_Queries":  # noqa: ARG002
        """Return what answers a single query with one change of threads, where aiosqlite needs ten."""
        return _Queries(self.path)

    def failure_of(self, error: BaseException) -> Failure | None:
        """Return the failure that an error stands for; None when it is a bug of ours."""
        return failure_of(error, self.path)

    def _engine(self, connections: int, begin: str, foreign_keys: str = "ON") -> AsyncEngine:
        engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=str(self.path)),
            poolclass=AsyncAdaptedQueuePool,
            pool_size=connections,
            max_overflow=0,
        )

        _prepare(engine.sync_engine, foreign_keys)

        @event.listens_for(engine.sync_engine, "begin")
        def begin_transaction(connection: Any) -> None:
            connection.exec_driver_sql(begin)

        return engine


class _Queries:
    """A few threads, each of which asks and fetches in one go: three times as many a second as through aiosqlite."""

    def __init__(self, path: Path) -> None:
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)), poolclass=QueuePool, pool_size=_QUERY_THREADS, max_overflow=0
        )
        _prepare(self._engine)
        self._threads = ThreadPoolExecutor(_QUERY_THREADS, thread_name_prefix="query")

    async def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        def fetch() -> Sequence[Row[Any]]:
            with self._engine.connect() as connection:
                return connection.execute(query).all()

        return await asyncio.get_running_loop().run_in_executor(self._threads, fetch)

    async def close(self) -> None:
        """Close the connections; no query runs any more."""
        self._threads.shutdown()
        self._engine.dispose()


def _prepare(engine: Engine, foreign_keys: str = "ON") -> None:
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        # Python's own transactions begin late and without a lock; ours begin where SQLAlchemy says.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL", f"foreign_keys={foreign_keys}"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


def failure_of(error: BaseException, path: Path) -> Failure | None:
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
            return database_busy()
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return DatabaseCorrupt(f"{path} is damaged: restore it from a backup", name=str(path))
        case _:
            return None
