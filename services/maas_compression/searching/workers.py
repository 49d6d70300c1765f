"""The processes that trials run in: held to limits on time and memory, and ended with what they started.

They stay in the process group of the step that searches, so a cancelled job ends them too; and they end with their
parent however that ends.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_MEMORY_POLL_SECONDS = 0.25
_MESSAGE_CHARACTERS = 300
_TAIL_BYTES = 4096


@dataclass(slots=True, eq=False)
class Worker:
    """One running trial."""

    number: int
    process: "subprocess.Popen[bytes]"
    output: Path
    began: float
    deadline: float
    memory_bytes: int
    ended_because: str = ""
    next_look: float = field(default=0.0)

    def is_over(self, now: float) -> bool:
        """Return whether it has ended; ends it when it is over a limit."""
        if self.process.poll() is not None:
            return True
        if now >= self.deadline:
            self.end("took longer than a trial may")
            return True
        if now >= self.next_look:
            self.next_look = now + _MEMORY_POLL_SECONDS
            used = _resident_bytes(self.process.pid)
            if used > self.memory_bytes:
                self.end(
                    f"used {used / 2**20:,.0f} MiB, more than the {self.memory_bytes / 2**20:,.0f} MiB that a trial may"
                )
                return True
        return False

    def end(self, because: str) -> None:
        """End it at once, with its children."""
        self.ended_because = because
        for process in _family(self.process.pid):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()

    def why_it_died(self) -> str:
        """Return the reason why it left no outcome."""
        if self.ended_because:
            return self.ended_because
        status = self.process.returncode
        if status < 0:
            name = signal.Signals(-status).name
            return f"its process was ended by {name}" + (", maybe for want of memory" if name == "SIGKILL" else "")
        lines = self.output.read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace").strip().splitlines()
        return f"its process broke: {lines[-1][:_MESSAGE_CHARACTERS] if lines else f'exit status {status}'}"


def start_worker(
    job_folder: Path, number: int, output: Path, *, seconds: float, memory_bytes: int, clock: Callable[[], float]
) -> Worker:
    """Start the process of a trial whose request lies in its folder. To be called from the main thread."""
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "maas_compression.searching.trial", str(job_folder), str(number), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    now = clock()
    return Worker(number, process, output, now, now + seconds, memory_bytes)


def _resident_bytes(pid: int) -> int:
    used = 0
    for process in _family(pid):
        try:
            used += int(process.memory_info().rss)
        except psutil.Error:  # ended in between
            continue
    return used


def _family(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []
