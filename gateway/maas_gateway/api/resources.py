"""From a snapshot to what Envoy is sent: one pure function."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import http_inputs_pb2, regex_pb2
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt32Value
from xds.core.v3 import extension_pb2 as xds_extension_pb2
from xds.type.matcher.v3 import matcher_pb2
from xds.type.matcher.v3 import regex_pb2 as xds_regex_pb2
from xds.type.matcher.v3 import string_pb2 as xds_string_pb2

from maas_gateway.api.addresses import envoy_address, needs_dns
from maas_gateway.api.listener import PUBLIC
from maas_gateway.api.packing import packed, seconds
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

MODEL_HEADER = "maas-model"


class ResourceType(Enum):
    """The types that are sent, in the order in which they are: what is led to comes before what leads there."""

    CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
    ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"


@dataclass(frozen=True, slots=True)
class TypedResources:
    """All resources of one type, and their version: a hash of their content."""

    version: str
    resources: tuple[any_pb2.Any, ...]


Resources = dict[ResourceType, TypedResources]


def resources_for(snapshot: Snapshot, listener: listener_pb2.Listener) -> Resources:
    """Return everything that Envoy is sent. Equal arguments give equal versions, in every process.

    The listener is made once, by `listener_for`, and never depends on the snapshot: Envoy would start its filters
    anew, and with them the inference front and all that waits in its queues.
    """
    return {
        ResourceType.CLUSTER: _typed(_cluster(cluster) for cluster in snapshot.clusters),
        ResourceType.LISTENER: _typed([listener]),
        ResourceType.ROUTES: _typed([_route_configuration(snapshot)]),
    }


def _typed(messages: Iterable[Message]) -> TypedResources:
    resources = tuple(packed(message) for message in messages)
    content = hashlib.sha256()
    for resource in resources:
        content.update(len(resource.value).to_bytes(8, "big"))
        content.update(resource.value)
    return TypedResources(content.hexdigest()[:16], resources)


def _cluster(cluster: Cluster) -> cluster_pb2.Cluster:
    options = http_protocol_options_pb2.HttpProtocolOptions()
    if cluster.protocol is Protocol.HTTP2:
        options.explicit_http_config.http2_protocol_options.CopyFrom(
            protocol_pb2.Http2ProtocolOptions(
                connection_keepalive=protocol_pb2.KeepaliveSettings(interval=seconds(30), timeout=seconds(5))
            )
        )
    else:
        options.explicit_http_config.http_protocol_options.SetInParent()
    names = any(needs_dns(address) for address in cluster.addresses)
    return cluster_pb2.Cluster(
        name=cluster.name,
        type=cluster_pb2.Cluster.STRICT_DNS if names else cluster_pb2.Cluster.STATIC,
        connect_timeout=seconds(1),
        lb_policy=cluster_pb2.Cluster.ROUND_ROBIN,
        load_assignment=endpoint_pb2.ClusterLoadAssignment(
            cluster_name=cluster.name,
            endpoints=[
                endpoint_components_pb2.LocalityLbEndpoints(
                    lb_endpoints=[
                        endpoint_components_pb2.LbEndpoint(
                            endpoint=endpoint_components_pb2.Endpoint(address=envoy_address(address))
                        )
                        for address in cluster.addresses
                    ]
                )
            ],
        ),
        typed_extension_protocol_options={
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(options),
        },
        circuit_breakers=circuit_breaker_pb2.CircuitBreakers(
            thresholds=[
                circuit_breaker_pb2.CircuitBreakers.Thresholds(
                    max_connections=UInt32Value(value=1024),
                    max_pending_requests=UInt32Value(value=4096),
                    max_requests=UInt32Value(value=4096),
                    # Everybody who calls while a process restarts is a retry.
                    max_retries=UInt32Value(value=4096),
                )
            ]
        ),
        outlier_detection=_ejection() if cluster.ejects else None,
    )


def _ejection() -> outlier_detection_pb2.OutlierDetection:
    return outlier_detection_pb2.OutlierDetection(
        consecutive_gateway_failure=UInt32Value(value=5),
        enforcing_consecutive_gateway_failure=UInt32Value(value=100),
        interval=seconds(1),
        base_ejection_time=seconds(5),
        max_ejection_time=seconds(60),
        max_ejection_percent=UInt32Value(value=50),
    )


def _route_configuration(snapshot: Snapshot) -> route_pb2.RouteConfiguration:
    routes = [_route(route) for route in snapshot.routes]
    host = route_components_pb2.VirtualHost(name=PUBLIC, domains=["*"])
    if snapshot.deployment_routes:
        host.matcher.CopyFrom(_deployments_first(snapshot, routes))
    else:
        host.routes.extend(routes)
    return route_pb2.RouteConfiguration(name=PUBLIC, virtual_hosts=[host])


def _route(route: Route) -> route_components_pb2.Route:
    result = route_components_pb2.Route(
        name=route.name,
        match=_match(route.match),
        typed_per_filter_config={
            stage.value: packed(route_components_pb2.FilterConfig(config=any_pb2.Any())) for stage in route.stages
        },
    )
    match route.action:
        case Refuse(status=status):
            result.direct_response.status = status
        case Forward(cluster=cluster):
            result.route.CopyFrom(_forward(cluster, route.policy))
    return result


def _match(match: Match) -> route_components_pb2.RouteMatch:
    match match.kind:
        case MatchKind.EXACT:
            return route_components_pb2.RouteMatch(path=match.text)
        case MatchKind.PREFIX:
            return route_components_pb2.RouteMatch(prefix=match.text)
        case MatchKind.PATTERN:
            return route_components_pb2.RouteMatch(safe_regex=regex_pb2.RegexMatcher(regex=match.text))


def _forward(cluster: str, policy: CallPolicy) -> route_components_pb2.RouteAction:
    return route_components_pb2.RouteAction(
        cluster=cluster,
        timeout=seconds(policy.timeout_seconds or 0),
        idle_timeout=seconds(policy.idle_seconds),
        # A caller's grpc-timeout counts as it is, in place of the route's own.
        max_stream_duration=route_components_pb2.RouteAction.MaxStreamDuration(grpc_timeout_header_max=seconds(0)),
        retry_policy=_retry(policy),
    )


def _retry(policy: CallPolicy) -> route_components_pb2.RetryPolicy | None:
    unsent = "connect-failure,refused-stream,reset-before-request"
    match policy.retry:
        case Retry.NEVER:
            return None
        case Retry.UNSENT:
            conditions = unsent
        case Retry.REPEATABLE:
            conditions = f"{unsent},reset,unavailable"
    return route_components_pb2.RetryPolicy(
        retry_on=conditions,
        num_retries=UInt32Value(value=policy.retries),
        retry_back_off=route_components_pb2.RetryPolicy.RetryBackOff(
            base_interval=seconds(0.05), max_interval=seconds(0.4)
        ),
        host_selection_retry_max_attempts=3,
        retry_host_predicate=[
            route_components_pb2.RetryPolicy.RetryHostPredicate(
                name="previous_hosts",
                typed_config=packed(previous_hosts_pb2.PreviousHostsPredicate()),
            )
        ],
    )


def _deployments_first(snapshot: Snapshot, routes: list[route_components_pb2.Route]) -> matcher_pb2.Matcher:
    """Look deployments up in a map, so that a thousand of them cost a request no more than one."""
    by_deployment = matcher_pb2.Matcher.MatcherTree(
        input=_header_input(MODEL_HEADER),
        exact_match_map=matcher_pb2.Matcher.MatcherTree.MatchMap(
            map={route.deployment: _then(_deployment_route(route)) for route in snapshot.deployment_routes}
        ),
    )
    otherwise = _then(route_components_pb2.RouteList(routes=routes))
    of_inference = matcher_pb2.Matcher.MatcherList.FieldMatcher(
        predicate=_any_of([_path_predicate(match) for match in snapshot.deployment_matches]),
        on_match=matcher_pb2.Matcher.OnMatch(
            matcher=matcher_pb2.Matcher(matcher_tree=by_deployment, on_no_match=otherwise)
        ),
    )
    return matcher_pb2.Matcher(
        matcher_list=matcher_pb2.Matcher.MatcherList(matchers=[of_inference]), on_no_match=otherwise
    )


def _deployment_route(route: DeploymentRoute) -> route_components_pb2.Route:
    result = _route(
        Route(
            f"deployments/{route.deployment}",
            Match(MatchKind.PREFIX, "/"),
            Forward(route.cluster),
            route.policy,
            frozenset({Stage.NAME_DEPLOYMENT}),
        )
    )
    result.stat_prefix = route.deployment
    return result


def _then(action: Message) -> matcher_pb2.Matcher.OnMatch:
    return matcher_pb2.Matcher.OnMatch(
        action=xds_extension_pb2.TypedExtensionConfig(name="route", typed_config=packed(action))
    )


def _header_input(name: str) -> xds_extension_pb2.TypedExtensionConfig:
    return xds_extension_pb2.TypedExtensionConfig(
        name=name, typed_config=packed(http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=name))
    )


def _path_predicate(match: Match) -> matcher_pb2.Matcher.MatcherList.Predicate:
    """Compare `:path`, which here has its query."""
    value = xds_string_pb2.StringMatcher()
    match match.kind:
        case MatchKind.EXACT:
            value.exact = match.text
        case MatchKind.PREFIX:
            value.prefix = match.text
        case MatchKind.PATTERN:
            value.safe_regex.CopyFrom(
                xds_regex_pb2.RegexMatcher(
                    google_re2=xds_regex_pb2.RegexMatcher.GoogleRE2(), regex=rf"{match.text}(\?.*)?"
                )
            )
    return matcher_pb2.Matcher.MatcherList.Predicate(
        single_predicate=matcher_pb2.Matcher.MatcherList.Predicate.SinglePredicate(
            input=_header_input(":path"), value_match=value
        )
    )


def _any_of(
    predicates: list[matcher_pb2.Matcher.MatcherList.Predicate],
) -> matcher_pb2.Matcher.MatcherList.Predicate:
    if len(predicates) == 1:
        return predicates[0]
    return matcher_pb2.Matcher.MatcherList.Predicate(
        or_matcher=matcher_pb2.Matcher.MatcherList.Predicate.PredicateList(predicate=predicates)
    )
