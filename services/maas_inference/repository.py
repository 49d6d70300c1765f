"""The models of this replica as a repository: what is in it, what it has answered, loading and unloading."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from prometheus_client.metrics_core import Metric

from maas.names import DeploymentName
from maas_inference.description import repository_index
from maas_inference.front.failures import VersionNotReady
from maas_inference.statistics import statistics_of
from maas_inference.table import ModelTable, ServedDeployment, ServedVersion
from maas_runtime.failures import NotFound


class DeploymentNotServed(NotFound):
    """The manager has no such deployment."""

    reason = "DEPLOYMENT_NOT_SERVED"


class VersionNotServed(NotFound):
    """The deployment has no such version."""

    reason = "VERSION_NOT_SERVED"


class Loader(Protocol):
    """Gives the versions of a deployment workers, and takes them away."""

    async def load(self, name: DeploymentName) -> None:
        """Return once its versions are warm. Raises NotFound, Unavailable."""

    async def unload(self, name: DeploymentName) -> None:
        """Return once its workers have ended; `load` brings them back. Raises NotFound."""


class Repository:
    """Answers from the newest table and from what fronts reported last."""

    def __init__(
        self, table: Callable[[], ModelTable], counted: Callable[[], Iterable[Metric]], loader: Loader
    ) -> None:
        self._table = table
        self._counted = counted
        self._loader = loader

    @property
    def table(self) -> ModelTable:
        """What is served now."""
        return self._table()

    def deployment(self, name: str) -> ServedDeployment:
        """Return a deployment. Raises DeploymentNotServed."""
        for deployment in self.table.deployments:
            if deployment.deployment == name:
                return deployment
        names = ", ".join(deployment.deployment for deployment in self.table.deployments[:20])
        raise DeploymentNotServed(
            f"no model {name[:80]!r} is served; there are: {names or 'none'}", name=f"deployments/{name[:80]}"
        )

    def version(self, name: str, number: str) -> ServedVersion:
        """Return a version, without a number the one that stands for the deployment.

        Raises DeploymentNotServed, VersionNotServed.
        """
        deployment = self.deployment(name)
        versions = [version for version in deployment.versions if number in ("", version.version)]
        if not versions:
            raise VersionNotServed(f"{name} has no version {number[:20]!r}", name=f"deployments/{name}")
        return max(versions, key=lambda version: (version.state == "ready", version.weight))

    def described(self, name: str, number: str) -> ServedVersion:
        """Return a version of which it is known what it takes.

        Raises DeploymentNotServed, VersionNotServed, VersionNotReady.
        """
        version = self.version(name, number)
        if not version.inputs:
            raise VersionNotReady(f"version {version.version} of {name} is {version.state}: {version.message}")
        return version

    def index(self, *, ready_only: bool) -> list[dict[str, Any]]:
        """Return each version of each deployment and whether it can answer, as JSON."""
        return repository_index(self.table.deployments, ready_only=ready_only)

    def statistics(self, name: str, number: str) -> list[dict[str, Any]]:
        """Return what each version of a deployment has answered, or one version, or all of all, as JSON.

        Raises DeploymentNotServed, VersionNotServed.
        """
        if name and number:
            self.version(name, number)
        deployments = [self.deployment(name)] if name else self.table.deployments
        versions = [
            (deployment.deployment, version.version)
            for deployment in deployments
            for version in deployment.versions
            if number in ("", version.version)
        ]
        return statistics_of(self._counted(), versions)

    async def load(self, name: str) -> None:
        """Return once the versions of a deployment are warm. Raises DeploymentNotServed, Unavailable."""
        await self._loader.load(DeploymentName(self.deployment(name).deployment))

    async def unload(self, name: str) -> None:
        """End the workers of a deployment. Raises DeploymentNotServed."""
        await self._loader.unload(DeploymentName(self.deployment(name).deployment))
