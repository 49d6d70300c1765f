"""Which process answers for the health of which service."""

from dataclasses import dataclass
from typing import Protocol

from maas_gateway.domain.topology import Topology
from maas_runtime.failures import NotFound

ALL = ""
"""The service name that stands for the whole cluster."""


class ServiceUnknown(NotFound):
    """Nobody serves such a service."""

    reason = "SERVICE_UNKNOWN"


class Prober(Protocol):
    """Asks one process for the health of one of its services."""

    async def serving(self, address: str, service: str) -> bool:
        """Return whether it says that it serves, within a bounded time."""
        ...


@dataclass(frozen=True, slots=True)
class HealthTable:
    """Where to ask for the health of each service."""

    addresses: dict[str, str]

    @classmethod
    def of(cls, topology: Topology) -> "HealthTable":
        """Return the table for a cluster."""
        address_of = {upstream.process: upstream.address for upstream in topology.upstreams}
        return cls({service.full_name: address_of[service.process] for service in topology.services})

    def questions(self, service: str) -> dict[str, str]:
        """Return which service to ask for at each address; all have to serve. Raises ServiceUnknown."""
        if service == ALL:
            return dict.fromkeys(self.addresses.values(), ALL)
        if service not in self.addresses:
            raise ServiceUnknown(f"no service is called {service!r}", name=service)
        return {self.addresses[service]: service}
