"""The registry's process."""

import asyncio
import ctypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
from prometheus_client import CollectorRegistry

from maas.registry.v1.registry_service_pb2_grpc import add_RegistryServiceServicer_to_server
from maas_registry.api.servicer import Records, RegistryServicer, TransferMetrics
from maas_registry.domain.alias_rules import Aliases, Holds
from maas_registry.domain.blobs import Blobs
from maas_registry.domain.changes import Feed, utc_now
from maas_registry.domain.datasets import Datasets
from maas_registry.domain.garbage import Garbage, GarbageMetrics
from maas_registry.domain.model_rules import Models
from maas_registry.domain.signatures import Signatures
from maas_registry.domain.version_rules import Versions
from maas_registry.settings import Settings
from maas_registry.storage.sql_changes import SqlChangeLog
from maas_registry.storage.sql_datasets import SqlDatasetStore
from maas_registry.storage.sql_garbage import SqlGarbageStore
from maas_registry.storage.sql_models import SqlModelStore
from maas_registry.storage.sql_signatures import SqlSignatureStore
from maas_registry.storage.stores import open_stores
from maas_runtime.metrics import process_metrics
from maas_runtime.server import GrpcService, run_process, serve

_M_ARENA_MAX = -8
_ARENAS = 2


async def main(settings: Settings) -> None:
    """Serve until asked to stop."""
    _share_arenas()
    metrics = process_metrics()
    async with open_registry(settings, metrics) as service:
        await serve(settings.process, [service], metrics)


@asynccontextmanager
async def open_registry(settings: Settings, metrics: CollectorRegistry) -> AsyncIterator[GrpcService]:
    """Give RegistryService over the stores of the settings; all is closed when the context ends."""
    async with open_stores(settings.stores, metrics) as stores:
        removals = SqlGarbageStore(stores.database, utc_now)
        blobs = Blobs(stores.blobs, settings.max_blob_bytes, removals=removals)
        feed = Feed(SqlChangeLog(stores.database), utc_now)
        store = SqlModelStore(stores.database, wrote=feed.wake)
        versions = Versions(store, blobs, utc_now)
        grace = timedelta(seconds=settings.stores.gc_grace_seconds)
        garbage = Garbage(removals, stores.blobs, versions.purge_expired, utc_now, grace)
        servicer = RegistryServicer(
            Records(Models(store, utc_now), versions, Aliases(store, utc_now), Holds(store), feed),
            Signatures(SqlSignatureStore(stores.database), versions, utc_now),
            Datasets(SqlDatasetStore(stores.database), blobs, utc_now),
            blobs,
            TransferMetrics(metrics),
        )

        def add(server: grpc.aio.Server) -> None:
            add_RegistryServiceServicer_to_server(servicer, server)

        async with asyncio.TaskGroup() as tasks:
            collecting = tasks.create_task(garbage.collect_regularly(settings.gc_seconds, GarbageMetrics(metrics)))
            try:
                yield GrpcService("maas.registry.v1.RegistryService", add, feed.close)
            finally:
                collecting.cancel()


def _share_arenas() -> None:
    """Have glibc keep few heaps: with one a thread it holds on to every thread's largest transfer."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


if __name__ == "__main__":
    run_process("maas_registry", Settings.from_env, main)
