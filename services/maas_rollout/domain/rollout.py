"""The rules of deployments."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol, TypeAlias

from maas.names import AliasName, DeploymentName, VersionName
from maas.signatures import PublicKey
from maas_rollout.domain.deployments import (
    PENDING,
    Action,
    Deployment,
    DeploymentState,
    Event,
    Standing,
    Target,
    WantedTarget,
    check_targets,
    check_wanted,
)
from maas_rollout.domain.feed import Feed
from maas_rollout.domain.replicas import Replicas, TargetStatus
from maas_rollout.domain.serving import DEFAULT_SERVING, ServingSettings
from maas_runtime.failures import AlreadyExists, Conflict, Failure, NotAllowedNow, NotFound

logger = logging.getLogger(__name__)

_PAGE = 1000
_RECONCILE_SECONDS = 60.0
_RETRY_SECONDS = 2.0

Clock: TypeAlias = Callable[[], datetime]
ChangeServing: TypeAlias = Callable[[ServingSettings], ServingSettings]


class DeploymentNotFound(NotFound):
    """There is no such deployment."""

    reason = "DEPLOYMENT_NOT_FOUND"


class DeploymentExists(AlreadyExists):
    """There is a deployment of that name."""

    reason = "DEPLOYMENT_EXISTS"


class EtagMismatch(Conflict):
    """Somebody else changed the deployment since it was read."""

    reason = "ETAG_MISMATCH"


class DeploymentStore(Protocol):
    """Where deployments are kept. Each method is one transaction; what it returned is on disk, its event too."""

    async def create(self, deployment: Deployment, event: Event) -> Deployment | None:
        """Store a deployment and return it with its revision; None, and nothing stored, when the name is taken."""
        ...

    async def get(self, name: DeploymentName) -> Deployment | None:
        """Return the deployment; None when there is none."""
        ...

    async def list(self, after: DeploymentName | None, limit: int) -> Sequence[Deployment]:
        """Return the first deployments behind `after`, ordered by name."""
        ...

    async def update(self, deployment: Deployment, event: Event) -> Deployment | None:
        """Store a deployment in place of the one of its revision, and return it with its new one.

        None, and nothing stored, when that is not the present revision.
        """
        ...

    async def delete(self, deployment: Deployment, event: Event) -> bool:
        """Remove the deployment; False, and nothing removed, when its revision is not the present one."""
        ...

    async def list_events(self, name: DeploymentName, before: int | None, limit: int) -> Sequence[Event]:
        """Return the newest events with a number below `before`, newest first."""
        ...

    async def set_standing(self, deployment: Deployment, standing: Standing) -> None:
        """Note where a deployment is; nothing when its revision is not the present one. Not a change of it."""
        ...


class VersionSource(Protocol):
    """Who knows versions and aliases, and keeps those that are held: the registry."""

    async def resolve(self, name: VersionName | AliasName) -> VersionName:
        """Return the version that is named. Raises the registry's NotFound."""
        ...

    async def check_signed(self, version: VersionName, trusted: Sequence[PublicKey]) -> None:
        """Return if one of the keys signed the version. Raises VersionNotSigned."""
        ...

    async def hold(self, holder: DeploymentName, versions: Collection[VersionName], reason: str) -> None:
        """Let a deployment hold these versions and no others. Raises what the registry has against it."""
        ...

    async def holds(self) -> Mapping[DeploymentName, Collection[VersionName]]:
        """Return which deployments hold which versions."""
        ...


@dataclass(frozen=True, slots=True)
class Author:
    """Who asks for a change, and why; both as the caller says."""

    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LiveDeployment:
    """A deployment, where it is now, and what each replica says of each version."""

    deployment: Deployment
    standing: Standing
    statuses: Sequence[TargetStatus]


