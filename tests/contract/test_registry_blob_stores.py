"""One suite for every store of blobs, and what a folder and a bucket have to do besides."""

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from s3_server import S3Server, cut_short, server_error

from maas.names import BlobName
from maas_registry.domain.blobs import Blob, BlobCorrupt, BlobState, BlobStore
from maas_registry.storage.blob_bucket import BlobBucket, CachedBlobDamaged
from maas_registry.storage.blob_folder import BlobFolder
from maas_registry.storage.blob_location import BucketLocation, parse_blobs_url
from maas_registry.storage.blob_stores import open_blob_store
from maas_registry.storage.bucket import BlobStoreUnavailable, Bucket
from maas_registry.storage.disk import Disk
from maas_registry.storage.memory import MemoryBlobStore
from maas_runtime.storage import StorageFull

CONTENT = random.Random(3).randbytes(3 * 2**20 + 17)


def name_of(content: bytes) -> BlobName:
    return BlobName(hashlib.sha256(content).hexdigest())


NAME = name_of(CONTENT)


BIG_CACHE, SMALL_CACHE = 64 * 2**20, 2**20


@pytest.fixture(params=["memory", "folder", "s3", "s3 past its cache"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    if request.param == "memory":
        yield MemoryBlobStore()
        return
    if request.param.startswith("s3"):
        s3: S3Server = request.getfixturevalue("s3")
        cache_bytes = SMALL_CACHE if "past" in request.param else BIG_CACHE
        async with opened(s3.new_bucket(), tmp_path, cache_bytes) as bucket:
            yield bucket
        return
    with Disk(tmp_path, threads=2) as disk:
        folder = BlobFolder(disk)
        await folder.prepare()
        yield folder


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[BlobFolder]:
    with Disk(tmp_path, threads=2) as disk:
        folder = BlobFolder(disk)
        await folder.prepare()
        yield folder


@pytest.fixture
async def bucket(s3: S3Server, tmp_path: Path) -> AsyncIterator[BlobStore]:
    """A registry's store in a bucket."""
    async with opened(s3.new_bucket(), tmp_path) as store:
        yield store


@asynccontextmanager
async def opened(
    url: str, folder: Path, cache_bytes: int = BIG_CACHE, metrics: CollectorRegistry | None = None
) -> AsyncIterator[BlobStore]:
    async with open_blob_store(parse_blobs_url(url), folder, cache_bytes, 2, metrics or CollectorRegistry()) as store:
        yield store


def cached(folder: Path, name: BlobName | None = None) -> Path:
    sha256 = (name or NAME).sha256
    return folder / "cache" / sha256[:2] / sha256


async def put(store: BlobStore, content: bytes, offset: int = 0, name: BlobName | None = None) -> None:
    async with store.upload(name or name_of(content), offset) as upload:
        for start in range(offset, len(content), 2**20):
            await upload.write(content[start : start + 2**20])
        await upload.commit()


async def put_part(store: BlobStore, content: bytes, offset: int = 0) -> None:
    async with store.upload(NAME, offset) as upload:
        await upload.write(content)


async def read(store: BlobStore, name: BlobName, offset: int = 0, length: int | None = None) -> bytes:
    async with aclosing(store.read(name, offset, length)) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_nothing_is_found_of_a_blob_nobody_sent(store: BlobStore) -> None:
    assert await store.find(NAME) is None


@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=["empty", "one byte", "three chunks"])
async def test_committed_bytes_come_back_in_chunks_of_at_most_a_mebibyte(store: BlobStore, content: bytes) -> None:
    await put(store, content)
    name = name_of(content)
    assert await store.find(name) == Blob(name, BlobState.COMMITTED, len(content))
    async with aclosing(store.read(name, 0, None)) as chunks:
        received = [chunk async for chunk in chunks]
    assert b"".join(received) == content
    assert all(0 < len(chunk) <= 2**20 for chunk in received)


async def test_a_read_begins_where_it_is_asked_to(store: BlobStore) -> None:
    await put(store, CONTENT)
    assert await read(store, NAME, 2**20 + 5) == CONTENT[2**20 + 5 :]
    assert await read(store, NAME, len(CONTENT)) == b""


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (5, 2**20), (2**20 - 1, 2**21), (7, 2**40), (9, 0)])
async def test_a_read_ends_after_the_bytes_that_were_asked_for(store: BlobStore, offset: int, length: int) -> None:
    await put(store, CONTENT)
    assert await read(store, NAME, offset, length) == CONTENT[offset : offset + length]


