"""What Envoy needs to run the front: the filter's configuration, the binary, the environment of its interpreter."""

import importlib.metadata
import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import find_libpython

from maas_runtime.failures import Unavailable

APPLICATION = "maas_inference.front.application:app"
REFUSED_PERCENT_KEY = "maas.front.refused_percent"
"""Envoy's runtime value by which the door refuses; front/door.py sets it."""
ADMIN_SOCKET_VARIABLE = "MAAS_ENVOY_ADMIN_SOCKET"
_BEYOND_ASCII = r".*(%[89a-fA-F][0-9a-fA-F]|[^\x00-\x7f]).*"
_SHIM = Path(__file__).parent / "shim"


class LibpythonMissing(Unavailable):
    """There is no shared libpython, which the interpreter inside Envoy is."""

    reason = "LIBPYTHON_MISSING"


def filter_config() -> dict[str, Any]:
    """Return the HTTP filter that answers requests with the front, as the JSON form of Envoy's configuration.

    It is terminal: it stands last, where the router otherwise is.
    """
    settings = {"app": APPLICATION, "interface": "asgi", "root_path": "", "lifespan": True}
    # Not by import: pyvoy's package needs an `envoy` that another distribution may have overwritten.
    module = importlib.metadata.distribution("pyvoy").locate_file("pyvoy/_pyvoy.abi3.so")
    return {
        "name": "maas.inference.front",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter",
            "dynamic_module_config": {"module": {"local": {"filename": str(module)}}},
            "filter_name": "pyvoy",
            "terminal_filter": True,
            "filter_config": {
                "@type": "type.googleapis.com/google.protobuf.StringValue",
                "value": json.dumps(settings),
            },
        },
    }


def path_guard_config() -> dict[str, Any]:
    """Return the HTTP filter that stands before the front and answers 403 to a path with bytes beyond ASCII.

    pyvoy 1.3.0 never answers a request whose path is not UTF-8 once its escapes are decoded: it would hang until its
    caller gives up. No path of this server has such bytes.
    """
    return {
        "name": "maas.inference.path_guard",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {
                "action": "DENY",
                "policies": {
                    "path-beyond-ascii": {
                        "permissions": [{"url_path": {"path": {"safe_regex": {"regex": _BEYOND_ASCII}}}}],
                        "principals": [{"any": True}],
                    }
                },
            },
        },
    }


def door_config() -> dict[str, Any]:
    """Return the HTTP filter that refuses the share of requests that front/door.py says: none, until it does."""
    return {
        "name": "maas.inference.door",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "abort": {"http_status": 429, "percentage": {"numerator": 0, "denominator": "HUNDRED"}},
            "abort_percent_runtime": REFUSED_PERCENT_KEY,
            "disable_downstream_cluster_stats": True,
        },
    }


def connection_limits() -> dict[str, Any]:
    """Return what bounds slow and silent callers, as fields of Envoy's HTTP connection manager."""
    return {
        "request_headers_timeout": "10s",
        "stream_idle_timeout": "300s",
        # An answer that nobody reads.
        "stream_flush_timeout": "60s",
        "common_http_protocol_options": {"idle_timeout": "3600s", "max_headers_count": 100},
        "max_request_headers_kb": 60,
        "http2_protocol_options": {
            "max_concurrent_streams": 1000,
            # A caller that is no more, and whose network did not say so.
            "connection_keepalive": {"interval": "60s", "timeout": "20s"},
        },
    }


def tcp_keepalive() -> list[dict[str, Any]]:
    """Return the listener's socket options that find dead HTTP/1 connections within two minutes."""
    options = (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    )
    return [{"level": level, "name": name, "int_value": value} for level, name, value in options]


def envoy_environment(base: Mapping[str, str], admin_socket: Path) -> dict[str, str]:
    """Return the environment to start Envoy with, so that its interpreter finds what this one finds, and Envoy itself.

    Raises LibpythonMissing.
    """
    inherited = [path for path in sys.path if path]
    return {
        **base,
        ADMIN_SOCKET_VARIABLE: str(admin_socket),
        "PYTHONPATH": os.pathsep.join([str(_SHIM), *inherited]),
        "PYTHONHOME": f"{sys.prefix}{os.pathsep}{sys.exec_prefix}",
        "LD_PRELOAD": str(shared_libpython()),
    }


def shared_libpython() -> Path:
    """Return this interpreter's shared library. Raises LibpythonMissing."""
    for candidate in map(Path, find_libpython.candidate_paths()):
        if candidate.name.startswith("libpython") and candidate.exists():
            return candidate
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise LibpythonMissing(
        f"Python {version} has no shared libpython, which Envoy needs to run the inference front; "
        f"install it: apt-get install libpython{version}"
    )
