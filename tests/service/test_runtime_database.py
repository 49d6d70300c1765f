"""A database of either kind: what was committed is there, waits end, and a cancelled transaction harms nobody."""

import asyncio
import errno
import random
from datetime import UTC, datetime
from pathlib import Path

import pytest
from postgresql_server import PostgresqlServer
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from maas_runtime.database.columns import UtcTime
from maas_runtime.database.database import Database, DatabaseLocation, migrate, open_database
from maas_runtime.database.failures import (
    DatabaseBusy,
    DatabaseCorrupt,
    DatabaseOfOtherRelease,
    DatabaseUnavailable,
)
from maas_runtime.database.location import parse_database_url
from maas_runtime.database.migrations import Migrations
from maas_runtime.database.postgresql import PostgresqlDatabase
from maas_runtime.database.sqlite import SqliteFile
from maas_runtime.failures import Failure
from maas_runtime.storage import StorageFailed, StorageFull, StorageReadOnly, translated_disk_errors

NUMBERS = Table(
    "numbers",
    MetaData(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("time", UtcTime),
)
MIGRATIONS = Migrations(Path(__file__).parent / "number_migrations")


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseLocation:
    if request.param == "sqlite":
        return SqliteFile(tmp_path / "a.sqlite")
    return PostgresqlDatabase(request.getfixturevalue("postgresql").new_database())


async def add_next(database: Database) -> int:
    async def add(connection: AsyncConnection) -> int:
        number: int = (await connection.execute(select(func.coalesce(func.max(NUMBERS.c.number), 0) + 1))).scalar_one()
        await connection.execute(insert(NUMBERS).values(number=number, time=datetime.now(UTC)))
        return number

    return await database.write(add)


async def numbers_in(database: Database) -> list[int]:
    return [row.number for row in await database.rows(select(NUMBERS.c.number).order_by(NUMBERS.c.number))]


async def test_writers_take_turns_and_none_is_lost(location: DatabaseLocation) -> None:
    async with open_database(location, MIGRATIONS) as database:
        added = await asyncio.gather(*(add_next(database) for _ in range(50)))
    assert sorted(added) == list(range(1, 51))
    async with open_database(location, MIGRATIONS) as database:
        assert await numbers_in(database) == list(range(1, 51))


async def test_a_transaction_that_fails_leaves_nothing(location: DatabaseLocation) -> None:
    async def fail(connection: AsyncConnection) -> None:
        await connection.execute(insert(NUMBERS).values(number=1))
        raise ZeroDivisionError

    async with open_database(location, MIGRATIONS) as database:
        with pytest.raises(ZeroDivisionError):
            await database.write(fail)
        assert await numbers_in(database) == []


async def test_a_transaction_that_has_begun_ends_before_its_cancelled_caller_does(location: DatabaseLocation) -> None:
    begun = asyncio.Event()

    async def add(connection: AsyncConnection) -> None:
        begun.set()
        await connection.execute(insert(NUMBERS).values(number=1))

    async with open_database(location, MIGRATIONS) as database:
        caller = asyncio.create_task(database.write(add))
        await begun.wait()
        waiting = asyncio.create_task(database.write(lambda connection: connection.execute(insert(NUMBERS))))
        await asyncio.sleep(0)
        waiting.cancel()
        caller.cancel()
        outcomes = await asyncio.gather(caller, waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2
        # The one that was still waiting for its turn left without having done anything.
        assert await numbers_in(database) == [1]


async def test_cancelled_transactions_leave_a_database_that_works(location: DatabaseLocation) -> None:
    generator = random.Random(5)
    async with open_database(location, MIGRATIONS) as database:
        for _ in range(40):
            tasks: list[asyncio.Task[object]] = [asyncio.create_task(add_next(database)) for _ in range(3)]
            tasks.append(asyncio.create_task(numbers_in(database)))
            for _ in range(generator.randrange(30)):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert not isinstance(outcome, Exception), outcome
        last = await add_next(database)
        assert await numbers_in(database) == list(range(1, last + 1))


async def test_a_database_is_closed_after_what_has_begun(location: DatabaseLocation) -> None:
    begun = asyncio.Event()

    async def add(connection: AsyncConnection) -> None:
        begun.set()
        await connection.execute(insert(NUMBERS).values(number=1))

    async with open_database(location, MIGRATIONS) as database:
        writing = asyncio.create_task(database.write(add))
        await begun.wait()
    await writing
    async with open_database(location, MIGRATIONS) as database:
        assert await numbers_in(database) == [1]


async def test_a_reader_sees_one_state_while_others_write(location: DatabaseLocation) -> None:
    async with open_database(location, MIGRATIONS) as database:
        await add_next(database)

        async def count_around_a_write(connection: AsyncConnection) -> list[int]:
            count = select(func.count(NUMBERS.c.number))
            before = (await connection.execute(count)).scalar_one()
            await add_next(database)
            return [before, (await connection.execute(count)).scalar_one()]

        assert await database.read(count_around_a_write) == [1, 1]


async def test_times_come_back_to_the_microsecond(location: DatabaseLocation) -> None:
    time = datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC)
    async with open_database(location, MIGRATIONS) as database:
        await database.write(lambda connection: connection.execute(insert(NUMBERS).values(number=1, time=time)))
        assert [row.time for row in await database.rows(select(NUMBERS.c.time))] == [time]


async def test_a_full_database_says_to_free_space(tmp_path: Path) -> None:
    async def fill(connection: AsyncConnection) -> None:
        await connection.execute(text("PRAGMA max_page_count=1"))
        for number in range(1, 5000):
            await connection.execute(insert(NUMBERS).values(number=number))

    async with open_database(SqliteFile(tmp_path / "a.sqlite"), MIGRATIONS) as database:
        with pytest.raises(StorageFull, match="free space"):
            await database.write(fill)


async def test_a_read_only_database_says_so(tmp_path: Path) -> None:
    async def write(connection: AsyncConnection) -> None:
        await connection.execute(text("PRAGMA query_only=ON"))
        await connection.execute(insert(NUMBERS).values(number=1))

    async with open_database(SqliteFile(tmp_path / "a.sqlite"), MIGRATIONS) as database:
        with pytest.raises(StorageReadOnly):
            await database.write(write)


async def test_a_folder_that_is_not_there_is_a_failure_and_no_bug(tmp_path: Path) -> None:
    with pytest.raises(StorageReadOnly):
        async with open_database(SqliteFile(tmp_path / "missing" / "a.sqlite"), MIGRATIONS):
            pass


async def test_a_damaged_file_is_data_loss(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(DatabaseCorrupt):
        async with open_database(SqliteFile(tmp_path / "a.sqlite"), MIGRATIONS):
            pass


async def change(location: DatabaseLocation, statement: str) -> None:
    await migrate(location, lambda connection: connection.exec_driver_sql(statement).close())


async def test_tables_of_a_newer_release_are_left_alone(location: DatabaseLocation) -> None:
    async with open_database(location, MIGRATIONS) as database:
        await add_next(database)
    await change(location, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseOfOtherRelease, match="revision 9999, this program knows up to 0001"):
        async with open_database(location, MIGRATIONS):
            pass
    await change(location, "UPDATE alembic_version SET version_num = '0001'")
    async with open_database(location, MIGRATIONS) as database:
        assert await numbers_in(database) == [1]


async def test_a_database_with_tables_of_somebody_else_is_left_alone(location: DatabaseLocation) -> None:
    await change(location, "CREATE TABLE numbers (number INTEGER)")
    with pytest.raises(DatabaseOfOtherRelease, match="choose an empty database"):
        async with open_database(location, MIGRATIONS):
            pass


async def test_of_processes_that_start_together_one_makes_the_tables(postgresql: PostgresqlServer) -> None:
    location = PostgresqlDatabase(postgresql.new_database())

    async def start() -> int:
        async with open_database(location, MIGRATIONS) as database:
            return await add_next(database)

    assert sorted(await asyncio.gather(*(start() for _ in range(4)))) == [1, 2, 3, 4]


async def test_processes_that_write_to_one_server_take_turns(postgresql: PostgresqlServer) -> None:
    location = PostgresqlDatabase(postgresql.new_database())
    async with open_database(location, MIGRATIONS) as one, open_database(location, MIGRATIONS) as other:
        added = await asyncio.gather(*(add_next(database) for _ in range(25) for database in (one, other)))
        assert sorted(added) == list(range(1, 51))


async def test_a_server_that_was_started_again_is_used_again(postgresql: PostgresqlServer) -> None:
    location = PostgresqlDatabase(postgresql.new_database())
    async with open_database(location, MIGRATIONS) as database:
        await add_next(database)
        assert await numbers_in(database) == [1]
        postgresql.stop()
        try:
            with pytest.raises(DatabaseUnavailable, match="does not answer"):
                await add_next(database)
            with pytest.raises(DatabaseUnavailable):
                await numbers_in(database)
        finally:
            postgresql.start()
        assert await numbers_in(database) == [1]
        assert await add_next(database) == 2


async def test_a_connection_that_breaks_in_a_transaction_is_a_server_that_is_away(postgresql: PostgresqlServer) -> None:
    async def break_off(connection: AsyncConnection) -> None:
        await connection.execute(insert(NUMBERS).values(number=1))
        await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    async with open_database(PostgresqlDatabase(postgresql.new_database()), MIGRATIONS) as database:
        with pytest.raises(DatabaseUnavailable):
            await database.write(break_off)
        assert await numbers_in(database) == []
        assert await add_next(database) == 1


async def test_a_statement_that_takes_too_long_is_ended_by_the_server(postgresql: PostgresqlServer) -> None:
    async def wait(connection: AsyncConnection) -> None:
        await connection.execute(text("SET LOCAL statement_timeout = 10"))
        await connection.execute(text("SELECT pg_sleep(100)"))

    async with open_database(PostgresqlDatabase(postgresql.new_database()), MIGRATIONS) as database:
        with pytest.raises(DatabaseBusy):
            await database.read(wait)
        assert await numbers_in(database) == []


async def test_who_reads_cannot_write(postgresql: PostgresqlServer) -> None:
    async with open_database(PostgresqlDatabase(postgresql.new_database()), MIGRATIONS) as database:
        with pytest.raises(StorageReadOnly, match="primary"):
            await database.read(lambda connection: connection.execute(insert(NUMBERS).values(number=1)))


async def test_a_server_that_lets_nobody_in_says_why_and_shows_no_password(postgresql: PostgresqlServer) -> None:
    url = postgresql.new_database().replace("postgres:@", "nobody:secret@")
    with pytest.raises(DatabaseUnavailable, match='role "nobody" does not exist') as caught:
        async with open_database(PostgresqlDatabase(url), MIGRATIONS):
            pass
    assert "secret" not in caught.value.message


def test_where_a_database_is_shows_no_password() -> None:
    location = parse_database_url("postgresql://ann:secret@host:5432/registry?password=secret")
    assert str(location) == "postgresql://host:5432/registry"
    assert "secret" not in repr(location)


@pytest.mark.parametrize("url", ["mysql://host/a", "sqlite://", "sqlite:///a.sqlite", "postgresql://host", "a.sqlite"])
def test_a_url_that_is_no_database_says_what_one_looks_like(url: str) -> None:
    with pytest.raises(ValueError, match="use sqlite:////folder/file"):
        parse_database_url(url)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EROFS, StorageReadOnly),
        (errno.EACCES, StorageReadOnly),
        (errno.EIO, StorageFailed),
    ],
)
def test_what_a_disk_reports_becomes_its_failure(number: int, kind: type[Failure], tmp_path: Path) -> None:
    with pytest.raises(kind, match=str(tmp_path)), translated_disk_errors(tmp_path):
        raise OSError(number, "reported")


def test_a_missing_file_stays_a_bug(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), translated_disk_errors(tmp_path):
        (tmp_path / "missing").read_bytes()
