"""Rollout's process."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc

from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas.rollout.v1.rollout_service_pb2_grpc import add_RolloutServiceServicer_to_server
from maas_rollout.api.servicer import RolloutServicer
from maas_rollout.domain.feed import Feed
from maas_rollout.domain.replicas import Replicas
from maas_rollout.domain.rollout import Rollout
from maas_rollout.registry_versions import RegistryVersions
from maas_rollout.settings import Settings
from maas_rollout.storage.sqlite import MIGRATIONS, SqliteDeploymentStore
from maas_runtime.channel import open_channel
from maas_runtime.database.database import open_database
from maas_runtime.database.sqlite import SqliteFile
from maas_runtime.metrics import process_metrics
from maas_runtime.server import GrpcService, run_process, serve
from maas_runtime.storage import translated_disk_errors


@dataclass(frozen=True, slots=True)
class OpenRollout:
    """RolloutService, and the feed whose watches have to end before the process can."""

    service: GrpcService
    feed: Feed


async def main(settings: Settings) -> None:
    """Serve until asked to stop."""
    metrics = process_metrics()
    async with open_rollout(settings) as rollout:
        await serve(settings.process, [rollout.service], metrics)


@asynccontextmanager
async def open_rollout(settings: Settings) -> AsyncIterator[OpenRollout]:
    """Give RolloutService over the folder of the settings; all is closed when the context ends."""
    with translated_disk_errors(settings.folder):
        settings.folder.mkdir(parents=True, exist_ok=True)
    async with (
        open_database(SqliteFile(settings.folder / "rollout.sqlite"), MIGRATIONS) as database,
        open_channel(settings.registry_address) as registry,
    ):
        store = SqliteDeploymentStore(database)
        await store.prepare(uuid.uuid4().hex)
        feed = Feed(store)
        rollout = Rollout(store, RegistryVersions(RegistryServiceStub(registry)), Replicas(time.monotonic), feed, _now)
        servicer = RolloutServicer(rollout, feed)

        def add(server: grpc.aio.Server) -> None:
            add_RolloutServiceServicer_to_server(servicer, server)

        async with _kept_holds(rollout):
            yield OpenRollout(GrpcService("maas.rollout.v1.RolloutService", add, feed.close), feed)


@asynccontextmanager
async def _kept_holds(rollout: Rollout) -> AsyncIterator[None]:
    """Let the registry hold what is deployed until the context ends."""
    async with asyncio.TaskGroup() as tasks:
        keeper = tasks.create_task(rollout.keep_holds())
        try:
            yield
        finally:
            keeper.cancel()


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    run_process("maas_rollout", Settings.from_env, main)
