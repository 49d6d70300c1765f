"""A whole registry, checked and moved: what is wrong is found, nothing is lost, and a broken move goes on."""

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from registry_records import add_model, add_version, put_alias
from sqlalchemy import delete, select, update

from maas.names import BlobName, DatasetName, VersionName
from maas_package.manifest import TensorSpec
from maas_registry.domain.blobs import BlobStore
from maas_registry.domain.changes import Author
from maas_registry.domain.datasets import Dataset, DatasetContent, Split
from maas_registry.domain.details import ModelDetails
from maas_registry.domain.versions import File, Provenance, ServableSpec, Signature, VersionContent
from maas_registry.storage import tables
from maas_registry.storage.blob_folder import BlobFolder
from maas_registry.storage.disk import Disk
from maas_registry.storage.memory import MemoryBlobStore
from maas_registry.storage.sql_datasets import SqlDatasetStore
from maas_registry.storage.sql_models import SqlModelStore
from maas_registry.storage.stores import Stores
from maas_registry.storage.tables import MIGRATIONS
from maas_registry.upkeep.move import SourceDamaged, TargetInUse, move
from maas_registry.upkeep.progress import tell_nobody
from maas_registry.upkeep.verification import verify
from maas_runtime.database.database import Database, DatabaseLocation, alone, open_database
from maas_runtime.database.postgresql import PostgresqlDatabase
from maas_runtime.database.sqlite import SqliteFile
from maas_runtime.storage import StorageFull

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
CONTENTS = [random.Random(number).randbytes(3 * 2**20 + number) for number in range(4)]
NAMES = [BlobName(hashlib.sha256(content).hexdigest()) for content in CONTENTS]
FILES = [File(f"{number}.onnx", name, len(CONTENTS[number])) for number, name in enumerate(NAMES)]
SIGNATURE = Signature(
    task="text-classification",
    architecture="lstm-text-classifier",
    inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),),
    outputs=(TensorSpec("logits", "FP32", (-1, 2)),),
    labels=("negative", "positive"),
    text_input="text",
    servables=(ServableSpec("onnxruntime", "fp32", "0.onnx", 10),),
)


async def fill(database: Database, blobs: BlobStore) -> None:
    models, datasets = SqlModelStore(database), SqlDatasetStore(database)
    for content, blob in zip(CONTENTS, NAMES, strict=True):
        async with blobs.upload(blob, 0) as upload:
            await upload.write(content)
            await upload.commit()
    for model_id in ("a", "b"):
        await add_model(models, model_id, ModelDetails("ü", {"team": "text"}))
        first = VersionContent((FILES[0], FILES[1]), Provenance(), SIGNATURE)
        await add_version(models, model_id, first, request_id="r")
        child = Provenance(parent_version=VersionName(model_id, 1))
        await add_version(models, model_id, VersionContent((FILES[0], FILES[2]), child, SIGNATURE))
        await put_alias(models, "best", VersionName(model_id, 2))
    await datasets.add_dataset(Dataset(DatasetName("reviews"), "", NOW), Author("tester"))
    splits = (Split("train", FILES[3], 10),)
    await datasets.add_dataset_version(
        DatasetName("reviews"), DatasetContent(splits, (), ""), NOW, "", Author("tester")
    )


@asynccontextmanager
async def opened(location: DatabaseLocation, folder: Path) -> AsyncIterator[Stores]:
    with Disk(folder, 4) as disk:
        blobs = BlobFolder(disk)
        await blobs.prepare()
        async with open_database(location, MIGRATIONS) as database:
            yield Stores(location, database, blobs)


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Stores]:
    async with opened(SqliteFile(tmp_path / "source.sqlite"), tmp_path / "source") as stores:
        await fill(stores.database, stores.blobs)
        yield stores


