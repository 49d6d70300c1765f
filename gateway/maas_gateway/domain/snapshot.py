"""Where requests go, as one whole value that can be asked for its problems before anybody acts on it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from maas_runtime.failures import InvalidInput


class SnapshotInvalid(InvalidInput):
    """Requests would not get to where they should."""

    reason = "SNAPSHOT_INVALID"


class Protocol(Enum):
    """What is spoken to a cluster."""

    HTTP1 = "http1"
    HTTP2 = "http2"


@dataclass(frozen=True, slots=True)
class Cluster:
    """Processes that answer the same requests."""

    name: str
    addresses: tuple[str, ...]
    """`unix:/path` or `host:port`."""
    protocol: Protocol
    ejects: bool = False
    """Whether an address that fails again and again is left out for a while. Only of use when there are several."""


class MatchKind(Enum):
    """How a route's text is compared with the path of a request, without its query."""

    EXACT = "exact"
    PREFIX = "prefix"
    PATTERN = "pattern"
    """A regular expression for the whole path."""


@dataclass(frozen=True, slots=True)
class Match:
    """Which paths a route takes."""

    kind: MatchKind
    text: str


class Retry(Enum):
    """When Envoy sends a request again by itself."""

    NEVER = "never"
    UNSENT = "unsent"
    """When it never reached a process. Safe for every request."""
    REPEATABLE = "repeatable"
    """Also when the process died or answered UNAVAILABLE. For requests that change nothing."""


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """How long a request may take and what happens when it fails."""

    timeout_seconds: float | None
    """The whole answer, when the caller sent no deadline. None: no limit."""
    idle_seconds: float
    """How long nothing may be sent in either direction."""
    retry: Retry
    retries: int = 12
    """How often at most. Twelve take about two seconds: longer than a killed process needs to be back."""


class Stage(Enum):
    """What a request passes on its way, besides the router. Everything is off unless a route asks for it."""

    TRANSCODER = "transcoder"
    """REST to gRPC and back, for the control services."""
    REST_ERRORS = "rest_errors"
    """Gives the transcoder's errors the form that errors have on every REST path."""
    GRPC_STATISTICS = "grpc_statistics"
    """Counts calls by method and status."""
    NAME_DEPLOYMENT = "name_deployment"
    """Puts the deployment in a REST path into the header `maas-model`, by which routes are chosen."""
    FRONT_GUARD = "front_guard"
    """Refuses paths that the inference front would never answer."""
    DOOR = "door"
    """Refuses the share of requests that the inference front says, when there are far more than can be answered."""
    FRONT = "front"
    """The inference front, inside Envoy: it answers, nothing comes after it."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Pass the request to a cluster."""

    cluster: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with an HTTP status unless a stage has answered before."""

    status: int


@dataclass(frozen=True, slots=True)
class Route:
    """What is done with some requests."""

    name: str
    match: Match
    action: Forward | Refuse
    policy: CallPolicy
    stages: frozenset[Stage] = frozenset()


@dataclass(frozen=True, slots=True)
class DeploymentRoute:
    """The route of one deployment: taken by inference requests whose header `maas-model` is its id."""

    deployment: str
    cluster: str
    policy: CallPolicy


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that Envoy is told of requests. Routes are tried in order; deployments' routes before them."""

    clusters: tuple[Cluster, ...]
    routes: tuple[Route, ...]
    deployment_routes: tuple[DeploymentRoute, ...] = ()
    deployment_matches: tuple[Match, ...] = ()
    """The paths for which deployments' routes are looked at."""

    def checked(self) -> "Snapshot":
        """Return the snapshot. Raises SnapshotInvalid when it has problems."""
        if problems := self.problems():
            raise SnapshotInvalid(f"routes would not work: {'; '.join(problems)}")
        return self

    def problems(self) -> tuple[str, ...]:
        """Return what is wrong, a sentence each; a snapshot with problems must not be sent."""
        return tuple(self._problems())

    def _problems(self) -> Iterator[str]:
        known = {cluster.name for cluster in self.clusters}
        yield from _doubles("cluster", (cluster.name for cluster in self.clusters))
        yield from _doubles("route", (route.name for route in self.routes))
        yield from _doubles("deployment", (route.deployment for route in self.deployment_routes))
        for cluster in self.clusters:
            if not cluster.addresses:
                yield f"cluster {cluster.name} has no address"
        used = [(route.name, route.action.cluster) for route in self.routes if isinstance(route.action, Forward)]
        used += [(f"deployments/{route.deployment}", route.cluster) for route in self.deployment_routes]
        for name, wanted in used:
            if wanted not in known:
                yield f"route {name} leads to the unknown cluster {wanted}"
        if self.deployment_routes and not self.deployment_matches:
            yield "deployments have routes, but no path leads to them"


def _doubles(kind: str, names: Iterator[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{kind} {name} is there {count} times"
