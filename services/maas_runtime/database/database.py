"""A process's own database: what was committed is on disk, and waits are bounded."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Row, Select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from maas_runtime.completion import to_its_end
from maas_runtime.database.failures import database_busy
from maas_runtime.database.migrations import Migrations
from maas_runtime.failures import Failure

_WAIT_SECONDS = 10.0
ResultT = TypeVar("ResultT")


class Queries(Protocol):
    """What answers single queries."""

    async def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        """Return what one query finds."""
        ...

    async def close(self) -> None:
        """Close what was opened for it."""
        ...


class DatabaseLocation(Protocol):
    """Where a database is and how it is opened: SqliteFile or PostgresqlDatabase. As text, without a password."""

    @property
    def readers(self) -> int:
        """How many transactions read at once."""
        ...

    @property
    def longest_seconds(self) -> float | None:
        """When a transaction is given up; None when it cannot be."""
        ...

    async def check(self) -> None:
        """Raise what there is against opening it, as far as that can be told before."""
        ...

    def migrating(self) -> AsyncEngine:
        """Return one connection that writes alone, for as long as it takes, and may rebuild tables."""
        ...

    def writing(self) -> AsyncEngine:
        """Return one connection whose transactions begin when nobody else writes."""
        ...

    def reading(self) -> AsyncEngine:
        """Return connections whose transactions see one state of the whole database."""
        ...

    def querying(self, reading: AsyncEngine) -> Queries:
        """Return what answers a single query sooner than a transaction of `reading` would."""
        ...

    def failure_of(self, error: BaseException) -> Failure | None:
        """Return the failure that an error stands for; None when it is a bug of ours."""
        ...


class Database:
    """One connection that writes and a few that read.

    Transactions wait for their turn here, where a caller may leave, instead of in the database. One that has begun
    comes to its end: a connection left in the middle of a statement can only be thrown away.
    Everything here raises StorageFull, StorageReadOnly, StorageFailed, or one of maas_runtime/database/failures.
    """

    def __init__(self, location: DatabaseLocation) -> None:
        self._location = location
        self._writing = location.writing()
        self._reading = location.reading()
        self._queries = location.querying(self._reading)
        self._writers_turn = asyncio.Semaphore(1)
        self._readers_turn = asyncio.Semaphore(location.readers)

    async def write(self, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
        """Return what `work` returns in the one transaction that may write; by then it is on disk.

        Nobody else writes meanwhile, in other processes either: what `work` has looked up still holds when it writes.
        An exception of `work` undoes all of it.
        """
        return await self._in_turn(self._writers_turn, lambda: _transaction(self._writing, work))

    async def read(self, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
        """Return what `work` returns in a transaction that sees one state of the whole database."""
        return await self._in_turn(self._readers_turn, lambda: _transaction(self._reading, work))

    async def rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        """Return what one query finds."""
        return await self._in_turn(self._readers_turn, lambda: self._queries.rows(query))

    async def close(self) -> None:
        """Wait for the transactions that have begun, then close the connections."""
        for _ in range(self._location.readers):
            await self._readers_turn.acquire()
        await self._writers_turn.acquire()
        await self._queries.close()
        await self._reading.dispose()
        await self._writing.dispose()

    async def _in_turn(self, turn: asyncio.Semaphore, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await turn.acquire()
        except TimeoutError as error:
            raise database_busy() from error
        try:
            return await to_its_end(_translated(self._location, work))
        finally:
            turn.release()


@asynccontextmanager
async def open_database(location: DatabaseLocation, migrations: Migrations) -> AsyncIterator[Database]:
    """Open the database, with the tables that all migrations make, until the context ends.

    Raises DatabaseOfOtherRelease when a newer release made the tables, and what `Database` does.
    """
    await migrate(location, lambda connection: migrations.upgrade(connection, str(location)))
    database = Database(location)
    try:
        yield database
    finally:
        await database.close()


async def migrate(location: DatabaseLocation, change: Callable[[Connection], None]) -> None:
    """Let `change` make or change tables, in one transaction while nobody else writes."""

    async def run() -> None:
        async with alone(location) as connection:
            await connection.run_sync(change)

    await to_its_end(run())


@asynccontextmanager
async def alone(location: DatabaseLocation) -> AsyncIterator[AsyncConnection]:
    """Give one transaction over the whole database, for as long as it takes; nobody else writes meanwhile."""
    with _translated_errors(location):
        await location.check()
    engine = location.migrating()
    try:
        with _translated_errors(location):
            async with engine.begin() as connection:
                yield connection
    finally:
        await engine.dispose()


async def _translated(location: DatabaseLocation, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
    with _translated_errors(location):
        async with asyncio.timeout(location.longest_seconds):
            return await work()


async def _transaction(engine: AsyncEngine, work: Callable[[AsyncConnection], Awaitable[ResultT]]) -> ResultT:
    async with engine.begin() as connection:
        return await work(connection)


@contextmanager
def _translated_errors(location: DatabaseLocation) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        failure = location.failure_of(error)
        if failure is None:
            raise
        raise failure from error
