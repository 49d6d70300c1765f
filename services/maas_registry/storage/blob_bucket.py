"""Blobs as objects of a bucket: S3, GCS or Azure.

blobs/<2 hex>/<sha256>     committed; an object appears whole or not at all
damaged/<sha256>           the entity tag of an object that was found with other bytes than its name says

An upload grows on this machine's disk and moves up when its hash was checked. So the bucket never holds half a blob,
and several registries may take the same one: each puts the same bytes. Who goes on with an upload at another registry
than before is told that there is nothing yet, and begins again.
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from maas.names import BlobName
from maas_registry.domain.blobs import Blob, BlobCorrupt, BlobState
from maas_registry.storage.blob_cache import BlobCache
from maas_registry.storage.bucket import Bucket, Stored
from maas_registry.storage.disk import Disk
from maas_registry.storage.file_reader import read_file
from maas_registry.storage.parts import Part, Parts
from maas_runtime.failures import Failure, Unavailable
from maas_runtime.storage import StorageFailed, StorageFull, StorageReadOnly

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

_CHUNK_BYTES = 2**20
_DISK_FAILURES = (StorageFull, StorageReadOnly, StorageFailed)


class CachedBlobDamaged(Unavailable):
    """A copy on this machine's disk went bad; the bucket is asked next time."""

    reason = "CACHED_BLOB_DAMAGED"