class Rollout:
    """Changes deployments, and says where they are."""

    def __init__(
        self, store: DeploymentStore, versions: VersionSource, replicas: Replicas, feed: Feed, clock: Clock
    ) -> None:
        self._store = store
        self._versions = versions
        self._replicas = replicas
        self._feed = feed
        self._clock = clock
        # Reading, then changing is one step, so that whoever sends no etag never meets a conflict. The store compares
        # revisions besides: another process may hold the same one.
        self._changing = asyncio.Lock()
        self._compare_holds = asyncio.Event()

    async def create(
        self,
        name: DeploymentName,
        wanted: Sequence[WantedTarget],
        author: Author,
        serving: ServingSettings = DEFAULT_SERVING,
        trusted_keys: tuple[PublicKey, ...] = (),
    ) -> LiveDeployment:
        """Store a deployment.

        Raises DeploymentExists, TargetsInvalid, VersionNotSigned, or the registry's NotFound or NotAllowedNow.
        """
        targets = await self._resolve(wanted)
        await self._check_signed(targets, trusted_keys)
        async with self._changing:
            if await self._store.get(name) is not None:
                raise _exists(name)
            await self._versions.hold(name, _versions_of(targets), author.reason)
            now = self._clock()
            deployment = Deployment(
                name, targets, PENDING, create_time=now, update_time=now, serving=serving, trusted_keys=trusted_keys
            )
            event = Event(
                name,
                now,
                Action.CREATED,
                (),
                targets,
                author.actor,
                author.reason,
                trusted_after=_fingerprints(trusted_keys),
            )
            try:
                created = await self._store.create(deployment, event)
            finally:
                self._feed.wake()
        if created is None:
            raise _exists(name)
        return self.live(created)

    async def get(self, name: DeploymentName) -> LiveDeployment:
        """Return the deployment. Raises DeploymentNotFound."""
        return self.live(await self._get(name))

    async def list(self, after: DeploymentName | None, limit: int) -> Sequence[LiveDeployment]:
        """Return the first deployments behind `after`, ordered by name."""
        return [self.live(deployment) for deployment in await self._store.list(after, limit)]

    async def update(
        self,
        name: DeploymentName,
        wanted: Sequence[WantedTarget] | None,
        etag: str,
        author: Author,
        *,
        change_serving: ChangeServing = lambda serving: serving,
        trusted_keys: tuple[PublicKey, ...] | None = None,
    ) -> LiveDeployment:
        """Change targets and trusted keys, unless they are None, and serving settings.

        What it has already leaves no event. Raises DeploymentNotFound, EtagMismatch, TargetsInvalid, VersionNotSigned,
        or the registry's NotFound or NotAllowedNow.
        """
        present = await self._get(name)
        resolved = None if wanted is None else await self._resolve(wanted)
        # Outside of the lock, since it may take its time; again inside when somebody changed the other half meanwhile.
        checked = (resolved or present.targets, present.trusted_keys if trusted_keys is None else trusted_keys)
        await self._check_signed(*checked)
        async with self._changing:
            present = await self._get(name)
            if etag and etag != present.etag:
                raise _mismatch(name)
            targets = present.targets if resolved is None else resolved
            serving = change_serving(present.serving)
            keys = present.trusted_keys if trusted_keys is None else trusted_keys
            if (present.targets, present.serving, present.trusted_keys) == (targets, serving, keys):
                return self.live(present)
            if (targets, keys) != checked:
                await self._check_signed(targets, keys)
            action = Action.CONFIGURED if present.targets == targets else Action.UPDATED
            wanted_now = replace(self._with_targets(present, targets), serving=serving, trusted_keys=keys)
            before, after = _versions_of(present.targets), _versions_of(targets)
            if not after <= before:
                await self._versions.hold(name, before | after, author.reason)
            try:
                updated = await self._store.update(wanted_now, self._event(present, action, targets, keys, author))
            finally:
                self._feed.wake()
            self._compare_holds.set()
        if updated is None:
            raise _mismatch(name)
        return self.live(updated)

    async def delete(self, name: DeploymentName, author: Author) -> None:
        """End a deployment; its events stay. Raises DeploymentNotFound."""
        async with self._changing:
            present = await self._get(name)
            try:
                deleted = await self._store.delete(present, self._event(present, Action.DELETED, (), (), author))
            finally:
                self._feed.wake()
            self._compare_holds.set()
        if not deleted:
            raise _mismatch(name)
        self._replicas.forget(name)

    async def list_events(self, name: DeploymentName, before: int | None, limit: int) -> Sequence[Event]:
        """Return the newest events with a number below `before`, newest first; also of a deployment that ended."""
        return await self._store.list_events(name, before, limit)

    async def report(self, replica: str, statuses: Mapping[DeploymentName, tuple[TargetStatus, ...]]) -> None:
        """Take what a replica says, and note where its deployments are now. Raises TooManyReplicas."""
        for name in self._replicas.report(replica, statuses):
            deployment = await self._store.get(name)
            if deployment is not None:
                standing = self.live(deployment).standing
                if standing != deployment.standing:
                    await self._store.set_standing(deployment, standing)

    async def reconcile_holds(self) -> None:
        """Make the registry hold what is deployed and nothing else, whatever was cut off in between.

        A version is held before it is deployed and released after it is not any more, so a crash between the two leaves
        one held that need not be; this releases it. Raises Unavailable when the registry cannot be asked.
        """
        held = await self._versions.holds()
        names, after = set(held), None
        while page := await self._store.list(after, _PAGE):
            names |= {deployment.name for deployment in page}
            after = page[-1].name
        for name in sorted(names):
            async with self._changing:
                present = await self._store.get(name)
                wanted = frozenset() if present is None else _versions_of(present.targets)
                if wanted != set(held.get(name, ())):
                    await self._set_holds(name, wanted)

    async def keep_holds(self) -> None:
        """Reconcile holds now, after each change and every minute, until cancelled."""
        while True:
            self._compare_holds.clear()
            pause = _RECONCILE_SECONDS
            try:
                await self.reconcile_holds()
            except Failure as failure:
                logger.info("holds not compared", extra={"reason": failure.reason})
                pause = _RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._compare_holds.wait()

    def live(self, deployment: Deployment) -> LiveDeployment:
        """Return the deployment with where it is now."""
        return LiveDeployment(
            deployment,
            self._replicas.standing(deployment.name, deployment.targets, deployment.standing),
            self._replicas.statuses(deployment.name),
        )

    async def _get(self, name: DeploymentName) -> Deployment:
        deployment = await self._store.get(name)
        if deployment is None:
            raise DeploymentNotFound(f"there is no {name}: `maas status` shows those there are", name=str(name))
        return deployment

    async def _set_holds(self, name: DeploymentName, versions: frozenset[VersionName]) -> None:
        try:
            await self._versions.hold(name, versions, "what is deployed")
        except (NotFound, NotAllowedNow) as failure:
            # Deployed before versions were held, and deleted or archived since.
            logger.warning("version not held", extra={"deployment": str(name), "detail": failure.message})

    async def _resolve(self, wanted: Sequence[WantedTarget]) -> tuple[Target, ...]:
        check_wanted(wanted)
        targets = tuple([Target(await self._versions.resolve(target.name), target.weight) for target in wanted])
        check_targets(targets)
        return targets

    async def _check_signed(self, targets: Sequence[Target], trusted: Sequence[PublicKey]) -> None:
        if trusted:
            for target in targets:
                await self._versions.check_signed(target.version, trusted)

    def _with_targets(self, present: Deployment, targets: tuple[Target, ...]) -> Deployment:
        before = present.standing
        if before.state is not DeploymentState.PENDING:
            before = Standing(DeploymentState.LOADING, "the new versions are being loaded")
        standing = self._replicas.standing(present.name, targets, before)
        return replace(present, targets=targets, standing=standing, update_time=self._clock())

    def _event(
        self,
        present: Deployment,
        action: Action,
        targets: tuple[Target, ...],
        trusted_keys: tuple[PublicKey, ...],
        author: Author,
    ) -> Event:
        return Event(
            present.name,
            self._clock(),
            action,
            present.targets,
            targets,
            author.actor,
            author.reason,
            _fingerprints(present.trusted_keys),
            _fingerprints(trusted_keys),
        )


def _fingerprints(keys: Sequence[PublicKey]) -> tuple[str, ...]:
    return tuple(key.fingerprint for key in keys)


def _versions_of(targets: Sequence[Target]) -> frozenset[VersionName]:
    return frozenset(target.version for target in targets)


def _exists(name: DeploymentName) -> DeploymentExists:
    return DeploymentExists(f"{name} is there already: update it", name=str(name))


def _mismatch(name: DeploymentName) -> EtagMismatch:
    return EtagMismatch(f"{name} was changed by somebody else: read it again, then change it")
