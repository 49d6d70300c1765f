"""Runs a step's process from the service: reads its reports, holds it to its limits, ends it when asked."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from maas_jobs.job import JobError, JsonObject, Step, StepLimits
from maas_jobs.reports import Done, Failed, Report, decode_report

logger = logging.getLogger(__name__)

TERMINATE_GRACE_SECONDS = 1.0

# OpenMP's threads spin while they wait for each other, which wants a core for each. Measured, one epoch of the seed's
# LSTM with 2 threads on 2 cores: alone 4.9 s spinning and 6.1 s not; beside one other busy process 210 s and 22 s.
_OMP_WAIT_POLICY = "passive"
_MEMORY_POLL_SECONDS = 0.25
_MAX_LINE_BYTES = 2**20
_STDERR_TAIL_BYTES = 4096


class StepFailed(Exception):
    """A step ended without a result."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


async def supervise_step(
    step: Step, limits: StepLimits, folder: Path, on_report: Callable[[Report], None]
) -> JsonObject:
    """Run the step's module on a job's folder and return its result.

    Raises StepFailed: over a limit, ended by a signal, broken, or for the reason that the step itself gave. Cancelling
    ends the process, with SIGTERM and after a grace with SIGKILL, before the cancellation goes on.
    """
    with (folder / f"{step.name}.stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            step.module,
            str(folder),
            str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env={"OMP_WAIT_POLICY": _OMP_WAIT_POLICY, **os.environ},
            start_new_session=True,
            limit=_MAX_LINE_BYTES,
        )
    try:
        async with asyncio.timeout(limits.seconds), asyncio.TaskGroup() as group:
            memory = group.create_task(_end_over_memory(process, step, limits))
            last = await _read_reports(process, on_report)
            status = await process.wait()
            memory.cancel()
    except TimeoutError as error:
        raise StepFailed(
            JobError(
                "DEADLINE_EXCEEDED",
                "JOB_STEP_OVER_TIME",
                f"the step {step.name} took longer than {limits.seconds:g} s; ask for less work",
            )
        ) from error
    finally:
        await _end(process)
    if not memory.cancelled():
        raise StepFailed(memory.result())
    match last:
        case Done(result) if status == 0:
            return result
        case Failed(step_error):
            raise StepFailed(step_error)
    raise StepFailed(_crash(step, status, folder / f"{step.name}.stderr"))


async def _read_reports(process: asyncio.subprocess.Process, on_report: Callable[[Report], None]) -> Report | None:
    """Pass on everything but the last word, which is returned."""
    if process.stdout is None:
        raise RuntimeError("the process was started without a pipe")
    last: Report | None = None
    while line := await process.stdout.readline():
        report = decode_report(line.decode("utf-8", errors="replace").rstrip("\n"))
        match report:
            case Done() | Failed():
                last = report
            case _:
                on_report(report)
    return last


async def _end_over_memory(process: asyncio.subprocess.Process, step: Step, limits: StepLimits) -> JobError:
    """End the process when it and its children have more resident memory than the step may; return that as an error.

    RLIMIT_AS would count torch's reserved address space, which is many times what it uses.
    """
    used = 0
    while used <= limits.memory_bytes:
        await asyncio.sleep(_MEMORY_POLL_SECONDS)
        used = _resident_bytes(process.pid)
    _signal(process, signal.SIGKILL)
    return JobError(
        "RESOURCE_EXHAUSTED",
        "JOB_STEP_OVER_MEMORY",
        f"the step {step.name} used {used / 2**20:,.0f} MiB, more than the "
        f"{limits.memory_bytes / 2**20:,.0f} MiB it may",
    )


def _resident_bytes(pid: int) -> int:
    """Return what a process and its children hold now; 0 for one that has ended."""
    try:
        root = psutil.Process(pid)
        return sum(int(process.memory_info().rss) for process in (root, *root.children(recursive=True)))
    except psutil.Error:  # ended in between: the next look will tell
        return 0


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process and what it started, if it has not ended."""
    if process.returncode is not None:
        return
    _signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(TERMINATE_GRACE_SECONDS):
            await process.wait()
    except TimeoutError:
        logger.warning("step did not end when asked", extra={"pid": process.pid})
        _signal(process, signal.SIGKILL)
        await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # it leads a session of its own


def _crash(step: Step, status: int, stderr: Path) -> JobError:
    content = stderr.read_bytes()[-_STDERR_TAIL_BYTES:].decode("utf-8", errors="replace")
    logger.error("step broke", extra={"step": step.name, "status": status, "stderr": content})
    if status < 0:
        name = signal.Signals(-status).name
        message = f"the step {step.name} was ended by {name}"
        if status == -signal.SIGKILL:
            message += ", maybe because the machine had no memory left"
        # Somebody else's doing, so it is worth another try; a crash of its own would come again.
        code = "UNAVAILABLE" if status == -signal.SIGKILL else "INTERNAL"
        return JobError(code, "JOB_STEP_KILLED", message)
    lines = content.strip().splitlines() or [f"exit status {status}"]
    return JobError("INTERNAL", "JOB_STEP_BROKE", f"the step {step.name} broke: {lines[-1][:300]}")