class BlobBucket:
    """BlobStore in a bucket, with a cache on this machine's disk."""

    def __init__(self, bucket: Bucket, disk: Disk, cache: BlobCache) -> None:
        self._bucket = bucket
        self._disk = disk
        self._cache = cache
        self._parts = Parts(disk, disk.folder / "uploads")
        # Held while a blob is brought here, so that those who want it meanwhile wait for it.
        self._bringing: WeakValueDictionary[BlobName, asyncio.Lock] = WeakValueDictionary()

    async def prepare(self) -> None:
        """Make the folders, take up the cache, and see that the bucket is there."""
        await self._disk.run(self._parts.prepare)
        await self._parts.drop_abandoned()
        await self._cache.prepare()
        await self._bucket.check()

    async def find(self, name: BlobName) -> Blob | None:
        """Return what is stored of a blob; None when nothing is."""
        stored, damaged_tag = await self._bucket.stat(name)
        if stored is not None and stored.e_tag != damaged_tag:
            return Blob(name, BlobState.COMMITTED, stored.size_bytes)
        part = await self._parts.find(name)
        if part is None and stored is not None:
            return Blob(name, BlobState.DAMAGED, stored.size_bytes)
        return part

    @asynccontextmanager
    async def upload(self, name: BlobName, offset: int) -> AsyncIterator["BucketUpload"]:
        """Go on with an upload at `offset`, dropping what is stored behind it."""
        async with self._parts.open(name, offset) as part:
            yield BucketUpload(self._bucket, self._disk, self._cache, name, part)

    async def read(self, name: BlobName, offset: int, length: int | None) -> AsyncGenerator[bytes, None]:
        """Yield a committed blob's bytes; those that come by way of the cache were checked before."""
        await self._bring(name)
        async with self._cache.open(name) as path:
            if path is None:
                source = self._read_past_the_cache(name, offset, length)
            else:
                source = self._read_cached(name, path, offset, length)
            async with aclosing(source) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def inspect(self, name: BlobName, look: Callable[[Path], ResultT]) -> ResultT:
        """Return what `look` finds in a file with the blob's bytes."""
        await self._bring(name)
        async with self._cache.open(name) as path:
            if path is not None:
                return await self._disk.run(lambda: look(path))
        async with self._lock(name):  # larger than the cache: here for as long as one looks at it
            stored = await self._bucket.get_stat(name)
            passing = self._cache.filling_path(name)
            try:
                await self._fetch(name, stored, passing)
                return await self._disk.run(lambda: look(passing))
            finally:
                await self._disk.run(lambda: passing.unlink(missing_ok=True))

    async def list(self) -> AsyncIterator[Blob]:
        """Yield all blobs, also those that were found damaged."""
        async with aclosing(self._bucket.list()) as found:
            async for name, size_bytes in found:
                yield Blob(name, BlobState.COMMITTED, size_bytes)

    async def remove(self, name: BlobName) -> None:
        """Remove a blob's object, if it is there. Other registries may have it in their caches, and ask for it here."""
        await self._bucket.remove(name)
        await self._cache.drop(name)

    async def drop_abandoned(self) -> int:
        """Remove unfinished uploads that nobody went on with for a week."""
        return await self._parts.drop_abandoned()

    async def _bring(self, name: BlobName) -> None:
        """Have a blob in the cache, if there is room for it."""
        if self._cache.seek(name):
            return
        async with self._lock(name):
            if self._cache.has(name):
                return
            stored = await self._bucket.get_stat(name)
            filling = self._cache.filling_path(name)
            async with self._cache.room(stored.size_bytes) as there_is_room:
                if not there_is_room:
                    return
                try:
                    await self._fetch(name, stored, filling)
                    await self._cache.admit(name, filling, stored.size_bytes)
                except _DISK_FAILURES as failure:
                    logger.warning("cannot cache", extra={"reason": failure.reason, "detail": failure.message})
                finally:
                    await self._disk.run(lambda: filling.unlink(missing_ok=True))

    async def _fetch(self, name: BlobName, stored: Stored, path: Path) -> None:
        """Write a blob's object to `path`. Raises BlobCorrupt when it is damaged."""
        digest = hashlib.sha256()
        opening = self._disk.begin(lambda: FileIO(path, "w"))
        try:
            file = await self._disk.end(opening)
            async with aclosing(self._bucket.read(name, 0, stored.size_bytes)) as pieces:
                async for piece in pieces:
                    hashed = self._disk.begin(partial(digest.update, piece))
                    try:
                        await self._disk.run(partial(_write_all, file, piece))
                    finally:
                        await self._disk.end(hashed)
        finally:
            if opening.exception() is None:
                await self._disk.run(opening.result().close)
        if digest.hexdigest() != name.sha256:
            raise await self._damaged(name, stored)

    async def _read_cached(
        self, name: BlobName, path: Path, offset: int, length: int | None
    ) -> AsyncGenerator[bytes, None]:
        digest = hashlib.sha256() if offset == 0 and length is None else None
        async with aclosing(read_file(self._disk, path, offset, length, digest)) as chunks:
            async for chunk in chunks:
                yield chunk
        if digest is not None and digest.hexdigest() != name.sha256:
            await self._cache.drop(name)
            raise CachedBlobDamaged(f"this registry's copy of {name} went bad and was dropped: read it again")

    async def _read_past_the_cache(
        self, name: BlobName, offset: int, length: int | None
    ) -> AsyncGenerator[bytes, None]:
        stored = await self._bucket.get_stat(name)
        end = stored.size_bytes if length is None else min(stored.size_bytes, offset + length)
        digest = hashlib.sha256() if offset == 0 and length is None else None
        async with aclosing(self._bucket.read(name, offset, end)) as pieces:
            async for piece in pieces:
                if digest is not None:
                    await self._disk.run(partial(digest.update, piece))
                for start in range(0, len(piece), _CHUNK_BYTES):
                    yield piece[start : start + _CHUNK_BYTES]
        if digest is not None and digest.hexdigest() != name.sha256:
            raise await self._damaged(name, stored)

    async def _damaged(self, name: BlobName, stored: Stored) -> Failure:
        await self._bucket.mark_damaged(name, stored)
        return BlobCorrupt(f"the stored bytes of {name} are damaged: upload them again", name=str(name))

    def _lock(self, name: BlobName) -> asyncio.Lock:
        lock = self._bringing.get(name)
        if lock is None:
            lock = self._bringing[name] = asyncio.Lock()
        return lock


class BucketUpload:
    """An upload that grows on disk, until it moves up."""

    def __init__(self, bucket: Bucket, disk: Disk, cache: BlobCache, name: BlobName, part: Part) -> None:
        self._bucket = bucket
        self._disk = disk
        self._cache = cache
        self._name = name
        self._part = part

    @property
    def received_bytes(self) -> int:
        """How many bytes are stored, those of earlier uploads included."""
        return self._part.received_bytes

    async def write(self, chunk: bytes) -> None:
        """Store the next bytes."""
        await self._part.write(chunk)

    async def commit(self) -> None:
        """Put the bytes into the bucket, and keep them in the cache: who uploads a file has it looked at next.

        Raises BlobCorrupt and drops what arrived when the hash is wrong. When the bucket is away all stays, and a
        further commit tries again.
        """
        await self._part.complete()
        await self._bucket.put(self._name, self._part.path, self._part.received_bytes)
        async with self._cache.room(self._part.received_bytes) as there_is_room:
            if there_is_room:
                await self._cache.admit(self._name, self._part.path, self._part.received_bytes)
            else:
                await self._disk.run(self._part.path.unlink)


def _write_all(file: FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
