"""One suite for every store of blobs, and what a folder has to do besides."""

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from maas.names import BlobName
from maas_registry.domain.blobs import Blob, BlobCorrupt, BlobState, BlobStore
from maas_registry.storage.blob_folder import BlobFolder
from maas_registry.storage.disk import Disk
from maas_registry.storage.memory import MemoryBlobStore
from maas_runtime.storage import StorageFull

CONTENT = random.Random(3).randbytes(3 * 2**20 + 17)


def name_of(content: bytes) -> BlobName:
    return BlobName(hashlib.sha256(content).hexdigest())


NAME = name_of(CONTENT)


@pytest.fixture(params=["memory", "folder"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    if request.param == "memory":
        yield MemoryBlobStore()
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
    store: BlobStore, tmp_path: Path
) -> None:
    await put(store, CONTENT)
    damaged = b"?" + CONTENT[1:]
    if isinstance(store, MemoryBlobStore):
        store.damage(NAME, damaged)
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
