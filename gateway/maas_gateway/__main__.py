"""`python -m maas_gateway`: the control plane of the gateway's Envoy, and the voice of the cluster as a whole."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc
from grpc_health.v1 import health_pb2_grpc
from prometheus_client import Gauge

from maas_gateway.api.contract import services
from maas_gateway.api.discovery import DiscoveryMetrics, DiscoveryServicer, Published
from maas_gateway.api.health import ChannelProber, HealthServicer
from maas_gateway.api.listener import EmbeddedFront, ListenerSettings, listener_for
from maas_gateway.api.metrics import ClusterMetrics, Target, cluster_metrics_page, envoy_target
from maas_gateway.api.reflection import add_reflection
from maas_gateway.api.resources import Resources, resources_for
from maas_gateway.domain.deployments import KnownDeployments
from maas_gateway.domain.health import HealthTable
from maas_gateway.domain.routing import snapshot_for
from maas_gateway.domain.topology import Topology
from maas_gateway.settings import ENVOY_ADMIN_SOCKET, GatewaySettings
from maas_gateway.storage.deployments_file import DeploymentsFile
from maas_gateway.watch import DeploymentWatch
from maas_runtime.channel import open_channel
from maas_runtime.metrics import process_metrics
from maas_runtime.server import ListenFailed, run_process, stop_signal

logger = logging.getLogger(__name__)


async def main(settings: GatewaySettings) -> None:
    """Serve until asked to stop."""
    topology = Topology(
        services=services(),
        upstreams=settings.upstreams,
        gateway_address=settings.listen,
        gateway_http_address=settings.http_listen,
        fronts=settings.fronts,
    )
    resources_of = resource_maker(settings, topology)
    metrics = process_metrics()
    deployments = Gauge("maas_gateway_deployments", "Deployments that rollout has told of.", registry=metrics)

    state_dir = settings.home / "gateway"
    state_dir.mkdir(parents=True, exist_ok=True)

    def changed(known: KnownDeployments) -> None:
        deployments.set(len(known.ids))
        published.publish(resources_of(known))

    async with AsyncExitStack() as stack:
        stop = await stack.enter_async_context(stop_signal())
        rollout_address = next(upstream.address for upstream in settings.upstreams if upstream.process == "rollout")
        rollout = await stack.enter_async_context(open_channel(rollout_address))
        watch = DeploymentWatch(rollout, DeploymentsFile(state_dir / "deployments.json"), changed)
        deployments.set(len(watch.known.ids))
        published = Published(resources_of(watch.known))

        prober = ChannelProber()
        stack.push_async_callback(prober.close)
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(
            DiscoveryServicer(published, DiscoveryMetrics(metrics)), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(HealthTable.of(topology), prober), server)
        add_reflection(server)
        bind(server, settings.listen)

        targets = [Target(process, address) for process, address in settings.metrics_targets.items()]
        targets.append(envoy_target(str(settings.run_dir / ENVOY_ADMIN_SOCKET)))
        await stack.enter_async_context(
            cluster_metrics_page(ClusterMetrics(tuple(targets), metrics), settings.http_listen)
        )
        await server.start()
        stack.push_async_callback(server.stop, 0.2)  # Envoy comes back by itself, and needs nothing meanwhile
        logger.info("serving", extra={"listen": settings.listen, "embedded": topology.embedded})
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(watch.run())
            await stop.wait()
            watching.cancel()
    logger.info("stopped")


def resource_maker(settings: GatewaySettings, topology: Topology) -> Callable[[KnownDeployments], Resources]:
    """Return the function from deployments to all that Envoy is sent; everything else in it is fixed from here on."""
    listener = listener_for(
        ListenerSettings(
            address=settings.public_listen,
            services=topology.services,
            front=_embedded_front() if topology.embedded else None,
            access_log=settings.access_log,
        )
    )

    def resources_of(known: KnownDeployments) -> Resources:
        return resources_for(snapshot_for(topology, known.ids).checked(), listener)

    return resources_of


def bind(server: grpc.aio.Server, listen: str) -> None:
    """Listen. Raises ListenFailed."""
    if listen.startswith("unix:"):
        Path(listen.removeprefix("unix:")).parent.mkdir(parents=True, exist_ok=True)
    try:
        server.add_insecure_port(listen)
    except RuntimeError as error:
        raise ListenFailed(f"cannot listen on {listen}; choose another address with MAAS_LISTEN") from error


def _embedded_front() -> EmbeddedFront:
    # Here and not above: a gateway with fronts elsewhere is installed without inference.
    from maas_inference.front.envoy_filter import door_config, filter_config, path_guard_config

    return EmbeddedFront(
        guard=path_guard_config()["typed_config"],
        door=door_config()["typed_config"],
        filter=filter_config()["typed_config"],
    )


if __name__ == "__main__":
    run_process("maas_gateway", GatewaySettings.from_env, main)
