"""All processes of a cluster together."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from maas.supervisor.child import Child, ProcessSpec
from maas.supervisor.failures import CannotStart, HomeNotWritable, NotReadyInTime
from maas.supervisor.home import ClusterState, Home, ProcessState, start_ticks, write_state
from maas.supervisor.log_file import BoundedLog

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Supervisor:
    """Keeps processes running until it is told to stop, and writes down how they are."""

    def __init__(
        self,
        home: Home,
        specs: Sequence[ProcessSpec],
        *,
        port: int,
        run_dir: str,
        say: Callable[[str], None],
        start_seconds: float = 60.0,
    ) -> None:
        self._home = home
        self._port = port
        self._run_dir = run_dir
        self._say = say
        self._start_seconds = start_seconds
        self._since = time.time()
        self._all_ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._problem: CannotStart | None = None
        self._stopping = False
        self._children = [
            Child(
                spec,
                BoundedLog(home.log_file(spec.name)),
                changed=self._changed,
                cannot_start=self._cannot_start,
            )
            for spec in specs
        ]

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Run until SIGTERM, SIGINT or SIGHUP, then stop in order; a second signal kills. Calls `on_ready` once.

        Raises CannotStart when a process says that it cannot, or is not ready in time; then nothing is left running.
        """
        with self._signals():
            async with asyncio.TaskGroup() as tasks:
                keepers = {child: tasks.create_task(child.keep_running()) for child in self._children}
                starting = tasks.create_task(self._watch_the_start(on_ready))
                try:
                    await self._stop.wait()
                finally:
                    starting.cancel()
                    await self._stop_in_order(keepers)
        if self._problem is not None:
            raise self._problem

    def state(self) -> ClusterState:
        """Return how it is now."""
        return ClusterState(
            pid=os.getpid(),
            start_ticks=start_ticks(os.getpid()),
            port=self._port,
            run_dir=self._run_dir,
            since=self._since,
            ready=self._all_ready.is_set(),
            processes=tuple(child.state for child in self._children),
        )

    async def _watch_the_start(self, on_ready: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(self._start_seconds):
                await self._all_ready.wait()
        except TimeoutError:
            late = [child for child in self._children if child.state.state != "ready"]
            told = "; ".join(f"{child.spec.name}: {child.last_line()[:300] or 'no output'}" for child in late)
            self._give_up(
                NotReadyInTime(f"not ready after {self._start_seconds:g} s: {told} (logs are in {self._home.logs})")
            )
        else:
            on_ready()

    async def _stop_in_order(self, keepers: dict[Child, asyncio.Task[None]]) -> None:
        self._stopping = True
        for stage in sorted({child.spec.stop_stage for child in self._children}):
            together = [child for child in self._children if child.spec.stop_stage == stage]
            async with asyncio.TaskGroup() as stops:
                for child in together:
                    stops.create_task(child.stop(keepers[child]))

    def _changed(self, state: ProcessState) -> None:
        if state.state == "waiting":
            self._say(f"{state.name} {state.message}; starting it again")
        if not self._all_ready.is_set() and all(child.state.state == "ready" for child in self._children):
            self._all_ready.set()
        try:
            write_state(self._home, self.state())
        except HomeNotWritable as error:
            # The cluster goes on; only those who look from outside see an older state.
            self._say(error.message)

    def _cannot_start(self, sentence: str) -> None:
        self._give_up(CannotStart(sentence))

    def _give_up(self, problem: CannotStart) -> None:
        if self._problem is None and not self._stopping:
            self._problem = problem
            self._stop.set()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._asked_to_stop)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _asked_to_stop(self) -> None:
        if not self._stop.is_set():
            self._say("stopping; once more kills at once")
            self._stop.set()
            return
        for child in self._children:
            child.kill()