async def test_what_arrived_stays_and_the_upload_goes_on_from_there(store: BlobStore) -> None:
    await put_part(store, CONTENT[:1000])
    assert await store.find(NAME) == Blob(NAME, BlobState.RECEIVING, 1000)
    await put(store, CONTENT, offset=1000)
    assert await read(store, NAME) == CONTENT


async def test_an_upload_from_the_start_drops_what_was_there(store: BlobStore) -> None:
    await put_part(store, b"wrong bytes")
    await put(store, CONTENT)
    assert await read(store, NAME) == CONTENT


async def test_an_upload_that_begins_before_the_end_drops_what_is_behind(store: BlobStore) -> None:
    await put_part(store, CONTENT[:1000] + b"wrong")
    await put(store, CONTENT, offset=1000)
    assert await read(store, NAME) == CONTENT


async def test_bytes_with_another_hash_are_refused_and_dropped(store: BlobStore) -> None:
    with pytest.raises(BlobCorrupt):
        await put(store, b"other bytes", name=NAME)
    assert await store.find(NAME) is None
    await put(store, CONTENT)
    assert await read(store, NAME) == CONTENT


async def test_an_upload_that_fails_half_way_keeps_its_bytes(store: BlobStore) -> None:
    with pytest.raises(ZeroDivisionError):
        async with store.upload(NAME, 0) as upload:
            await upload.write(CONTENT[:500])
            raise ZeroDivisionError
    assert await store.find(NAME) == Blob(NAME, BlobState.RECEIVING, 500)


async def test_a_blob_can_be_inspected_as_a_file(store: BlobStore) -> None:
    await put(store, CONTENT)
    assert await store.inspect(NAME, lambda location: location.stat().st_size) == len(CONTENT)


async def test_damaged_bytes_are_found_by_a_full_read_and_repaired_by_an_upload(
    store: BlobStore, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    await put(store, CONTENT)
    damaged = b"?" + CONTENT[1:]
    if isinstance(store, MemoryBlobStore):
        store.damage(NAME, damaged)
    elif isinstance(store, BlobBucket):
        request.getfixturevalue("s3").overwrite(NAME.sha256, damaged)
        cached(tmp_path).unlink(missing_ok=True)
    else:
        (tmp_path / "blobs" / NAME.sha256[:2] / NAME.sha256).write_bytes(damaged)
    with pytest.raises(BlobCorrupt):
        await read(store, NAME)
    assert await store.find(NAME) == Blob(NAME, BlobState.DAMAGED, len(CONTENT))
    await put(store, CONTENT)
    assert await read(store, NAME) == CONTENT
    assert await store.find(NAME) == Blob(NAME, BlobState.COMMITTED, len(CONTENT))


async def test_a_new_process_goes_on_with_what_the_last_one_left(tmp_path: Path) -> None:
    for end, begin in ((2**20, 0), (2**21, 2**20)):
        with Disk(tmp_path, threads=1) as disk:
            folder = BlobFolder(disk)
            await folder.prepare()
            await put_part(folder, CONTENT[begin:end], offset=begin)
    with Disk(tmp_path, threads=1) as disk:
        folder = BlobFolder(disk)
        await folder.prepare()
        assert await folder.find(NAME) == Blob(NAME, BlobState.RECEIVING, 2**21)
        await put(folder, CONTENT, offset=2**21)
        assert await read(folder, NAME) == CONTENT
    assert list((tmp_path / "uploads").iterdir()) == []


async def test_a_part_that_was_damaged_meanwhile_is_never_committed(folder: BlobFolder, tmp_path: Path) -> None:
    await put_part(folder, CONTENT[:1000])
    part = tmp_path / "uploads" / f"{NAME.sha256}.part"
    part.write_bytes(b"?" * 999)
    with pytest.raises(BlobCorrupt):
        await put(folder, b"?" * 999 + CONTENT[999:], offset=999, name=NAME)
    assert await folder.find(NAME) is None


async def test_cancelled_writes_never_meet_the_next_upload(folder: BlobFolder) -> None:
    generator = random.Random(7)
    received = 0
    while received < len(CONTENT):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(put(folder, CONTENT, offset=received))
            for _ in range(generator.randrange(1, 400)):
                await asyncio.sleep(0)
            task.cancel()
        blob = await folder.find(NAME)
        received = 0 if blob is None else blob.stored_bytes
    if blob is not None and not blob.committed:
        await put(folder, CONTENT, offset=received)
    assert await read(folder, NAME) == CONTENT


async def test_a_full_disk_says_to_free_space_and_keeps_what_arrived(folder: BlobFolder, tmp_path: Path) -> None:
    # A device that is always full: the kernel's own ENOSPC.
    part = tmp_path / "uploads" / f"{NAME.sha256}.part"
    part.symlink_to("/dev/full")
    with pytest.raises(StorageFull, match=f"free space under {tmp_path}"):
        await put(folder, CONTENT)
    part.unlink()
    await put(folder, CONTENT)
    assert await read(folder, NAME) == CONTENT


async def test_uploads_nobody_went_on_with_for_a_week_are_dropped(folder: BlobFolder, tmp_path: Path) -> None:
    await put_part(folder, b"old")
    os.utime(tmp_path / "uploads" / f"{NAME.sha256}.part", (0, 0))
    young = name_of(b"young")
    async with folder.upload(young, 0) as upload:
        await upload.write(b"you")
    with Disk(tmp_path, threads=1) as disk:
        later = BlobFolder(disk)
        await later.prepare()
        assert await later.find(NAME) is None
        assert await later.find(young) == Blob(young, BlobState.RECEIVING, 3)


# ---- a bucket ---------------------------------------------------------------------------------------------------


def counted(metrics: CollectorRegistry, what: str) -> float:
    return metrics.get_sample_value(f"maas_registry_cache_{what}") or 0


async def test_what_one_registry_stored_another_one_reads(s3: S3Server, tmp_path: Path) -> None:
    url = s3.new_bucket()
    async with opened(url, tmp_path / "a") as a, opened(url, tmp_path / "b") as b:
        await put(a, CONTENT)
        assert await b.find(NAME) == Blob(NAME, BlobState.COMMITTED, len(CONTENT))
        assert await read(b, NAME) == CONTENT


async def test_nothing_of_an_upload_is_in_the_bucket_before_it_is_committed(s3: S3Server, bucket: BlobStore) -> None:
    s3.requests.clear()
    await put_part(bucket, CONTENT[:2000])
    with pytest.raises(BlobCorrupt):
        await put(bucket, b"?" + CONTENT[1:], name=NAME)
    assert s3.requests == []


async def test_two_registries_may_take_the_same_blob_at_once(s3: S3Server, tmp_path: Path) -> None:
    url = s3.new_bucket()
    async with opened(url, tmp_path / "a") as a, opened(url, tmp_path / "b") as b:
        await asyncio.gather(put(a, CONTENT), put(b, CONTENT))
        assert await read(a, NAME) == await read(b, NAME) == CONTENT


async def test_a_bucket_that_goes_away_in_the_middle_of_an_upload_costs_no_byte(
    s3: S3Server, bucket: BlobStore
) -> None:
    s3.stop()
    with pytest.raises(BlobStoreUnavailable):
        await put(bucket, CONTENT)
    s3.start()
    assert await bucket.find(NAME) == Blob(NAME, BlobState.RECEIVING, len(CONTENT))
    await put(bucket, CONTENT, offset=len(CONTENT))
    assert await read(bucket, NAME) == CONTENT


async def test_a_server_that_answers_5xx_is_unavailable_in_upload_and_download(
    s3: S3Server, bucket: BlobStore, tmp_path: Path
) -> None:
    await put(bucket, CONTENT)
    cached(tmp_path).unlink()
    s3.fault = server_error
    with pytest.raises(BlobStoreUnavailable):
        await read(bucket, NAME)
    with pytest.raises(BlobStoreUnavailable):
        await put(bucket, b"more")
    with pytest.raises(BlobStoreUnavailable):
        await bucket.find(NAME)
    s3.fault = None
    assert await read(bucket, NAME) == CONTENT
    await put(bucket, b"more", offset=4)


async def test_a_server_that_fails_once_is_asked_again(s3: S3Server, bucket: BlobStore, tmp_path: Path) -> None:
    def fail_once(environ: Any, start_response: Any, ask: Any) -> Iterable[bytes]:
        s3.fault = None
        return server_error(environ, start_response, ask)

    s3.fault = fail_once
    await put(bucket, CONTENT)
    cached(tmp_path).unlink()
    s3.fault = fail_once
    assert await read(bucket, NAME) == CONTENT


@pytest.mark.parametrize("cache_bytes", [BIG_CACHE, SMALL_CACHE])
async def test_bytes_that_stop_half_way_are_never_taken_for_the_whole(
    s3: S3Server, tmp_path: Path, cache_bytes: int
) -> None:
    async with opened(s3.new_bucket(), tmp_path, cache_bytes) as bucket:
        await put(bucket, CONTENT)
        cached(tmp_path).unlink(missing_ok=True)
        s3.fault = cut_short
        with pytest.raises(BlobStoreUnavailable):
            await read(bucket, NAME)
        s3.fault = None
        assert await read(bucket, NAME) == CONTENT
        assert await bucket.find(NAME) == Blob(NAME, BlobState.COMMITTED, len(CONTENT))


@pytest.mark.parametrize("content", [CONTENT[:-1], b"", b"?" * len(CONTENT)], ids=["short", "empty", "other"])
async def test_no_byte_of_a_damaged_object_leaves_by_way_of_the_cache(
    s3: S3Server, tmp_path: Path, content: bytes
) -> None:
    url = s3.new_bucket()
    async with opened(url, tmp_path / "a") as a, opened(url, tmp_path / "b") as b:
        await put(a, CONTENT)
        s3.overwrite(NAME.sha256, content)
        received = b""
        with pytest.raises(BlobCorrupt):
            async for chunk in b.read(NAME, 0, None):
                received += chunk
        assert received == b""
        assert not cached(tmp_path / "b").exists()


async def test_who_finds_damage_late_does_not_undo_the_repair(s3: S3Server, tmp_path: Path) -> None:
    url = s3.new_bucket()
    async with opened(url, tmp_path / "a") as a, opened(url, tmp_path / "b", SMALL_CACHE) as b:
        await put(a, CONTENT)
        s3.overwrite(NAME.sha256, b"?" + CONTENT[1:])
        slow = b.read(NAME, 0, None)
        await anext(slow)
        with pytest.raises(BlobCorrupt):
            await read(b, NAME)
        await put(a, CONTENT)
        with pytest.raises(BlobCorrupt):
            async for _ in slow:
                pass
        assert await b.find(NAME) == Blob(NAME, BlobState.COMMITTED, len(CONTENT))


async def test_a_key_that_does_not_let_in_is_told_without_the_key(
    s3: S3Server, bucket: BlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    def forbid(environ: Any, start_response: Any, _: Any) -> Iterable[bytes]:
        start_response("403 Forbidden", [("Content-Length", "0")])
        return [b""]

    s3.fault = forbid
    with pytest.raises(BlobStoreUnavailable, match="credentials") as caught:
        await bucket.find(NAME)
    assert "secret" not in caught.value.message + caplog.text


async def test_a_bucket_that_is_not_there_is_said_to_be_at_the_start(s3: S3Server, tmp_path: Path) -> None:
    url = s3.new_bucket().replace(s3.bucket, "nobodys-bucket")
    with pytest.raises(BlobStoreUnavailable, match="there is no bucket s3://nobodys-bucket/maas"):
        async with opened(url, tmp_path):
            pass


# ---- its cache --------------------------------------------------------------------------------------------------


async def test_a_blob_is_fetched_once_however_many_want_it(s3: S3Server, tmp_path: Path) -> None:
    url, metrics = s3.new_bucket(), CollectorRegistry()
    async with opened(url, tmp_path / "a") as a:
        await put(a, CONTENT)
    async with opened(url, tmp_path / "b", metrics=metrics) as b:
        s3.requests.clear()
        assert await asyncio.gather(*(read(b, NAME, 5) for _ in range(5))) == [CONTENT[5:]] * 5
        assert sum(request.startswith("GET") for request in s3.requests) == 1
        assert await read(b, NAME) == CONTENT
        assert sum(request.startswith("GET") for request in s3.requests) == 1
        assert (counted(metrics, "hits_total"), counted(metrics, "misses_total")) == (1, 5)


async def test_the_least_recently_used_make_room_and_what_is_read_stays(s3: S3Server, tmp_path: Path) -> None:
    contents = [bytes([number]) * 2**20 for number in range(4)]
    names = [name_of(content) for content in contents]
    metrics = CollectorRegistry()
    async with opened(s3.new_bucket(), tmp_path, 3 * 2**20, metrics) as bucket:
        for content in contents[:3]:
            await put(bucket, content)
        reading = bucket.read(names[0], 0, None)
        assert await anext(reading) == contents[0]
        await read(bucket, names[1])
        await put(bucket, contents[3])
        assert [cached(tmp_path, name).exists() for name in names] == [True, True, False, True]
        async for _ in reading:
            pass
        assert await read(bucket, names[2]) == contents[2]
        assert [cached(tmp_path, name).exists() for name in names] == [False, True, True, True]
        assert counted(metrics, "bytes") == 3 * 2**20
        assert counted(metrics, "evicted_bytes_total") == 2 * 2**20


async def test_when_all_is_being_read_the_next_one_goes_past_the_cache(s3: S3Server, tmp_path: Path) -> None:
    first, second = b"1" * 2**20, b"2" * 2**20
    async with opened(s3.new_bucket(), tmp_path, 2**20) as bucket:
        await put(bucket, first)
        async with aclosing(bucket.read(name_of(first), 0, None)) as reading:
            await anext(reading)
            await put(bucket, second)
            assert await read(bucket, name_of(second)) == second
            assert cached(tmp_path, name_of(first)).exists()
            assert not cached(tmp_path, name_of(second)).exists()


async def test_a_cache_outlives_its_process_but_for_what_was_not_whole(s3: S3Server, tmp_path: Path) -> None:
    url, other = s3.new_bucket(), b"other" * 100
    async with opened(url, tmp_path) as bucket:
        await put(bucket, CONTENT)
        await put(bucket, other)
    (tmp_path / "cache" / "filling" / NAME.sha256).write_bytes(b"half")
    cached(tmp_path).write_bytes(CONTENT[:-5])  # as a power cut leaves it
    async with opened(url, tmp_path) as bucket:
        assert list((tmp_path / "cache" / "filling").iterdir()) == []
        s3.requests.clear()
        assert await read(bucket, name_of(other)) == other
        assert s3.requests == []
        assert await read(bucket, NAME) == CONTENT


async def test_a_cache_that_was_made_smaller_lets_the_oldest_go(s3: S3Server, tmp_path: Path) -> None:
    url, other = s3.new_bucket(), b"other" * 100
    async with opened(url, tmp_path) as bucket:
        await put(bucket, other)
        await put(bucket, CONTENT)
        os.utime(cached(tmp_path, name_of(other)), (0, 0))
    async with opened(url, tmp_path, len(CONTENT)):
        assert cached(tmp_path).exists()
        assert not cached(tmp_path, name_of(other)).exists()


async def test_a_copy_that_goes_bad_is_dropped_and_fetched_again(bucket: BlobStore, tmp_path: Path) -> None:
    await put(bucket, CONTENT)
    cached(tmp_path).write_bytes(b"?" + CONTENT[1:])
    with pytest.raises(CachedBlobDamaged):
        await read(bucket, NAME)
    assert await read(bucket, NAME) == CONTENT


async def test_a_cache_on_a_full_disk_does_not_stop_reads(bucket: BlobStore, tmp_path: Path) -> None:
    await put(bucket, CONTENT)
    cached(tmp_path).unlink()
    (tmp_path / "cache" / "filling" / NAME.sha256).symlink_to("/dev/full")
    assert await read(bucket, NAME) == CONTENT
    assert not cached(tmp_path).exists()


async def test_a_read_that_is_left_half_way_leaves_nothing_behind(s3: S3Server, tmp_path: Path) -> None:
    url = s3.new_bucket()
    async with opened(url, tmp_path / "a") as a:
        await put(a, CONTENT)
    async with opened(url, tmp_path / "b") as b:
        for patience in range(12):
            task = asyncio.ensure_future(read(b, NAME))
            await asyncio.wait([task], timeout=patience / 200)
            task.cancel()
            await asyncio.wait([task])
        assert list((tmp_path / "b" / "cache" / "filling").iterdir()) == []
        assert await read(b, NAME) == CONTENT


# ---- where it is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://host/bucket",
        "s3://",
        "file://host/folder",
        "s3://key:secret@bucket",
        "s3://bucket?endpont=http://h",
        "gs://bucket?endpoint=http://h",
        "s3://bucket?endpoint=host",
        "bucket",
    ],
)
def test_a_place_that_is_none_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(ValueError, match=r"^(is|has|holds) ") as caught:
        parse_blobs_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://b/a/c", "gs://b/a/c", "az://b/a/c", "s3://b"])
def test_each_kind_of_bucket_can_be_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    location = parse_blobs_url(url)
    assert isinstance(location, BucketLocation)
    assert str(location) == url
    Bucket(location)
