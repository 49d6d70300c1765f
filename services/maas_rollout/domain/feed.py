"""What watchers are told: all deployments once, then each change, in as few messages as they can take."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from maas.names import DeploymentName
from maas_rollout.domain.deployments import Deployment


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Up to where a watcher knows everything: a revision of one store, which has an identity of its own."""

    store: str
    revision: int

    @classmethod
    def parse(cls, text: str) -> "ResumePoint | None":
        """Return the point; None for a text that is none, which is as good as one that is no longer known."""
        store, _, revision = text.rpartition(".")
        if not (revision.isascii() and revision.isdigit() and len(revision) <= 18):
            return None
        return cls(store, int(revision))

    def __str__(self) -> str:
        return f"{self.store}.{self.revision}"


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened up to `point`: in a snapshot all deployments there are, else those that changed or ended."""

    point: ResumePoint
    snapshot: bool
    deployments: tuple[Deployment, ...]
    deleted: tuple[DeploymentName, ...] = ()


class ChangeStore(Protocol):
    """Where changes are read."""

    async def changes_since(self, point: ResumePoint | None) -> Changes:
        """Return what changed since `point`; a snapshot when that is None, another store's, or too long ago."""
        ...


class Feed:
    """Wakes watchers. Each reads the changes since its own last point when it is ready to, so a slow one misses nothing
    and holds one message at most.

    They also look by themselves now and then, for a change that nobody woke them for: one by another process.
    """

    def __init__(self, store: ChangeStore, look_again_seconds: float = 2.0) -> None:
        self._store = store
        self._look_again_seconds = look_again_seconds
        self._wake = asyncio.Event()
        self._closed = False

    def wake(self) -> None:
        """Let all watchers look for changes."""
        woken, self._wake = self._wake, asyncio.Event()
        woken.set()

    def close(self) -> None:
        """Let all watches end after what they still have to say."""
        self._closed = True
        self.wake()

    async def watch(self, point: ResumePoint | None) -> AsyncGenerator[Changes, None]:
        """Yield what changed since `point`, at once even when it is nothing, then each change."""
        first = True
        while True:
            wake, ends = self._wake, self._closed
            changes = await self._store.changes_since(point)
            if first or changes.point != point:
                yield changes
            first, point = False, changes.point
            if ends:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_again_seconds):
                    await wake.wait()
