"""`python -m maas_gateway.envoy`: writes Envoy's bootstrap and becomes Envoy, the same process."""

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from maas_gateway.api.bootstrap import BootstrapSettings, bootstrap_for
from maas_gateway.settings import ENVOY_ADMIN_SOCKET, EnvoySettings
from maas_runtime.envoy import envoy_binary
from maas_runtime.exit_status import EXIT_CANNOT_START
from maas_runtime.failures import Failure, Unavailable

_ENVOY_LOG_LEVELS = {"DEBUG": "debug", "INFO": "warning", "WARNING": "warning", "ERROR": "error"}
"""Envoy tells at `info` what belongs to the start of every process; that is DEBUG here."""


class PortInUse(Unavailable):
    """Another process listens at the public address."""

    reason = "PORT_IN_USE"


@dataclass(frozen=True, slots=True)
class Launch:
    """A program to become, with its arguments and environment."""

    program: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]
    folder: Path
    """Where to run it."""


def prepare(settings: EnvoySettings, variables: Mapping[str, str]) -> Launch:
    """Write the bootstrap into the run folder and return how to start Envoy. Raises PortInUse."""
    check_free(settings.public_listen)
    admin = settings.run_dir / ENVOY_ADMIN_SOCKET
    admin.unlink(missing_ok=True)  # a killed Envoy leaves it, and the next one does not bind over it
    bootstrap = settings.run_dir / "envoy.json"
    message = bootstrap_for(BootstrapSettings(settings.control_plane, admin, settings.max_connections))
    bootstrap.write_text(json_format.MessageToJson(message), "utf-8")
    arguments = (
        *("--config-path", str(bootstrap)),
        *("--concurrency", str(settings.concurrency)),
        *("--log-level", _ENVOY_LOG_LEVELS[settings.log_level]),
        *("--log-format", '{"time":"%Y-%m-%dT%T.%eZ","level":"%l","process":"envoy","logger":"%n","event":"%j"}'),
        *("--drain-time-s", "2"),
        *("--parent-shutdown-time-s", "3"),
        "--use-dynamic-base-id",
    )
    return Launch(envoy_binary(), arguments, _environment(settings, variables, admin), settings.run_dir)


def check_free(listen: str) -> None:
    """Raise PortInUse if somebody listens there already. Envoy itself would only log it and stay."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # Connections of an Envoy that has just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
            probe.listen()
        except OSError as error:
            raise PortInUse(
                f"cannot listen on {listen}: {error.strerror}; choose another port with --port or MAAS_PUBLIC_LISTEN"
            ) from error


def _environment(settings: EnvoySettings, variables: Mapping[str, str], admin: Path) -> dict[str, str]:
    if not settings.embedded:
        return dict(variables)
    # Here and not above: a gateway with fronts elsewhere is installed without inference.
    from maas_inference.front.envoy_filter import envoy_environment

    return envoy_environment(variables, admin)


def main() -> None:
    """Become Envoy. A failure to start is one sentence and status 78."""
    try:
        launch = prepare(EnvoySettings.from_env(os.environ), os.environ)
    except Failure as failure:
        print(f"maas_gateway.envoy: {failure.message}", file=sys.stderr)
        sys.exit(EXIT_CANNOT_START)
    # pyvoy puts the working folder first on Python's path: nothing there may be imported by accident.
    os.chdir(launch.folder)
    os.execve(launch.program, [str(launch.program), *launch.arguments], launch.environment)


if __name__ == "__main__":
    main()
