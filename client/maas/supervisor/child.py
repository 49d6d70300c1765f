"""One process: started, heard, started again when it ends or hangs, stopped when asked."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from maas.supervisor.draining import Drain
from maas.supervisor.home import ProcessState, kill_group, start_ticks
from maas.supervisor.log_file import BoundedLog
from maas.supervisor.readiness import Probe

EXIT_CANNOT_START = 78
"""Exit status of a process that a person has to help; maas_runtime.exit_status says the same."""

_LAUNCH = Path(__file__).with_name("launch.py")
_PROBE_SECONDS = 0.05
_START_SECONDS = 120.0
"""How long a process that is started again may take to be ready before it is taken for hung."""
_FAILURES_OF_A_HUNG_PROCESS = 3
"""Not only the time: this process may itself have been stopped for a while."""
_TAIL_BYTES = 4096
_REST_OF_OUTPUT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process to be kept running."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Probe
    stop_stage: int
    """Processes stop in the order of this number; those of one number stop together."""
    stop_seconds: float = 8.0
    """How long it may take to end after SIGTERM."""
    drain: Drain | None = None
    """What lets it answer what it has before it is asked to end."""
    silent_seconds: float = 15.0
    """How long it may not answer, once it was ready, before it is taken for hung and killed."""
    probe_seconds: float = 3.0
    """How often it is asked, once it was ready."""


@dataclass(slots=True)
class Backoff:
    """How long to wait before a process is started again: longer each time, from the start again once it has lived."""

    first_seconds: float = 0.05
    longest_seconds: float = 5.0
    reset_seconds: float = 10.0
    _next_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        self._next_seconds = self.first_seconds

    def after(self, alive_seconds: float) -> float:
        """Return the wait after a process that lived that long."""
        if alive_seconds >= self.reset_seconds:
            self._next_seconds = self.first_seconds
        wait, self._next_seconds = self._next_seconds, min(self.longest_seconds, self._next_seconds * 2)
        return wait


class Child:
    """Keeps one process running until it is stopped.

    `changed` is called after each change of `state`. `cannot_start` is called with a sentence when the process ends
    with status 78 before it was ever ready; later than that it is started again like after any other end, because
    whatever is in the way (a full disk) may go, and the other processes still answer.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        log: BoundedLog,
        *,
        changed: Callable[[ProcessState], None],
        cannot_start: Callable[[str], None],
    ) -> None:
        self.spec = spec
        self.state = ProcessState(spec.name, 0, 0, "starting", 0, time.time())
        self._log = log
        self._changed = changed
        self._cannot_start = cannot_start
        self._stopping = asyncio.Event()
        self._was_ready = False
        self._hung = ""
        self._tail = b""

    async def keep_running(self) -> None:
        """Start the process again and again; return when it was stopped or cannot start."""
        backoff = Backoff()
        try:
            while not self._stopping.is_set():
                started = time.monotonic()
                try:
                    status = await self._run_once()
                    ended = self._hung or f"ended with {_status_text(status)}"
                except OSError as error:  # no memory or no process left for it now
                    status, ended = os.EX_OSERR, f"cannot be started: {error.strerror}"
                if self._stopping.is_set():
                    break
                if status == EXIT_CANNOT_START and not self._was_ready:
                    self._set("stopped", pid=0, message=ended)
                    self._cannot_start(self.last_line() or f"{self.spec.name} {ended}")
                    return
                if status == EXIT_CANNOT_START:
                    ended += f": {self.last_line()}"
                wait = backoff.after(time.monotonic() - started)
                self._set("waiting", pid=0, restarts=self.state.restarts + 1, message=ended)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), wait)
            self._set("stopped", pid=0)
        finally:
            self._log.close()

    async def stop(self, keeper: asyncio.Task[None]) -> None:
        """Ask the process to end and wait for `keeper`, the task of keep_running; kill it when it takes too long."""
        if self.spec.drain is not None and self.state.state == "ready":
            await self.spec.drain()
        self._stopping.set()
        if self.state.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.state.pid, signal.SIGTERM)
        done, _ = await asyncio.wait([keeper], timeout=self.spec.stop_seconds)
        if not done:
            self.kill()
            await asyncio.wait([keeper])

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        self._stopping.set()
        if self.state.pid:
            kill_group(self.state.pid)

    def last_line(self) -> str:
        """Return the last thing that the process wrote."""
        lines = self._tail.decode("utf-8", "replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    async def _run_once(self) -> int:
        """Start the process and return its exit status when it has ended, with whatever it started."""
        self._tail, self._hung = b"", ""
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        try:
            process = await self._start(write_end)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        asyncio.get_running_loop().add_reader(read_end, self._hear, read_end)
        self._set("starting", pid=process.pid, start=start_ticks(process.pid), message="")
        try:
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(self._watch(process.pid))
                if self._stopping.is_set():
                    kill_group(process.pid)
                status = await process.wait()
                waiting.cancel()
            return status
        finally:
            kill_group(process.pid)
            await self._hear_the_rest(read_end)

    async def _start(self, output: int) -> asyncio.subprocess.Process:
        # A session of its own: Ctrl-C in the terminal is for the supervisor, and the group can be ended as one.
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_LAUNCH), str(os.getpid()), *self.spec.command),
            env=dict(self.spec.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    async def _watch(self, pid: int) -> None:
        """Wait until the process is ready; from then on ask it now and then, and kill it when it no longer answers."""
        begun = time.monotonic()
        while not await self.spec.ready():
            if self._was_ready and time.monotonic() - begun > _START_SECONDS:
                self._kill_hung(pid, f"was not ready after {_START_SECONDS:g} s and was killed")
                return
            await asyncio.sleep(_PROBE_SECONDS)
        self._was_ready = True
        self._set("ready")
        failures, failing_since = 0, 0.0
        while not self._stopping.is_set():
            await asyncio.sleep(self.spec.probe_seconds)
            asked = time.monotonic()
            if await self.spec.ready():
                failures = 0
                continue
            failing_since = failing_since if failures else asked
            failures += 1
            silent = time.monotonic() - failing_since
            if failures >= _FAILURES_OF_A_HUNG_PROCESS and silent >= self.spec.silent_seconds:
                self._kill_hung(pid, f"did not answer for {silent:.0f} s and was killed")
                return

    def _kill_hung(self, pid: int, message: str) -> None:
        if not self._stopping.is_set():
            self._hung = message
            kill_group(pid)

    def _hear(self, descriptor: int) -> bool:
        """Take what the process has written by now; return whether there may be more to come."""
        try:
            content = os.read(descriptor, 65536)
        except BlockingIOError:
            return True
        if not content:
            asyncio.get_running_loop().remove_reader(descriptor)
            return False
        self._log.write(content)
        self._tail = (self._tail + content)[-_TAIL_BYTES:]
        return True

    async def _hear_the_rest(self, descriptor: int) -> None:
        end = time.monotonic() + _REST_OF_OUTPUT_SECONDS
        # Bounded, because somebody that left the group may hold the other end for ever.
        while self._hear(descriptor) and time.monotonic() < end:  # noqa: ASYNC110 - the reader tells no end
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)

    def _set(
        self,
        state: str,
        *,
        pid: int | None = None,
        start: int = 0,
        restarts: int | None = None,
        message: str | None = None,
    ) -> None:
        before = self.state
        self.state = replace(
            before,
            state=state,
            pid=before.pid if pid is None else pid,
            start_ticks=before.start_ticks if pid is None else start,
            restarts=before.restarts if restarts is None else restarts,
            since=time.time(),
            message=before.message if message is None else message,
        )
        self._changed(self.state)


def _status_text(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
