"""Which processes a cluster on one machine is made of, and what each is told."""

import importlib.util
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from maas.supervisor.child import ProcessSpec
from maas.supervisor.draining import envoy_drain
from maas.supervisor.failures import CannotStart, PortTaken
from maas.supervisor.home import Home
from maas.supervisor.readiness import grpc_health, http_ok

HOST = "127.0.0.1"
ENVOY_ADMIN_SOCKET = "envoy-admin.sock"
"""In the run folder; maas_gateway.settings says the same."""


@dataclass(frozen=True, slots=True)
class _Process:
    name: str
    module: str
    stop_stage: int


# Callers leave first, state goes last: nobody is stopped while somebody still needs it.
_PROCESSES = (
    _Process("registry", "maas_registry", 5),
    _Process("rollout", "maas_rollout", 4),
    _Process("inference", "maas_inference", 2),
    _Process("training", "maas_training", 3),
    _Process("compression", "maas_compression", 3),
    _Process("gateway", "maas_gateway", 1),
    _Process("envoy", "maas_gateway.envoy", 0),
)
PROCESS_NAMES = tuple(process.name for process in _PROCESSES)
PROCESS_MODULES = tuple(process.module.partition(".")[0] for process in _PROCESSES)


def cluster_specs(home: Home, run_dir: Path, port: int, environment: Mapping[str, str]) -> list[ProcessSpec]:
    """Return the processes, each with its settings on top of `environment`.

    What is said to the registry is said to nobody else: a password may be in it, and workers run code of others.
    """
    to_registry = {name: value for name, value in environment.items() if name.startswith("MAAS_REGISTRY_")}
    told = {
        **{name: value for name, value in environment.items() if name not in to_registry},
        "MAAS_HOME": str(home.folder),
        "MAAS_RUN_DIR": str(run_dir),
        "MAAS_PUBLIC_LISTEN": f"{HOST}:{port}",
        "MAAS_METRICS_TARGETS": ",".join(
            f"{process.name}={_metrics_address(run_dir, process.name)}"
            for process in _PROCESSES
            if process.name not in ("gateway", "envoy")
        ),
        **{
            f"MAAS_{process.name.upper()}_ADDRESS": _address(run_dir, process.name)
            for process in _PROCESSES
            if process.name != "envoy"
        },
    }
    return [
        ProcessSpec(
            name=process.name,
            command=(sys.executable, "-m", process.module),
            environment=(to_registry if process.name == "registry" else {})
            | told
            | _own_settings(run_dir, process.name),
            ready=http_ok(HOST, port, "/v2/health/live")
            if process.name == "envoy"
            else grpc_health(_address(run_dir, process.name)),
            stop_stage=process.stop_stage,
            drain=envoy_drain(run_dir / ENVOY_ADMIN_SOCKET) if process.name == "envoy" else None,
        )
        for process in _PROCESSES
    ]


def check_installed() -> None:
    """Raise CannotStart if the processes are not there: the client alone can be installed without them."""
    missing = [module for module in PROCESS_MODULES if importlib.util.find_spec(module) is None]
    if missing:
        raise CannotStart(f"{', '.join(missing)} cannot be imported; install them with: pip install 'maas[all]'")


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def check_port_free(port: int) -> None:
    """Raise PortTaken if somebody listens on the port."""
    with socket.socket() as probe:
        # Connections of a cluster that has just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {HOST}:{port}: {os.strerror(error.errno or 0)}; end the program that uses the port, "
                f"or choose another one: maas up --port {port + 1 if port < 65535 else 8080}"
            ) from error


def _own_settings(run_dir: Path, name: str) -> dict[str, str]:
    if name == "envoy":  # it is told where its control plane is
        return {"MAAS_LISTEN": _address(run_dir, "gateway")}
    return {
        "MAAS_LISTEN": _address(run_dir, name),
        # The gateway's page is that of the whole cluster.
        "MAAS_HTTP_LISTEN" if name == "gateway" else "MAAS_METRICS_LISTEN": _metrics_address(run_dir, name),
    }


def _address(run_dir: Path, name: str) -> str:
    return f"unix:{run_dir}/{name}.sock"


def _metrics_address(run_dir: Path, name: str) -> str:
    return f"unix:{run_dir}/{name}-metrics.sock"
