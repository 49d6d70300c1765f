"""The registry's process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import grpc
from prometheus_client import CollectorRegistry

from maas.registry.v1.registry_service_pb2_grpc import add_RegistryServiceServicer_to_server
from maas_registry.api.servicer import RegistryServicer, TransferMetrics
from maas_registry.domain.blobs import Blobs
from maas_registry.domain.datasets import Datasets
from maas_registry.domain.models import Models
from maas_registry.settings import Settings
from maas_registry.storage.blob_folder import BlobFolder
from maas_registry.storage.disk import Disk
from maas_registry.storage.sql_datasets import SqlDatasetStore
from maas_registry.storage.sql_models import SqlModelStore
from maas_registry.storage.tables import MIGRATIONS
from maas_runtime.database.database import open_database
from maas_runtime.metrics import process_metrics
from maas_runtime.server import GrpcService, run_process, serve
from maas_runtime.storage import translated_disk_errors


async def main(settings: Settings) -> None:
    """Serve until asked to stop."""
    metrics = process_metrics()
    async with open_registry(settings, metrics) as service:
        await serve(settings.process, [service], metrics)


@asynccontextmanager
async def open_registry(settings: Settings, metrics: CollectorRegistry) -> AsyncIterator[GrpcService]:
    """Give RegistryService over the stores of the settings; all is closed when the context ends."""
    with translated_disk_errors(settings.folder):
        settings.folder.mkdir(parents=True, exist_ok=True)
    with Disk(settings.folder, settings.disk_threads) as disk:
        folder = BlobFolder(disk)
        await folder.prepare()
        async with open_database(settings.database, MIGRATIONS) as database:
            blobs = Blobs(folder, settings.max_blob_bytes)
            servicer = RegistryServicer(
                Models(SqlModelStore(database), blobs, _now),
                Datasets(SqlDatasetStore(database), blobs, _now),
                blobs,
                TransferMetrics(metrics),
            )

            def add(server: grpc.aio.Server) -> None:
                add_RegistryServiceServicer_to_server(servicer, server)

            yield GrpcService("maas.registry.v1.RegistryService", add)


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    run_process("maas_registry", Settings.from_env, main)
