"""A front of its own: Envoy with nothing but the inference front behind one port."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_inference.front.envoy_filter import (
    connection_limits,
    door_config,
    envoy_environment,
    filter_config,
    path_guard_config,
    tcp_keepalive,
)
from maas_inference.front.failures import too_long
from maas_inference.front.grpc_infer import METHOD_PATH, SERVICE_PREFIX, STREAM_PATH, error_headers
from maas_runtime.envoy import envoy_binary
from maas_runtime.exit_status import EXIT_CANNOT_START
from maas_runtime.failures import Failure
from maas_runtime.settings import Environment

_TYPE = "type.googleapis.com/envoy"
_HCM = f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = f"{_TYPE}.extensions.filters.http.router.v3.Router"
_HTTP_OPTIONS = f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions"
_CONNECTIONS = f"{_TYPE}.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig"
_MANAGER = "manager"
_MAX_CONNECTIONS = 20_000
_BUFFER_BYTES = 1 << 20
_IDLE_STREAM = "3600s"
"""How long nothing may be sent on a ModelStreamInfer; a connection that is dead is found by pings long before."""


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """What a standalone front is told."""

    public_listen: str
    """`host:port` to answer callers at."""
    run_dir: Path
    """Folder with the manager's socket."""
    concurrency: int
    """Envoy's worker threads; Python's loop is one more."""
    manager_address: str = ""
    """Where the manager's gRPC server listens, for what fronts do not answer; empty: such calls are UNIMPLEMENTED."""

    @property
    def admin_socket(self) -> Path:
        """Where this Envoy is told how many requests to refuse; fronts of one run folder differ by their port."""
        return self.run_dir / f"front-{self.public_listen.rpartition(':')[2]}-admin.sock"

    @classmethod
    def read(cls, environment: Environment) -> "FrontSettings":
        """Read the variables. Raises SettingsInvalid with all that is wrong."""
        settings = cls(
            public_listen=environment.address("MAAS_PUBLIC_LISTEN"),
            run_dir=environment.folder("MAAS_RUN_DIR"),
            concurrency=environment.integer("MAAS_FRONT_CONCURRENCY", 1, low=1, high=64),
            manager_address=environment.address("MAAS_INFERENCE_ADDRESS", ""),
        )
        environment.check()
        return settings


def bootstrap(settings: FrontSettings) -> dict[str, Any]:
    """Return Envoy's whole, static configuration."""
    host, _, port = settings.public_listen.rpartition(":")
    guard, door, front = path_guard_config(), door_config(), filter_config()
    front["typed_config"]["terminal_filter"] = False
    routes = _routes(guard["name"], door["name"], front["name"], settings)
    manager: dict[str, Any] = {
        "@type": _HCM,
        "stat_prefix": "inference",
        "generate_request_id": True,
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
            "validate_clusters": False,
        },
        "http_filters": [
            *({**stage, "disabled": True} for stage in (guard, door, front)),
            {"name": "router", "typed_config": {"@type": _ROUTER}},
        ],
        "local_reply_config": {"mappers": [_refused_at_the_door(), *_local_replies()]},
        **connection_limits(),
    }
    listener = {
        "name": "public",
        "address": {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}},
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "socket_options": tcp_keepalive(),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    clusters = [_manager_cluster(settings.manager_address)] if settings.manager_address else []
    return {
        "admin": {"address": {"pipe": {"path": str(settings.admin_socket), "mode": 0o600}}},
        "layered_runtime": {"layers": [{"name": "admin", "admin_layer": {}}]},
        "static_resources": {"listeners": [listener], "clusters": clusters},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {"@type": _CONNECTIONS, "max_active_downstream_connections": _MAX_CONNECTIONS},
                }
            ]
        },
    }


def _routes(guard: str, door: str, front: str, settings: FrontSettings) -> list[dict[str, Any]]:
    """Return where requests go: all into the front, but for what the manager answers.

    A path that is matched exactly needs no guard.
    """
    # What a caller would get if the front were not in the chain.
    away = {"direct_response": {"status": 503}}
    # Only a route to a cluster can have an idle time of its own; the front answers before the router does.
    to_manager = {"route": {"cluster": _MANAGER, "timeout": "0s", "idle_timeout": _IDLE_STREAM}}
    anything = {**away, **_through(guard, front)}
    rest = {"route": {"cluster": _MANAGER, "timeout": "30s"}} if settings.manager_address else anything
    return [
        {"match": {"path": METHOD_PATH}, **away, **_through(door, front)},
        {"match": {"path": STREAM_PATH}, **to_manager, **_through(front)},
        {"match": {"prefix": SERVICE_PREFIX}, **rest},
        {"match": {"prefix": "/"}, **anything},
    ]


def _through(*stages: str) -> dict[str, Any]:
    on = {"@type": f"{_TYPE}.config.route.v3.FilterConfig", "config": {}}
    return {"typed_per_filter_config": dict.fromkeys(stages, on)}


def _manager_cluster(address: str) -> dict[str, Any]:
    if address.startswith("unix:"):
        where: dict[str, Any] = {"pipe": {"path": address.removeprefix("unix:")}}
    else:
        host, _, port = address.rpartition(":")
        where = {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
    return {
        "name": _MANAGER,
        "type": "STATIC" if address.startswith("unix:") else "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": _MANAGER,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": where}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _HTTP_OPTIONS,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }


def _refused_at_the_door() -> dict[str, Any]:
    """Return what makes a refusal of the door the same as one of the front; only gRPC calls pass the door."""
    headers = [(name, value) for name, value in error_headers(too_long(), ()) if name.startswith(b"grpc-")]
    return {
        "filter": {"response_flag_filter": {"flags": ["FI"]}},
        "headers_to_add": [
            {"header": {"key": name.decode(), "value": value.decode()}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
            for name, value in headers
        ],
    }


def _local_replies() -> list[dict[str, Any]]:
    """Return what makes Envoy's own errors JSON where they are no answer to gRPC."""
    is_rest = {
        "header_filter": {
            "header": {
                "name": "content-type",
                "string_match": {"prefix": "application/grpc"},
                "invert_match": True,
                "treat_missing_header_as_empty": True,
            }
        }
    }
    return [
        {
            "filter": {"and_filter": {"filters": [is_rest, _at_least(status)]}},
            "body_format_override": {
                "json_format": {"error": "%LOCAL_REPLY_BODY%", "reason": reason, "code": code},
                "content_type": "application/json",
            },
        }
        for status, reason, code in ((500, "FRONT_AWAY", "UNAVAILABLE"), (400, "REQUEST_REFUSED", "INVALID_ARGUMENT"))
    ]


def _at_least(status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": "maas.unused"}
    return {"status_code_filter": {"comparison": {"op": "GE", "value": value}}}


def main() -> None:
    """Become Envoy."""
    try:
        settings = FrontSettings.read(Environment(os.environ))
        binary, environment = envoy_binary(), envoy_environment(os.environ, settings.admin_socket)
    except Failure as failure:
        print(f"maas_inference.front: {failure.message}", file=sys.stderr)
        sys.exit(EXIT_CANNOT_START)
    # pyvoy puts the working directory before all else on the import path; this one holds nothing to import.
    os.chdir(settings.run_dir)
    settings.admin_socket.unlink(missing_ok=True)  # a killed Envoy leaves it, and the next one does not bind over it
    arguments = ["--config-yaml", json.dumps(bootstrap(settings)), "--concurrency", str(settings.concurrency)]
    os.execve(binary, [str(binary), *arguments, "--log-level", "warn", "--use-dynamic-base-id"], environment)


if __name__ == "__main__":
    main()
