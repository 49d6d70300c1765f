"""What the gateway's two processes are told: its control plane, and the launcher of its Envoy."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from maas_gateway.domain.topology import INFERENCE, Upstream
from maas_runtime.failures import InvalidInput
from maas_runtime.settings import LOG_LEVELS, Environment

_DEFAULT_PUBLIC = "127.0.0.1:8080"
_ADDRESSES = {
    "registry": "MAAS_REGISTRY_ADDRESS",
    "training": "MAAS_TRAINING_ADDRESS",
    "compression": "MAAS_COMPRESSION_ADDRESS",
    "rollout": "MAAS_ROLLOUT_ADDRESS",
    INFERENCE: "MAAS_INFERENCE_ADDRESS",
}
ENVOY_ADMIN_SOCKET = "envoy-admin.sock"
"""Name, in the run folder, of the socket at which Envoy tells of itself."""


class GatewayEnvironment(Environment):
    """Also reads lists of addresses."""

    def addresses(self, name: str) -> tuple[str, ...]:
        """Return a list like `host:port,host:port`; empty when the variable is not set."""
        return tuple(self._checked(name, item) for item in self._items(name))

    def named_addresses(self, name: str) -> dict[str, str]:
        """Return a list like `registry=unix:/path,training=host:port`; empty when the variable is not set."""
        result = {}
        for item in self._items(name):
            key, equals, address = item.partition("=")
            if not equals or not key.replace("-", "").replace("_", "").isalnum():
                self._wrong(name, f"has {item!r}; use name=address")
                continue
            result[key] = self._checked(name, address)
        return result

    def _items(self, name: str) -> list[str]:
        return [item.strip() for item in self.text(name, " ").split(",") if item.strip()]

    def _checked(self, name: str, address: str) -> str:
        one = Environment({name: address})
        one.address(name)
        try:
            one.check()
        except InvalidInput as error:
            for violation in error.violations:
                self._wrong(name, violation.description)
        return address


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """What maas_gateway is told."""

    home: Path
    listen: str
    """Where xDS, health and reflection are served."""
    http_listen: str
    """Where the metrics of the whole cluster are served."""
    public_listen: str
    """Where Envoy listens for everybody."""
    run_dir: Path
    upstreams: tuple[Upstream, ...]
    metrics_targets: dict[str, str]
    """Where each process shows its metrics, by the name it gets in the label `process`."""
    fronts: tuple[str, ...]
    """Where inference fronts listen; none: the front is in the gateway's Envoy."""
    access_log: bool
    log_level: str
    drain_seconds: float

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> Self:
        """Raises SettingsInvalid with all that is wrong."""
        environment = GatewayEnvironment(variables)
        settings = cls(
            home=environment.folder("MAAS_HOME"),
            listen=environment.address("MAAS_LISTEN"),
            http_listen=environment.address("MAAS_HTTP_LISTEN"),
            public_listen=environment.address("MAAS_PUBLIC_LISTEN", _DEFAULT_PUBLIC),
            run_dir=environment.folder("MAAS_RUN_DIR"),
            upstreams=tuple(Upstream(process, environment.address(name)) for process, name in _ADDRESSES.items()),
            metrics_targets=environment.named_addresses("MAAS_METRICS_TARGETS"),
            fronts=environment.addresses("MAAS_FRONT_ADDRESSES"),
            access_log=environment.choice("MAAS_ACCESS_LOG", ("on", "off"), "off") == "on",
            log_level=environment.choice("MAAS_LOG_LEVEL", LOG_LEVELS, "INFO"),
            drain_seconds=environment.number("MAAS_DRAIN_SECONDS", 5.0, low=0, high=600),
        )
        environment.check()
        return settings


@dataclass(frozen=True, slots=True)
class EnvoySettings:
    """What the launcher of the gateway's Envoy is told."""

    control_plane: str
    """Where maas_gateway serves xDS."""
    public_listen: str
    run_dir: Path
    embedded: bool
    """Whether the inference front runs inside."""
    concurrency: int
    """Worker threads."""
    max_connections: int
    log_level: str

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> Self:
        """Raises SettingsInvalid with all that is wrong."""
        environment = GatewayEnvironment(variables)
        settings = cls(
            control_plane=environment.address("MAAS_LISTEN"),
            public_listen=environment.address("MAAS_PUBLIC_LISTEN", _DEFAULT_PUBLIC),
            run_dir=environment.folder("MAAS_RUN_DIR"),
            embedded=not environment.addresses("MAAS_FRONT_ADDRESSES"),
            concurrency=environment.integer(
                "MAAS_ENVOY_CONCURRENCY", min(4, len(os.sched_getaffinity(0))), low=1, high=256
            ),
            max_connections=environment.integer("MAAS_MAX_CONNECTIONS", 10_000, low=1, high=1_000_000),
            log_level=environment.choice("MAAS_LOG_LEVEL", LOG_LEVELS, "INFO"),
        )
        environment.check()
        return settings
