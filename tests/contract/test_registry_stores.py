"""One suite for every store of models and datasets: memory, SQLite on disk, and a PostgreSQL server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from maas.names import (
    AliasName,
    BlobName,
    DatasetName,
    DatasetVersionName,
    JobName,
    ModelName,
    VersionName,
)
from maas_package.manifest import TensorSpec
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
from maas_registry.domain.models import Alias, Model, ModelStore
from maas_registry.domain.parquet_file import Column
from maas_registry.domain.versions import (
    CompressionReport,
    Evaluation,
    File,
    Measurement,
    Provenance,
    ServableSpec,
    Signature,
    Version,
    VersionContent,
)
from maas_registry.storage.memory import MemoryDatasetStore, MemoryModelStore
from maas_registry.storage.sql_datasets import SqlDatasetStore
from maas_registry.storage.sql_models import SqlModelStore
from maas_registry.storage.tables import MIGRATIONS
from maas_runtime.database.database import DatabaseLocation, open_database
from maas_runtime.database.failures import TextNotStorable
from maas_runtime.database.postgresql import PostgresqlDatabase
from maas_runtime.database.sqlite import SqliteFile

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
A, B = ModelName("a"), ModelName("b")
BLOB = BlobName("ab" * 32)
EVALUATION = Evaluation("accuracy", 0.75, 0.72, 0.78, 2000, DatasetVersionName("reviews", 1), "test")
MEASUREMENT = Measurement(10, 20, 30, 0.5, 1.5, 2.5, 3000.0, 2**40, "onnxruntime", "2 cores")
SIGNATURE = Signature(
    task="text-classification",
    architecture="lstm-text-classifier",
    inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),),
    outputs=(TensorSpec("logits", "FP32", (-1, 2)),),
    labels=("negative", "positive"),
    text_input="text",
    servables=(ServableSpec("onnxruntime", "fp32", "servables/model.onnx", 10),),
)
PLAIN = VersionContent((File("manifest.json", BLOB, 2**33),), Provenance(), SIGNATURE)
FULL = VersionContent(
    (File("manifest.json", BLOB, 12), File("модель.onnx", BLOB, 10)),
    Provenance(
        parent_version=VersionName("a", 1),
        description='"quoted" \x00 ü',
        source_job=JobName("compressionJobs", "x1"),
        dataset_version=DatasetVersionName("reviews", 1),
        recipe=("clip(rule=fan_in)", "int8"),
        evaluation=EVALUATION,
        compression_report=CompressionReport(
            MEASUREMENT, MEASUREMENT, EVALUATION, EVALUATION, 0.99, True, False, "smaller by 70 %"
        ),
    ),
    SIGNATURE,
)
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


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseLocation:
    return database_of(request.param, request, tmp_path)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[ModelStore, DatasetStore]]:
    if request.param == "memory":
        yield MemoryModelStore(), MemoryDatasetStore()
        return
    async with open_database(database_of(request.param, request, tmp_path), MIGRATIONS) as database:
        yield SqlModelStore(database), SqlDatasetStore(database)


@pytest.fixture
def models(stores: tuple[ModelStore, DatasetStore]) -> ModelStore:
    return stores[0]


@pytest.fixture
def datasets(stores: tuple[ModelStore, DatasetStore]) -> DatasetStore:
    return stores[1]


async def test_a_model_comes_back_as_it_was_stored(models: ModelStore) -> None:
    model = Model(A, "reviews, judged", NOW, {"team": "text", "": "ü"})
    assert await models.add_model(model)
    assert await models.get_model(A) == model


async def test_a_stored_model_is_a_copy(models: ModelStore) -> None:
    tags = {"team": "text"}
    await models.add_model(Model(A, "", NOW, tags))
    tags["team"] = "changed"
    read = await models.get_model(A)
    assert read is not None
    read.tags["team"] = "changed too"
    assert await models.get_model(A) == Model(A, "", NOW, {"team": "text"})


async def test_what_is_missing_is_none(models: ModelStore) -> None:
    assert await models.get_model(A) is None
    assert await models.get_version(VersionName("a", 1)) is None
    assert await models.get_version_of_alias(AliasName("a", "best")) is None
    assert await models.get_version_of_request(A, "r") is None
    assert not await models.delete_alias(AliasName("a", "best"))


async def test_nothing_stored_lists_as_nothing(models: ModelStore, datasets: DatasetStore) -> None:
    assert list(await models.list_models(None, 10)) == []
    assert list(await models.list_versions(A, None, 10)) == []
    assert list(await models.list_aliases(A, None, 10)) == []
    assert list(await datasets.list_datasets(None, 10)) == []
    assert list(await datasets.list_dataset_versions(DatasetName("d"), None, 10)) == []


async def test_of_two_who_store_the_same_model_one_wins(models: ModelStore) -> None:
    added = await asyncio.gather(*(models.add_model(Model(A, str(n), NOW)) for n in range(5)))
    assert sorted(added) == [False] * 4 + [True]
    stored = await models.get_model(A)
    assert stored is not None
    assert stored.description == str(added.index(True))


async def test_models_are_listed_by_name_from_where_the_page_ended(models: ModelStore) -> None:
    for model_id in ("c", "a", "b-1", "b"):
        await models.add_model(Model(ModelName(model_id), "", NOW))
    first = await models.list_models(None, 2)
    rest = await models.list_models(first[-1].name, 10)
    assert [model.name.model_id for model in (*first, *rest)] == ["a", "b", "b-1", "c"]


async def test_versions_count_from_one_for_each_model(models: ModelStore) -> None:
    for name in (A, B):
        await models.add_model(Model(name, "", NOW))
    made = [await models.add_version(name, PLAIN, NOW, "") for name in (A, A, B)]
    assert [str(version.name) for version in made] == [
        "models/a/versions/1",
        "models/a/versions/2",
        "models/b/versions/1",
    ]
    model = await models.get_model(A)
    assert model is not None
    assert (model.version_count, model.latest_version) == (2, VersionName("a", 2))


async def test_fifty_versions_at_once_get_fifty_numbers(models: ModelStore) -> None:
    await models.add_model(Model(A, "", NOW))
    made = await asyncio.gather(*(models.add_version(A, PLAIN, NOW, "") for _ in range(50)))
    assert sorted(version.name.number for version in made) == list(range(1, 51))


async def test_a_version_comes_back_as_it_was_stored(models: ModelStore) -> None:
    await models.add_model(Model(A, "", NOW))
    await models.add_version(A, PLAIN, NOW, "")
    made = await models.add_version(A, FULL, NOW + timedelta(seconds=1), "")
    assert made == Version(VersionName("a", 2), FULL, NOW + timedelta(seconds=1))
    assert await models.get_version(made.name) == made
    assert await models.get_version(VersionName("a", 1)) == Version(VersionName("a", 1), PLAIN, NOW)


async def test_a_request_id_makes_one_version_however_often_it_comes(models: ModelStore) -> None:
    for name in (A, B):
        await models.add_model(Model(name, "", NOW))
    made = await asyncio.gather(*(models.add_version(A, PLAIN, NOW, "once") for _ in range(10)))
    assert {version.name for version in made} == {VersionName("a", 1)}
    assert await models.get_version_of_request(A, "once") == made[0]
    # It is a name within one model.
    assert await models.get_version_of_request(B, "once") is None
    assert (await models.add_version(B, PLAIN, NOW, "once")).name == VersionName("b", 1)
    assert (await models.add_version(A, PLAIN, NOW, "")).name == VersionName("a", 2)


async def test_versions_are_listed_newest_first(models: ModelStore) -> None:
    for name in (A, B):
        await models.add_model(Model(name, "", NOW))
    for _ in range(12):
        await models.add_version(A, PLAIN, NOW, "")
    await models.add_version(B, PLAIN, NOW, "")
    first = await models.list_versions(A, None, 5)
    rest = await models.list_versions(A, first[-1].name, 100)
    assert [version.name.number for version in (*first, *rest)] == list(range(12, 0, -1))
    assert {version.name.model for version in (*first, *rest)} == {A}


async def test_an_alias_leads_to_its_version_and_moves(models: ModelStore) -> None:
    await models.add_model(Model(A, "", NOW))
    one, two = [await models.add_version(A, PLAIN, NOW, "") for _ in range(2)]
    name = AliasName("a", "best")
    assert await models.set_alias(Alias(name, one.name, NOW), 100)
    assert await models.get_version_of_alias(name) == one
    moved = Alias(name, two.name, NOW + timedelta(seconds=1))
    assert await models.set_alias(moved, 100)
    assert await models.get_version_of_alias(name) == two
    assert list(await models.list_aliases(A, None, 10)) == [moved]
    assert await models.delete_alias(name)
    assert not await models.delete_alias(name)
    assert await models.get_version_of_alias(name) is None
    assert await models.get_version(two.name) == two


async def test_one_alias_too_many_is_not_stored_but_one_that_is_there_may_move(models: ModelStore) -> None:
    for name in (A, B):
        await models.add_model(Model(name, "", NOW))
        await models.add_version(name, PLAIN, NOW, "")
    names = [AliasName("a", f"n{n}") for n in range(8)]
    set_ = await asyncio.gather(*(models.set_alias(Alias(name, VersionName("a", 1), NOW), 5) for name in names))
    assert sum(set_) == 5
    stored = await models.list_aliases(A, None, 10)
    assert len(stored) == 5
    assert await models.set_alias(stored[0], 5)
    assert await models.set_alias(Alias(AliasName("b", "n"), VersionName("b", 1), NOW), 5)


async def test_aliases_are_listed_by_name_from_where_the_page_ended(models: ModelStore) -> None:
    await models.add_model(Model(A, "", NOW))
    await models.add_version(A, PLAIN, NOW, "")
    for alias_id in ("c", "a", "b"):
        await models.set_alias(Alias(AliasName("a", alias_id), VersionName("a", 1), NOW), 100)
    first = await models.list_aliases(A, None, 2)
    rest = await models.list_aliases(A, first[-1].name, 10)
    assert [alias.name.alias_id for alias in (*first, *rest)] == ["a", "b", "c"]


async def test_a_dataset_and_its_versions_come_back_as_they_were_stored(datasets: DatasetStore) -> None:
    name = DatasetName("reviews")
    assert await datasets.add_dataset(Dataset(name, "films", NOW))
    assert not await datasets.add_dataset(Dataset(name, "others", NOW))
    assert await datasets.get_dataset(name) == Dataset(name, "films", NOW)
    assert await datasets.get_dataset(DatasetName("other")) is None
    made = await asyncio.gather(*(datasets.add_dataset_version(name, SPLITS, NOW, f"r{n % 3}") for n in range(9)))
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
        await datasets.add_dataset(Dataset(DatasetName(dataset_id), "", NOW))
    first = await datasets.list_datasets(None, 1)
    rest = await datasets.list_datasets(first[-1].name, 10)
    assert [dataset.name.dataset_id for dataset in (*first, *rest)] == ["a", "b", "c"]
    for _ in range(3):
        await datasets.add_dataset_version(DatasetName("a"), SPLITS, NOW, "")
    newest = await datasets.list_dataset_versions(DatasetName("a"), None, 1)
    older = await datasets.list_dataset_versions(DatasetName("a"), newest[-1].name, 10)
    assert [version.name.number for version in (*newest, *older)] == [3, 2, 1]


async def test_what_was_stored_is_there_after_the_database_is_opened_again(location: DatabaseLocation) -> None:
    async with open_database(location, MIGRATIONS) as database:
        models = SqlModelStore(database)
        await models.add_model(Model(A, "", NOW))
        await models.add_version(A, PLAIN, NOW, "")
        made = await models.add_version(A, FULL, NOW, "r")
    async with open_database(location, MIGRATIONS) as database:
        assert await SqlModelStore(database).get_version_of_request(A, "r") == made


async def test_a_text_that_one_database_could_not_take_is_refused_by_all(location: DatabaseLocation) -> None:
    async with open_database(location, MIGRATIONS) as database:
        with pytest.raises(TextNotStorable, match="NUL"):
            await SqlModelStore(database).add_model(Model(A, "\x00", NOW))
