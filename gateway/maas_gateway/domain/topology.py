"""Which processes there are and what they offer: fixed by settings and contract for as long as the gateway lives."""

from dataclasses import dataclass

GATEWAY = "gateway"
"""The cluster of maas_gateway's own gRPC server: health and reflection."""
GATEWAY_HTTP = "gateway-http"
"""The cluster of maas_gateway's own HTTP server: /metrics."""
FRONT = "front"
"""The cluster of the inference fronts, when they are processes of their own."""
INFERENCE = "inference"
"""The inference manager."""


@dataclass(frozen=True, slots=True)
class Rpc:
    """One method of a service."""

    name: str
    streams: bool
    """Whether either side sends more than one message: then nobody can say how long it takes."""
    reads: bool
    """Whether it changes nothing, so that it may be sent again after a failure."""


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service and the process that answers it."""

    full_name: str
    process: str
    rpcs: tuple[Rpc, ...]


@dataclass(frozen=True, slots=True)
class Upstream:
    """A process of the cluster and where its gRPC server listens: `unix:/path` or `host:port`."""

    process: str
    address: str


@dataclass(frozen=True, slots=True)
class Topology:
    """The whole cluster as the gateway sees it."""

    services: tuple[Service, ...]
    upstreams: tuple[Upstream, ...]
    gateway_address: str
    gateway_http_address: str
    fronts: tuple[str, ...] = ()
    """Where inference fronts listen. None: the front is in the gateway's own Envoy."""

    @property
    def embedded(self) -> bool:
        """Whether inference is answered inside the gateway's Envoy."""
        return not self.fronts