@pytest.fixture(params=["sqlite", "postgresql"])
async def target(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    location: DatabaseLocation = SqliteFile(tmp_path / "target.sqlite")
    if request.param == "postgresql":
        location = PostgresqlDatabase(request.getfixturevalue("postgresql").new_database())
    async with opened(location, tmp_path / "target") as stores:
        yield stores


async def rows_of(stores: Stores) -> dict[str, list[Any]]:
    return {
        table.name: [tuple(row) for row in await stores.database.rows(select(table).order_by(*table.primary_key))]
        for table in tables.metadata.sorted_tables
    }


async def problems_of(stores: Stores, *, hashing: bool = False) -> list[tuple[str, str]]:
    found = await verify(stores.database, stores.blobs, tell_nobody, hashing=hashing)
    return [(problem.name, problem.problem) for problem in found.problems]


async def without_rules(stores: Stores, *statements: Any) -> None:
    """What the database itself would not let happen."""
    async with alone(stores.location) as connection:  # of SQLite: without its foreign keys
        for statement in statements:
            await connection.execute(statement)


@pytest.mark.parametrize("hashing", [False, True])
async def test_a_registry_in_order_has_no_problems(source: Stores, hashing: bool) -> None:
    found = await verify(source.database, source.blobs, tell_nobody, hashing=hashing)
    assert found.problems == ()
    assert (found.rows["versions"], found.rows["aliases"], found.blobs) == (4, 2, 4)
    assert found.blob_bytes == sum(map(len, CONTENTS))


async def test_blobs_that_are_missing_cut_short_or_damaged_are_found(source: Stores, tmp_path: Path) -> None:
    paths = [tmp_path / "source" / "blobs" / name.sha256[:2] / name.sha256 for name in NAMES]
    paths[0].unlink()
    paths[1].write_bytes(CONTENTS[1][:-1])
    paths[3].write_bytes(bytes(len(CONTENTS[3])))
    assert await problems_of(source) == [
        ("models/a/versions/1", f"needs {len(CONTENTS[1])} bytes of {NAMES[1]}, {len(CONTENTS[1]) - 1} are there"),
        ("models/a/versions/1", f"needs {NAMES[0]}, which is not there"),
    ]
    damaged, *_ = await problems_of(source, hashing=True)
    assert damaged == (
        "datasets/reviews/versions/1",
        f"the stored bytes of {NAMES[3]} are damaged: upload them again",
    )
    # It was set aside, so that the same bytes can be uploaded again.
    assert f"needs {NAMES[3]}, which is damaged: upload it again" in [
        problem for _, problem in await problems_of(source)
    ]


async def test_records_that_refer_to_nothing_are_found(source: Stores) -> None:
    versions = tables.versions
    await without_rules(source, delete(versions).where(versions.c.model_id == "a", versions.c.number == 1))
    assert await problems_of(source) == [
        ("changes", "says that there are 8 models, versions and aliases, not 7"),
        ("models/a", "made 2 versions, but 1 are there and the last is number 2"),
        ("versions(a, 2)", "refers to a row of versions that is not there"),
    ]
    await without_rules(source, delete(versions).where(versions.c.model_id == "a"))
    assert ("aliases(a, best)", "refers to a row of versions that is not there") in await problems_of(source)


async def test_a_log_that_is_not_whole_or_not_that_of_the_records_is_found(target: Stores) -> None:
    await fill(target.database, target.blobs)
    assert await problems_of(target) == []
    changes, aliases, models = tables.changes, tables.aliases, tables.models
    await without_rules(
        target,
        update(aliases).where(aliases.c.model_id == "a").values(number=1),
        update(models).where(models.c.model_id == "b").values(details={"description": "forged"}),
        update(changes).where(changes.c.sequence == 3).values(time=NOW - timedelta(days=4000)),
    )
    assert await problems_of(target) == [
        ("changes/3", "is dated before the change that it follows"),
        ("models/a/aliases/best", "is not as change 4 left it"),
        ("models/b", "is not as change 5 left it"),
    ]
    await without_rules(target, delete(changes).where(changes.c.sequence.in_([3, 4])))
    problems = await problems_of(target)
    assert ("changes", "has 8 entries, numbered from 1 to 10: some are missing") in problems
    assert ("changes", "says that there are 6 models, versions and aliases, not 8") in problems
    assert ("models/a/versions/2", "was last changed by change 3, the log says 0") in problems


async def test_content_that_cannot_be_read_is_found(source: Stores) -> None:
    versions = tables.versions
    await without_rules(source, update(versions).where(versions.c.model_id == "b").values(content={"files": 7}))
    problems = await problems_of(source)
    assert [name for name, _ in problems] == ["models/b/versions/1", "models/b/versions/2"]
    assert all("cannot be read" in problem for _, problem in problems)


async def test_a_registry_moves_with_nothing_lost(source: Stores, target: Stores) -> None:
    found = await move(source, target, tell_nobody)
    assert found.problems == ()
    assert (found.rows["versions"], found.blobs, found.hashed) == (4, 4, True)
    assert await rows_of(target) == await rows_of(source)
    for content, name in zip(CONTENTS, NAMES, strict=True):
        assert b"".join([chunk async for chunk in target.blobs.read(name, 0, len(content))]) == content
    # Again, it finds all done; and what it moved to goes on counting where it was.
    assert (await move(source, target, tell_nobody)).problems == ()
    made = await add_version(SqlModelStore(target.database), "a", VersionContent((FILES[0],), Provenance(), SIGNATURE))
    assert made.name.number == 3
    with pytest.raises(TargetInUse, match="went on after a move"):
        await move(source, target, tell_nobody)


async def test_a_registry_moves_back_as_well(source: Stores, target: Stores, tmp_path: Path) -> None:
    await move(source, target, tell_nobody)
    async with opened(SqliteFile(tmp_path / "back.sqlite"), tmp_path / "back") as back:
        await move(target, back, tell_nobody)
        assert await rows_of(back) == await rows_of(source)


async def test_a_target_with_other_records_is_left_as_it_is(source: Stores, target: Stores) -> None:
    await add_model(SqlModelStore(target.database), "other")
    before = await rows_of(target)
    with pytest.raises(TargetInUse, match="choose an empty database"):
        await move(source, target, tell_nobody)
    assert await rows_of(target) == before
    assert await target.blobs.find(NAMES[0]) is None


class FullBlobStore(MemoryBlobStore):
    """A disk that is full after some writes, until there is room again."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.written = 0

    @asynccontextmanager
    async def upload(self, name: BlobName, offset: int) -> AsyncIterator[Any]:
        async with super().upload(name, offset) as upload:
            yield FullUpload(self, upload)


class FullUpload:
    def __init__(self, store: FullBlobStore, upload: Any) -> None:
        self.store = store
        self.upload = upload
        self.commit = upload.commit

    @property
    def received_bytes(self) -> int:
        received: int = self.upload.received_bytes
        return received

    async def write(self, chunk: bytes) -> None:
        if self.store.room < len(chunk):
            raise StorageFull("the disk is full")
        self.store.room -= len(chunk)
        self.store.written += len(chunk)
        await self.upload.write(chunk)


async def test_a_move_that_broke_goes_on_and_copies_nothing_twice(source: Stores, target: Stores) -> None:
    blobs = FullBlobStore(room=7 * 2**20)
    broken = Stores(target.location, target.database, blobs)
    with pytest.raises(StorageFull):
        await move(source, broken, tell_nobody)
    assert not any((await rows_of(target)).values())
    blobs.room = 2**30
    assert (await move(source, broken, tell_nobody)).problems == ()
    assert blobs.written == sum(map(len, CONTENTS))


async def test_a_damaged_registry_does_not_move(source: Stores, target: Stores, tmp_path: Path) -> None:
    (tmp_path / "source" / "blobs" / NAMES[2].sha256[:2] / NAMES[2].sha256).unlink()
    with pytest.raises(SourceDamaged, match="maas registry verify"):
        await move(source, target, tell_nobody)
    assert not any((await rows_of(target)).values())
