"""Rollout as a process of its own: killed in the middle of changes, and asked to stop under an open watch."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from prometheus_client import CollectorRegistry

from maas.registry.v1 import registry_service_pb2, version_pb2
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceServicer, add_RegistryServiceServicer_to_server
from maas.rollout.v1 import deployment_pb2
from maas.rollout.v1 import rollout_service_pb2 as messages
from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceStub
from maas_runtime.server import GrpcService, build_server

if TYPE_CHECKING:
    from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceAsyncStub

NAME = "deployments/reviews"


class AllVersions(RegistryServiceServicer):
    """A registry in which every version exists, and which is told what is held."""

    async def SetHolds(self, request: Any, context: Any) -> registry_service_pb2.SetHoldsResponse:
        return registry_service_pb2.SetHoldsResponse(versions=request.versions)

    async def ListHolds(self, request: Any, context: Any) -> registry_service_pb2.ListHoldsResponse:
        return registry_service_pb2.ListHoldsResponse()

    async def GetVersion(self, request: registry_service_pb2.GetVersionRequest, context: Any) -> version_pb2.Version:
        return version_pb2.Version(name=request.name)


@asynccontextmanager
async def registry_in(folder: Path) -> AsyncIterator[None]:
    service = GrpcService(
        "maas.registry.v1.RegistryService",
        lambda server: add_RegistryServiceServicer_to_server(AllVersions(), server),  # type: ignore[abstract]
    )
    server, _ = build_server([service], CollectorRegistry())
    server.add_insecure_port(f"unix:{folder}/registry.sock")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@contextmanager
def process_in(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    environment = os.environ | {
        "MAAS_HOME": str(folder),
        "MAAS_LISTEN": f"unix:{folder}/rollout.sock",
        "MAAS_METRICS_LISTEN": f"unix:{folder}/metrics.sock",
        "MAAS_REGISTRY_ADDRESS": f"unix:{folder}/registry.sock",
        "MAAS_LOG_LEVEL": "WARNING",
        "MAAS_DRAIN_SECONDS": "60",
    }
    with subprocess.Popen([sys.executable, "-m", "maas_rollout"], env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def stub_in(folder: Path) -> AsyncIterator["RolloutServiceAsyncStub"]:
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    async with grpc.aio.insecure_channel(f"unix:{folder}/rollout.sock", options=options) as channel:
        stub = RolloutServiceStub(channel)
        await stub.ListDeployments(messages.ListDeploymentsRequest(), timeout=30, wait_for_ready=True)
        yield stub


def targets(weight: int) -> deployment_pb2.Deployment:
    return deployment_pb2.Deployment(
        name=NAME, targets=[deployment_pb2.Target(version="models/a/versions/1", weight=weight)]
    )


async def create(rollout: "RolloutServiceAsyncStub") -> None:
    request = messages.CreateDeploymentRequest(deployment_id="reviews", deployment=targets(1))
    await rollout.CreateDeployment(request, timeout=10)


async def read(watch: Any) -> messages.WatchDeploymentsResponse:
    message = await asyncio.wait_for(watch.read(), timeout=30)
    assert isinstance(message, messages.WatchDeploymentsResponse)
    return message


async def test_every_acknowledged_change_is_on_record_after_a_kill_and_the_watch_goes_on(tmp_path: Path) -> None:
    acknowledged: list[int] = []
    enough = asyncio.Event()

    async def update_until_it_ends(rollout: "RolloutServiceAsyncStub") -> None:
        for weight in range(2, 10_000):
            try:
                await rollout.UpdateDeployment(messages.UpdateDeploymentRequest(deployment=targets(weight)), timeout=30)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                return
            acknowledged.append(weight)
            if len(acknowledged) == 20:
                enough.set()

    async with registry_in(tmp_path):
        with process_in(tmp_path) as process:
            async with stub_in(tmp_path) as rollout:
                await create(rollout)
                first = await read(rollout.WatchDeployments(messages.WatchDeploymentsRequest()))
                updating = asyncio.create_task(update_until_it_ends(rollout))
                await asyncio.wait_for(enough.wait(), timeout=30)
                process.send_signal(signal.SIGKILL)
                await updating
        with process_in(tmp_path):
            async with stub_in(tmp_path) as rollout:
                resumed = await read(
                    rollout.WatchDeployments(messages.WatchDeploymentsRequest(resume_token=first.resume_token))
                )
                listed = await rollout.ListDeploymentEvents(
                    messages.ListDeploymentEventsRequest(parent=NAME, page_size=1000), timeout=10
                )
    weights = [event.targets_after[0].weight for event in reversed(listed.deployment_events)]
    # The change in flight when it was killed may be there or not; nothing else may be missing or be there twice.
    assert weights in ([1, *acknowledged], [1, *acknowledged, acknowledged[-1] + 1])
    assert not resumed.snapshot
    assert [deployment.targets[0].weight for deployment in resumed.deployments] == [weights[-1]]


async def test_an_open_watch_ends_without_an_error_when_the_process_is_asked_to_stop(tmp_path: Path) -> None:
    async with registry_in(tmp_path):
        with process_in(tmp_path) as process:
            async with stub_in(tmp_path) as rollout:
                await create(rollout)
                watch = rollout.WatchDeployments(messages.WatchDeploymentsRequest())
                assert (await read(watch)).snapshot
                process.terminate()
                assert await asyncio.wait_for(watch.read(), timeout=30) is grpc.aio.EOF
                assert await watch.code() is grpc.StatusCode.OK
                # Calls may go on for 60 s; no watch keeps it from ending at once.
                assert await asyncio.to_thread(process.wait, 30) == 0
