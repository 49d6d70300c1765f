"""Keeps one version of a deployment loaded, whatever happens to its worker."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from maas.names import DeploymentName, VersionName
from maas_inference.manager.worker_process import Worker, WorkerOptions, running_worker
from maas_inference.table import ServedVersion, VersionState
from maas_inference.worker_report import WorkerReport
from maas_runtime.failures import Failure, Overloaded, Unavailable

logger = logging.getLogger(__name__)

_STEADY_SECONDS = 10.0
"""A worker that ran for so long was well; its end is not counted with the one before."""


class Packages(Protocol):
    """Where a version's files are."""

    def fetch(self, version: VersionName) -> Path:
        """Return the folder; blocks. Raises a Failure."""

    def discard(self, version: VersionName) -> None:
        """Forget what is stored; blocks."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is known of a version here."""

    state: VersionState = "loading"
    message: str = ""
    report: WorkerReport | None = None
    """Of the newest worker that was warm."""
    socket_path: str = ""
    pid: int = 0
    load_seconds: float = 0.0
    restart_count: int = 0


class Keeper:
    """One version of one deployment; calls `on_change` whenever `keeping` is another."""

    def __init__(
        self,
        deployment: DeploymentName,
        version: VersionName,
        packages: Packages,
        options: WorkerOptions,
        starts: asyncio.Semaphore,
        names: Iterator[str],
        on_change: Callable[[], None],
    ) -> None:
        self.deployment = deployment
        self.version = version
        self.keeping = Keeping()
        self._packages = packages
        self._options = options
        self._starts = starts
        self._names = names
        self._on_change = on_change
        self._worker: Worker | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a warm worker listens."""
        return self.keeping.state == "ready"

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
            max_batch_rows=report.max_batch_rows or self._options.max_batch_rows,
            cost_curve=report.cost_curve,
        )

    async def run(self) -> None:
        """Keep the version loaded until cancelled; then the worker answers what it has and ends."""
        failures = 0
        while True:
            started = time.monotonic()
            try:
                await self._serve_once()
            except Failure as failure:
                failures += 1
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
                await asyncio.sleep(retry_seconds(failures, at_most=5.0 if is_away else 60.0))
                if self.keeping.state == "failed":
                    self._change(state="loading")
                continue
            failures = 0 if time.monotonic() - started > _STEADY_SECONDS else failures + 1
            if failures > 1:
                await asyncio.sleep(retry_seconds(failures - 1, at_most=60.0))

    async def _serve_once(self) -> None:
        """Start a worker and return when it has ended by itself."""
        begun = time.monotonic()
        folder = await asyncio.to_thread(self._packages.fetch, self.version)
        await self._starts.acquire()
        is_starting = True
        try:
            async with running_worker(folder, self._options, next(self._names)) as worker:
                self._starts.release()
                is_starting = False
                self._worker = worker
                self._serving(worker, time.monotonic() - begun)
                status = await worker.until_ended()
        finally:
            self._worker = None
            if is_starting:
                self._starts.release()
        self._change(
            state="restarting",
            message=f"the worker ended with status {status}",
            socket_path="",
            pid=0,
            restart_count=self.keeping.restart_count + 1,
        )
        logger.warning("worker ended", extra={"version": str(self.version), "status": status})

    def kill(self) -> None:
        """End the worker at once: the manager ends."""
        if self._worker is not None:
            self._worker.kill()

    def _serving(self, worker: Worker, load_seconds: float) -> None:
        self._change(
            state="ready",
            message="",
            report=worker.report,
            socket_path=worker.socket_path,
            pid=worker.pid,
            load_seconds=load_seconds,
        )
        logger.info(
            "version ready", extra={"version": str(self.version), "pid": worker.pid, "seconds": round(load_seconds, 3)}
        )

    def _change(self, **changes: object) -> None:
        self.keeping = replace(self.keeping, **changes)  # type: ignore[arg-type]  # fields of Keeping
        self._on_change()


def retry_seconds(failures: int, *, at_most: float) -> float:
    """Return how long to wait after so many failures in a row: 0.5 s, then twice as long each time."""
    return min(at_most, 0.5 * 2.0 ** min(failures - 1, 16))
