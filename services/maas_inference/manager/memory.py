"""How much memory versions take, and which of them are let go so that the workers stay within a budget."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from maas.names import DeploymentName, VersionName

Key: TypeAlias = tuple[DeploymentName, VersionName]

WORKER_BYTES = 48 << 20
"""What a worker takes beside its model, where nothing was measured yet."""
MODEL_FACTOR = 1.5
"""What a model takes, as a multiple of its package's files, where nothing was measured yet."""
_SHARE_OF_HOST = 0.6
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_NOTABLE_CHANGE = 0.05


@dataclass(frozen=True, slots=True)
class Holder:
    """A version that holds memory now."""

    key: Key
    size_bytes: int
    is_leaving: bool = False
    """It was told to end; its memory comes back by itself."""
    may_leave: bool = False
    """It may be let go when nobody uses it: it is loaded on demand."""
    idle_seconds: float = 0.0
    """0: somebody uses it now."""


def used_bytes(holders: Sequence[Holder]) -> int:
    """Return what all of them hold."""
    return sum(holder.size_bytes for holder in holders)


def leavers(
    need_bytes: int, budget_bytes: int, holders: Sequence[Holder], *, idle_seconds: float = 0.0
) -> tuple[Key, ...] | None:
    """Return whom to let go, least recently used first, so that `need_bytes` more are within the budget.

    Only those go that have been idle for more than `idle_seconds`. Memory that comes back by itself is counted on.
    None: letting go all that may go is not enough.
    """
    over_bytes = used_bytes([holder for holder in holders if not holder.is_leaving]) + need_bytes - budget_bytes
    going: list[Key] = []
    for holder in sorted(holders, key=lambda holder: holder.idle_seconds, reverse=True):
        if over_bytes <= 0:
            break
        if holder.may_leave and not holder.is_leaving and holder.idle_seconds > idle_seconds:
            going.append(holder.key)
            over_bytes -= holder.size_bytes
    return tuple(going) if over_bytes <= 0 else None


class MemoryBook:
    """The most that each version took so far; outlives the manager in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sizes: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            self._sizes = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
        self._saved = dict(self._sizes)

    def note(self, version: VersionName, size_bytes: int) -> None:
        """Take a measurement."""
        self._sizes[str(version)] = max(size_bytes, self._sizes.get(str(version), 0))

    def expected_bytes(self, version: VersionName, package_bytes: int) -> int:
        """Return what a worker of the version will take: the most it took, else a guess from its package's size."""
        return self._sizes.get(str(version)) or WORKER_BYTES + round(package_bytes * MODEL_FACTOR)

    def save(self) -> None:
        """Write the file if it is no longer about right; blocks. Raises OSError."""
        if all(
            abs(size - self._saved.get(version, 0)) <= _NOTABLE_CHANGE * size for version, size in self._sizes.items()
        ):
            return
        self._saved = dict(self._sizes)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(self._saved))
        os.replace(partial, self._path)


def default_budget_bytes() -> int:
    """Return 60 % of the host's memory, or of what its control group may use if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # `max` is no number
            total = min(total, int(Path(path).read_text()))
    return round(total * _SHARE_OF_HOST)


def proportional_bytes(pid: int) -> int:
    """Return a process's proportional set size; 0 when there is none."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
