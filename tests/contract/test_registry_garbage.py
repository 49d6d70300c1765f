"""Blobs that nobody needs are removed, and nobody loses one: on each pair of stores, with races between registries."""

import asyncio
import hashlib
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from s3_server import S3Server

from maas.names import BlobName, DatasetName, VersionName
from maas_registry.domain.blobs import BlobNotFound, Blobs, BlobState, UploadInProgress
from maas_registry.domain.changes import Author
from maas_registry.domain.datasets import Dataset, DatasetContent, Split
from maas_registry.domain.garbage import REMOVAL_LEASE, BlobBeingRemoved, Collected, Garbage, RemovalState
from maas_registry.domain.versions import File
from maas_registry.storage.blob_folder import BlobFolder
from maas_registry.storage.blob_location import BlobLocation, FolderLocation, parse_blobs_url
from maas_registry.storage.blob_stores import StoredBlobs, open_blob_store
from maas_registry.storage.sql_datasets import SqlDatasetStore
from maas_registry.storage.sql_garbage import RecordUnreadable, SqlGarbageStore
from maas_registry.storage.tables import MIGRATIONS, dataset_versions
from maas_runtime.database.database import Database, DatabaseLocation, open_database
from maas_runtime.database.postgresql import PostgresqlDatabase
from maas_runtime.database.sqlite import SqliteFile

GRACE = timedelta(hours=24)
DATASET = DatasetName("reviews")


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2024, 5, 6, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, by: timedelta) -> None:
        self.now += by


async def nothing_expired(_: Author) -> list[VersionName]:
    return []


