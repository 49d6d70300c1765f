"""A database file: what was committed is there, waits end, and a cancelled transaction harms nobody."""

import asyncio
import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from maas_runtime.failures import Failure
from maas_runtime.sqlite import Database, DatabaseCorrupt, DatabaseOfOtherRelease, UtcTime, open_database
from maas_runtime.storage import StorageFailed, StorageFull, StorageReadOnly, translated_disk_errors

METADATA = MetaData()
NUMBERS = Table(
    "numbers",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("time", UtcTime),
)


@asynccontextmanager
async def database_at(path: Path) -> AsyncIterator[Database]:
    async with open_database(path, METADATA, schema_version=1) as database:
        yield database


async def add_next(database: Database) -> int:
    async def add(connection: AsyncConnection) -> int:
        number: int = (await connection.execute(select(func.coalesce(func.max(NUMBERS.c.number), 0) + 1))).scalar_one()
        await connection.execute(insert(NUMBERS).values(number=number, time=datetime.now(UTC)))
        return number

    return await database.write(add)


async def numbers_in(database: Database) -> list[int]:
    return [row.number for row in await database.rows(select(NUMBERS.c.number).order_by(NUMBERS.c.number))]


async def test_writers_take_turns_and_none_is_lost(tmp_path: Path) -> None:
    async with database_at(tmp_path / "a.sqlite") as database:
        added = await asyncio.gather(*(add_next(database) for _ in range(50)))
    assert sorted(added) == list(range(1, 51))
    async with database_at(tmp_path / "a.sqlite") as database:
        assert await numbers_in(database) == list(range(1, 51))


async def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async def fail(connection: AsyncConnection) -> None:
        await connection.execute(insert(NUMBERS).values(number=1))
        raise ZeroDivisionError

    async with database_at(tmp_path / "a.sqlite") as database:
        with pytest.raises(ZeroDivisionError):
            await database.write(fail)
        assert await numbers_in(database) == []


async def test_a_transaction_that_has_begun_ends_before_its_cancelled_caller_does(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def add(connection: AsyncConnection) -> None:
        begun.set()
        await connection.execute(insert(NUMBERS).values(number=1))

    async with database_at(tmp_path / "a.sqlite") as database:
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


async def test_cancelled_transactions_leave_a_database_that_works(tmp_path: Path) -> None:
    generator = random.Random(5)
    async with database_at(tmp_path / "a.sqlite") as database:
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


async def test_a_database_is_closed_after_what_has_begun(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def add(connection: AsyncConnection) -> None:
        begun.set()
        await connection.execute(insert(NUMBERS).values(number=1))

    async with database_at(tmp_path / "a.sqlite") as database:
        writing = asyncio.create_task(database.write(add))
        await begun.wait()
    await writing
    async with database_at(tmp_path / "a.sqlite") as database:
        assert await numbers_in(database) == [1]


async def test_a_reader_sees_one_state_while_others_write(tmp_path: Path) -> None:
    async with database_at(tmp_path / "a.sqlite") as database:
        await add_next(database)

        async def count_around_a_write(connection: AsyncConnection) -> list[int]:
            count = select(func.count(NUMBERS.c.number))
            before = (await connection.execute(count)).scalar_one()
            await add_next(database)
            return [before, (await connection.execute(count)).scalar_one()]

        assert await database.read(count_around_a_write) == [1, 1]


async def test_times_come_back_to_the_microsecond(tmp_path: Path) -> None:
    time = datetime(2024, 2, 29, 23, 59, 59, 999_999, tzinfo=UTC)
    async with database_at(tmp_path / "a.sqlite") as database:
        await database.write(lambda connection: connection.execute(insert(NUMBERS).values(number=1, time=time)))
        assert [row.time for row in await database.rows(select(NUMBERS.c.time))] == [time]


async def test_a_full_database_says_to_free_space(tmp_path: Path) -> None:
    async def fill(connection: AsyncConnection) -> None:
        await connection.execute(text("PRAGMA max_page_count=1"))
        for number in range(1, 5000):
            await connection.execute(insert(NUMBERS).values(number=number))

    async with database_at(tmp_path / "a.sqlite") as database:
        with pytest.raises(StorageFull, match="free space"):
            await database.write(fill)


async def test_a_read_only_database_says_so(tmp_path: Path) -> None:
    async def write(connection: AsyncConnection) -> None:
        await connection.execute(text("PRAGMA query_only=ON"))
        await connection.execute(insert(NUMBERS).values(number=1))

    async with database_at(tmp_path / "a.sqlite") as database:
        with pytest.raises(StorageReadOnly):
            await database.write(write)


async def test_a_folder_that_is_not_there_is_a_failure_and_no_bug(tmp_path: Path) -> None:
    with pytest.raises(StorageReadOnly):
        async with database_at(tmp_path / "missing" / "a.sqlite"):
            pass


async def test_a_damaged_file_is_data_loss(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(DatabaseCorrupt):
        async with database_at(tmp_path / "a.sqlite"):
            pass


async def test_tables_of_another_release_are_left_alone(tmp_path: Path) -> None:
    async with database_at(tmp_path / "a.sqlite") as database:
        await add_next(database)
    with pytest.raises(DatabaseOfOtherRelease, match="version 1, this program knows 2"):
        async with open_database(tmp_path / "a.sqlite", METADATA, schema_version=2):
            pass
    async with database_at(tmp_path / "a.sqlite") as database:
        assert await numbers_in(database) == [1]


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
