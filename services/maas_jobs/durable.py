"""The job store: DBOS on one SQLite file. The only module that knows DBOS; docs/decisions/0008 says how it is used.

A job is a DBOS workflow on a DBOS queue; its record (Job.to_json) is the workflow's attributes. Each step of the job is
a DBOS step: one that has finished is not run again after the process was killed.
"""

import asyncio
import concurrent.futures
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from dbos import DBOS, EnqueueOptions, Serializer, WorkflowStatus
from sqlalchemy.exc import DBAPIError

from maas_jobs.job import Job, JsonObject
from maas_runtime.database.sqlite import failure_of
from maas_runtime.storage import translated_disk_errors

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL_SECONDS = 0.25
"""How often the queue is looked at: idle, 0.25 s costs 1.6 % of a core, 1 s costs 1.2 %, 0.1 s costs 3.9 %."""

_WORKFLOW = "job"
_QUEUE = "jobs"
# Jobs go on after an update, and after a restart of the one process that works on this file.
_VERSION = "1"
_EXECUTOR = "one"
_STOP_SECONDS = 5.0


class Worker(Protocol):
    """Who does the work of a job; called on the event loop. Each may be called again after a kill."""

    def begin(self, job_id: str) -> Coroutine[Any, Any, bool]:
        """Get ready; False when there is nothing to do."""

    def run(self, job_id: str, step: str, previous: JsonObject) -> Coroutine[Any, Any, JsonObject]:
        """Do one step and return what it came to, given what the one before did. The key `error` ends the job."""

    def finish(self, job_id: str, outcome: JsonObject) -> Coroutine[Any, Any, None]:
        """Record what the last step came to."""


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as it is in the store; `abandoned` when DBOS will not run it, whatever its record says."""

    job: Job
    abandoned: bool


class DurableJobs:
    """Keeps jobs and has a Worker do them, `concurrent` at a time, oldest first. One at a time in a process: DBOS is
    global.
    """

    def __init__(
        self, name: str, database: Path, steps: Sequence[str], concurrent: int, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._name = name
        self._database = database
        self._steps = tuple(steps)
        self._concurrent = concurrent
        self._poll_seconds = poll_seconds
        # One thread, so that what is written later stays.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="job-store")
        self._worker: Worker | None = None
        self._stopping = False
        self._calls = 0
        self._changed = threading.Condition()

    async def __aenter__(self) -> Self:
        """Open the store. Raises StorageFull and the like."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._call(self._launch)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def start(self, worker: Worker) -> None:
        """Begin to work on what is waiting, and go on with what was left unfinished."""
        with self._changed:
            self._worker = worker
            self._changed.notify_all()

    def stop(self) -> None:
        """Ask nothing more of the Worker."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    async def close(self) -> None:
        """Stop, and wait for what the Worker is still doing, which it has to end by itself."""
        self.stop()
        await asyncio.to_thread(self._wait_for_calls)
        await self._call(DBOS.destroy)
        self._thread.shutdown()

    async def add(self, job: Job) -> None:
        """Put a new job into the queue. Raises StorageFull and the like."""
        options: EnqueueOptions = {
            "workflow_name": _WORKFLOW,
            "queue_name": _QUEUE,
            "workflow_id": job.job_id,
            "app_version": _VERSION,
            "attributes": job.to_json(),
        }
        await self._call(DBOS.enqueue_workflow_with_options, options, job.job_id)

    async def write(self, job: Job) -> None:
        """Store the job as it is now. Raises StorageFull and the like."""
        await self._call(DBOS.update_workflow_attributes, job.job_id, job.to_json())

    async def drop(self, job_id: str) -> None:
        """Take a waiting job out of the queue; it will not be begun. Raises StorageFull and the like."""
        await self._call(DBOS.cancel_workflow, job_id)

    async def read_all(self) -> list[StoredJob]:
        """Return all jobs, in no order. Raises StorageFull and the like."""
        return [_stored(status) for status in await self._call(self._list)]

    def _launch(self) -> None:
        self._database.parent.mkdir(parents=True, exist_ok=True)
        DBOS(
            config={
                "name": self._name,
                "system_database_url": f"sqlite:///{self._database}",
                "application_version": _VERSION,
                "executor_id": _EXECUTOR,
                "serializer": _Json(),
                "log_level": "ERROR",
                "scheduler_polling_interval_sec": 3600.0,
                # Only DBOS.recv and the like need it; a thread sleeps this long, and ending waits for it.
                "notification_listener_polling_interval_sec": self._poll_seconds,
            }
        )
        _log_with_the_others()

        @DBOS.workflow(name=_WORKFLOW, max_recovery_attempts=None)
        def job(job_id: str) -> JsonObject:
            return self._work(job_id)

        DBOS.launch()
        DBOS.register_queue(
            _QUEUE,
            worker_concurrency=self._concurrent,
            polling_interval_sec=self._poll_seconds,
            on_conflict="always_update",
        )

    def _list(self) -> list[WorkflowStatus]:
        return DBOS.list_workflows(name=_WORKFLOW, load_input=False, load_output=False)

    def _wait_for_calls(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._calls == 0, timeout=_STOP_SECONDS)

    def _work(self, job_id: str) -> JsonObject:
        """The workflow; runs in a thread of DBOS, and runs again from the start after a kill: finished steps are then
        answered from the store.
        """
        outcome: JsonObject = {}
        if not self._ask(lambda worker: worker.begin(job_id)):
            return outcome
        for step in self._steps:
            try:
                outcome = DBOS.run_step({"name": step}, self._do_step, job_id, step, outcome)
            except DBAPIError as error:  # what the step came to could not be stored
                outcome = {"error": _store_error(error)}
            if "error" in outcome:
                break
        self._ask(lambda worker: worker.finish(job_id, outcome))
        return outcome

    def _do_step(self, job_id: str, step: str, previous: JsonObject) -> JsonObject:
        return self._ask(lambda worker: worker.run(job_id, step, previous))

    def _ask(self, question: Callable[[Worker], Coroutine[Any, Any, T]]) -> T:
        """Have the Worker do something on the event loop, and wait for it here."""
        with self._changed:
            self._changed.wait_for(lambda: self._worker is not None or self._stopping)
            if self._worker is None or self._stopping:
                raise _ServiceStops
            self._calls += 1
        try:
            return asyncio.run_coroutine_threadsafe(question(self._worker), self._loop).result()
        except concurrent.futures.CancelledError:
            raise _ServiceStops from None
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()

    def _call(self, function: Callable[..., T], *arguments: Any) -> Awaitable[T]:
        """Call DBOS in a thread: it blocks."""
        return self._loop.run_in_executor(self._thread, self._translated, function, arguments)

    def _translated(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        try:
            with translated_disk_errors(self._database.parent):
                return function(*arguments)
        except DBAPIError as error:
            failure = failure_of(error, self._database)
            if failure is None:
                raise
            raise failure from error


class _ServiceStops(BaseException):
    """Ends a workflow's thread without a result, so that DBOS takes it up again when the service is back.

    DBOS records every Exception as the workflow's end.
    """


class _Json(Serializer):
    """Instead of pickle, which is what DBOS writes by default."""

    def serialize(self, data: Any) -> str:
        return json.dumps(data, default=str)

    def deserialize(self, serialized_data: str) -> Any:
        return json.loads(serialized_data)

    def name(self) -> str:
        return "maas_json"


def _store_error(error: DBAPIError) -> JsonObject:
    logger.error("job store failed", extra={"detail": str(error.orig)})
    message = f"the job store could not be written ({error.orig}); look after the disk, then create the job again"
    return {"code": "UNAVAILABLE", "reason": "JOB_STORE_FAILED", "message": message}


def _stored(status: WorkflowStatus) -> StoredJob:
    if status.attributes is None:
        raise RuntimeError(f"{status.workflow_id} has no record")
    job = Job.from_json(status.workflow_id, status.attributes)
    return StoredJob(job, abandoned=not job.state.is_final and status.status not in ("ENQUEUED", "PENDING"))


def _log_with_the_others() -> None:
    """DBOS adds a handler of its own to its logger; let the process's handler have the lines instead."""
    dbos_logger = logging.getLogger("dbos")
    dbos_logger.handlers.clear()
    dbos_logger.propagate = True
