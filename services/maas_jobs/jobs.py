"""The jobs of one service: what callers ask of them, and the work on them."""

import asyncio
import contextlib
import hashlib
import logging
import secrets
import time
from bisect import bisect_left, insort
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from maas.names import JobName
from maas_jobs.durable import DurableJobs
from maas_jobs.files import JobFiles
from maas_jobs.job import (
    CANCELLED_ERROR,
    MAX_LOG_LINES,
    Job,
    JobError,
    JobNotFound,
    JobQueueFull,
    JobState,
    JsonObject,
    LogLine,
    ServiceStopping,
    Step,
    StepLimits,
)
from maas_jobs.metrics import JobMetrics
from maas_jobs.reports import Log, Metrics, Progress, Report
from maas_jobs.step import StepRequest, write_request
from maas_jobs.supervision import StepFailed, supervise_step
from maas_runtime.completion import to_its_end
from maas_runtime.failures import Failure
from maas_runtime.paging import page_size_or_default, page_token, read_page_token

logger = logging.getLogger(__name__)

MAX_WAITING = 100
MAX_BEGINNINGS = 5
"""How often a process may begin to work on a job; each time but the last it died of it, or with it."""

_PUBLISH_SECONDS = 0.25
_RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0)
_STORE_RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest first, without log lines; the token asks for what follows, empty at the end."""

    jobs: tuple[Job, ...]
    next_page_token: str


class Jobs:
    """Creates, shows and cancels jobs, and does their steps. What it shows is stored before it is shown."""

    def __init__(
        self,
        collection: str,
        steps: Sequence[Step],
        limits: StepLimits,
        store: DurableJobs,
        folder: Path,
        registry_address: str,
        metrics: JobMetrics,
        clock: Callable[[], float] = time.time,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._collection = collection
        self._steps = {step.name: step for step in steps}
        self._limits = limits
        self._store = store
        self._files = JobFiles(folder)
        self._registry_address = registry_address
        self._metrics = metrics
        self._clock = clock
        self._max_waiting = max_waiting
        self._tracked: dict[str, _Tracked] = {}
        # By time of creation, then id: what pages are cut from.
        self._order: list[tuple[float, str]] = []
        self._creating = asyncio.Lock()
        self._stopping = False

    async def __aenter__(self) -> Self:
        """Load all jobs; unfinished ones go on. Raises StorageFull and the like."""
        for stored in await self._store.read_all():
            job = stored.job
            if stored.abandoned:  # killed while it was being taken out of the queue
                job = job.ended(self._clock(), None, CANCELLED_ERROR)
                await self._store.write(job)
            if job.state.is_final:
                await asyncio.to_thread(self._files.remove_work, job.job_id)
            self._track(job)
        self._store.start(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop working; what is unfinished stays so, and goes on after the next start."""
        self._store.stop()
        for tracked in self._tracked.values():
            if tracked.task is not None:
                tracked.task.cancel()

    async def create(self, spec: JsonObject, request_id: str) -> Job:
        """Store a job and return it; the one that there is when `request_id`, if not empty, was used before.

        Raises JobQueueFull, StorageFull and the like.
        """
        job_id = secrets.token_hex(8) if not request_id else self._id_of_request(request_id)
        async with self._creating:
            if job_id in self._tracked:
                return self._tracked[job_id].shown
            if self._count(JobState.QUEUED) >= self._max_waiting:
                raise JobQueueFull(
                    f"{self._max_waiting} jobs are waiting already; try again when some have ended, or cancel one",
                    retry_after_seconds=30.0,
                )
            job = Job(job_id, spec, create_time=self._clock())
            # A caller who leaves must not leave half a job behind.
            await asyncio.shield(self._add(job))
        return job

    async def find(self, request_id: str) -> Job | None:
        """Return the job that was created with this request id."""
        tracked = self._tracked.get(self._id_of_request(request_id)) if request_id else None
        return None if tracked is None else await self._with_log(tracked)

    async def get(self, job_id: str) -> Job:
        """Return a job with its log lines. Raises JobNotFound."""
        return await self._with_log(self._find(job_id))

    def page(self, page_size: int, token: str) -> JobPage:
        """Return a page of jobs, newest first; a size of 0 stands for 100. Raises PageTokenInvalid."""
        last = read_page_token(self._collection, token, _parse_position)
        end = len(self._order) if last is None else bisect_left(self._order, last)
        begin = max(0, end - page_size_or_default(page_size))
        jobs = tuple(replace(self._tracked[job_id].shown, log_lines=()) for _, job_id in self._order[begin:end])
        return JobPage(jobs[::-1], page_token(self._collection, _position_text(self._order[begin])) if begin else "")

    async def watch(self, job_id: str) -> AsyncIterator[Job]:
        """Yield the job now, after each change, and for the last time in its final state.

        Changes that come faster than they are taken are seen as one. Raises JobNotFound, and ServiceStopping when the
        process ends before the job.
        """
        tracked = self._find(job_id)
        while True:
            changed = tracked.changed
            job = await self._with_log(tracked)
            yield job
            if job.state.is_final:
                return
            await changed.wait()
            if self._stopping:
                raise ServiceStopping("the service is being stopped; the job goes on when it is back: watch it again")

    def end_watches(self) -> None:
        """End all watches, now and from now on: the process is being stopped."""
        self._stopping = True
        for tracked in self._tracked.values():
            tracked.changed.set()

    async def cancel(self, job_id: str) -> Job:
        """Ask a job to stop; a final one stays as it is. Raises JobNotFound, StorageFull and the like."""
        tracked = self._find(job_id)
        await asyncio.shield(self._cancel(tracked))
        return await self._with_log(tracked)

    async def begin(self, job_id: str) -> bool:
        """For the store: get ready to work on a job."""
        tracked = self._find(job_id)
        async with tracked.writing:
            if tracked.shown.state.is_final:
                return False
            job = tracked.newest.begun(self._clock())
            if job.attempts > MAX_BEGINNINGS:
                message = f"the service ended {MAX_BEGINNINGS} times while it worked on this job"
                job = job.ended(self._clock(), None, JobError("INTERNAL", "JOB_ABANDONED", message))
            elif job.attempts > 1:
                tracked.log(self._clock(), "the service was restarted; going on")
            await self._show(tracked, job)
        logger.info("job begun", extra={"job": self._name(job_id), "attempt": job.attempts})
        return not job.state.is_final

    async def run(self, job_id: str, step: str, previous: JsonObject) -> JsonObject:
        """For the store: do one step. A failure is a value with the key `error`, since exceptions end the workflow."""
        tracked = self._find(job_id)
        if tracked.is_cancelling():
            return _error_outcome(CANCELLED_ERROR)
        tracked.task = asyncio.current_task()
        try:
            return {"result": await self._run_step(tracked, self._steps[step], previous.get("result", {}))}
        except StepFailed as failure:
            return _error_outcome(failure.error)
        except asyncio.CancelledError:
            if tracked.is_cancelling():
                return _error_outcome(CANCELLED_ERROR)
            raise  # the service stops
        except Exception:
            logger.exception("bug in a job", extra={"job": self._name(job_id), "step": step})
            return _error_outcome(JobError("INTERNAL", "JOB_BROKE", f"internal error in the step {step}"))
        finally:
            tracked.task = None

    async def finish(self, job_id: str, outcome: JsonObject) -> None:
        """For the store: record how a job ended."""
        tracked = self._find(job_id)
        error = JobError(**outcome["error"]) if "error" in outcome else None
        while True:
            try:
                async with tracked.writing:
                    await self._show(tracked, tracked.newest.ended(self._clock(), outcome.get("result"), error))
                break
            except Failure as failure:
                logger.warning("job end not stored yet", extra={"job": self._name(job_id), "detail": failure.message})
                await asyncio.sleep(_STORE_RETRY_SECONDS)
        await asyncio.to_thread(self._files.remove_work, job_id)
        logger.info("job ended", extra={"job": self._name(job_id), "state": tracked.shown.state.value})

    async def _add(self, job: Job) -> None:
        # Before it is in the store, since the store may begin it at once.
        self._track(job)
        try:
            await self._store.add(job)
        except BaseException:
            self._forget(job)
            raise

    async def _cancel(self, tracked: "_Tracked") -> None:
        async with tracked.writing:
            match tracked.shown.state:
                case JobState.QUEUED:
                    await self._store.drop(tracked.shown.job_id)
                    await self._show(tracked, tracked.newest.ended(self._clock(), None, CANCELLED_ERROR))
                case JobState.RUNNING:
                    await self._show(tracked, tracked.newest.moved(JobState.CANCELLING))
                    if tracked.task is not None:
                        tracked.task.cancel()

    async def _run_step(self, tracked: "_Tracked", step: Step, previous: JsonObject) -> JsonObject:
        job_id = tracked.shown.job_id
        folder = await asyncio.to_thread(self._files.work_folder, job_id)
        request = StepRequest(
            folder,
            self._name(job_id),
            tracked.shown.spec,
            previous,
            self._registry_address,
            self._limits.memory_bytes,
        )
        await asyncio.to_thread(write_request, request)
        before = _share_before(step, self._steps.values())
        tracked.advance(before, step.name)

        def take(report: Report) -> None:
            match report:
                case Progress(share, phase):
                    tracked.advance(before + step.share * share, phase)
                case Metrics(values):
                    tracked.measure(values)
                case Log(text):
                    tracked.log(self._clock(), text)

        publishing = asyncio.create_task(self._publish_changes(tracked))
        try:
            for wait_seconds in (*_RETRY_SECONDS, None):
                try:
                    return await supervise_step(step, self._limits, folder, take)
                except StepFailed as failure:
                    if failure.error.code != "UNAVAILABLE" or wait_seconds is None:
                        raise
                    tracked.log(self._clock(), f"{failure.error.message}; trying again in {wait_seconds:g} s")
                    await asyncio.sleep(wait_seconds)
            raise AssertionError("the last attempt returns or raises")
        finally:
            publishing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await publishing

    async def _publish_changes(self, tracked: "_Tracked") -> None:
        """Store and show what the step reports, a few times a second at most."""
        while True:
            await tracked.reported.wait()
            tracked.reported.clear()
            try:
                async with tracked.writing:
                    # Lines that have been taken are written before the last word, though the step ends meanwhile.
                    await to_its_end(self._show(tracked, tracked.newest))
            except Failure as failure:
                logger.warning("progress not stored", extra={"detail": failure.message})
            await asyncio.sleep(_PUBLISH_SECONDS)

    async def _show(self, tracked: "_Tracked", job: Job) -> None:
        """Store the job with its new log lines, then show it. The caller holds `tracked.writing`."""
        lines = tracked.take_new_lines()
        if lines:
            await asyncio.to_thread(self._files.append_log, job.job_id, lines)
        await self._store.write(job)
        previous = tracked.shown.state
        # Reports go on coming while it is being stored.
        tracked.newest = replace(
            job,
            progress=max(job.progress, tracked.newest.progress),
            metrics=tracked.newest.metrics,
            phase=tracked.newest.phase if not job.state.is_final else job.phase,
        )
        tracked.shown = replace(job, log_lines=() if job.state.is_final else tuple(tracked.lines))
        tracked.notify()
        self._count_states()
        if job.state.is_final and not previous.is_final:
            self._metrics.ended.labels(job.state.value, job.error.reason if job.error else "").inc()
            if job.start_time is not None and job.end_time is not None:
                self._metrics.seconds.observe(job.end_time - job.start_time)

    async def _with_log(self, tracked: "_Tracked") -> Job:
        """Return the job with its log lines, which are kept in memory only while it can change."""
        job = tracked.shown
        if not job.state.is_final:
            return job
        return replace(job, log_lines=await asyncio.to_thread(self._files.read_log, job.job_id))

    def _track(self, job: Job) -> None:
        lines = () if job.state.is_final else self._files.read_log(job.job_id)
        self._tracked[job.job_id] = _Tracked(replace(job, log_lines=lines))
        insort(self._order, (job.create_time, job.job_id))
        self._count_states()

    def _forget(self, job: Job) -> None:
        del self._tracked[job.job_id]
        self._order.remove((job.create_time, job.job_id))
        self._count_states()

    def _find(self, job_id: str) -> "_Tracked":
        tracked = self._tracked.get(job_id)
        if tracked is None:
            name = self._name(job_id)
            raise JobNotFound(f"no job {name}", name=name)
        return tracked

    def _count(self, *states: JobState) -> int:
        return sum(tracked.shown.state in states for tracked in self._tracked.values())

    def _count_states(self) -> None:
        self._metrics.waiting.set(self._count(JobState.QUEUED))
        self._metrics.running.set(self._count(JobState.RUNNING, JobState.CANCELLING))

    def _name(self, job_id: str) -> str:
        return str(JobName(self._collection, job_id))

    def _id_of_request(self, request_id: str) -> str:
        # Hashed, since a request id may hold what an id may not.
        return hashlib.sha256(f"{self._collection}/{request_id}".encode()).hexdigest()[:16]


