"""Deployments in memory, for tests of the rules; one contract suite holds them to what SQLite does."""

from collections.abc import Sequence
from dataclasses import replace

from maas.names import DeploymentName
from maas_rollout.domain.deployments import Deployment, Event, Standing
from maas_rollout.domain.feed import Changes, ResumePoint


class MemoryDeploymentStore:
    """DeploymentStore and ChangeStore in memory."""

    def __init__(self, identity: str, kept_revisions: int = 10_000) -> None:
        self._identity = identity
        self._kept_revisions = kept_revisions
        self._revision = 0
        self._deployments: dict[DeploymentName, Deployment] = {}
        self._tombstones: dict[DeploymentName, int] = {}
        self._events: list[Event] = []

    async def create(self, deployment: Deployment, event: Event) -> Deployment | None:
        """Store a deployment; None when the name is taken."""
        if deployment.name in self._deployments:
            return None
        self._tombstones.pop(deployment.name, None)
        return self._put(deployment, event)

    async def get(self, name: DeploymentName) -> Deployment | None:
        """Return the deployment."""
        return self._deployments.get(name)

    async def list(self, after: DeploymentName | None, limit: int) -> Sequence[Deployment]:
        """Return a page of deployments."""
        names = sorted(name for name in self._deployments if after is None or name > after)
        return [self._deployments[name] for name in names[:limit]]

    async def update(self, deployment: Deployment, event: Event) -> Deployment | None:
        """Store a deployment in place of the one of its revision; None when that is not the present one."""
        return self._put(deployment, event) if self._is_present(deployment) else None

    async def delete(self, deployment: Deployment, event: Event) -> bool:
        """Remove the deployment; False when its revision is not the present one."""
        if not self._is_present(deployment):
            return False
        del self._deployments[deployment.name]
        self._revision += 1
        self._tombstones[deployment.name] = self._revision
        horizon = self._horizon()
        self._tombstones = {name: revision for name, revision in self._tombstones.items() if revision > horizon}
        self._record(event)
        return True

    async def list_events(self, name: DeploymentName, before: int | None, limit: int) -> Sequence[Event]:
        """Return a page of events, newest first."""
        found = [event for event in self._events if event.deployment == name]
        return [event for event in reversed(found) if before is None or event.number < before][:limit]

    async def set_standing(self, deployment: Deployment, standing: Standing) -> None:
        """Note where a deployment is."""
        if self._is_present(deployment):
            present = self._deployments[deployment.name]
            self._deployments[deployment.name] = replace(present, standing=standing)

    async def changes_since(self, point: ResumePoint | None) -> Changes:
        """Return what changed since `point`, or a snapshot."""
        now = ResumePoint(self._identity, self._revision)
        ordered = sorted(self._deployments.values(), key=lambda deployment: deployment.revision)
        if point is None or point.store != now.store or not self._horizon() <= point.revision <= now.revision:
            return Changes(now, True, tuple(ordered))
        ended = sorted(self._tombstones, key=lambda name: self._tombstones[name])
        return Changes(
            now,
            False,
            tuple([deployment for deployment in ordered if deployment.revision > point.revision]),
            tuple([name for name in ended if self._tombstones[name] > point.revision]),
        )

    def _put(self, deployment: Deployment, event: Event) -> Deployment:
        self._revision += 1
        stored = replace(deployment, revision=self._revision)
        self._deployments[stored.name] = stored
        self._record(event)
        return stored

    def _record(self, event: Event) -> None:
        self._events.append(replace(event, number=len(self._events) + 1))

    def _is_present(self, deployment: Deployment) -> bool:
        present = self._deployments.get(deployment.name)
        return present is not None and present.revision == deployment.revision

    def _horizon(self) -> int:
        return max(0, self._revision - self._kept_revisions)