@dataclass(frozen=True)
class Registry:
    """One of several processes, as far as blobs are concerned."""

    database: Database
    stored: StoredBlobs
    store: SqlGarbageStore
    blobs: Blobs
    clock: Clock

    async def upload(self, content: bytes) -> BlobName:
        async def chunks() -> AsyncIterator[bytes]:
            yield content

        name = BlobName(hashlib.sha256(content).hexdigest())
        await self.blobs.upload(name, len(content), 0, chunks())
        return name

    async def record(self, name: BlobName) -> None:
        """Store a version that needs the blob, as CreateVersion does: look for the bytes, then write."""
        sizes = await self.blobs.sizes([name])
        await self.record_unseen(name, sizes[name])

    async def record_unseen(self, name: BlobName, size_bytes: int) -> None:
        content = DatasetContent((Split("train", File("train.parquet", name, size_bytes), 1),), ())
        await SqlDatasetStore(self.database).add_dataset_version(DATASET, content, self.clock(), "", Author("test"))

    async def collect(self, *, dry_run: bool = False, stored: StoredBlobs | None = None) -> Collected:
        return await Garbage(self.store, stored or self.stored, nothing_expired, self.clock, GRACE).collect(
            dry_run=dry_run
        )

    async def has(self, name: BlobName) -> bool:
        blob = await self.stored.find(name)
        return blob is not None and blob.committed


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite and folder", "postgresql and s3"])
async def new_registry(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[Callable[[], object]]:
    if request.param == "sqlite and folder":
        location: DatabaseLocation = SqliteFile(tmp_path / "registry.sqlite")
        place: BlobLocation = FolderLocation(tmp_path / "blobs")
    else:
        location = PostgresqlDatabase(request.getfixturevalue("postgresql").new_database())
        s3: S3Server = request.getfixturevalue("s3")
        place = parse_blobs_url(s3.new_bucket())
    async with AsyncExitStack() as stack:
        count = 0

        async def new() -> Registry:
            nonlocal count
            count += 1
            own = tmp_path / f"own-{count}"
            stored = await stack.enter_async_context(open_blob_store(place, own, 2**20, 2, CollectorRegistry()))
            database = await stack.enter_async_context(open_database(location, MIGRATIONS))
            store = SqlGarbageStore(database, clock)
            registry = Registry(database, stored, store, Blobs(stored, 2**30, removals=store), clock)
            if count == 1:
                await SqlDatasetStore(database).add_dataset(Dataset(DATASET, "", clock()), Author("test"))
            return registry

        yield new


@pytest.fixture
async def registry(new_registry: Callable[[], object]) -> Registry:
    return await new_registry()


async def test_a_blob_goes_when_nobody_needed_it_for_the_grace_period(registry: Registry, clock: Clock) -> None:
    unused, needed = await registry.upload(b"unused"), await registry.upload(b"needed")
    await registry.record(needed)
    assert await registry.collect() == Collected(2, 12, 1, 6, 0, 0, 0, 0, dry_run=False)
    clock.move(GRACE - timedelta(seconds=1))
    assert (await registry.collect()).removed == 0
    clock.move(timedelta(seconds=1))
    assert await registry.collect(dry_run=True) == Collected(2, 12, 1, 6, 1, 6, 0, 0, dry_run=True)
    assert await registry.has(unused)
    assert await registry.collect() == Collected(2, 12, 1, 6, 1, 6, 0, 0, dry_run=False)
    assert not await registry.has(unused)
    assert await registry.has(needed)


async def test_what_was_recorded_within_the_grace_period_stays(registry: Registry, clock: Clock) -> None:
    name = await registry.upload(b"late")
    await registry.collect()
    clock.move(GRACE)
    await registry.record(name)
    await registry.collect()
    assert await registry.has(name)
    assert await registry.store.removals() == []


async def test_uploading_a_blob_again_begins_its_grace_period_again(registry: Registry, clock: Clock) -> None:
    name = await registry.upload(b"again")
    await registry.collect()
    clock.move(GRACE)
    assert await registry.upload(b"again") == name
    await registry.collect()
    clock.move(GRACE - timedelta(seconds=1))
    await registry.collect()
    assert await registry.has(name)


async def test_no_version_can_be_stored_with_what_was_removed_until_it_is_uploaded_again(
    registry: Registry, clock: Clock
) -> None:
    name = await registry.upload(b"gone")
    await registry.collect()
    clock.move(GRACE)
    sizes = await registry.blobs.sizes([name])  # CreateVersion has found it, and is slow
    await registry.collect()
    with pytest.raises(BlobNotFound, match="upload it again"):
        await registry.record_unseen(name, sizes[name])
    await registry.upload(b"gone")
    await registry.record(name)
    clock.move(GRACE)
    await registry.collect()
    assert await registry.has(name)


class Interrupting:
    """Blobs that let something happen just before the bytes go."""

    def __init__(self, stored: StoredBlobs, interrupt: Callable[[BlobName], object]) -> None:
        self._stored = stored
        self._interrupt = interrupt
        self.list, self.drop_abandoned = stored.list, stored.drop_abandoned

    async def remove(self, name: BlobName) -> None:
        await self._interrupt(name)
        await self._stored.remove(name)


async def test_who_uploads_or_records_a_blob_while_it_goes_is_told_to_ask_again(
    registry: Registry, new_registry: Callable[[], object], clock: Clock
) -> None:
    other: Registry = await new_registry()
    name = await registry.upload(b"going")
    await registry.collect()
    clock.move(GRACE)

    async def interrupt(_: BlobName) -> None:
        with pytest.raises(BlobBeingRemoved):
            await other.upload(b"going")
        with pytest.raises(BlobNotFound):
            await other.record(name)
        assert (await other.collect()).removed == 0

    await registry.collect(stored=Interrupting(registry.stored, interrupt))
    assert not await other.has(name)
    await other.upload(b"going")
    await other.record(name)
    assert await registry.has(name)


@pytest.mark.parametrize("bytes_went", [False, True])
async def test_what_a_killed_collection_had_begun_another_one_ends(
    registry: Registry, clock: Clock, bytes_went: bool
) -> None:
    name = await registry.upload(b"half gone")
    await registry.collect()
    clock.move(GRACE)
    assert await registry.store.begin_removing([name], clock() - GRACE, clock()) == {name}
    if bytes_went:
        await registry.stored.remove(name)
    assert (await registry.collect()).removed == 0
    clock.move(REMOVAL_LEASE)
    await registry.collect()
    assert [removal.state for removal in await registry.store.removals()] == [RemovalState.REMOVED]
    assert not await registry.has(name)
    clock.move(timedelta(days=2))
    await registry.collect()
    assert await registry.store.removals() == []


async def test_after_a_killed_collection_an_upload_need_not_wait_for_another(registry: Registry, clock: Clock) -> None:
    name = await registry.upload(b"half gone")
    await registry.collect()
    clock.move(GRACE)
    await registry.store.begin_removing([name], clock() - GRACE, clock())
    with pytest.raises(BlobBeingRemoved):
        await registry.upload(b"half gone")
    clock.move(REMOVAL_LEASE)
    await registry.upload(b"half gone")
    await registry.record(name)
    await registry.collect()
    assert await registry.has(name)


async def test_a_version_that_was_stored_just_before_the_removal_began_keeps_its_blob(
    registry: Registry, new_registry: Callable[[], object], clock: Clock
) -> None:
    other: Registry = await new_registry()
    name = await registry.upload(b"just in time")
    await registry.collect()
    clock.move(GRACE)

    class Late(SqlGarbageStore):
        async def begin_removing(self, *arguments: object) -> set[BlobName]:
            await other.record(name)  # the collection has read all records by now
            return await super().begin_removing(*arguments)

    collected = await Garbage(Late(registry.database, clock), registry.stored, nothing_expired, clock, GRACE).collect(
        dry_run=False
    )
    assert collected.removed == 0
    assert await registry.has(name)
    assert await registry.store.removals() == []


async def test_a_reader_has_the_grace_period_to_come_to_its_end(registry: Registry, clock: Clock) -> None:
    content = random.Random(5).randbytes(5 * 2**20)
    name = await registry.upload(content)
    await registry.collect()
    clock.move(GRACE - timedelta(seconds=1))
    async with aclosing(registry.stored.read(name, 0, None)) as chunks:
        received = await anext(chunks)
        await registry.collect()
        async for chunk in chunks:
            received += chunk
    assert received == content


async def test_a_damaged_blob_that_nobody_needs_goes_too(
    registry: Registry, clock: Clock, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = await registry.upload(b"damaged")
    path = tmp_path / "blobs" / "blobs" / name.sha256[:2] / name.sha256
    if path.exists():
        path.write_bytes(b"other")
        async for _ in registry.stored.read(name, 0, None):
            with pytest.raises(Exception, match="damaged"):
                async for _ in registry.stored.read(name, 0, None):
                    pass
            break
    else:
        request.getfixturevalue("s3").overwrite(name.sha256, b"other")
        other = open_blob_store(parse_blobs_url(_url(request)), tmp_path / "fresh", 0, 2, CollectorRegistry())
        async with other as fresh:
            with pytest.raises(Exception, match="damaged"):
                async for _ in fresh.read(name, 0, None):
                    pass
    blob = await registry.stored.find(name)
    assert blob is not None
    assert blob.state is BlobState.DAMAGED
    await registry.collect()
    clock.move(GRACE)
    assert (await registry.collect()).removed == 1
    assert await registry.stored.find(name) is None


def _url(request: pytest.FixtureRequest) -> str:
    s3: S3Server = request.getfixturevalue("s3")
    return f"s3://{s3.bucket}/maas?endpoint={s3.endpoint}&region=us-east-1"


async def test_nothing_is_removed_while_a_record_cannot_be_read(registry: Registry, clock: Clock) -> None:
    name = await registry.upload(b"who knows")
    await registry.record(name)
    await registry.database.write(
        lambda connection: connection.execute(dataset_versions.update().values(content={"files": "of a later release"}))
    )
    for _ in range(2):
        with pytest.raises(RecordUnreadable, match="maas registry verify"):
            await registry.collect()
        clock.move(GRACE)
    assert await registry.has(name)


async def test_registries_that_upload_record_and_collect_at_once_never_lose_what_is_recorded(
    new_registry: Callable[[], object],
) -> None:
    """Three registries, forty blobs, and a grace period so short that it is over all the time."""
    registries: list[Registry] = [replace(await new_registry(), clock=_real_time) for _ in range(3)]
    recorded: set[BlobName] = set()
    removed = 0

    async def use(registry: Registry, generator: random.Random) -> None:
        for turn in itertools.count():
            if turn >= 20 and removed:
                return
            number = generator.randrange(40)
            content = bytes([number]) * 100
            with suppress(BlobBeingRemoved, BlobNotFound, UploadInProgress):
                name = await registry.upload(content)
                await asyncio.sleep(generator.random() * 0.02)
                if number % 2:
                    await registry.record(name)
                    recorded.add(name)

    async def collect(registry: Registry) -> None:
        nonlocal removed
        store = SqlGarbageStore(registry.database, _real_time)
        garbage = Garbage(store, registry.stored, nothing_expired, _real_time, timedelta(milliseconds=5))
        while using:
            removed += (await garbage.collect(dry_run=False)).removed
            await asyncio.sleep(0)

    using = True
    async with asyncio.TaskGroup() as collecting:
        for registry in registries[:2]:
            collecting.create_task(collect(registry))
        async with asyncio.TaskGroup() as users:
            for number in range(6):
                # A folder has one registry; the other one is `maas registry gc`.
                registry = registries[0 if isinstance(registries[0].stored, BlobFolder) else number % 3]
                users.create_task(use(registry, random.Random(number)))
        using = False
    assert recorded
    for name in recorded:
        assert b"".join([chunk async for chunk in registries[2].stored.read(name, 0, None)])


def _real_time() -> datetime:
    return datetime.now(UTC)