class _Tracked:
    """One job in memory: as it is stored and shown, and as its step has reported it since."""

    def __init__(self, job: Job) -> None:
        self.shown = job
        self.newest = replace(job, log_lines=())
        self.lines = list(job.log_lines)
        self.changed = asyncio.Event()
        self.reported = asyncio.Event()
        self.writing = asyncio.Lock()
        self.task: asyncio.Task[JsonObject] | None = None
        self._stored_lines = self._last_number

    def advance(self, progress: float, phase: str) -> None:
        self.newest = self.newest.advanced(progress, phase)
        self.reported.set()

    def measure(self, values: Mapping[str, float]) -> None:
        self.newest = replace(self.newest, metrics={**self.newest.metrics, **values})
        self.reported.set()

    def log(self, now: float, text: str) -> None:
        self.lines.append(LogLine(self._last_number + 1, now, text))
        self.reported.set()

    def take_new_lines(self) -> Sequence[LogLine]:
        """Return the lines that are not stored yet, and forget those that are too old to be shown."""
        new = [line for line in self.lines if line.number > self._stored_lines]
        self._stored_lines = self._last_number
        del self.lines[:-MAX_LOG_LINES]
        return new

    def is_cancelling(self) -> bool:
        return self.shown.state is JobState.CANCELLING

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def _last_number(self) -> int:
        return self.lines[-1].number if self.lines else 0


def _error_outcome(error: JobError) -> JsonObject:
    return {"error": {"code": error.code, "reason": error.reason, "message": error.message}}


def _share_before(step: Step, steps: Iterable[Step]) -> float:
    share = 0.0
    for other in steps:
        if other is step:
            return share
        share += other.share
    raise ValueError(step.name)


def _position_text(position: tuple[float, str]) -> str:
    create_time, job_id = position
    return f"{create_time!r} {job_id}"


def _parse_position(text: str) -> tuple[float, str]:
    create_time, job_id = text.split(" ")
    return float(create_time), job_id
