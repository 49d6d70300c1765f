"""The metrics of the whole cluster on one page: every process is asked when somebody asks here."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from maas_gateway.api.envoy_statistics import readable
from maas_gateway.domain.exposition import ExpositionInvalid, Family, merge, parse
from maas_runtime.metrics import http_server

logger = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 2.0
_MAX_PAGE_BYTES = 16 * 2**20
_TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
OWN_PROCESS = "gateway"
ENVOY_PROCESS = "envoy"


@dataclass(frozen=True, slots=True)
class Target:
    """A process and its page."""

    process: str
    address: str
    """`unix:/path` or `host:port`."""
    path: str = "/metrics"
    rewrite: Callable[[str], str] = str
    """Applied to the page before it is read."""


def envoy_target(admin_socket: str) -> Target:
    """Return the page of the gateway's Envoy."""
    return Target(ENVOY_PROCESS, f"unix:{admin_socket}", "/stats/prometheus", readable)


class ClusterMetrics:
    """Asks all processes, one page from all answers."""

    def __init__(self, targets: tuple[Target, ...], registry: CollectorRegistry) -> None:
        self._targets = targets
        self._registry = registry

    async def page(self) -> str:
        """Return the page. A process that is away, slow or talks nonsense is left out and marked."""
        answers = await asyncio.gather(*(_ask(target) for target in self._targets))
        own = parse(generate_latest(self._registry).decode(), OWN_PROCESS)
        return merge([own, [_scrape_up(answers), _scrape_seconds(answers)], *(answer.families for answer in answers)])


@dataclass(frozen=True, slots=True)
class _Answer:
    process: str
    up: bool
    seconds: float
    families: list[Family]


async def _ask(target: Target) -> _Answer:
    started = time.monotonic()
    try:
        page = await _fetch(target)
        families = parse(target.rewrite(page), target.process)
    except (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError, ExpositionInvalid) as error:
        logger.debug("no metrics from a process", extra={"target": target.process, "detail": repr(error)})
        return _Answer(target.process, False, time.monotonic() - started, [])
    return _Answer(target.process, True, time.monotonic() - started, families)


# Made as text, because here the label `process` names the one that was asked, not the one that tells.
def _scrape_up(answers: list[_Answer]) -> Family:
    return Family(
        "maas_gateway_scrape_up",
        "gauge",
        "Whether the process showed its metrics.",
        [f'maas_gateway_scrape_up{{process="{answer.process}"}} {int(answer.up)}' for answer in answers],
    )


def _scrape_seconds(answers: list[_Answer]) -> Family:
    return Family(
        "maas_gateway_scrape_seconds",
        "gauge",
        "How long the process took to show its metrics.",
        [f'maas_gateway_scrape_seconds{{process="{answer.process}"}} {answer.seconds:.6f}' for answer in answers],
    )


async def _fetch(target: Target) -> str:
    is_socket = target.address.startswith("unix:")
    connector = (
        aiohttp.UnixConnector(target.address.removeprefix("unix:")) if is_socket else aiohttp.TCPConnector(limit=1)
    )
    host = "localhost" if is_socket else target.address
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        session.get(f"http://{host}{target.path}", raise_for_status=True) as response,
    ):
        body = bytearray()
        async for chunk in response.content.iter_chunked(2**16):
            body += chunk
            if len(body) > _MAX_PAGE_BYTES:
                raise ExpositionInvalid("the page is too long", name=target.process)
        return body.decode()


@asynccontextmanager
async def cluster_metrics_page(metrics: ClusterMetrics, listen: str) -> AsyncIterator[None]:
    """Serve GET /metrics while the context is open."""

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=(await metrics.page()).encode(), headers={"Content-Type": _TEXT_FORMAT})

    application = web.Application()
    application.router.add_get("/metrics", show)
    async with http_server(application, listen):
        yield
