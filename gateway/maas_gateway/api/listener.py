"""The one public listener: what every request passes, whatever it asks for."""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import (
    base_pb2,
    config_source_pb2,
    grpc_method_list_pb2,
    protocol_pb2,
    socket_option_pb2,
    substitution_format_string_pb2,
)
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.access_loggers.stream.v3 import stream_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.grpc_json_transcoder.v3 import transcoder_pb2
from envoy.extensions.filters.http.grpc_stats.v3 import config_pb2 as grpc_stats_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value
from xds.type.v3 import typed_struct_pb2

from maas_gateway.api.addresses import envoy_address
from maas_gateway.api.contract import rest_descriptors, rest_services
from maas_gateway.api.local_replies import local_reply_config
from maas_gateway.api.packing import packed, seconds
from maas_gateway.domain.snapshot import Stage
from maas_gateway.domain.topology import Service

PUBLIC = "public"
"""Name of the listener, its routes and its statistics."""

_MAX_REST_BYTES = 8 * 2**20
"""The transcoder holds a whole body; registry blobs and tensors do not come this way."""


@dataclass(frozen=True, slots=True)
class EmbeddedFront:
    """The inference front as filters of this listener, both in Envoy's JSON form."""

    guard: Mapping[str, Any]
    """Access rules that stand before it."""
    door: Mapping[str, Any]
    """Refuses a share of the requests, which the front says."""
    filter: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """What the listener depends on; fixed as long as the cluster runs."""

    address: str
    services: tuple[Service, ...]
    front: EmbeddedFront | None
    """None when fronts are processes of their own."""
    access_log: bool = False


def listener_for(settings: ListenerSettings) -> listener_pb2.Listener:
    """Return the listener. Equal settings give equal bytes, in every process of this release."""
    return listener_pb2.Listener(
        name=PUBLIC,
        address=envoy_address(settings.address),
        # One socket for all workers, so that two Envoys cannot share a port by mistake; the few, long connections of
        # gRPC clients are then dealt out evenly.
        enable_reuse_port=BoolValue(value=False),
        connection_balance_config=listener_pb2.Listener.ConnectionBalanceConfig(
            exact_balance=listener_pb2.Listener.ConnectionBalanceConfig.ExactBalance()
        ),
        per_connection_buffer_limit_bytes=UInt32Value(value=2**20),
        socket_options=_keepalive(),
        filter_chains=[
            listener_components_pb2.FilterChain(
                filters=[
                    listener_components_pb2.Filter(
                        name="envoy.filters.network.http_connection_manager",
                        typed_config=packed(_connection_manager(settings)),
                    )
                ]
            )
        ],
    )


def _keepalive() -> list[socket_option_pb2.SocketOption]:
    """Find dead HTTP/1 connections within two minutes; HTTP/2 has pings."""
    options = (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    )
    return [socket_option_pb2.SocketOption(level=level, name=name, int_value=value) for level, name, value in options]


def _connection_manager(settings: ListenerSettings) -> Message:
    manager: Message = http_connection_manager_pb2.HttpConnectionManager(
        stat_prefix=PUBLIC,
        rds=http_connection_manager_pb2.Rds(
            route_config_name=PUBLIC,
            config_source=config_source_pb2.ConfigSource(
                ads=config_source_pb2.AggregatedConfigSource(), resource_api_version=config_source_pb2.ApiVersion.V3
            ),
        ),
        http_filters=list(_filters(settings)),
        http2_protocol_options=protocol_pb2.Http2ProtocolOptions(
            max_concurrent_streams=UInt32Value(value=1000),
            # A caller that is no more, and whose network did not say so.
            connection_keepalive=protocol_pb2.KeepaliveSettings(interval=seconds(60), timeout=seconds(20)),
        ),
        common_http_protocol_options=protocol_pb2.HttpProtocolOptions(
            idle_timeout=seconds(3600), max_headers_count=UInt32Value(value=100)
        ),
        max_request_headers_kb=UInt32Value(value=60),
        server_name="maas",
        request_headers_timeout=seconds(10),
        stream_idle_timeout=seconds(300),
        # An answer that nobody reads.
        stream_flush_timeout=seconds(60),
        drain_timeout=seconds(2),
        use_remote_address=BoolValue(value=True),
        generate_request_id=BoolValue(value=True),
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        normalize_path=BoolValue(value=True),
        merge_slashes=True,
        path_with_escaped_slashes_action=http_connection_manager_pb2.HttpConnectionManager.REJECT_REQUEST,
        local_reply_config=local_reply_config(),
        access_log=[_access_log()] if settings.access_log else [],
    )
    return manager


