"""The inference manager: wiring, and nothing else."""

import asyncio

import grpc

from maas.inference.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server
from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceStub
from maas_inference.manager.desired import DesiredFile
from maas_inference.manager.fronts import Fronts
from maas_inference.manager.metrics import WorkerMetrics
from maas_inference.manager.packages import PackageStore
from maas_inference.manager.replica import Replica
from maas_inference.manager.rollout_link import report, watch
from maas_inference.manager.worker_process import WorkerOptions
from maas_inference.servicer import (
    INFERENCE_SERVICE,
    OIP_SERVICE,
    InferenceServicer,
    OipServicer,
    add_oip_servicer,
)
from maas_inference.settings import InferenceSettings
from maas_inference.table import FRONT_SOCKET
from maas_runtime.channel import open_channel
from maas_runtime.metrics import process_metrics
from maas_runtime.server import GrpcService, run_process, serve
from maas_runtime.settings import Environment


async def main(settings: InferenceSettings) -> None:
    """Run the manager until it is asked to stop."""
    fronts = Fronts()
    with grpc.insecure_channel(settings.registry_address) as registry:
        replica = Replica(
            WorkerOptions(settings.run_dir, settings.engine_threads, settings.engine_lanes, settings.max_batch_rows),
            PackageStore(settings.state_dir / "packages", registry, settings.package_cache_bytes),
            fronts,
            DesiredFile(settings.state_dir / "desired.json"),
        )
        metrics = process_metrics()
        metrics.register(fronts)
        metrics.register(WorkerMetrics(replica))
        inference = InferenceServicer(replica, fronts, settings.replica)
        services = [
            GrpcService(OIP_SERVICE, lambda server: add_oip_servicer(OipServicer(replica), server)),
            GrpcService(INFERENCE_SERVICE, lambda server: add_InferenceServiceServicer_to_server(inference, server)),
        ]
        async with (
            open_channel(settings.rollout_address) as channel,
            fronts.listening(settings.run_dir / FRONT_SOCKET),
            asyncio.TaskGroup() as tasks,
        ):
            rollout = RolloutServiceStub(channel)
            running = [
                tasks.create_task(replica.run()),
                tasks.create_task(watch(rollout, replica)),
                tasks.create_task(report(rollout, replica, settings.replica)),
            ]
            await serve(settings.process, services, metrics)
            for task in running:
                task.cancel()


if __name__ == "__main__":
    run_process("maas_inference", lambda variables: InferenceSettings.read(Environment(variables)), main)
