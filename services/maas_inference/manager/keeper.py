"""Keeps one version of a deployment loaded, or ready to be, whatever happens to its worker."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from maas.names import DeploymentName, VersionName
from maas_inference.manager.worker_process import Worker, WorkerOptions, running_worker
from maas_inference.table import ServedVersion, VersionState
from maas_inference.worker_report import WorkerReport, described
from maas_package.manifest import MANIFEST_NAME, Manifest
from maas_package.package import Package
from maas_runtime.failures import Failure, Overloaded, Unavailable

logger = logging.getLogger(__name__)

_STEADY_SECONDS = 10.0
"""A worker that ran for so long was well; its end is not counted with the one before."""
_SLOT_SECONDS = 10.0
"""After so long a start lets others begin: what loads for minutes, or for ever, must not hold them up."""
COMPUTE_TIMEOUT_SECONDS = 30.0
"""How long a batch may compute at least, unless the deployment says otherwise."""
COMPUTE_TIMEOUT_FACTOR = 20.0
"""How many times longer than measured a full batch may compute."""


class Packages(Protocol):
    """Where a version's files are."""

    def fetch(self, version: VersionName, trusted_keys: Sequence[str]) -> Path:
        """Return the folder, when there are trusted keys only if one of them signed it; blocks. Raises a Failure."""

    def discard(self, version: VersionName) -> None:
        """Forget what is stored; blocks."""

    def trim(self, needed: Collection[VersionName]) -> None:
        """Forget what is stored beyond a bound and not needed; blocks."""


@dataclass(frozen=True, slots=True)
class KeeperOptions:
    """How the workers of one version are run."""

    worker: WorkerOptions
    engine: str = ""
    """NAME or NAME:PRECISION; empty for the fastest servable."""
    trusted_keys: tuple[str, ...] = ()
    """When there is any, a package is loaded only if one of them signed it."""
    compute_timeout_seconds: float = 0.0
    """0: by the measured cost of a full batch."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is known of a version here."""

    state: VersionState = "loading"
    message: str = ""
    refusal: str = ""
    report: WorkerReport | None = None
    """Of the newest worker that was warm."""
    socket_path: str = ""
    pid: int = 0
    load_seconds: float = 0.0
    restart_count: int = 0


