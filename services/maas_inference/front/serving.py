"""What a front serves: the model table turned into queues, each with a connection to its worker."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from maas_inference.front.failures import (
    FrontNotReady,
    ModelNotNamed,
    ServedModelNotFound,
    ServedVersionNotFound,
    VersionNotReady,
)
from maas_inference.front.metrics import FrontMetrics
from maas_inference.front.version_queue import VersionQueue, drop_if_gone
from maas_inference.front.worker_link import WorkerLink
from maas_inference.table import ModelTable, ServedDeployment, VersionUse

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 0.05
_PROBES_PER_SWEEP = 64
_IN_USE_SECONDS = 5.0
"""A queue that nobody asked for so long does not keep the others from refusing unread."""
_LOOKED_AT = 8
"""One request of so many is read although it would be refused unread."""
_RECONNECT_SECONDS = 0.02
DEFAULT_DEPLOYMENT = "default"


class Deployment:
    """A name that callers use; chooses the version that answers."""

    def __init__(self, served: ServedDeployment, queues: Mapping[str, VersionQueue]) -> None:
        self.name = served.deployment
        self.queues = queues
        """By version number, in the table's order."""
        self._only = next(iter(queues.values())) if len(queues) == 1 else None
        self._credits = dict.fromkeys(queues, 0)

    def choose(self, version: str) -> VersionQueue:
        """Return the queue of `version`, or, without one, of the version whose turn it is by the weights.

        Raises ServedVersionNotFound, VersionNotReady.
        """
        if version:
            try:
                return self.queues[version]
            except KeyError:
                raise ServedVersionNotFound(
                    f"{self.name} has no version {version!r}; it has {', '.join(self.queues) or 'none'}",
                    name=f"deployments/{self.name}",
                ) from None
        return self._only or self._by_weight()

    def main(self) -> VersionQueue:
        """Return the version that stands for the deployment when nobody names one: the largest weight's."""
        if not self.queues:
            raise VersionNotReady(f"{self.name} has no version yet")
        return max(self.queues.values(), key=lambda queue: (_can_answer(queue), queue.served.weight))

    def _by_weight(self) -> VersionQueue:
        """Smooth weighted round robin: in any window the shares are the weights' as exactly as whole requests allow."""
        able = [queue for queue in self.queues.values() if queue.served.weight > 0]
        able = [queue for queue in able if _can_answer(queue)] or able
        if not able:
            raise VersionNotReady(f"{self.name} has no version with a weight that is ready")
        credit = self._credits
        total = 0
        for queue in able:
            total += queue.served.weight
            credit[queue.served.version] += queue.served.weight
        chosen = max(able, key=lambda queue: credit[queue.served.version])
        credit[chosen.served.version] -= total
        return chosen


