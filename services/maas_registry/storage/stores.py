"""Both stores of a registry, opened together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from maas_registry.domain.blobs import BlobStore
from maas_registry.settings import StoreSettings
from maas_registry.storage.blob_folder import BlobFolder
from maas_registry.storage.disk import Disk
from maas_registry.storage.tables import MIGRATIONS
from maas_runtime.database.database import Database, DatabaseLocation, open_database
from maas_runtime.storage import translated_disk_errors


@dataclass(frozen=True, slots=True)
class Stores:
    """Where a registry is kept."""

    location: DatabaseLocation
    database: Database
    """The database at `location`, with its tables."""
    blobs: BlobStore


@asynccontextmanager
async def open_stores(settings: StoreSettings) -> AsyncIterator[Stores]:
    """Open what the settings name; all is closed when the context ends."""
    with translated_disk_errors(settings.folder):
        settings.folder.mkdir(parents=True, exist_ok=True)
    with Disk(settings.folder, settings.disk_threads) as disk:
        blobs = BlobFolder(disk)
        await blobs.prepare()
        async with open_database(settings.database, MIGRATIONS) as database:
            yield Stores(settings.database, database, blobs)
