"""Processes that a bench started, children of children too, known by a mark in their environment."""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_MARK = "MAAS_BENCH_MARK"


class Processes:
    """All that is started with its `environment`, also when its parent has ended."""

    def __init__(self, logs: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._logs = logs
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment and the mark."""
        return os.environ | {_MARK: self._mark}

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process whose output goes to a file of that name."""
        with (self._logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                env=self.environment | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    def log(self, name: str) -> str:
        """Return the end of what a process said."""
        return (self._logs / f"{name}.log").read_text(errors="replace")[-2000:]

    def pids(self) -> list[int]:
        """Return the living ones."""
        return [pid for pid, _ in self._living()]

    def commands(self) -> dict[int, str]:
        """Return command lines by process id."""
        return dict(self._living())

    def cpu_seconds(self) -> float:
        """Return the processor time that the living ones have used."""
        return sum(cpu_seconds(pid) for pid in self.pids())

    def memory_mb(self) -> float:
        """Return the proportional set size of all of them."""
        return sum(memory_mb(pid) for pid in self.pids())

    def stop(self) -> None:
        """End all of them, politely for 10 s."""
        for signal_number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal_number)
            end = time.monotonic() + seconds
            while self.pids() and time.monotonic() < end:
                for child in self._children:
                    child.poll()
                time.sleep(0.05)
        for child in self._children:
            child.wait(timeout=10)

    def _living(self) -> Iterator[tuple[int, str]]:
        mark = f"{_MARK}={self._mark}".encode()
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        yield int(folder.name), command.strip()


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process; 0 when it has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


def memory_mb(pid: int) -> float:
    """Return the proportional set size of a process; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0
