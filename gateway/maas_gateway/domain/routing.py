"""From what there is to where requests go: one pure function."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from maas_gateway.domain.snapshot import (
    CallPolicy,
    Cluster,
    DeploymentRoute,
    Forward,
    Match,
    MatchKind,
    Protocol,
    Refuse,
    Retry,
    Route,
    Snapshot,
    Stage,
)
from maas_gateway.domain.topology import FRONT, GATEWAY, GATEWAY_HTTP, INFERENCE, Service, Topology

INFERENCE_METHOD = "/inference.GRPCInferenceService/ModelInfer"
INFERENCE_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"

_UNARY = CallPolicy(timeout_seconds=30.0, idle_seconds=60.0, retry=Retry.UNSENT)
_READ = CallPolicy(timeout_seconds=30.0, idle_seconds=60.0, retry=Retry.REPEATABLE)
# A job may be silent for an hour; a connection that is really dead is found by keepalive pings.
_STREAM = CallPolicy(timeout_seconds=None, idle_seconds=3600.0, retry=Retry.UNSENT)
_READ_STREAM = CallPolicy(timeout_seconds=None, idle_seconds=3600.0, retry=Retry.REPEATABLE)
# A front that cannot answer will not learn it in two seconds; another front may know.
_INFER = replace(_READ, retries=3)
_AT_ONCE = CallPolicy(timeout_seconds=10.0, idle_seconds=10.0, retry=Retry.NEVER)

_INFERENCE = (
    ("infer", Match(MatchKind.EXACT, INFERENCE_METHOD), _INFER, frozenset({Stage.DOOR, Stage.FRONT})),
    ("infer-stream", Match(MatchKind.EXACT, INFERENCE_STREAM), _STREAM, frozenset({Stage.FRONT})),
    ("rest-inference", Match(MatchKind.PATTERN, "/v2(/.*)?"), _INFER, frozenset({Stage.FRONT_GUARD, Stage.FRONT})),
    ("predict", Match(MatchKind.PATTERN, "/predict(/.*)?"), _INFER, frozenset({Stage.FRONT_GUARD, Stage.FRONT})),
)
"""What inference fronts answer, and the stages of one inside Envoy. Asking a model changes nothing, so a lost answer
may be asked for again. A path that is matched exactly needs no guard.
"""


def snapshot_for(topology: Topology, deployments: Iterable[str]) -> Snapshot:
    """Return where requests go. The same arguments, in any order of deployments, give an equal snapshot."""
    return Snapshot(
        clusters=tuple(_clusters(topology)),
        routes=(
            *_inference_routes(topology),
            *_own_routes(),
            *(route for service in topology.services for route in _service_routes(service)),
            # Where the transcoder finds no method for the path, nothing else is there to answer.
            Route(
                "rest",
                Match(MatchKind.PREFIX, "/v1/"),
                Refuse(404),
                _AT_ONCE,
                frozenset({Stage.TRANSCODER, Stage.REST_ERRORS, Stage.GRPC_STATISTICS}),
            ),
        ),
        # In the embedded front nothing would be decided by a route of one deployment: the front reads the message.
        deployment_routes=()
        if topology.embedded
        else tuple(DeploymentRoute(deployment, FRONT, _INFER) for deployment in sorted(set(deployments))),
        deployment_matches=()
        if topology.embedded
        else tuple(match for name, match, _, _ in _INFERENCE if name != "infer-stream"),
    )


def _clusters(topology: Topology) -> Iterator[Cluster]:
    for upstream in topology.upstreams:
        yield Cluster(upstream.process, (upstream.address,), Protocol.HTTP2)
    yield Cluster(GATEWAY, (topology.gateway_address,), Protocol.HTTP2)
    yield Cluster(GATEWAY_HTTP, (topology.gateway_http_address,), Protocol.HTTP1)
    if not topology.embedded:
        yield Cluster(FRONT, topology.fronts, Protocol.HTTP2, ejects=len(topology.fronts) > 1)


def _inference_routes(topology: Topology) -> Iterator[Route]:
    for name, match, policy, stages in _INFERENCE:
        if topology.embedded:
            # The action is what a caller gets if the front is not in the chain; the front itself never continues. Only
            # a route to a cluster can have an idle time of its own, and the manager knows what to say to a stream.
            action = Forward(INFERENCE) if policy is _STREAM else Refuse(503)
            yield Route(name, match, action, policy, stages)
        else:
            yield Route(name, match, Forward(FRONT), policy, frozenset({Stage.NAME_DEPLOYMENT}))


def _own_routes() -> Iterator[Route]:
    yield Route("metrics", Match(MatchKind.EXACT, "/metrics"), Forward(GATEWAY_HTTP), _READ)
    yield Route("health", Match(MatchKind.EXACT, "/grpc.health.v1.Health/Check"), Forward(GATEWAY), _READ)
    yield Route("health-watch", Match(MatchKind.PREFIX, "/grpc.health.v1.Health/"), Forward(GATEWAY), _READ_STREAM)
    yield Route("reflection", Match(MatchKind.PREFIX, "/grpc.reflection."), Forward(GATEWAY), _READ_STREAM)


def _service_routes(service: Service) -> Iterator[Route]:
    """Streams one by one, then everything that only reads, then the rest of the service."""
    to_process, stages = Forward(service.process), frozenset({Stage.GRPC_STATISTICS})
    for rpc in service.rpcs:
        if rpc.streams:
            path = f"/{service.full_name}/{rpc.name}"
            policy = _READ_STREAM if rpc.reads else _STREAM
            yield Route(path, Match(MatchKind.EXACT, path), to_process, policy, stages)
    reads = "|".join(sorted(rpc.name for rpc in service.rpcs if rpc.reads and not rpc.streams))
    if reads:
        pattern = f"/{re.escape(service.full_name)}/({reads})"
        yield Route(f"{service.full_name} reads", Match(MatchKind.PATTERN, pattern), to_process, _READ, stages)
    yield Route(service.full_name, Match(MatchKind.PREFIX, f"/{service.full_name}/"), to_process, _UNARY, stages)
