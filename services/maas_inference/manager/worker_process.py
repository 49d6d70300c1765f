"""Engine workers as child processes."""

import asyncio
import contextlib
import os
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


class WorkerCannotLoad(InvalidInput):
    """The worker could not load the package; the message says why."""

    reason = "WORKER_CANNOT_LOAD"


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How workers are started."""

    run_dir: Path
    engine_threads: int
    lanes: int
    """How many batches a worker computes side by side."""
    max_batch_rows: int


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
async def running_worker(package: Path, options: WorkerOptions, name: str) -> AsyncIterator[Worker]:
    """Start a worker, give it when it is warm, and end it: it answers what fronts still send, then goes.

    `name` is unique among the workers of the machine. Raises WorkerCannotLoad.
    """
    socket_path = options.run_dir / f"{name}.sock"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "maas_inference.worker",
        f"--package={package}",
        f"--socket={socket_path}",
        f"--threads={options.engine_threads}",
        f"--lanes={options.lanes}",
        f"--max-batch-rows={options.max_batch_rows}",
        f"--parent-pid={os.getpid()}",
        stdout=PIPE,
        stdin=asyncio.subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(options.engine_threads)},
    )
    try:
        yield Worker(process, str(socket_path), await _report_of(process))
    finally:
        await _stop(process)
        socket_path.unlink(missing_ok=True)


def proportional_bytes(pid: int) -> int:
    """Return a process's proportional set size; 0 when there is none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


async def _report_of(process: Process) -> WorkerReport:
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
    except TimeoutError:
        raise WorkerCannotLoad(f"the worker was not ready after {START_SECONDS:.0f} s") from None
    if not line:
        raise WorkerCannotLoad(f"the worker ended while it was loading, with status {await process.wait()}")
    report = msgspec.json.decode(line, type=WorkerReport)
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
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
