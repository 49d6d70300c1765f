"""The process that does one step: `python -m MODULE FOLDER PARENT_PID`.

The module calls `run_step(work)` and nothing else; `work` gets the job's folder and reports as it goes.
"""

import ctypes
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from maas.errors import MaasError
from maas_jobs.job import JobError, JsonObject
from maas_jobs.reports import Done, Failed, Log, Metrics, Progress, Report, encode_report
from maas_runtime.errors import wire_error
from maas_runtime.failures import Failure

REQUEST_FILE = "job.json"
LOCK_FILE = "lock"

_PROGRESS_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


class Reporter:
    """Tells the service how the step goes. Progress is passed on at most five times a second."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._next_progress = 0.0
        self._phase = ""

    def progress(self, share: float, phase: str, metrics: Mapping[str, float] | None = None) -> None:
        """Say which share of the step is done, 0 to 1, what is being done, and what was measured."""
        now = self._clock()
        if now < self._next_progress and phase == self._phase:
            return
        self._next_progress, self._phase = now + _PROGRESS_SECONDS, phase
        if metrics:
            self.metrics(metrics)
        self._send(Progress(share, phase))

    def metrics(self, values: Mapping[str, float]) -> None:
        """Say what was measured."""
        self._send(Metrics(values))

    def log(self, text: str) -> None:
        """Write a line into the job's log."""
        self._send(Log(text))

    def _send(self, report: Report) -> None:
        self._stream.write(encode_report(report) + "\n")
        self._stream.flush()


@dataclass(frozen=True, slots=True)
class StepRequest:
    """What one step has to do, and where. What lies in `folder` outlives the step, and is there when it runs again."""

    folder: Path
    job_name: str
    spec: JsonObject
    previous: JsonObject
    """What the step before came to; empty for the first."""
    registry_address: str
    memory_bytes: int
    """How much resident memory the step's process may have, with its children."""


def write_request(request: StepRequest) -> None:
    """Leave a request in its folder, for the process that will do it."""
    content = {
        "job_name": request.job_name,
        "spec": request.spec,
        "previous": request.previous,
        "registry_address": request.registry_address,
        "memory_bytes": request.memory_bytes,
    }
    (request.folder / REQUEST_FILE).write_text(json.dumps(content), encoding="utf-8")


def read_request(folder: Path) -> StepRequest:
    """Read what `write_request` left."""
    return StepRequest(folder, **json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8")))


def run_step(work: Callable[[StepRequest, Reporter], JsonObject]) -> None:
    """Be a step's process: do `work`, report its result or its failure.

    Ends with the service that started it, and waits until no other process works in the same folder, so a job is never
    worked on twice at once.
    """
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        die_with(int(sys.argv[2]))
    # What libraries print must not get between the reports.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream, (folder / LOCK_FILE).open("w") as lock:
        os.dup2(2, 1)
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            last: Report = Done(work(read_request(folder), Reporter(stream)))
        except Failure as failure:
            last = Failed(_error_of(failure))
        except MaasError as error:
            # A call ends so when the other process stops or is away for long: worth another try.
            code = "UNAVAILABLE" if error.code in ("CANCELLED", "DEADLINE_EXCEEDED") else error.code
            last = Failed(JobError(code, error.reason, error.message))
        except MemoryError:
            message = "this machine has no memory left for the step; ask for less work, or for work on a larger one"
            last = Failed(JobError("RESOURCE_EXHAUSTED", "JOB_STEP_NO_MEMORY", message))
        stream.write(encode_report(last) + "\n")


def _error_of(failure: Failure) -> JobError:
    return JobError(wire_error(failure, request_id="").code.name, failure.reason, failure.message)


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when the thread that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before the line above
        sys.exit("the service that started this step is gone")
