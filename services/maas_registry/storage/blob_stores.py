"""The store of blobs that the settings ask for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry

from maas_registry.domain.blobs import BlobStore
from maas_registry.domain.garbage import GarbageBlobs
from maas_registry.storage.blob_cache import BlobCache, CacheMetrics
from maas_registry.storage.blob_folder import BlobFolder
from maas_registry.storage.blob_location import BlobLocation, BucketLocation, FolderLocation
from maas_registry.storage.disk import Disk
from maas_runtime.storage import translated_disk_errors


class StoredBlobs(BlobStore, GarbageBlobs, Protocol):
    """Blobs, taken, given and removed."""


@asynccontextmanager
async def open_blob_store(
    location: BlobLocation, own_folder: Path, cache_bytes: int, disk_threads: int, metrics: CollectorRegistry
) -> AsyncIterator[StoredBlobs]:
    """Give the store; a bucket's cache and unfinished uploads are in `own_folder`, which no other process uses.

    Raises StorageReadOnly or BlobStoreUnavailable.
    """
    match location:
        case FolderLocation(folder):
            with _disk(folder, disk_threads) as disk:
                blobs = BlobFolder(disk)
                await blobs.prepare()
                yield blobs
        case BucketLocation():
            # Here, because a registry with a folder needs none of it.
            from maas_registry.storage.blob_bucket import BlobBucket
            from maas_registry.storage.bucket import Bucket

            with _disk(own_folder, disk_threads) as disk:
                bucket = BlobBucket(Bucket(location), disk, BlobCache(disk, cache_bytes, CacheMetrics(metrics)))
                await bucket.prepare()
                yield bucket


def _disk(folder: Path, threads: int) -> Disk:
    with translated_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return Disk(folder, threads)
