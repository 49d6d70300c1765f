"""The one place where work on files leaves the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from maas_runtime.completion import to_its_end
from maas_runtime.storage import translated_disk_errors

ResultT = TypeVar("ResultT")


class Disk:
    """A bounded number of threads that work on the files of one folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="disk")

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Return what `work` returns. Raises StorageFull, StorageReadOnly or StorageFailed.

        A thread cannot be stopped, so a caller who is cancelled waits for it: whoever comes next finds nobody at work
        on the same file.
        """
        return await self.end(self.begin(work))

    def begin(self, work: Callable[[], ResultT]) -> "asyncio.Future[ResultT]":
        """Let a thread begin with `work`. Whoever begins it waits for its end."""
        return asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def end(self, work: "asyncio.Future[ResultT]") -> ResultT:
        """Return what work that was begun returns, as `run` does."""
        with translated_disk_errors(self.folder):
            return await to_its_end(work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown()
