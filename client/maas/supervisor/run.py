"""A whole cluster on one machine: run here, run in the background, or stopped."""

import asyncio
import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from maas.supervisor.child import ProcessSpec
from maas.supervisor.cluster import check_installed, check_port_free, cluster_specs, free_port
from maas.supervisor.failures import CannotStart, NotRunning, SupervisorError
from maas.supervisor.home import (
    ClusterState,
    Home,
    end_leftovers,
    lock_holder,
    locked,
    make_folders,
    read_state,
    remove_run_files,
    start_ticks,
    writing_to,
)
from maas.supervisor.supervisor import Supervisor

Say: TypeAlias = Callable[[str], None]
MakeSpecs: TypeAlias = Callable[[Home, Path, int], Sequence[ProcessSpec]]
"""From the home folder, the folder for sockets and the public port to the processes to run."""

_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.02


def embedded_cluster(environment: Mapping[str, str]) -> MakeSpecs:
    """Return what makes the specs of the real cluster. Raises CannotStart when it is not installed."""
    check_installed()
    return lambda home, run_dir, port: cluster_specs(home, run_dir, port, environment)


def run_cluster(
    folder: Path,
    port: int,
    make_specs: MakeSpecs,
    *,
    say: Say,
    on_ready: Callable[[ClusterState], None],
    start_seconds: float = 60.0,
) -> None:
    """Run the processes until a signal ends it; port 0 chooses a free one. Raises CannotStart."""
    home = Home(folder.expanduser().absolute())
    with locked(home):
        for name in end_leftovers(home):
            say(f"{name} was left over from a supervisor that was killed; ended it")
        port = port or free_port()
        check_port_free(port)
        run_dir = make_folders(home)
        try:
            supervisor = Supervisor(
                home,
                make_specs(home, run_dir, port),
                port=port,
                run_dir=str(run_dir),
                say=say,
                start_seconds=start_seconds,
            )
            asyncio.run(supervisor.run(lambda: on_ready(supervisor.state())))
        finally:
            remove_run_files(home)


def start_detached(folder: Path, port: int, start_seconds: float = 60.0) -> ClusterState:
    """Run a cluster in the background and return when all of it is ready. Raises CannotStart; then nothing is left."""
    home = str(folder.expanduser().absolute())
    command = (sys.executable, "-m", "maas.supervisor", "--home", home, "--port", str(port))
    return detach(folder, (*command, "--start-seconds", str(start_seconds)), start_seconds + _STOP_SECONDS)


def detach(folder: Path, command: Sequence[str], timeout: float) -> ClusterState:
    """Start a supervisor that tells over `--notify FD` when it is ready, and wait for that. Raises CannotStart."""
    home = Home(folder.expanduser().absolute())
    with writing_to(home):
        home.logs.mkdir(parents=True, exist_ok=True)
        log = home.log_file("supervisor").open("ab")
    read_end, write_end = os.pipe()
    # Unbuffered, so that select tells of every line that was not read yet.
    with log, open(read_end, "rb", buffering=0) as reader:
        try:
            # What is started here forks and ends; the supervisor itself is nobody's child and outlives the caller.
            subprocess.run(
                (*command, "--notify", str(write_end)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(write_end,),
                start_new_session=True,
                cwd="/",
                check=True,
            )
        except subprocess.CalledProcessError as error:
            raise CannotStart(f"the supervisor does not start; see {log.name}") from error
        finally:
            os.close(write_end)
        pid = int(_read_line(reader, timeout) or 0)
        if not pid:
            raise CannotStart(f"the supervisor does not start; see {log.name}")
        try:
            told = _read_line(reader, timeout)
        except BaseException:
            _end(pid)
            raise
    word = json.loads(told) if told else {}
    state = read_state(home)
    if "ready" in word and state is not None:
        return state
    _end(pid)
    if "problem" in word:
        raise problem_of(word)
    raise CannotStart(f"the supervisor ended, or said nothing for {timeout:g} s; see {log.name}")


def _read_line(reader: io.FileIO, timeout: float) -> bytes:
    """Return the next line; nothing when there is none in time, or when the writer has ended."""
    return reader.readline() if select.select([reader], [], [], timeout)[0] else b""


class Notifier:
    """Tells whoever called `detach` who we are, and once how the start went."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._writer = open(descriptor, "wb", buffering=0)  # noqa: SIM115 - closed when all is said
        self._writer.write(f"{os.getpid()}\n".encode())

    def tell(self, problem: SupervisorError | None = None) -> None:
        """Say that all is ready, or what the problem is. Nothing is said twice."""
        if self._writer.closed:
            return
        word = {"ready": True} if problem is None else {"problem": problem.message, "reason": problem.reason}
        # The caller may have left; the cluster goes on.
        with contextlib.suppress(BrokenPipeError), self._writer:
            self._writer.write(json.dumps(word).encode() + b"\n")


def problem_of(word: Mapping[str, str]) -> CannotStart:
    """Return the problem that a detached supervisor told of."""
    problem = CannotStart(word["problem"])
    problem.reason = word["reason"]
    return problem


def stop_cluster(folder: Path, timeout: float = _STOP_SECONDS) -> int:
    """Stop the cluster that runs in a folder and return its supervisor's pid when all of it has ended.

    Raises NotRunning. A supervisor that does not end in time is killed, and its processes with it.
    """
    home = Home(folder.expanduser().absolute())
    pid = lock_holder(home)
    if pid is None:
        raise NotRunning(f"no cluster is running in {home.folder}")
    if not _end(pid, timeout):
        raise SupervisorError(f"process {pid} does not end; end it yourself: kill -9 {pid}")
    if lock_holder(home) is None and read_state(home) is not None:  # it was killed, and could not clean up
        with locked(home):
            end_leftovers(home)
            remove_run_files(home)
    return pid


def _end(pid: int, timeout: float = _STOP_SECONDS) -> bool:
    """Stop a supervisor; when it takes too long kill it, and the kernel its processes. Return whether it has ended."""
    started = start_ticks(pid)
    for number, seconds in ((signal.SIGTERM, timeout), (signal.SIGKILL, 5.0)):
        end = time.monotonic() + seconds
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        while start_ticks(pid) == started != 0:
            if time.monotonic() > end:
                break
            time.sleep(_POLL_SECONDS)
        else:
            return True
    return False
