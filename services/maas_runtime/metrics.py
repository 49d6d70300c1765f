"""What a process counts of its calls, and the page on which it shows all it counts."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class CallMetrics:
    """Calls of one gRPC server: how many are running, how they ended, how long they took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.finished = Counter(
            "maas_runtime_calls",
            "Calls that ended, by method, status and reason.",
            ["method", "status", "reason"],
            registry=registry,
        )
        self.seconds = Histogram(
            "maas_runtime_call_seconds",
            "Time from a call's arrival to its last message.",
            ["method"],
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self.running = Gauge("maas_runtime_calls_running", "Calls being answered now.", registry=registry)


def process_metrics() -> CollectorRegistry:
    """Return a registry that already tells of the process's memory, processor time and open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


@asynccontextmanager
async def metrics_page(
    registry: CollectorRegistry, listen: str, more: Callable[[], str] = lambda: ""
) -> AsyncIterator[None]:
    """Serve GET /metrics at `unix:/path` or `host:port` while the context is open.

    `more` returns further exposition text that is put behind the registry's own.
    """

    async def show(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry) + more().encode(), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    application = web.Application()
    application.router.add_get("/metrics", show)
    async with http_server(application, listen):
        yield


@asynccontextmanager
async def http_server(application: web.Application, listen: str) -> AsyncIterator[None]:
    """Serve an aiohttp application at `unix:/path` or `host:port` while the context is open."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site: web.BaseSite
        if listen.startswith("unix:"):
            path = listen.removeprefix("unix:")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # what a killed process left
            site = web.UnixSite(runner, path)
        else:
            host, _, port = listen.rpartition(":")
            site = web.TCPSite(runner, host, int(port))
        await site.start()
        yield
    finally:
        await runner.cleanup()
