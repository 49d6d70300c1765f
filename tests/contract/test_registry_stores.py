"""One suite for every store of datasets: memory, SQLite on disk, and a PostgreSQL server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from maas.names import BlobName, DatasetName, DatasetVersionName
from maas_registry.domain.changes import Author, Change, ChangeKind, ChangeLog
from maas_registry.domain.datasets import (
    ColumnStatistics,
    Dataset,
    DatasetContent,
    DatasetStore,
    DatasetVersion,
    NumberStatistics,
    Split,
    TextStatistics,
)
from maas_registry.domain.parquet_file import Column
from maas_registry.domain.versions import File
from maas_registry.storage.memory import MemoryDatasetStore, MemoryModelStore
from maas_registry.storage.sql_changes import SqlChangeLog
from maas_registry.storage.sql_datasets import SqlDatasetStore
from maas_registry.storage.tables import MIGRATIONS
from maas_runtime.database.database import DatabaseLocation, open_database
from maas_runtime.database.postgresql import PostgresqlDatabase
from maas_runtime.database.sqlite import SqliteFile

AUTHOR = Author("alice@laptop", "a new month")
NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
BLOB = BlobName("ab" * 32)
STATISTICS = (
    ColumnStatistics("text", 0, 8570, True, texts=TextStatistics(3, 250, 60.5, (0, 0, 5, 8600))),
    ColumnStatistics("label", 5, 2, False, NumberStatistics(0, 1, 0.5, 0.5), values=(("0", 4300), ("1", 4300))),
)
SPLITS = DatasetContent(
    (
        Split("train", File("train.parquet", BLOB, 100), 8605, STATISTICS),
        Split("test", File("test.parquet", BLOB, 100), 2000),
    ),
    (Column("text", "string", nullable=False), Column("label", "int64", nullable=True)),
    "reviews",
)


def database_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> DatabaseLocation:
    if kind == "sqlite":
        return SqliteFile(folder / "registry.sqlite")
    return PostgresqlDatabase(request.getfixturevalue("postgresql").new_database())


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[DatasetStore, ChangeLog]]:
    if request.param == "memory":
        models = MemoryModelStore()
        yield MemoryDatasetStore(models), models
        return
    async with open_database(database_of(request.param, request, tmp_path), MIGRATIONS) as database:
        yield SqlDatasetStore(database), SqlChangeLog(database)


@pytest.fixture
def datasets(stores: tuple[DatasetStore, ChangeLog]) -> DatasetStore:
    return stores[0]


@pytest.fixture
def log(stores: tuple[DatasetStore, ChangeLog]) -> ChangeLog:
    return stores[1]


async def test_a_dataset_and_its_versions_come_back_as_they_were_stored(datasets: DatasetStore) -> None:
    name = DatasetName("reviews")
    assert await datasets.add_dataset(Dataset(name, "films", NOW), AUTHOR)
    assert not await datasets.add_dataset(Dataset(name, "others", NOW), AUTHOR)
    assert await datasets.get_dataset(name) == Dataset(name, "films", NOW)
    assert await datasets.get_dataset(DatasetName("other")) is None
    made = await asyncio.gather(
        *(datasets.add_dataset_version(name, SPLITS, NOW, f"r{n % 3}", AUTHOR) for n in range(9))
    )
    assert {version.name.number for version in made} == {1, 2, 3}
    assert await datasets.get_dataset_version(DatasetVersionName("reviews", 2)) == DatasetVersion(
        DatasetVersionName("reviews", 2), SPLITS, NOW
    )
    assert await datasets.get_dataset_version(DatasetVersionName("reviews", 4)) is None
    assert await datasets.get_dataset_version_of_request(name, "r0") == made[0]
    assert await datasets.get_dataset_version_of_request(DatasetName("other"), "r0") is None
    assert await datasets.get_dataset(name) == Dataset(name, "films", NOW, version_count=3)


async def test_datasets_and_their_versions_are_listed_in_pages(datasets: DatasetStore) -> None:
    for dataset_id in ("b", "c", "a"):
        await datasets.add_dataset(Dataset(DatasetName(dataset_id), "", NOW), AUTHOR)
    first = await datasets.list_datasets(None, 1)
    rest = await datasets.list_datasets(first[-1].name, 10)
    assert [dataset.name.dataset_id for dataset in (*first, *rest)] == ["a", "b", "c"]
    for _ in range(3):
        await datasets.add_dataset_version(DatasetName("a"), SPLITS, NOW, "", AUTHOR)
    newest = await datasets.list_dataset_versions(DatasetName("a"), None, 1)
    older = await datasets.list_dataset_versions(DatasetName("a"), newest[-1].name, 10)
    assert [version.name.number for version in (*newest, *older)] == [3, 2, 1]


async def test_what_is_made_is_logged_once_with_who_and_why(datasets: DatasetStore, log: ChangeLog) -> None:
    name = DatasetName("reviews")
    await datasets.add_dataset(Dataset(name, "films", NOW), AUTHOR)
    await datasets.add_dataset(Dataset(name, "others", NOW), Author("bob"))
    for author in (Author("carol"), Author("dave")):
        await datasets.add_dataset_version(name, SPLITS, NOW - timedelta(days=1), "once", author)
    version = DatasetVersionName("reviews", 1)
    assert list(await log.list_changes(name, None, 10, None)) == [
        Change(2, NOW, Author("carol"), version, ChangeKind.CREATED, None, None),
        Change(1, NOW, AUTHOR, name, ChangeKind.CREATED, None, None),
    ], "and times never go back"
    assert [change.sequence for change in await log.list_changes(version, None, 10, None)] == [2]


async def test_nothing_stored_lists_as_nothing(datasets: DatasetStore) -> None:
    assert list(await datasets.list_datasets(None, 10)) == []
    assert list(await datasets.list_dataset_versions(DatasetName("d"), None, 10)) == []
