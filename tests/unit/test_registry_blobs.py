"""The rules of uploads and downloads, over the store in memory."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from maas.names import BlobName
from maas_registry.domain.blobs import (
    BlobCorrupt,
    BlobNotFound,
    Blobs,
    BlobState,
    BlobTooLarge,
    DownloadOffsetPastEnd,
    UploadIncomplete,
    UploadInProgress,
    UploadOffsetMismatch,
    UploadStalled,
    UploadTooLong,
)
from maas_registry.storage.memory import MemoryBlobStore

CONTENT = b"0123456789"
NAME = BlobName(hashlib.sha256(CONTENT).hexdigest())


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def never() -> AsyncIterator[bytes]:
    yield b"01"
    await asyncio.Event().wait()


@pytest.fixture
def store() -> MemoryBlobStore:
    return MemoryBlobStore()


@pytest.fixture
def blobs(store: MemoryBlobStore) -> Blobs:
    return Blobs(store, max_bytes=100)


async def test_an_upload_returns_the_committed_blob(blobs: Blobs) -> None:
    blob = await blobs.upload(NAME, 10, 0, chunks(b"01234", b"56789"))
    assert blob == await blobs.get(NAME)
    assert (blob.state, blob.stored_bytes) == (BlobState.COMMITTED, 10)
    assert b"".join([chunk async for chunk in blobs.download(NAME, 3)]) == b"3456789"


async def test_a_committed_blob_is_returned_without_reading_the_bytes(blobs: Blobs) -> None:
    await blobs.upload(NAME, 10, 0, chunks(CONTENT))
    assert (await blobs.upload(NAME, 10, 0, never())).committed


async def test_a_blob_above_the_bound_is_refused_before_its_first_byte(blobs: Blobs) -> None:
    with pytest.raises(BlobTooLarge):
        await blobs.upload(NAME, 101, 0, never())


async def test_more_bytes_than_the_header_says_are_refused(blobs: Blobs) -> None:
    with pytest.raises(UploadTooLong):
        await blobs.upload(NAME, 9, 0, chunks(b"01234", b"56789"))
    assert (await blobs.get(NAME)).stored_bytes == 5
    # As are more than a later header says.
    with pytest.raises(UploadTooLong):
        await blobs.upload(NAME, 4, 5, chunks())


async def test_a_short_upload_says_where_to_go_on_and_then_does(blobs: Blobs) -> None:
    with pytest.raises(UploadIncomplete) as caught:
        await blobs.upload(NAME, 10, 0, chunks(b"0123"))
    assert caught.value.metadata == {"received_bytes": "4"}
    assert (await blobs.upload(NAME, 10, 4, chunks(b"456789"))).committed


@pytest.mark.parametrize("offset", [1, 3, 5])
async def test_going_on_at_another_place_than_the_end_is_refused(blobs: Blobs, offset: int) -> None:
    with pytest.raises(UploadIncomplete):
        await blobs.upload(NAME, 10, 0, chunks(b"0123"))
    with pytest.raises(UploadOffsetMismatch) as caught:
        await blobs.upload(NAME, 10, offset, never())
    assert caught.value.metadata == {"received_bytes": "4"}


async def test_an_offset_without_an_upload_is_refused(blobs: Blobs) -> None:
    with pytest.raises(UploadOffsetMismatch):
        await blobs.upload(NAME, 10, 4, never())


async def test_wrong_bytes_are_data_loss_and_dropped(blobs: Blobs) -> None:
    with pytest.raises(BlobCorrupt):
        await blobs.upload(NAME, 10, 0, chunks(b"9876543210"))
    with pytest.raises(BlobNotFound):
        await blobs.get(NAME)


async def test_a_second_upload_of_the_same_blob_has_to_wait_its_turn(blobs: Blobs) -> None:
    sending = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"01234"
        sending.set()
        await finish.wait()
        yield b"56789"

    finish = asyncio.Event()
    first = asyncio.create_task(blobs.upload(NAME, 10, 0, slow()))
    await sending.wait()
    with pytest.raises(UploadInProgress):
        await blobs.upload(NAME, 10, 0, chunks(CONTENT))
    other = hashlib.sha256(b"other").hexdigest()
    assert (await blobs.upload(BlobName(other), 5, 0, chunks(b"other"))).committed
    finish.set()
    assert (await first).committed


async def test_an_upload_that_was_cancelled_lets_the_next_one_in(blobs: Blobs) -> None:
    sent = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"01234"
        sent.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(blobs.upload(NAME, 10, 0, slow()))
    await sent.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await blobs.upload(NAME, 10, 5, chunks(b"56789"))).committed


async def test_a_sender_who_stops_sending_is_let_go(store: MemoryBlobStore) -> None:
    blobs = Blobs(store, max_bytes=100, stall_seconds=0.01)
    with pytest.raises(UploadStalled):
        await blobs.upload(NAME, 10, 0, never())
    assert (await blobs.get(NAME)).stored_bytes == 2


async def test_only_committed_blobs_can_be_read(blobs: Blobs) -> None:
    with pytest.raises(UploadIncomplete):
        await blobs.upload(NAME, 10, 0, chunks(b"0123"))
    with pytest.raises(BlobNotFound):
        await anext(blobs.download(NAME, 0))
    with pytest.raises(BlobNotFound):
        await blobs.sizes([NAME])


async def test_a_read_past_the_end_is_refused_and_one_at_the_end_is_empty(blobs: Blobs) -> None:
    await blobs.upload(NAME, 10, 0, chunks(CONTENT))
    assert [chunk async for chunk in blobs.download(NAME, 10)] == []
    with pytest.raises(DownloadOffsetPastEnd):
        await anext(blobs.download(NAME, 11))


async def test_a_damaged_blob_is_data_loss_until_it_is_uploaded_again(store: MemoryBlobStore, blobs: Blobs) -> None:
    await blobs.upload(NAME, 10, 0, chunks(CONTENT))
    store.damage(NAME, b"?123456789")
    for _ in range(2):
        with pytest.raises(BlobCorrupt):
            assert [chunk async for chunk in blobs.download(NAME, 0)]
    with pytest.raises(BlobNotFound):
        await blobs.get(NAME)
    assert (await blobs.upload(NAME, 10, 0, chunks(CONTENT))).committed
    assert [chunk async for chunk in blobs.download(NAME, 0)] == [CONTENT]
