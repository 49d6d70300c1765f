"""Engine workers as child processes."""

import asyncio
import contextlib
import os
import resource
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from maas_inference.worker_report import WorkerReport
from maas_runtime.failures import InvalidInput

START_SECONDS = 120.0
"""How long loading and warming may take."""
_STOP_SECONDS = 35.0
_MAX_REPORT_BYTES = 16 << 20


class WorkerCannotLoad(InvalidInput):
    """The worker could not load the package; the message says why."""

    reason = "WORKER_CANNOT_LOAD"


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker is started."""

    run_dir: Path
    engine_threads: int
    lanes: int
    """How many batches a worker computes side by side."""
    max_batch_rows: int
    memory_bytes: int = 0
    """The most private memory that it may have; 0: no limit."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that is warm and listens."""

    process: Process
    socket_path: str
    report: WorkerReport

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def until_ended(self) -> int:
        """Wait for its end and return its exit status."""
        return await self.process.wait()


@asynccontextmanager
async def running_worker(package: Path, engine: str, options: WorkerOptions, name: str) -> AsyncIterator[Worker]:
    """Start a worker, give it when it is warm, and end it: it answers what fronts still send, then goes.

    `engine` is NAME or NAME:PRECISION, empty for the fastest. `name` is unique among the workers of the machine.
    Raises WorkerCannotLoad.
    """
    socket_path = options.run_dir / f"{name}.sock"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "maas_inference.worker",
        f"--package={package}",
        f"--engine={engine}",
        f"--socket={socket_path}",
        f"--threads={options.engine_threads}",
        f"--lanes={options.lanes}",
        f"--max-batch-rows={options.max_batch_rows}",
        f"--parent-pid={os.getpid()}",
        stdout=PIPE,
        stdin=asyncio.subprocess.DEVNULL,
        limit=_MAX_REPORT_BYTES,
        env={
            **os.environ,
            "OMP_NUM_THREADS": str(options.engine_threads),
            # Each thread would have an arena of its own, and each arena keeps what its largest batch took.
            "MALLOC_ARENA_MAX": "2",
        },
    )
    try:
        if options.memory_bytes:
            _limit_memory(process.pid, options.memory_bytes)
        yield Worker(process, str(socket_path), await _report_of(process, options))
    finally:
        await _stop(process)
        socket_path.unlink(missing_ok=True)


def _limit_memory(pid: int, size_bytes: int) -> None:
    # RLIMIT_DATA counts private writable memory; RLIMIT_AS would count every library and reserved address as well.
    # By the time the interpreter has begun, it is set; the limit is meant for the model.
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_DATA, (size_bytes, size_bytes))


async def _report_of(process: Process, options: WorkerOptions) -> WorkerReport:
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
    except TimeoutError:
        process.kill()  # it would not listen to a gentler word
        raise WorkerCannotLoad(f"the worker was not ready after {START_SECONDS:.0f} s") from None
    except ValueError as error:
        raise WorkerCannotLoad("the worker's report is too long") from error
    if not line:
        ended = f"the worker ended while it was loading, with status {await process.wait()}"
        limit = f"; its limit is {options.memory_bytes >> 20} MiB of memory" if options.memory_bytes else ""
        raise WorkerCannotLoad(ended + limit)
    try:
        report = msgspec.json.decode(line, type=WorkerReport)
    except msgspec.DecodeError as error:
        raise WorkerCannotLoad(f"the worker's report cannot be read: {error}") from error
    if report.failure:
        raise WorkerCannotLoad(report.failure, cause=report.reason)
    return report


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
