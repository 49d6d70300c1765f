"""Blobs: bytes under their SHA-256, visible only when all of them are there and the hash was checked."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeVar

from maas.names import BlobName
from maas_runtime.failures import Conflict, DataCorrupt, InvalidInput, NotAllowedNow, NotFound, Overloaded, Unavailable

ResultT = TypeVar("ResultT")


class BlobNotFound(NotFound):
    """No bytes are stored, or not all of them yet."""

    reason = "BLOB_NOT_FOUND"


class BlobCorrupt(DataCorrupt):
    """Received or stored bytes do not have the blob's hash."""

    reason = "BLOB_CORRUPT"


class BlobTooLarge(Overloaded):
    """The blob is larger than this registry takes."""

    reason = "BLOB_TOO_LARGE"


class UploadInProgress(Conflict):
    """Somebody else is uploading the same blob."""

    reason = "UPLOAD_IN_PROGRESS"


class UploadOffsetMismatch(NotAllowedNow):
    """The upload goes on at another place than the last one ended."""

    reason = "UPLOAD_OFFSET_MISMATCH"


class UploadTooLong(InvalidInput):
    """There are more bytes than the header says."""

    reason = "UPLOAD_TOO_LONG"


class UploadIncomplete(InvalidInput):
    """The stream ended before all bytes that the header promised; what arrived stays."""

    reason = "UPLOAD_INCOMPLETE"


class UploadStalled(Unavailable):
    """The sender stopped sending; what arrived stays."""

    reason = "UPLOAD_STALLED"


class DownloadOffsetPastEnd(InvalidInput):
    """The first byte wanted lies behind the last one there is."""

    reason = "DOWNLOAD_OFFSET_PAST_END"


class BlobState(Enum):
    """RECEIVING -> COMMITTED; RECEIVING -> gone, when the hash is wrong; COMMITTED -> DAMAGED -> COMMITTED, when a
    download finds stored bytes damaged and they are uploaded again.
    """

    RECEIVING = "receiving"
    COMMITTED = "committed"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Blob:
    """What is stored of a blob; of a damaged one nothing that could be used."""

    name: BlobName
    state: BlobState
    stored_bytes: int

    @property
    def committed(self) -> bool:
        """Whether it can be read and used."""
        return self.state is BlobState.COMMITTED


class Upload(Protocol):
    """An upload that goes on; what was written stays when it is left without a commit."""

    @property
    def received_bytes(self) -> int:
        """How many bytes are stored, those of earlier uploads included."""
        ...

    async def write(self, chunk: bytes) -> None:
        """Store the next bytes."""
        ...

    async def commit(self) -> None:
        """Make the blob visible, on disk. Raises BlobCorrupt, and drops it, when it has not the hash of its name."""
        ...


class BlobStore(Protocol):
    """Where bytes are kept. All of it raises StorageFull, StorageReadOnly or StorageFailed when a disk does."""

    async def find(self, name: BlobName) -> Blob | None:
        """Return what is stored of a blob; None when nothing is."""
        ...

    def upload(self, name: BlobName, offset: int) -> AbstractAsyncContextManager[Upload]:
        """Go on with an upload at `offset`, dropping what is stored behind it. One at a time for each blob."""
        ...

    def read(self, name: BlobName, offset: int, length: int | None) -> AsyncGenerator[bytes, None]:
        """Yield at most `length` of a committed blob's bytes, or all to its end, in chunks of at most 1 MiB.

        Raises BlobCorrupt at the end of a full read whose bytes do not have the blob's hash, and sets them aside: the
        blob is DAMAGED from then on, until it is uploaded again.
        """
        ...

    async def inspect(self, name: BlobName, look: Callable[[Path], ResultT]) -> ResultT:
        """Return what `look` finds in a file with a committed blob's bytes; it runs off the event loop."""
        ...


class Removals(Protocol):
    """What is known of blobs that nobody needs (domain/garbage.py)."""

    async def keep(self, name: BlobName, *, stored: bool) -> None:
        """Let a blob that nobody needs have its grace period from now on; `stored` when its bytes are there.

        Raises BlobBeingRemoved.
        """
        ...


class NothingIsRemoved:
    """Removals of a store from which nothing ever goes."""

    async def keep(self, name: BlobName, *, stored: bool) -> None:
        """Do nothing."""