class Serving:
    """All deployments of the newest table. Connections and sweeps run in the task group that is passed in."""

    def __init__(self, metrics: FrontMetrics, tasks: asyncio.TaskGroup) -> None:
        self._metrics = metrics
        self._tasks = tasks
        self._queues: dict[tuple[str, str], VersionQueue] = {}
        self._connections: dict[tuple[str, str], _Connection] = {}
        self._leaving: list[_Connection] = []
        self._uses: dict[tuple[str, str], _Use] = {}
        self._waiting_for_worker: frozenset[tuple[str, str]] = frozenset()
        self._asked_last: dict[VersionQueue, float] = {}
        self._turn_of_shedding = 0
        self._came = self._turned_away = 0
        self.news = asyncio.Event()
        """Set when the manager has to hear at once how versions are used."""
        self.table = ModelTable()
        self.deployments: dict[str, Deployment] = {}

    def apply(self, table: ModelTable) -> None:
        """Serve what the table says: new versions get a queue, those that are gone finish what waits."""
        deployments: dict[str, Deployment] = {}
        kept = set()
        for served in table.deployments:
            queues = {}
            for version in served.versions:
                key = (served.deployment, version.version)
                kept.add(key)
                queue = self._queues.get(key)
                if queue is None:
                    metrics = self._metrics.of_version(*key)
                    queue = self._queues[key] = VersionQueue(served.deployment, version, metrics, served.settings)
                    self._connections[key] = _Connection(queue)
                    self._tasks.create_task(self._connections[key].run())
                else:
                    queue.serve(version, served.settings)
                self._connections[key].point_to(version.socket_path)
                queues[version.version] = queue
            deployments[served.deployment] = Deployment(served, queues)
        for key in set(self._queues) - kept:
            del self._queues[key]
            self._uses.pop(key, None)
            leaving = self._connections.pop(key)
            leaving.retire()
            self._leaving.append(leaving)
        self.table = table
        self.deployments = deployments
        logger.debug("table applied", extra={"revision": table.revision, "versions": len(kept)})

    def deployment(self, name: str) -> Deployment:
        """Return a deployment. Raises ServedModelNotFound."""
        deployment = self.deployments.get(name)
        if deployment is None:
            self._check_told()
            raise ServedModelNotFound(
                f"no model {name[:80]!r} is served; {self._known_names()}", name=f"deployments/{name[:80]}"
            )
        return deployment

    def deployment_or_default(self, name: str) -> Deployment:
        """Return the named deployment; without a name the only one, or the one called `default`."""
        if name:
            return self.deployment(name)
        self._check_told()
        if len(self.deployments) == 1:
            return next(iter(self.deployments.values()))
        if DEFAULT_DEPLOYMENT in self.deployments:
            return self.deployments[DEFAULT_DEPLOYMENT]
        raise ModelNotNamed(f"say which model, as /predict/NAME or in the header maas-model; {self._known_names()}")

    def is_ready(self) -> bool:
        """Whether a table is there and each deployment has a warm version."""
        return self.table.revision > 0 and all(
            any(_can_answer(queue) for queue in deployment.queues.values()) for deployment in self.deployments.values()
        )

    def uses(self) -> tuple[VersionUse, ...]:
        """Return how each version is used now; to be asked every second or so."""
        now = time.monotonic()
        uses = []
        for key, queue in self._queues.items():
            use = self._uses.setdefault(key, _Use(now))
            answered = sum(queue.metrics.statuses.values())
            if not queue.is_idle or answered != use.answered:
                use.last, use.answered = now, answered
            uses.append(
                VersionUse(
                    *key,
                    idle_seconds=now - use.last,
                    in_flight_seconds=queue.oldest_in_flight_seconds(now),
                    waits_for_worker=_waits_for_worker(queue),
                )
            )
        return tuple(uses)

    def sheds(self, now: float, deadline: float) -> bool:
        """Say whether a request is refused before it is read: every queue that is in use is too long for it.

        Under a load of several times what can be computed, reading what will be refused takes the time of what will
        not. Which model is asked is not known yet, so some are let through to be looked at: a queue that was not in
        use is then, and ends the shedding.
        """
        self._came += 1
        if not self._asked_last or not all(queue.is_too_long(now, deadline) for queue in self._asked_last):
            return False
        self._turned_away += 1
        self._turn_of_shedding = (self._turn_of_shedding + 1) % _LOOKED_AT
        return self._turn_of_shedding != 0

    def take_turned_away(self) -> tuple[int, int]:
        """Return how many requests came since the last time, and how many of them every queue was too long for."""
        taken = self._came, self._turned_away
        self._came = self._turned_away = 0
        return taken

    async def sweep(self) -> None:
        """Look after all queues again and again, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self.look_after(time.monotonic())

    async def look_after(self, now: float) -> None:
        """Answer those whose time is over, drop those who hung up, and see which queues are in use."""
        self._asked_last |= dict.fromkeys((queue for queue in self._queues.values() if not queue.is_idle), now)
        self._asked_last = {
            queue: last
            for queue, last in self._asked_last.items()
            if now - last < _IN_USE_SECONDS and self._queues.get(queue.key) is queue
        }
        probes = []
        self._leaving = [connection for connection in self._leaving if not connection.queue.is_idle]
        for connection in (*self._connections.values(), *self._leaving):
            connection.queue.expire(now)
            probes += list(connection.queue.to_probe(now))
        waiting = frozenset(key for key, queue in self._queues.items() if _waits_for_worker(queue))
        if waiting - self._waiting_for_worker:
            self.news.set()
        self._waiting_for_worker = waiting
        await asyncio.gather(*map(drop_if_gone, probes[:_PROBES_PER_SWEEP]))

    def close(self) -> None:
        """Answer everybody who waits and hang up."""
        for connection in self._connections.values():
            connection.queue.fail_all("the inference front is shutting down")
            connection.retire()

    def _check_told(self) -> None:
        if self.table.revision == 0:
            raise FrontNotReady("the inference front has just started; retry", retry_after_seconds=0.2)

    def _known_names(self) -> str:
        names = sorted(self.deployments)
        return f"there are {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}" if names else "there are none"


@dataclass(slots=True)
class _Use:
    """When a version was last seen in use, and how many it had answered then."""

    last: float
    answered: int = 0


def _can_answer(queue: VersionQueue) -> bool:
    """Say whether a request would be answered soon: there is a worker, or one comes when it is asked for."""
    return queue.is_connected or queue.served.comes_when_asked


def _waits_for_worker(queue: VersionQueue) -> bool:
    return queue.served.comes_when_asked and queue.has_waiting


class _Connection:
    """Keeps one version's queue connected to the worker that the table names."""

    def __init__(self, queue: VersionQueue) -> None:
        self.queue = queue
        self._path = ""
        self._changed = asyncio.Event()
        self._retired = False

    def point_to(self, path: str) -> None:
        """Connect to another worker; what the old one has in flight is answered first."""
        if path != self._path:
            self._path = path
            self._changed.set()

    def retire(self) -> None:
        """Finish what waits, then hang up for good."""
        self._retired = True
        self._changed.set()

    async def run(self) -> None:
        """Connect, wait for the end of the connection, connect again; until retired and idle."""
        while not (self._retired and (self.queue.is_idle or not self._path)):
            self._changed.clear()
            if not self._path:
                await self._changed.wait()
            elif (link := await self._connect(self._path)) is None:
                await asyncio.sleep(_RECONNECT_SECONDS)
            else:
                self.queue.connected(link)
                await self._first_of(link.lost.wait(), self._changed.wait())
                if self._retired:
                    await self._first_of(link.lost.wait(), self.queue.until_idle())
                await self._first_of(link.lost.wait(), self.queue.leave())
                link.close()
                await link.lost.wait()

    async def _connect(self, path: str) -> WorkerLink | None:
        """Return the link to a worker that has greeted; None when there is none at the path any more, or not yet."""
        link = WorkerLink(self.queue.replied, self.queue.disconnected)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: link, path)
        except OSError as error:
            logger.debug("worker does not listen", extra={"path": path, "error": str(error)})
            return None
        await self._first_of(link.greeted.wait(), self._changed.wait())
        if link.lost.is_set() or not link.greeted.is_set():
            link.close()
            return None
        logger.info("worker connected", extra={"deployment": self.queue.deployment, "path": path})
        return link

    async def _first_of(self, *waits: Coroutine[Any, Any, Any]) -> None:
        tasks = {asyncio.ensure_future(wait) for wait in waits}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
