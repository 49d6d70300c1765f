"""The little that Envoy knows before it asks maas_gateway: where that is, who it is itself, and its bounds."""

from dataclasses import dataclass
from pathlib import Path

from envoy.config.bootstrap.v3 import bootstrap_pb2
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, backoff_pb2, base_pb2, config_source_pb2, grpc_service_pb2, protocol_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.metrics.v3 import stats_pb2
from envoy.config.overload.v3 import overload_pb2
from envoy.extensions.resource_monitors.downstream_connections.v3 import downstream_connections_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from google.protobuf import struct_pb2
from google.protobuf.wrappers_pb2 import BoolValue

from maas_gateway.api.addresses import envoy_address
from maas_gateway.api.envoy_statistics import COUNTED, GRPC_TAGS, KNOWN_TAGS
from maas_gateway.api.packing import packed, seconds

NODE_ID = "gateway"
_CONTROL_PLANE = "control-plane"


@dataclass(frozen=True, slots=True)
class BootstrapSettings:
    """What the bootstrap depends on."""

    control_plane: str
    """Address of maas_gateway's xDS."""
    admin_socket: Path
    max_connections: int


def bootstrap_for(settings: BootstrapSettings) -> bootstrap_pb2.Bootstrap:
    """Return what Envoy is started with."""
    return bootstrap_pb2.Bootstrap(
        node=base_pb2.Node(id=NODE_ID, cluster="maas"),
        admin=bootstrap_pb2.Admin(
            address=address_pb2.Address(pipe=address_pb2.Pipe(path=str(settings.admin_socket), mode=0o600))
        ),
        dynamic_resources=bootstrap_pb2.Bootstrap.DynamicResources(
            ads_config=_ads(), lds_config=_from_ads(), cds_config=_from_ads()
        ),
        static_resources=bootstrap_pb2.Bootstrap.StaticResources(clusters=[_control_plane(settings.control_plane)]),
        stats_config=stats_pb2.StatsConfig(
            use_all_default_tags=BoolValue(value=False),
            stats_tags=[
                *(stats_pb2.TagSpecifier(tag_name=name) for name in KNOWN_TAGS),
                *(stats_pb2.TagSpecifier(tag_name=name, regex=regex) for name, regex in GRPC_TAGS.items()),
            ],
            stats_matcher=stats_pb2.StatsMatcher(
                inclusion_list=string_pb2.ListStringMatcher(
                    patterns=[string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=COUNTED))]
                )
            ),
            histogram_bucket_settings=[
                stats_pb2.HistogramBucketSettings(
                    match=string_pb2.StringMatcher(suffix="_time"),
                    buckets=[0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000],
                )
            ],
        ),
        layered_runtime=bootstrap_pb2.LayeredRuntime(
            layers=[
                bootstrap_pb2.RuntimeLayer(name="release", static_layer=_runtime()),
                bootstrap_pb2.RuntimeLayer(name="admin", admin_layer=bootstrap_pb2.RuntimeLayer.AdminLayer()),
            ]
        ),
        overload_manager=overload_pb2.OverloadManager(
            refresh_interval=seconds(1),
            resource_monitors=[
                overload_pb2.ResourceMonitor(
                    name="envoy.resource_monitors.global_downstream_max_connections",
                    typed_config=packed(
                        downstream_connections_pb2.DownstreamConnectionsConfig(
                            max_active_downstream_connections=settings.max_connections
                        )
                    ),
                )
            ],
        ),
    )


def _ads() -> config_source_pb2.ApiConfigSource:
    return config_source_pb2.ApiConfigSource(
        api_type=config_source_pb2.ApiConfigSource.GRPC,
        transport_api_version=config_source_pb2.ApiVersion.V3,
        set_node_on_first_message_only=True,
        grpc_services=[
            grpc_service_pb2.GrpcService(
                envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(
                    cluster_name=_CONTROL_PLANE,
                    # maas_gateway may be restarting: Envoy's own choice would be up to 30 s between attempts.
                    retry_policy=base_pb2.RetryPolicy(
                        retry_back_off=backoff_pb2.BackoffStrategy(base_interval=seconds(0.1), max_interval=seconds(1))
                    ),
                )
            )
        ],
    )


def _from_ads() -> config_source_pb2.ConfigSource:
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.ApiVersion.V3
    )


def _control_plane(address: str) -> cluster_pb2.Cluster:
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.CopyFrom(
        protocol_pb2.Http2ProtocolOptions(
            connection_keepalive=protocol_pb2.KeepaliveSettings(interval=seconds(10), timeout=seconds(5))
        )
    )
    return cluster_pb2.Cluster(
        name=_CONTROL_PLANE,
        type=cluster_pb2.Cluster.STATIC,
        connect_timeout=seconds(1),
        load_assignment=endpoint_pb2.ClusterLoadAssignment(
            cluster_name=_CONTROL_PLANE,
            endpoints=[
                endpoint_components_pb2.LocalityLbEndpoints(
                    lb_endpoints=[
                        endpoint_components_pb2.LbEndpoint(
                            endpoint=endpoint_components_pb2.Endpoint(address=envoy_address(address))
                        )
                    ]
                )
            ],
        ),
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": packed(options)},
    )


def _runtime() -> struct_pb2.Struct:
    result = struct_pb2.Struct()
    result.update({"re2.max_program_size.error_level": 10_000, "re2.max_program_size.warn_level": 10_000})
    return result
