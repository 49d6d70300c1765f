"""Both stores of a registry, opened together."""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from prometheus_client import CollectorRegistry

from maas_registry.settings import StoreSettings
from maas_registry.storage.blob_location import BucketLocation
from maas_registry.storage.blob_stores import StoredBlobs, open_blob_store
from maas_registry.storage.tables import MIGRATIONS
from maas_runtime.database.database import Database, DatabaseLocation, open_database
from maas_runtime.storage import translated_disk_errors


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a registry is kept."""

    location: DatabaseLocation
    database: Database
    """The database at `location`, with its tables."""
    blobs: StoredBlobs


@asynccontextmanager
async def open_stores(settings: StoreSettings, metrics: CollectorRegistry | None = None) -> AsyncIterator[Stores]:
    """Open what the settings name; all is closed when the context ends.

    With `metrics` as the registry's own process, which alone uses a bucket's cache and the unfinished uploads to it.
    """
    with translated_disk_errors(settings.folder):
        settings.folder.mkdir(parents=True, exist_ok=True)
    async with _open_blobs(settings, metrics) as blobs, open_database(settings.database, MIGRATIONS) as database:
        yield Stores(settings.database, database, blobs)


@asynccontextmanager
async def _open_blobs(settings: StoreSettings, metrics: CollectorRegistry | None) -> AsyncIterator[StoredBlobs]:
    own, cache_bytes = settings.folder, settings.cache_bytes
    with ExitStack() as stack:
        if metrics is None and isinstance(settings.blobs, BucketLocation):
            own, cache_bytes = Path(stack.enter_context(TemporaryDirectory(dir=own, prefix="passing-"))), 0
        async with open_blob_store(
            settings.blobs, own, cache_bytes, settings.disk_threads, metrics or CollectorRegistry()
        ) as blobs:
            yield blobs
