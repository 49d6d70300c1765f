"""The home folder of a cluster: where its state, sockets and logs are, and who may use it now."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maas.supervisor.failures import AlreadyRunning, HomeNotWritable

_SOCKET_PATH_BYTES = 107
_LONGEST_SOCKET_NAME_BYTES = 60
"""What is kept free for the names of sockets, those of workers among them."""
_TEMPORARY_PREFIX = "maas-"
_STATE_SCHEMA = 1
_LOCK_ATTEMPTS = 5
_LOCK_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Home:
    """A home folder and the names of what is in it."""

    folder: Path

    @property
    def lock_file(self) -> Path:
        """Held by the supervisor, with its pid in it."""
        return self.folder / "maas.lock"

    @property
    def logs(self) -> Path:
        """One log a process."""
        return self.folder / "logs"

    @property
    def default_run_dir(self) -> Path:
        """Where sockets are, if that path is short enough."""
        return self.folder / "run"

    @property
    def run_pointer(self) -> Path:
        """Says where the sockets are when the path would be too long."""
        return self.folder / "run.json"

    @property
    def state_file(self) -> Path:
        """What the supervisor does now."""
        return self.default_run_dir / "state.json"

    def log_file(self, process: str) -> Path:
        """The log of one process."""
        return self.logs / f"{process}.log"


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process of the cluster as its supervisor sees it."""

    name: str
    pid: int
    """0 while it is not running."""
    start_ticks: int
    """When the kernel started it; with the pid, this is one process and no other."""
    state: str
    """`starting`, `ready`, `waiting` (to be started again) or `stopped`."""
    restarts: int
    since: float
    """When it came into its state, in seconds since 1970."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """All that the supervisor writes down of itself."""

    pid: int
    start_ticks: int
    port: int
    run_dir: str
    since: float
    ready: bool
    processes: tuple[ProcessState, ...]

    @property
    def endpoint(self) -> str:
        """Where the cluster answers."""
        return f"127.0.0.1:{self.port}"


@contextmanager
def locked(home: Home) -> Iterator[None]:
    """Hold the home folder, so that two supervisors never share one. Raises AlreadyRunning, HomeNotWritable."""
    with writing_to(home):
        home.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(home.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _lock(descriptor):
            raise AlreadyRunning(
                f"a cluster is already running in {home.folder}, pid {lock_holder(home) or 'unknown'}; "
                "stop it with maas down, or choose another folder with --home"
            )
        with writing_to(home):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)  # gives the lock back


def lock_holder(home: Home) -> int | None:
    """Return the pid of the supervisor that holds the home folder; None when nobody does."""
    try:
        descriptor = os.open(home.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(descriptor, 32).strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
    return None


def make_folders(home: Home) -> Path:
    """Make the folders of a cluster that starts now, and return the one for its sockets, which only the owner enters.

    Raises HomeNotWritable.
    """
    with writing_to(home):
        home.logs.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(home.default_run_dir, ignore_errors=True)
        home.default_run_dir.mkdir(mode=0o700, exist_ok=True)
        home.default_run_dir.chmod(0o700)
        _remove_temporary_run_dir(home)
        run_dir = home.default_run_dir.resolve()
        if len(os.fsencode(run_dir)) + 1 + _LONGEST_SOCKET_NAME_BYTES > _SOCKET_PATH_BYTES:
            run_dir = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX))  # its mode is 0700
            try:
                _write_whole(home.run_pointer, json.dumps({"run_dir": str(run_dir)}))
            except OSError:
                run_dir.rmdir()  # nobody would find it again
                raise
    return run_dir


def remove_run_files(home: Home) -> None:
    """Remove what only a running cluster has."""
    _remove_temporary_run_dir(home)
    shutil.rmtree(home.default_run_dir, ignore_errors=True)


def write_state(home: Home, state: ClusterState) -> None:
    """Replace the state file as a whole. Raises HomeNotWritable."""
    with writing_to(home):
        _write_whole(home.state_file, json.dumps({"schema": _STATE_SCHEMA, **asdict(state)}, indent=1))


def read_state(home: Home) -> ClusterState | None:
    """Return what the last supervisor wrote; None when there is none, or when it was written by another release."""
    try:
        found: dict[str, Any] = json.loads(home.state_file.read_bytes())
        if found.pop("schema") != _STATE_SCHEMA:
            return None
        processes = tuple(ProcessState(**process) for process in found.pop("processes"))
        return ClusterState(**found, processes=processes)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def running_state(home: Home) -> ClusterState | None:
    """Return the state of the cluster that runs in the folder now; None when none does."""
    state = read_state(home)
    return state if state is not None and lock_holder(home) == state.pid else None


def end_leftovers(home: Home) -> list[str]:
    """Kill what a killed supervisor left behind and return the names. Only for the holder of the lock."""
    state = read_state(home)
    ended = []
    for process in state.processes if state else ():
        if process.pid and start_ticks(process.pid) == process.start_ticks:
            kill_group(process.pid)
            ended.append(process.name)
    end = time.monotonic() + 5.0
    for process in state.processes if state else ():
        while process.name in ended and start_ticks(process.pid) == process.start_ticks and time.monotonic() < end:
            time.sleep(0.01)
    return ended


def kill_group(pid: int) -> None:
    """Kill the process group that a process leads, whoever is left of it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def start_ticks(pid: int) -> int:
    """Return when the kernel started a process, in its own unit; 0 when it does not run (any more)."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The name in parentheses may hold anything, so what follows is counted from the last parenthesis.
    fields = content[content.rindex(b")") + 2 :].split()
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


@contextmanager
def writing_to(home: Home) -> Iterator[None]:
    """Turn a failure to write into a sentence. Raises HomeNotWritable."""
    try:
        yield
    except OSError as error:
        raise HomeNotWritable(
            f"cannot write to {home.folder}: {error.strerror or error}; free some space, mend its permissions, "
            "or choose another folder with --home"
        ) from error


def _lock(descriptor: int) -> bool:
    # Who only asks for the holder has the lock for an instant, so one look is not enough.
    for _ in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return True
    return False


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)


def _remove_temporary_run_dir(home: Home) -> None:
    """Remove the folder that run.json names, if it is certainly one of ours."""
    try:
        run_dir = Path(json.loads(home.run_pointer.read_bytes())["run_dir"])
        found = run_dir.lstat()
    except (OSError, ValueError, KeyError, TypeError):
        return
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and run_dir.name.startswith(_TEMPORARY_PREFIX)
    if is_ours:
        shutil.rmtree(run_dir, ignore_errors=True)
    home.run_pointer.unlink(missing_ok=True)
