"""What a job is: a value that moves through states, and what its steps say of their work."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Self, TypeAlias

from maas_runtime.failures import NotFound, Overloaded, Unavailable

JsonObject: TypeAlias = dict[str, Any]

MAX_LOG_LINES = 200
MAX_LOG_CHARACTERS = 1000


class JobNotFound(NotFound):
    """There is no such job."""

    reason = "JOB_NOT_FOUND"


class JobQueueFull(Overloaded):
    """As many jobs are waiting as may."""

    reason = "JOB_QUEUE_FULL"


class ServiceStopping(Unavailable):
    """The process ends while somebody watches a job."""

    reason = "JOB_SERVICE_STOPPING"


class JobState(Enum):
    """Where a job is in its life; protos/maas/jobs/v1/job_state.proto says what each means."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether nothing can follow."""
        return not NEXT_STATES[self]


NEXT_STATES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLING}),
    JobState.CANCELLING: frozenset({JobState.CANCELLED, JobState.SUCCEEDED, JobState.FAILED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


class IllegalTransition(Exception):
    """A bug: the state machine has no such transition."""


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job stopped: the name of a google.rpc.Code, a reason, a sentence."""

    code: str
    reason: str
    message: str


CANCELLED_ERROR = JobError("CANCELLED", "JOB_CANCELLED", "the job was cancelled on request")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log; numbers count from 1, times are seconds since 1970."""

    number: int
    time: float
    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """One step of every job of a kind: a module that is run as a process.

    `share` is its part of the job's progress. A step may run twice, so doing it again must do no harm.
    """

    name: str
    module: str
    share: float


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What one step may take: time, and resident memory of its process and that one's children."""

    seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Job:
    """One job: what was asked for (`spec`) and how far it has come. Times are seconds since 1970."""

    job_id: str
    spec: JsonObject
    create_time: float
    state: JobState = JobState.QUEUED
    progress: float = 0.0
    phase: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    start_time: float | None = None
    end_time: float | None = None
    attempts: int = 0
    """How often a process has begun to work on it."""
    result: JsonObject | None = None
    error: JobError | None = None
    log_lines: tuple[LogLine, ...] = ()
    """The last lines, oldest first. Not part of the JSON form."""

    def moved(self, state: JobState) -> Self:
        """Return the job in its next state. Raises IllegalTransition."""
        if state not in NEXT_STATES[self.state]:
            raise IllegalTransition(f"{self.job_id}: {self.state.value} -> {state.value}")
        return replace(self, state=state)

    def begun(self, now: float) -> Self:
        """Return the job as it is when a process begins to work on it, for the first time or again."""
        job = self.moved(JobState.RUNNING) if self.state is JobState.QUEUED else self
        return replace(job, start_time=job.start_time or now, attempts=job.attempts + 1)

    def advanced(self, progress: float, phase: str) -> Self:
        """Return the job with this much done; less than before changes nothing but the phase."""
        return replace(self, progress=max(self.progress, min(1.0, progress)), phase=phase)

    def ended(self, now: float, result: JsonObject | None, error: JobError | None) -> Self:
        """Return the job in its final state. A cancelled job is one that ended with CANCELLED_ERROR."""
        if error is None:
            return replace(self.moved(JobState.SUCCEEDED), end_time=now, result=result, progress=1.0, phase="")
        state = JobState.CANCELLED if error == CANCELLED_ERROR else JobState.FAILED
        return replace(self.moved(state), end_time=now, error=error)

    def to_json(self) -> JsonObject:
        """Return the form in which a job is stored."""
        return {
            "spec": self.spec,
            "create_time": self.create_time,
            "state": self.state.value,
            "progress": self.progress,
            "phase": self.phase,
            "metrics": dict(self.metrics),
            "start_time": self.start_time,
            "end_time": self.end_time,
            "attempts": self.attempts,
            "result": self.result,
            "error": None
            if self.error is None
            else {"code": self.error.code, "reason": self.error.reason, "message": self.error.message},
        }

    @classmethod
    def from_json(cls, job_id: str, value: JsonObject) -> Self:
        """Read what `to_json` made."""
        error = value["error"]
        return cls(
            job_id,
            **(value | {"state": JobState(value["state"]), "error": None if error is None else JobError(**error)}),
        )
