"""One inference replica: level-triggered, it compares what is wanted with what is held, and takes the next step."""

import asyncio
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as installed_version

from maas.names import DeploymentName, VersionName
from maas_inference.manager.desired import Desired, DesiredFile, Remembered, Targets, WantedDeployment
from maas_inference.manager.fronts import Fronts
from maas_inference.manager.keeper import Keeper, KeeperOptions, Packages
from maas_inference.manager.memory import Holder, Key, MemoryBook, leavers, proportional_bytes, used_bytes
from maas_inference.manager.plan import Plan, plan
from maas_inference.manager.worker_process import WorkerOptions
from maas_inference.table import ModelTable, ServedDeployment
from maas_runtime.failures import NotFound, Unavailable

logger = logging.getLogger(__name__)

_OBEY_SECONDS = 2.0
"""How long a version is kept after fronts were told to leave it, when a front does not say that it has."""
_STARTS_AT_ONCE = 2
_MEASURE_SECONDS = 2.0
_LIKELY_NEEDED_SECONDS = 1.0
"""What was used so short a time ago is not let go."""
_ROOM_WAIT_SECONDS = 3.0
"""How long a version waits for others to be unused for so long."""
_LOOK_AGAIN_SECONDS = 0.1
_REFUSAL_SECONDS = 1.0
"""How long callers are told that there is no room before it is tried again."""
_LOAD_WAIT_SECONDS = 120.0
NO_ROOM = "NO_ROOM_TO_LOAD"
UNLOADED = "MODEL_UNLOADED"


class DeploymentNotHeld(NotFound):
    """This replica holds no deployment of that name."""

    reason = "DEPLOYMENT_NOT_HELD"


class DeploymentNotLoaded(Unavailable):
    """The versions of the deployment did not get warm; the message says why."""

    reason = "DEPLOYMENT_NOT_LOADED"


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """How versions are held."""

    worker: WorkerOptions
    memory_budget_bytes: int