class Blobs:
    """The rules of uploads and downloads."""

    def __init__(
        self,
        store: BlobStore,
        max_bytes: int,
        stall_seconds: float = 60.0,
        removals: Removals = NothingIsRemoved(),  # noqa: B008
    ) -> None:
        self._store = store
        self._removals = removals
        self._max_bytes = max_bytes
        self._stall_seconds = stall_seconds
        self._uploading: set[BlobName] = set()

    async def get(self, name: BlobName) -> Blob:
        """Return what is stored of a blob. Raises BlobNotFound when nobody has begun to upload it."""
        blob = await self._store.find(name)
        if blob is None or blob.state is BlobState.DAMAGED:
            raise BlobNotFound(f"no bytes are stored for {name}: upload them", name=str(name))
        return blob

    async def upload(self, name: BlobName, size_bytes: int, offset: int, chunks: AsyncIterator[bytes]) -> Blob:
        """Store the bytes from `offset` on and commit the blob. A committed one is returned at once.

        Raises BlobTooLarge, BlobBeingRemoved, UploadInProgress, UploadOffsetMismatch, UploadTooLong, UploadIncomplete,
        UploadStalled or BlobCorrupt.
        """
        if size_bytes > self._max_bytes:
            raise BlobTooLarge(
                f"{name} has {size_bytes} bytes, more than the {self._max_bytes} that this registry takes "
                "(MAAS_REGISTRY_MAX_BLOB_BYTES)"
            )
        await self._removals.keep(name, stored=False)
        blob = await self._store.find(name)
        if blob is not None and blob.committed:
            await self._removals.keep(name, stored=True)
            return blob
        with self._alone(name):
            blob = await self._store.find(name)
            if blob is not None and blob.committed:
                return blob
            _check_offset(name, offset, blob)
            async with self._store.upload(name, offset) as upload:
                await self._receive(name, upload, size_bytes, chunks)
                await upload.commit()
            await self._removals.keep(name, stored=True)
        return Blob(name, BlobState.COMMITTED, size_bytes)

    async def download(self, name: BlobName, offset: int, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the bytes from `offset` on, at most `length`.

        Raises BlobNotFound, DownloadOffsetPastEnd or BlobCorrupt.
        """
        blob = await self._store.find(name)
        if blob is not None and blob.state is BlobState.DAMAGED:
            raise BlobCorrupt(f"the stored bytes of {name} are damaged: upload them again", name=str(name))
        if blob is None or not blob.committed:
            raise _not_committed(name)
        if offset > blob.stored_bytes:
            raise DownloadOffsetPastEnd(f"{name} has {blob.stored_bytes} bytes, none from {offset} on")
        async with aclosing(self._store.read(name, offset, length)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def sizes(self, names: Iterable[BlobName]) -> dict[BlobName, int]:
        """Return the length of each blob in bytes. Raises BlobNotFound for one that is not committed."""
        sizes: dict[BlobName, int] = {}
        for name in names:
            if name not in sizes:
                blob = await self._store.find(name)
                if blob is None or not blob.committed:
                    raise _not_committed(name)
                sizes[name] = blob.stored_bytes
        return sizes

    async def inspect(self, name: BlobName, look: Callable[[Path], ResultT]) -> ResultT:
        """Return what `look` finds in a file with a committed blob's bytes; it runs off the event loop."""
        return await self._store.inspect(name, look)

    async def _receive(self, name: BlobName, upload: Upload, size_bytes: int, chunks: AsyncIterator[bytes]) -> None:
        while (chunk := await self._next(name, chunks)) is not None:
            if upload.received_bytes + len(chunk) > size_bytes:
                raise UploadTooLong(f"{name} has more than the {size_bytes} bytes that the header says")
            await upload.write(chunk)
        if upload.received_bytes > size_bytes:
            raise UploadTooLong(f"{upload.received_bytes} bytes of {name} are stored, the header says {size_bytes}")
        if upload.received_bytes < size_bytes:
            raise UploadIncomplete(
                f"{name} ended after {upload.received_bytes} of {size_bytes} bytes: go on from there",
                received_bytes=str(upload.received_bytes),
            )

    async def _next(self, name: BlobName, chunks: AsyncIterator[bytes]) -> bytes | None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                return await anext(chunks, None)
        except TimeoutError as error:
            raise UploadStalled(f"no byte of {name} came for {self._stall_seconds:g} s: go on with it") from error

    @contextmanager
    def _alone(self, name: BlobName) -> Iterator[None]:
        if name in self._uploading:
            raise UploadInProgress(f"{name} is being uploaded by somebody else: ask again in a moment")
        self._uploading.add(name)
        try:
            yield
        finally:
            self._uploading.discard(name)


def _check_offset(name: BlobName, offset: int, blob: Blob | None) -> None:
    received = blob.stored_bytes if blob is not None and blob.state is BlobState.RECEIVING else 0
    if offset not in (0, received):
        raise UploadOffsetMismatch(
            f"{received} bytes of {name} are stored: go on from there, not from {offset}",
            name=str(name),
            received_bytes=str(received),
        )


def _not_committed(name: BlobName) -> BlobNotFound:
    return BlobNotFound(f"there is no committed {name}: upload it first", name=str(name))
