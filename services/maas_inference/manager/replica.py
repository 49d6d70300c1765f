"""One inference replica: level-triggered, it compares what is wanted with what is held, and takes the next step."""

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Iterator
from importlib.metadata import version as installed_version

from maas.names import DeploymentName, VersionName
from maas_inference.manager.desired import Desired, DesiredFile, Targets
from maas_inference.manager.fronts import Fronts
from maas_inference.manager.keeper import Keeper
from maas_inference.manager.packages import PackageStore
from maas_inference.manager.plan import Plan, plan
from maas_inference.manager.worker_process import WorkerOptions
from maas_inference.table import ModelTable, ServedDeployment

logger = logging.getLogger(__name__)

_OBEY_SECONDS = 2.0
"""How long a version is kept after fronts were told to leave it, when a front does not say that it has."""
_STARTS_AT_ONCE = 2


class Replica:
    """Holds the versions that are wanted, each with a keeper, and publishes the model table."""

    def __init__(self, options: WorkerOptions, packages: PackageStore, fronts: Fronts, memory: DesiredFile) -> None:
        remembered = memory.load()
        self.start_time = time.time()
        self.desired: Desired = remembered.desired
        self.keepers: dict[tuple[DeploymentName, VersionName], Keeper] = {}
        self.plans: dict[DeploymentName, Plan] = {}
        self.table = ModelTable(server_version=installed_version("maas"))
        self._answering: dict[DeploymentName, Targets] = dict(remembered.answering)
        self._options = options
        self._packages = packages
        self._fronts = fronts
        self._memory = memory
        self._tasks: dict[tuple[DeploymentName, VersionName], asyncio.Task[None]] = {}
        self._starts = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._names = _worker_names()
        self._changed = asyncio.Event()
        self._changed.set()
        self._stepped = asyncio.Event()
        self.revision = int(self.start_time * 1000)
        """Grows over restarts too, so that a front never takes an old acknowledgement for a new one."""

    def want(self, desired: Desired) -> None:
        """Make this so from now on."""
        self.desired = desired
        self._remember()
        self._changed.set()

    async def run(self) -> None:
        """Take steps whenever something changed, until cancelled; then all workers end."""
        async with asyncio.TaskGroup() as tasks:
            try:
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    self._step(tasks)
            finally:
                for key, task in self._tasks.items():
                    self.keepers[key].kill()
                    task.cancel()

    def next_step(self) -> asyncio.Event:
        """Return an event that is set at the next step."""
        return self._stepped

    def _step(self, tasks: asyncio.TaskGroup) -> None:
        self.plans = {name: self._plan(name, wanted) for name, wanted in self.desired.deployments.items()}
        answering = {name: planned.answering for name, planned in self.plans.items()}
        held = {(name, version) for name, planned in self.plans.items() for version in planned.held}
        for key in held - self.keepers.keys():
            self.keepers[key] = self._new_keeper(*key)
            self._tasks[key] = tasks.create_task(self.keepers[key].run())
        leaving = self.keepers.keys() - held
        for key in leaving:
            del self.keepers[key]
        if answering != self._answering:
            self._answering = answering
            self._remember()
        self._publish()
        for key in leaving:
            tasks.create_task(self._let_go(self._tasks.pop(key), self.revision))
        self._stepped.set()
        self._stepped = asyncio.Event()

    def _plan(self, name: DeploymentName, wanted: Targets) -> Plan:
        def is_ready(version: VersionName) -> bool:
            keeper = self.keepers.get((name, version))
            return keeper is not None and keeper.is_ready

        return plan(wanted, self._answering.get(name, ()), is_ready)

    def _new_keeper(self, name: DeploymentName, version: VersionName) -> Keeper:
        return Keeper(name, version, self._packages, self._options, self._starts, self._names, self._changed.set)

    def _remember(self) -> None:
        try:
            self._memory.save(self.desired, self._answering)
        except OSError as error:
            # Serving goes on; only a restart without rollout would not know what to serve.
            logger.error("what is wanted cannot be saved", extra={"detail": str(error)})

    def _publish(self) -> None:
        deployments = tuple(
            ServedDeployment(
                name.deployment_id,
                tuple(self.keepers[name, target.version].served(target.weight) for target in planned.weighted()),
            )
            for name, planned in sorted(self.plans.items())
        )
        if deployments != self.table.deployments or self.table.revision == 0:
            self.revision += 1
            self.table = ModelTable(self.revision, self.table.server_version, deployments)
            self._fronts.publish(self.table)

    async def _let_go(self, keeping: "asyncio.Task[None]", revision: int) -> None:
        """End a version's worker once no front sends it anything new."""
        await self._fronts.until_obeyed(revision, _OBEY_SECONDS)
        keeping.cancel()
        await asyncio.wait({keeping})
        await asyncio.to_thread(self._packages.trim, {version for _, version in self.keepers})


def _worker_names() -> Iterator[str]:
    # Unique over restarts of the manager as well: a front must not take a new worker for one that it knew.
    return (f"w{os.getpid()}-{number}" for number in itertools.count(1))
