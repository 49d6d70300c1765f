"""One process: a gRPC server with everything around it, until it is asked to stop."""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from maas_runtime.exit_status import EXIT_CANNOT_START
from maas_runtime.failures import Failure, Unavailable
from maas_runtime.interceptor import CallInterceptor
from maas_runtime.logs import configure_logging
from maas_runtime.metrics import CallMetrics, metrics_page
from maas_runtime.settings import ProcessSettings
from maas_runtime.validation import RequestValidator

logger = logging.getLogger(__name__)

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a share of the connections
    ("grpc.max_receive_message_length", 8 * 2**20),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class ListenFailed(Unavailable):
    """The address cannot be listened on."""

    reason = "LISTEN_FAILED"


@dataclass(frozen=True, slots=True)
class GrpcService:
    """A service to be offered: its full name, what adds its servicer to a server, and what is called before it stops.

    `on_stop` ends the calls that would never end by themselves, such as watches.
    """

    full_name: str
    add_to: Callable[[grpc.aio.Server], None]
    on_stop: Callable[[], None] = lambda: None


SettingsT = TypeVar("SettingsT")


def run_process(
    name: str,
    read_settings: Callable[[Mapping[str, str]], SettingsT],
    main: Callable[[SettingsT], Coroutine[Any, Any, None]],
) -> None:
    """Be a process: read settings, log, run `main` until it ends. A failure to start is one sentence and status 78."""
    configure_logging(name, os.environ.get("MAAS_LOG_LEVEL", "INFO"))
    try:
        asyncio.run(main(read_settings(os.environ)))
    except Failure as failure:
        logger.error("cannot start", extra={"reason": failure.reason, "detail": failure.message})
        print(f"{name}: {failure.message}", file=sys.stderr)
        sys.exit(EXIT_CANNOT_START)


def build_server(
    services: Sequence[GrpcService], metrics: CollectorRegistry
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """Return a server that offers the services, health and reflection; not started, bound to nothing."""
    server = grpc.aio.server(
        interceptors=[CallInterceptor(RequestValidator(), CallMetrics(metrics))], options=list(_OPTIONS)
    )
    for service in services:
        service.add_to(server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(
        [*(service.full_name for service in services), health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    return server, health_servicer


async def serve(
    settings: ProcessSettings,
    services: Sequence[GrpcService],
    metrics: CollectorRegistry,
    more_metrics: Callable[[], str] = lambda: "",
) -> None:
    """Serve until SIGTERM or SIGINT, then let running calls end for at most `drain_seconds`.

    Raises ListenFailed when the address is taken or cannot be made.
    """
    server, health_servicer = build_server(services, metrics)
    _bind(server, settings.listen)
    names = ["", *(service.full_name for service in services)]
    async with stop_signal() as stop, metrics_page(metrics, settings.metrics_listen, more_metrics):
        await server.start()
        for name in names:
            await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        logger.info("serving", extra={"listen": settings.listen})
        # What was imported stays: looking through it for garbage would stop every call for a tenth of a second.
        gc.freeze()
        try:
            await stop.wait()
        finally:
            await health_servicer.enter_graceful_shutdown()
            for service in services:
                service.on_stop()
            await server.stop(settings.drain_seconds)
            logger.info("stopped")


@asynccontextmanager
async def stop_signal() -> AsyncIterator[asyncio.Event]:
    """Give an event that SIGTERM and SIGINT set while the context is open."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _bind(server: grpc.aio.Server, listen: str) -> None:
    if listen.startswith("unix:"):
        Path(listen.removeprefix("unix:")).parent.mkdir(parents=True, exist_ok=True)
    try:
        server.add_insecure_port(listen)
    except RuntimeError as error:
        raise ListenFailed(
            f"cannot listen on {listen}: is it in use? Choose another address with MAAS_LISTEN"
        ) from error