def _filters(settings: ListenerSettings) -> Iterator[http_connection_manager_pb2.HttpFilter]:
    """All are off until a route turns them on, so that a request pays only for what it needs."""
    if settings.front is not None:
        guard = json_format.ParseDict(_without_type(settings.front.guard), rbac_pb2.RBAC())
        yield _filter(Stage.FRONT_GUARD, guard)
    yield _filter(Stage.REST_ERRORS, _lua("rest_errors.lua"))
    yield _filter(Stage.TRANSCODER, _transcoder())
    yield _filter(Stage.GRPC_STATISTICS, _grpc_statistics(settings.services))
    if settings.front is None:
        yield _filter(Stage.NAME_DEPLOYMENT, _lua("name_deployment.lua"))
    else:
        yield _filter(Stage.DOOR, json_format.ParseDict(_without_type(settings.front.door), fault_pb2.HTTPFault()))
        yield _filter(Stage.FRONT, _front(settings.front.filter))
    yield http_connection_manager_pb2.HttpFilter(name="router", typed_config=packed(router_pb2.Router()))


def _filter(stage: Stage, configuration: Message) -> http_connection_manager_pb2.HttpFilter:
    return http_connection_manager_pb2.HttpFilter(name=stage.value, disabled=True, typed_config=packed(configuration))


def _front(configuration: Mapping[str, Any]) -> Message:
    # As JSON, because this Envoy knows fields of it that xds-protos does not have yet. Envoy wants a terminal filter at
    # the end of every chain; this one ends only the chains of its own routes.
    typed = typed_struct_pb2.TypedStruct(type_url=configuration["@type"])
    typed.value.update({**_without_type(configuration), "terminal_filter": False})
    front: Message = typed
    return front


def _without_type(configuration: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in configuration.items() if key != "@type"}


def _lua(file: str) -> Message:
    script = resources.files("maas_gateway").joinpath("filters", file).read_text("utf-8")
    lua: Message = lua_pb2.Lua(default_source_code=base_pb2.DataSource(inline_string=script))
    return lua


def _transcoder() -> Message:
    kinds = transcoder_pb2.GrpcJsonTranscoder
    transcoder: Message = kinds(
        proto_descriptor_bin=rest_descriptors(),
        services=rest_services(),
        convert_grpc_status=True,
        case_insensitive_enum_parsing=True,
        print_options=kinds.PrintOptions(always_print_primitive_fields=True, stream_newline_delimited=True),
        request_validation_options=kinds.RequestValidationOptions(reject_unknown_query_parameters=True),
        max_request_body_size=UInt32Value(value=_MAX_REST_BYTES),
        max_response_body_size=UInt32Value(value=_MAX_REST_BYTES),
    )
    return transcoder


def _grpc_statistics(services: tuple[Service, ...]) -> Message:
    """Only of methods that exist, so that no caller can make a new name."""
    statistics: Message = grpc_stats_pb2.FilterConfig(
        individual_method_stats_allowlist=grpc_method_list_pb2.GrpcMethodList(
            services=[
                grpc_method_list_pb2.GrpcMethodList.Service(
                    name=service.full_name, method_names=[rpc.name for rpc in service.rpcs]
                )
                for service in services
            ]
        ),
    )
    return statistics


def _access_log() -> accesslog_pb2.AccessLog:
    line = struct_pb2.Struct()
    line.update(
        {
            "time": "%START_TIME%",
            "process": "envoy",
            "event": "request",
            "request_id": "%REQ(X-REQUEST-ID)%",
            "method": "%REQ(:METHOD)%",
            "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
            "route": "%ROUTE_NAME%",
            "status": "%RESPONSE_CODE%",
            "grpc_status": "%GRPC_STATUS%",
            "details": "%RESPONSE_CODE_DETAILS%",
            "milliseconds": "%DURATION%",
            "request_bytes": "%BYTES_RECEIVED%",
            "response_bytes": "%BYTES_SENT%",
            "cluster": "%UPSTREAM_CLUSTER%",
        }
    )
    return accesslog_pb2.AccessLog(
        name="envoy.access_loggers.stderr",
        typed_config=packed(
            stream_pb2.StderrAccessLog(
                log_format=substitution_format_string_pb2.SubstitutionFormatString(json_format=line)
            )
        ),
    )