class Replica:
    """Holds the versions that are wanted, each with a keeper, and publishes the model table."""

    def __init__(
        self,
        options: ReplicaOptions,
        packages: Packages,
        fronts: Fronts,
        memory: DesiredFile,
        sizes: MemoryBook,
    ) -> None:
        remembered = memory.load()
        self.start_time = time.time()
        self.desired: Desired = remembered.desired
        self.keepers: dict[Key, Keeper] = {}
        self.plans: dict[DeploymentName, Plan] = {}
        self.table = ModelTable(server_version=installed_version("maas"))
        self.memory_budget_bytes = options.memory_budget_bytes
        self._answering: dict[DeploymentName, Targets] = dict(remembered.answering)
        self._unloaded = set(remembered.unloaded)
        self._options = options
        self._packages = packages
        self._fronts = fronts
        self._memory = memory
        self._sizes = sizes
        self._measured: dict[int, int] = {}
        self._no_room_beside: set[Key] = set()
        """Versions that cannot be loaded before they take over."""
        self._refused_until: dict[Key, float] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._leaving: set[Key] = set()
        self._departed: set[Keeper] = set()
        self._starts = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._names = _worker_names()
        self._changed = asyncio.Event()
        self._changed.set()
        self._stepped = asyncio.Event()
        self._measure_now = asyncio.Event()

    def want(self, desired: Desired) -> None:
        """Make this so from now on. A deployment that is another one now is no longer kept unloaded."""
        before = self.desired.deployments
        self._unloaded = {name for name in self._unloaded if before.get(name) == desired.deployments.get(name)}
        self.desired = desired
        self._remember()
        self._changed.set()

    async def load(self, name: DeploymentName) -> None:
        """Return once the deployment's versions are warm. Raises DeploymentNotHeld, DeploymentNotLoaded."""
        self._check_held(name)
        if name in self._unloaded:
            self._unloaded.discard(name)
            self._remember()
        for keeper in self._keepers_of(name):
            self._refused_until.pop((name, keeper.version), None)
            keeper.want()
        self._changed.set()
        try:
            async with asyncio.timeout(_LOAD_WAIT_SECONDS):
                while not all(keeper.is_ready for keeper in self._keepers_of(name)):
                    for keeper in self._keepers_of(name):
                        if keeper.keeping.state == "failed" or keeper.keeping.refusal:
                            raise DeploymentNotLoaded(f"{keeper.version} is not loaded: {keeper.keeping.message}")
                    await self._stepped.wait()
        except TimeoutError:
            raise DeploymentNotLoaded(f"{name} is still being loaded") from None

    async def unload(self, name: DeploymentName) -> None:
        """Return once the deployment's workers have ended; they come back by `load`, or when rollout changes it.

        Raises DeploymentNotHeld.
        """
        self._check_held(name)
        self._unloaded.add(name)
        self._remember()
        self._changed.set()
        await self._stepped.wait()
        while name in self._unloaded and any(keeper.holds_memory for keeper in self._keepers_of(name)):
            await self._stepped.wait()

    async def run(self) -> None:
        """Take steps whenever something changed, until cancelled; then all workers end."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._measure())
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

    def memory_bytes(self, keeper: Keeper) -> int:
        """Return what a version holds: as measured, and while it is being loaded what it is expected to take."""
        if not keeper.holds_memory:
            return 0
        measured = self._measured.get(keeper.keeping.pid, 0)
        return measured or self._sizes.expected_bytes(keeper.version, keeper.package_bytes)

    def memory_used_bytes(self) -> int:
        """Return what all versions hold."""
        return used_bytes(self._holders())

    def is_in_use(self, key: Key) -> bool:
        """Whether somebody used a version so short a time ago that it is likely to be used again."""
        return self._idle_seconds(key) <= _LIKELY_NEEDED_SECONDS

    def reported(self) -> None:
        """Look at what fronts say: who waits for a worker, and which worker hangs."""
        now = time.monotonic()
        for (deployment, version), keeper in self.keepers.items():
            use = self._fronts.use(deployment, version)
            timeout = keeper.compute_timeout_seconds
            # A younger worker cannot have had the batch for so long: the front speaks of the one before.
            if use.in_flight_seconds > timeout and keeper.is_ready and now - keeper.ready_at > timeout:
                keeper.kill(f"the worker did not answer a batch within {timeout:g} s and was ended")
            if use.waits_for_worker and keeper.served(0).comes_when_asked:
                keeper.want()
            elif keeper.keeping.refusal == NO_ROOM and now > self._refused_until.get((deployment, version), 0.0):
                keeper.unwant()

    def _step(self, tasks: asyncio.TaskGroup) -> None:
        self.plans = {name: self._plan(name, wanted) for name, wanted in self.desired.deployments.items()}
        answering = {name: planned.answering for name, planned in self.plans.items()}
        held = {(name, version) for name, planned in self.plans.items() for version in planned.held}
        for key in held - self.keepers.keys():
            self.keepers[key] = self._new_keeper(*key)
            self._tasks[key] = tasks.create_task(self.keepers[key].run())
        self._no_room_beside = {key for key in self._no_room_beside if key in held and self._takes_over(key)}
        departing = {key: self.keepers.pop(key) for key in self.keepers.keys() - held}
        for (name, _), keeper in self.keepers.items():
            self._instruct(name, keeper)
        self._make_room()
        if answering != self._answering:
            self._answering = answering
            self._remember()
        self._publish()
        for key, keeper in departing.items():
            self._departed.add(keeper)
            tasks.create_task(self._let_go(keeper, self._tasks.pop(key), self.table.revision))
        leaving = {key for key, keeper in self.keepers.items() if keeper.is_leaving}
        for key in leaving - self._leaving:
            tasks.create_task(self._end_worker(self.keepers[key], self.table.revision))
        self._leaving = leaving
        if any(keeper.keeping.pid not in self._measured for keeper in self.keepers.values() if keeper.keeping.pid):
            self._measure_now.set()
        self._stepped.set()
        self._stepped = asyncio.Event()

    def _plan(self, name: DeploymentName, wanted: WantedDeployment) -> Plan:
        def is_ready(version: VersionName) -> bool:
            keeper = self.keepers.get((name, version))
            return keeper is not None and (keeper.is_ready or (keeper.keeping.state == "unloaded" and not comes_first))

        answering = self._answering.get(name, ())
        # On demand: where the old version is loaded the new one is loaded before it takes over, if there is room.
        comes_first = any(self._is_ready(name, target.version) for target in answering) and not any(
            (name, target.version) in self._no_room_beside for target in wanted.targets
        )
        return plan(wanted.targets, answering, is_ready)

    def _instruct(self, name: DeploymentName, keeper: Keeper) -> None:
        """Tell a keeper how its deployment is run."""
        wanted = self.desired.deployments[name]
        keeper.configure(self._keeper_options(wanted))
        if name in self._unloaded:
            keeper.unwant(refusal=UNLOADED, message="it was unloaded on request; load it again to use it")
        elif not wanted.workers.on_demand:
            keeper.want()
        elif keeper.keeping.refusal == UNLOADED:
            keeper.unwant()
        elif self._takes_over((name, keeper.version)):
            keeper.want()

    def _keeper_options(self, wanted: WantedDeployment) -> KeeperOptions:
        worker = replace(
            self._options.worker,
            max_batch_rows=wanted.serving.max_batch_rows or self._options.worker.max_batch_rows,
            memory_bytes=wanted.workers.memory_bytes,
        )
        return KeeperOptions(
            worker, wanted.workers.engine, wanted.workers.trusted_keys, wanted.workers.compute_timeout_seconds
        )

    def _make_room(self) -> None:
        """Admit what waits as far as there is room, and let go of what is in the way: first come, first served."""
        waiting = [key for key, keeper in self.keepers.items() if keeper.waits_for_room]
        waiting.sort(key=lambda key: (self._on_demand(key), self.keepers[key].asked_at))
        for key in waiting:
            keeper = self.keepers[key]
            need = self._sizes.expected_bytes(keeper.version, keeper.package_bytes)
            holders = self._holders()
            used = used_bytes(holders)
            if used + need <= self.memory_budget_bytes:
                keeper.admit()
                continue
            full = f"it needs {need >> 20} MiB; {used >> 20} of {self.memory_budget_bytes >> 20} MiB are in use"
            going = self._leavers(need, holders)
            has_time = time.monotonic() - keeper.asked_at < _ROOM_WAIT_SECONDS
            if going is not None:
                self._let_go_of(going)
            elif has_time and leavers(need, self.memory_budget_bytes, holders) is not None:
                asyncio.get_running_loop().call_later(_LOOK_AGAIN_SECONDS, self._changed.set)
            else:
                self._do_without_room(key, full, holders)
                continue
            keeper.wait_for_room(full)
            return  # those behind it would take what it waits for
        # What grew since it was loaded takes room from the others.
        self._let_go_of(self._leavers(0, self._holders()) or ())

    def _do_without_room(self, key: Key, full: str, holders: Sequence[Holder]) -> None:
        """Load what has to be loaded all the same, and say of the others that there is no room."""
        keeper = self.keepers[key]
        if not self._on_demand(key):
            logger.warning("over the memory budget", extra={"version": str(keeper.version), "detail": full})
            self._let_go_of(
                [holder.key for holder in holders if holder.may_leave and holder.idle_seconds > _LIKELY_NEEDED_SECONDS]
            )
            keeper.admit(message=f"over the memory budget: {full}")
        elif self._takes_over(key):
            self._no_room_beside.add(key)
            keeper.unwant()
        else:
            self._refused_until[key] = time.monotonic() + _REFUSAL_SECONDS
            keeper.unwant(refusal=NO_ROOM, message=f"there is no room to load it: {full}")

    def _leavers(self, need_bytes: int, holders: Sequence[Holder]) -> Sequence[Key] | None:
        return leavers(need_bytes, self.memory_budget_bytes, holders, idle_seconds=_LIKELY_NEEDED_SECONDS)

    def _takes_over(self, key: Key) -> bool:
        """Whether other versions answer until it is loaded."""
        return key[1] not in {target.version for target in self.plans[key[0]].answering}

    def _holders(self) -> list[Holder]:
        holders = [
            Holder(
                key,
                self.memory_bytes(keeper),
                is_leaving=keeper.is_leaving,
                may_leave=self._on_demand(key) and keeper.is_ready,
                idle_seconds=self._idle_seconds(key),
            )
            for key, keeper in self.keepers.items()
            if keeper.holds_memory
        ]
        return holders + [
            Holder((keeper.deployment, keeper.version), self.memory_bytes(keeper), is_leaving=True)
            for keeper in self._departed
            if keeper.holds_memory
        ]

    def _let_go_of(self, keys: Sequence[Key]) -> None:
        for key in keys:
            logger.info("version let go for memory", extra={"version": str(key[1])})
            self.keepers[key].unwant()

    def _idle_seconds(self, key: Key) -> float:
        since_asked = time.monotonic() - self.keepers[key].asked_at
        return min(since_asked, self._fronts.use(*key).idle_seconds)

    def _on_demand(self, key: Key) -> bool:
        """Whether it may be without a worker; a version that is being replaced too, if its deployment is."""
        wanted = self.desired.deployments.get(key[0])
        return wanted is not None and wanted.workers.on_demand

    def _new_keeper(self, name: DeploymentName, version: VersionName) -> Keeper:
        options = self._keeper_options(self.desired.deployments[name])
        return Keeper(name, version, self._packages, options, self._starts, self._names, self._changed.set)

    def _is_ready(self, name: DeploymentName, version: VersionName) -> bool:
        keeper = self.keepers.get((name, version))
        return keeper is not None and keeper.is_ready

    def _keepers_of(self, name: DeploymentName) -> list[Keeper]:
        return [keeper for (deployment, _), keeper in self.keepers.items() if deployment == name]

    def _check_held(self, name: DeploymentName) -> None:
        if name not in self.plans:
            raise DeploymentNotHeld(f"this replica holds no {name}", name=str(name))

    def _remember(self) -> None:
        try:
            self._memory.save(Remembered(self.desired, self._answering, frozenset(self._unloaded)))
        except OSError as error:
            # Serving goes on; only a restart without rollout would not know what to serve.
            logger.error("what is wanted cannot be saved", extra={"detail": str(error)})

    def _publish(self) -> None:
        deployments = tuple(
            ServedDeployment(
                name.deployment_id,
                tuple(self.keepers[name, target.version].served(target.weight) for target in planned.weighted()),
                self.desired.deployments[name].serving,
            )
            for name, planned in sorted(self.plans.items())
        )
        if deployments != self.table.deployments or self.table.revision == 0:
            # A front forgets the revision with its connection, so counting may begin anew with each manager.
            self.table = ModelTable(self.table.revision + 1, self.table.server_version, deployments)
            self._fronts.publish(self.table)

    async def _let_go(self, keeper: Keeper, keeping: "asyncio.Task[None]", revision: int) -> None:
        """End a version's worker for good once no front sends it anything new."""
        await self._fronts.until_obeyed(revision, _OBEY_SECONDS)
        keeping.cancel()
        await asyncio.wait({keeping})
        self._departed.discard(keeper)
        self._changed.set()
        await asyncio.to_thread(self._packages.trim, {version for _, version in self.keepers})

    async def _end_worker(self, keeper: Keeper, revision: int) -> None:
        """End a worker once no front sends it anything new; its keeper stays."""
        await self._fronts.until_obeyed(revision, _OBEY_SECONDS)
        keeper.end_worker()

    async def _measure(self) -> None:
        """Measure every few seconds, and soon after each step, what the workers hold."""
        while True:
            pids = {keeper.keeping.pid: keeper.version for keeper in self.keepers.values() if keeper.keeping.pid}
            sizes = await asyncio.to_thread(lambda pids: list(map(proportional_bytes, pids)), list(pids))
            self._measured = dict(zip(pids, sizes, strict=True))
            for pid, size_bytes in self._measured.items():
                if size_bytes:
                    self._sizes.note(pids[pid], size_bytes)
            try:
                await asyncio.to_thread(self._sizes.save)
            except OSError as error:
                logger.error("measured sizes cannot be saved", extra={"detail": str(error)})
            if self.memory_used_bytes() > self.memory_budget_bytes:
                self._changed.set()
            self._measure_now.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._measure_now.wait(), _MEASURE_SECONDS)


def _worker_names() -> Iterator[str]:
    # Unique over restarts of the manager as well: a front must not take a new worker for one that it knew.
    return (f"w{os.getpid()}-{number}" for number in itertools.count(1))