class Keeper:
    """One version of one deployment; calls `on_change` whenever `keeping` is another, or it waits for room.

    It has a worker, or is about to get one, while it is `wanted`. Before each start it waits until it is admitted: the
    replica sees to the memory. A worker that has to go is left by the fronts first; then the replica says `end_worker`.
    """

    def __init__(
        self,
        deployment: DeploymentName,
        version: VersionName,
        packages: Packages,
        options: KeeperOptions,
        starts: asyncio.Semaphore,
        names: Iterator[str],
        on_change: Callable[[], None],
    ) -> None:
        self.deployment = deployment
        self.version = version
        self.keeping = Keeping()
        self.package_bytes = 0
        """Size of the package's files, once it is here."""
        self.asked_at = time.monotonic()
        """When somebody last wanted it to be loaded, or got that."""
        self.ready_at = 0.0
        """When its newest worker was warm."""
        self.is_wanted = False
        self.waits_for_room = False
        self.holds_memory = False
        """Whether it has a worker, starting and ending ones included."""
        self.is_leaving = False
        """Whether its worker has to go: fronts are to leave it."""
        self._packages = packages
        self._options = options
        self._starts = starts
        self._names = names
        self._on_change = on_change
        self._woken = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._is_ending = False
        self._worker: Worker | None = None
        self._kill_message = ""

    @property
    def is_ready(self) -> bool:
        """Whether a warm worker listens."""
        return self.keeping.state == "ready"

    @property
    def compute_timeout_seconds(self) -> float:
        """How long one batch may compute before its worker is taken for hung."""
        if self._options.compute_timeout_seconds:
            return self._options.compute_timeout_seconds
        curve = self.keeping.report.cost_curve if self.keeping.report else ()
        slowest = max((seconds for _, seconds in curve), default=0.0)
        return max(COMPUTE_TIMEOUT_SECONDS, COMPUTE_TIMEOUT_FACTOR * slowest)

    def served(self, weight: int) -> ServedVersion:
        """Return the version as the model table has it."""
        keeping = self.keeping
        report = keeping.report or WorkerReport()
        return ServedVersion(
            version=str(self.version.number),
            model=self.version.model_id,
            weight=weight,
            state=keeping.state,
            message=keeping.message,
            refusal=keeping.refusal,
            socket_path=keeping.socket_path,
            engine=report.engine,
            precision=report.precision,
            inputs=report.inputs,
            outputs=report.outputs,
            labels=report.labels,
            task=report.task,
            rows_apart=report.rows_apart,
            text_input=report.text_input,
            padded_input=report.padded_input,
            padding_id=report.padding_id,
            lanes=report.lanes,
            max_batch_rows=report.max_batch_rows or self._options.worker.max_batch_rows,
            cost_curve=report.cost_curve,
        )

    def want(self) -> None:
        """Have a worker from now on."""
        if not self.is_wanted:
            self.is_wanted = True
            self.asked_at = time.monotonic()
            self._woken.set()
            self._change(state="loading", message="", refusal="")

    def unwant(self, *, refusal: str = "", message: str = "") -> None:
        """Have no worker from now on; `refusal` and `message` are what callers are told, if anything."""
        if self.is_wanted or (refusal, message) != (self.keeping.refusal, self.keeping.message):
            self.is_wanted = self.waits_for_room = False
            self._woken.set()
            self._leave(state="unloaded", message=message, refusal=refusal)

    def configure(self, options: KeeperOptions) -> None:
        """Run workers like this from now on; one that was started otherwise is replaced."""
        if options == self._options:
            return
        is_other_worker = (options.worker, options.engine) != (self._options.worker, self._options.engine)
        self._options = options
        self._woken.set()
        if is_other_worker and self.holds_memory:
            self._leave(state="restarting", message="it gets other settings")

    def admit(self, *, message: str = "") -> None:
        """Let it start: there is room, or `message` says why there is not and it starts all the same."""
        self.waits_for_room = False
        self.holds_memory = True
        self._woken.set()
        self._change(message=message)

    def wait_for_room(self, message: str) -> None:
        """Say why it does not start yet."""
        if message != self.keeping.message:
            self._change(message=message)

    def end_worker(self) -> None:
        """End the worker that has to go: it answers what fronts still send, and goes."""
        if self._serving is not None and not self._is_ending:
            self._is_ending = True  # a second time would not let it answer any more
            self._serving.cancel()

    def kill(self, message: str = "") -> None:
        """End the worker at once."""
        if self._worker is not None:
            self._kill_message = message
            self._worker.kill()

    async def run(self) -> None:
        """Keep the version until cancelled; then the worker answers what it has and ends."""
        failures = 0
        while True:
            started = time.monotonic()
            try:
                package = await self._package()
                if not self.is_wanted:
                    self._describe(package)
                    await self._until(lambda: self.is_wanted)
                    failures = 0
                elif await self._is_admitted():
                    await self._serve(package)
            except Failure as failure:
                failures += 1
                await self._failed(failure, failures)
                continue
            except Exception as error:
                # A bug at one version must not end the manager, and the others with it.
                logger.exception("a version could not be kept", extra={"version": str(self.version)})
                failures += 1
                await self._failed(Unavailable(f"internal error: {type(error).__name__}"), failures)
                continue
            failures = 0 if time.monotonic() - started > _STEADY_SECONDS or not self.is_wanted else failures + 1
            if failures > 1:
                await self._pause(retry_seconds(failures - 1, at_most=60.0))

    async def _package(self) -> Package:
        folder = await asyncio.to_thread(self._packages.fetch, self.version, self._options.trusted_keys)
        manifest = Manifest.from_json(await asyncio.to_thread((folder / MANIFEST_NAME).read_bytes))
        self.package_bytes = sum(file.size_bytes for file in manifest.files)
        return Package(folder, manifest)  # the worker checks the other files

    def _describe(self, package: Package) -> None:
        """Say what callers may send, so that a request can wait for the worker that it brings about."""
        report = self.keeping.report or described(package.manifest, self._options.worker.max_batch_rows)
        message = self.keeping.message if self.keeping.refusal else ""
        self._change(state="unloaded", message=message, report=report)

    async def _is_admitted(self) -> bool:
        """Wait for room; False when nobody wants it any more."""
        self.waits_for_room = True
        self._on_change()
        await self._until(lambda: self.holds_memory or not self.is_wanted)
        if not self.is_wanted:
            self.holds_memory = self.is_leaving = False
            self._on_change()
        return self.holds_memory

    async def _serve(self, package: Package) -> None:
        """Have a worker until it ends or has to go."""
        self._serving = asyncio.ensure_future(self._serve_once(package))
        try:
            await asyncio.wait({self._serving})
        finally:
            self.end_worker()
            await asyncio.wait({self._serving})
            serving, self._serving = self._serving, None
            self.holds_memory = self.is_leaving = self._is_ending = False
            self._on_change()
        if not serving.cancelled():
            serving.result()

    async def _serve_once(self, package: Package) -> None:
        """Start a worker and return when it has ended by itself."""
        begun = time.monotonic()
        async with (
            self._start_slot() as started,
            running_worker(package.folder, self._options.engine, self._options.worker, next(self._names)) as worker,
        ):
            started()
            self._worker = worker
            try:
                self._ready(worker, time.monotonic() - begun)
                status = await worker.until_ended()
            finally:
                self._worker = None
        ended, self._kill_message = self._kill_message or f"the worker ended with status {status}", ""
        if not self.is_leaving:
            self._change(
                state="restarting",
                message=ended,
                socket_path="",
                pid=0,
                restart_count=self.keeping.restart_count + 1,
            )
        logger.warning("worker ended", extra={"version": str(self.version), "status": status, "detail": ended})

    @asynccontextmanager
    async def _start_slot(self) -> AsyncIterator[Callable[[], None]]:
        """Give what says that the start is over, which it is after 10 s in any case."""
        await self._starts.acquire()
        held = [self._starts]

        def release() -> None:
            while held:
                held.pop().release()

        timer = asyncio.get_running_loop().call_later(_SLOT_SECONDS, release)
        try:
            yield release
        finally:
            timer.cancel()
            release()

    def _ready(self, worker: Worker, load_seconds: float) -> None:
        if self.is_leaving:
            return
        self.asked_at = self.ready_at = time.monotonic()
        self._change(
            state="ready",
            message="",
            refusal="",
            report=worker.report,
            socket_path=worker.socket_path,
            pid=worker.pid,
            load_seconds=load_seconds,
        )
        logger.info(
            "version ready", extra={"version": str(self.version), "pid": worker.pid, "seconds": round(load_seconds, 3)}
        )

    async def _failed(self, failure: Failure, failures: int) -> None:
        # What is away comes back; what is wrong with the package does not, unless somebody mends it.
        is_away = isinstance(failure, Unavailable | Overloaded)
        self._change(
            state=self.keeping.state if is_away else "failed",
            message=failure.message,
            socket_path="",
            pid=0,
        )
        logger.warning(
            "version cannot be loaded",
            extra={"version": str(self.version), "reason": failure.reason, "detail": failure.message},
        )
        if not is_away:
            await asyncio.to_thread(self._packages.discard, self.version)
        await self._pause(retry_seconds(failures, at_most=5.0 if is_away else 60.0))
        if self.keeping.state == "failed":
            self._change(state="loading")

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._woken.clear()
            await self._woken.wait()

    async def _pause(self, seconds: float) -> None:
        """Wait before the next try; other settings may make it worth trying at once."""
        self._woken.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), seconds)

    def _leave(self, *, state: VersionState, message: str, refusal: str = "") -> None:
        self.is_leaving = self.holds_memory
        self._change(state=state, message=message, refusal=refusal, socket_path="", pid=0)

    def _change(self, **changes: object) -> None:
        self.keeping = replace(self.keeping, **changes)  # type: ignore[arg-type]  # fields of Keeping
        self._on_change()


def retry_seconds(failures: int, *, at_most: float) -> float:
    """Return how long to wait after so many failures in a row: 0.5 s, then twice as long each time."""
    return min(at_most, 0.5 * 2.0 ** min(failures - 1, 16))
