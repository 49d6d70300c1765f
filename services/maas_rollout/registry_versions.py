"""The registry, as the source of versions, which keeps those that are deployed."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from maas.names import AliasName, DeploymentName, VersionName
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

    async def hold(self, holder: DeploymentName, versions: Collection[VersionName], reason: str) -> None:
        """Let a deployment hold these versions. Raises NotFound or NotAllowedNow with the registry's reason."""
        request = registry_service_pb2.SetHoldsRequest(
            holder=str(holder), versions=[str(version) for version in sorted(versions)], reason=reason
        )
        await self._registry.SetHolds(request)

    async def holds(self) -> Mapping[DeploymentName, Collection[VersionName]]:
        """Return which deployments hold which versions."""
        found: defaultdict[DeploymentName, set[VersionName]] = defaultdict(set)
        request = registry_service_pb2.ListHoldsRequest(page_size=1000)
        while True:
            page = await self._registry.ListHolds(request)
            for hold in page.holds:
                found[DeploymentName.parse(hold.holder)].add(VersionName.parse(hold.version))
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token
