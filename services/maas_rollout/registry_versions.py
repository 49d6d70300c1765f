"""The registry, as the source of versions."""

from typing import TYPE_CHECKING

from maas.names import AliasName, VersionName
from maas.registry.v1 import registry_service_pb2

if TYPE_CHECKING:
    from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub


class RegistryVersions:
    """VersionSource that asks the registry, also for a version: nobody may deploy one that is not there."""

    def __init__(self, registry: "RegistryServiceAsyncStub") -> None:
        self._registry = registry

    async def resolve(self, name: VersionName | AliasName) -> VersionName:
        """Return the version that is named. Raises NotFound with the registry's reason."""
        version = await self._registry.GetVersion(registry_service_pb2.GetVersionRequest(name=str(name)))
        return VersionName.parse(version.name)
