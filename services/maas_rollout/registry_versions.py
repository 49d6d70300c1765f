"""The registry, as the source of versions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from maas.names import AliasName, VersionName
from maas.registry.v1 import registry_service_pb2
from maas.signatures import PublicKey, members_of
from maas_package.signed import check_signed, signature_names
from maas_runtime.failures import NotFound

if TYPE_CHECKING:
    from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

_NO_SIGNATURE = "SIGNATURE_NOT_FOUND"


class RegistryVersions:
    """VersionSource that asks the registry, also for a version: nobody may deploy one that is not there."""

    def __init__(self, registry: "RegistryServiceAsyncStub") -> None:
        self._registry = registry

    async def resolve(self, name: VersionName | AliasName) -> VersionName:
        """Return the version that is named. Raises NotFound with the registry's reason."""
        version = await self._registry.GetVersion(registry_service_pb2.GetVersionRequest(name=str(name)))
        return VersionName.parse(version.name)

    async def check_signed(self, version: VersionName, trusted: Sequence[PublicKey]) -> None:
        """Return if one of the keys signed the version. Raises VersionNotSigned."""
        stored = await self._registry.GetVersion(registry_service_pb2.GetVersionRequest(name=str(version)))
        bundles: dict[str, bytes] = {}
        for name in signature_names(version, trusted):
            request = registry_service_pb2.GetVersionSignatureRequest(name=str(name))
            try:
                bundles[name.fingerprint] = (await self._registry.GetVersionSignature(request)).bundle
            except NotFound as failure:
                if failure.reason != _NO_SIGNATURE:
                    raise
        check_signed(version, members_of(stored.files), bundles, trusted)
