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
from maas_registry.domain.signatures import Signatures
from maas_registry.settings import Settings
from maas_registry.storage.sql_datasets import SqlDatasetStore
from maas_registry.storage.sql_models import SqlModelStore
from maas_registry.storage.sql_signatures import SqlSignatureStore
from maas_registry.storage.stores import open_stores
from maas_runtime.metrics import process_metrics
from maas_runtime.server import GrpcService, run_process, serve


async def main(settings: Settings) -> None:
    """Serve until asked to stop."""
    metrics = process_metrics()
    async with open_registry(settings, metrics) as service:
        await serve(settings.process, [service], metrics)


@asynccontextmanager
async def open_registry(settings: Settings, metrics: CollectorRegistry) -> AsyncIterator[GrpcService]:
    """Give RegistryService over the stores of the settings; all is closed when the context ends."""
    async with open_stores(settings.stores, metrics) as stores:
        blobs = Blobs(stores.blobs, settings.max_blob_bytes)
        models = Models(SqlModelStore(stores.database), blobs, _now)
        servicer = RegistryServicer(
            models,
            Signatures(SqlSignatureStore(stores.database), models, _now),
            Datasets(SqlDatasetStore(stores.database), blobs, _now),
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
