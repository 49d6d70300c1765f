"""xDS: tells each Envoy that asks what its resources are, now and after each change (ADS, state of the world)."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge

from maas_gateway.api.resources import Resources, ResourceType
from maas_gateway.domain.subscription import Reply, Request, Subscription

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

_TYPES = {resource_type.value: resource_type for resource_type in ResourceType}


class DiscoveryMetrics:
    """What happens between this process and its Envoys."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.streams = Gauge("maas_gateway_envoys", "Envoys that are connected.", registry=registry)
        self.sent = Counter("maas_gateway_xds_sent", "Messages sent to Envoys.", ["type"], registry=registry)
        self.refused = Counter(
            "maas_gateway_xds_refused", "Messages that an Envoy would not take.", ["type"], registry=registry
        )
        for resource_type in ResourceType:
            self.sent.labels(resource_type.name.lower())
            self.refused.labels(resource_type.name.lower())


class Published:
    """The resources of this moment, and who has to be woken when they change."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._listeners: set[asyncio.Event] = set()

    @property
    def resources(self) -> Resources:
        """What Envoys should work with."""
        return self._resources

    def publish(self, resources: Resources) -> None:
        """Replace all resources at once."""
        self._resources = resources
        for changed in self._listeners:
            changed.set()

    @contextmanager
    def woken(self, changed: asyncio.Event) -> Iterator[None]:
        """Have the event set after each change while the context is open."""
        self._listeners.add(changed)
        try:
            yield
        finally:
            self._listeners.discard(changed)


class DiscoveryServicer(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """AggregatedDiscoveryService: one stream per Envoy, all types on it."""

    def __init__(self, published: Published, metrics: DiscoveryMetrics) -> None:
        self._published = published
        self._metrics = metrics

    async def StreamAggregatedResources(
        self, requests: AsyncIterator[discovery_pb2.DiscoveryRequest], context: Context
    ) -> None:
        """Answer an Envoy until it leaves."""
        stream = EnvoyStream(self._metrics)
        wake = asyncio.Event()
        logger.info("envoy connected")
        with self._published.woken(wake), self._metrics.streams.track_inprogress():
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send(stream, wake, context))
                async for request in requests:
                    stream.received(request)
                    wake.set()
                sending.cancel()
        logger.info("envoy left")

    async def _send(self, stream: "EnvoyStream", wake: asyncio.Event, context: Context) -> None:
        while True:
            await wake.wait()
            wake.clear()
            for response in stream.due(self._published.resources):
                await context.write(response)


class EnvoyStream:
    """One Envoy's stream: its subscriptions, and messages for them."""

    def __init__(self, metrics: DiscoveryMetrics) -> None:
        self._metrics = metrics
        self._subscriptions = {resource_type: Subscription() for resource_type in ResourceType}
        self._count = 0

    def received(self, message: discovery_pb2.DiscoveryRequest) -> None:
        """Take in what Envoy says. A refusal is an error here: what was made does not work."""
        resource_type = _TYPES.get(message.type_url)
        if resource_type is None:
            logger.warning("envoy asks for a type that is not served", extra={"type": message.type_url})
            return
        request = Request(
            message.version_info,
            message.response_nonce,
            frozenset(message.resource_names),
            message.error_detail.message if message.HasField("error_detail") else "",
        )
        subscription, reply = self._subscriptions[resource_type].received(request)
        self._subscriptions[resource_type] = subscription
        name = resource_type.name.lower()
        if reply is Reply.REFUSED:
            self._metrics.refused.labels(name).inc()
            logger.error(
                "envoy refused a configuration and keeps the one before",
                extra={"type": name, "detail": request.error, "refused": subscription.sent_version},
            )
        elif reply is Reply.TAKEN:
            logger.debug("envoy took a configuration", extra={"type": name, "version": request.version})

    def due(self, resources: Resources) -> Iterator[discovery_pb2.DiscoveryResponse]:
        """Give what this Envoy should be sent now, in the order of types."""
        for resource_type in ResourceType:
            typed, subscription = resources[resource_type], self._subscriptions[resource_type]
            if subscription.wants(typed.version):
                self._count += 1
                nonce = str(self._count)
                self._subscriptions[resource_type] = subscription.sent(typed.version, nonce)
                self._metrics.sent.labels(resource_type.name.lower()).inc()
                yield discovery_pb2.DiscoveryResponse(
                    version_info=typed.version,
                    resources=typed.resources,
                    type_url=resource_type.value,
                    nonce=nonce,
                )
