"""A front of its own: Envoy with nothing but the inference front behind one port."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maas_inference.front.envoy_filter import envoy_environment, filter_config, path_guard_config
from maas_runtime.envoy import envoy_binary
from maas_runtime.exit_status import EXIT_CANNOT_START
from maas_runtime.failures import Failure
from maas_runtime.settings import Environment

_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """What a standalone front is told."""

    public_listen: str
    """`host:port` to answer callers at."""
    run_dir: Path
    """Folder with the manager's socket."""
    concurrency: int
    """Envoy's worker threads; Python's loop is one more."""

    @classmethod
    def read(cls, environment: Environment) -> "FrontSettings":
        """Read the variables. Raises SettingsInvalid with all that is wrong."""
        settings = cls(
            public_listen=environment.address("MAAS_PUBLIC_LISTEN"),
            run_dir=environment.folder("MAAS_RUN_DIR"),
            concurrency=environment.integer("MAAS_FRONT_CONCURRENCY", 1, low=1, high=64),
        )
        environment.check()
        return settings


def bootstrap(settings: FrontSettings) -> dict[str, Any]:
    """Return Envoy's whole, static configuration."""
    host, _, port = settings.public_listen.rpartition(":")
    manager: dict[str, Any] = {
        "@type": _HCM,
        "stat_prefix": "inference",
        "generate_request_id": True,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"]}]},
        "http_filters": [path_guard_config(), filter_config()],
    }
    listener = {
        "name": "public",
        "address": {"socket_address": {"address": host, "port_value": int(port)}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener]}}


def main() -> None:
    """Become Envoy."""
    try:
        settings = FrontSettings.read(Environment(os.environ))
        binary, environment = envoy_binary(), envoy_environment(os.environ)
    except Failure as failure:
        print(f"maas_inference.front: {failure.message}", file=sys.stderr)
        sys.exit(EXIT_CANNOT_START)
    # pyvoy puts the working directory before all else on the import path; this one holds nothing to import.
    os.chdir(settings.run_dir)
    arguments = ["--config-yaml", json.dumps(bootstrap(settings)), "--concurrency", str(settings.concurrency)]
    os.execve(binary, [str(binary), *arguments, "--log-level", "warn", "--use-dynamic-base-id"], environment)


if __name__ == "__main__":
    main()
