"""A replica in the test's own loop with real workers: when they hang, starve, never start, or are unloaded."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from test_inference_serving import make_package, until

from maas.names import DeploymentName, VersionName
from maas_inference.manager import keeper as keeper_module
from maas_inference.manager import worker_process
from maas_inference.manager.desired import Desired, DesiredFile, WantedDeployment, WeightedVersion, WorkerSettings
from maas_inference.manager.fronts import Fronts
from maas_inference.manager.keeper import Keeper
from maas_inference.manager.memory import MemoryBook
from maas_inference.manager.replica import DeploymentNotHeld, DeploymentNotLoaded, Replica, ReplicaOptions
from maas_inference.manager.worker_process import WorkerOptions
from maas_inference.table import FrontReport, ModelTable, ServedVersion, ServingSettings, VersionUse

ONE, TWO, THREE = (DeploymentName(name) for name in ("one", "two", "three"))
VERSION = VersionName("tiny", 1)
ROOMY = 10 * 2**30


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "1"
    make_package(folder, 1)
    return folder


@dataclass
class Folder:
    """All versions are the package in one folder."""

    folder: Path
    discarded: list[VersionName] = field(default_factory=list)

    def fetch(self, version: VersionName, trusted_keys: Sequence[str]) -> Path:
        return self.folder

    def discard(self, version: VersionName) -> None:
        self.discarded.append(version)

    def trim(self, needed: Collection[VersionName]) -> None:
        pass


class Front:
    """A front that obeys each table at once, and says of the versions what it is told to say."""

    def __init__(self) -> None:
        self.table = ModelTable()
        self.uses: tuple[VersionUse, ...] = ()
        self.told = asyncio.Event()

    async def live(self, path: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        line = asyncio.ensure_future(reader.readline())
        told = asyncio.ensure_future(self.told.wait())
        try:
            while True:
                await asyncio.wait({line, told}, return_when=asyncio.FIRST_COMPLETED)
                if line.done():
                    self.table = msgspec.json.decode(line.result(), type=ModelTable)
                    line = asyncio.ensure_future(reader.readline())
                if told.done():
                    self.told.clear()
                    told = asyncio.ensure_future(self.told.wait())
                writer.write(msgspec.json.encode(FrontReport(self.table.revision, self.uses)) + b"\n")
        finally:
            line.cancel()
            told.cancel()
            writer.close()

    def say(self, *uses: VersionUse) -> None:
        self.uses = uses
        self.told.set()

    def version(self, deployment: DeploymentName) -> ServedVersion:
        served = {one.deployment: one.versions for one in self.table.deployments}
        return served[deployment.deployment_id][0]


@dataclass
class Running:
    replica: Replica
    front: Front
    _tokens: "count[int]" = field(default_factory=count)

    def want(self, **deployments: WorkerSettings) -> None:
        self.replica.want(
            Desired(
                {
                    DeploymentName(name): WantedDeployment(
                        (WeightedVersion(VERSION, 1),), ServingSettings(max_batch_rows=4), workers
                    )
                    for name, workers in deployments.items()
                },
                str(next(self._tokens)),
            )
        )

    def keeper(self, name: DeploymentName = ONE) -> Keeper:
        return self.replica.keepers[name, VERSION]

    def is_ready(self, name: DeploymentName = ONE) -> bool:
        return (name, VERSION) in self.replica.keepers and self.keeper(name).is_ready

    async def ready(self, name: DeploymentName = ONE) -> int:
        """Wait until a version is warm, the front knows it, and return its worker's process id."""
        await until(lambda: self.is_ready(name) and bool(self.front.table.deployments))
        await until(lambda: self.front.version(name).socket_path == self.keeper(name).keeping.socket_path)
        return self.keeper(name).keeping.pid

    def failed(self, name: DeploymentName = ONE) -> bool:
        return self.keeper(name).keeping.state == "failed"


@asynccontextmanager
async def running(package: Path, home: Path, budget: int = ROOMY) -> AsyncIterator[Running]:
    with TemporaryDirectory(prefix="maas-") as folder:
        run_dir = Path(folder)
        fronts = Fronts()
        replica = Replica(
            ReplicaOptions(WorkerOptions(run_dir, engine_threads=1, lanes=1, max_batch_rows=8), budget),
            Folder(package),
            fronts,
            DesiredFile(home / "desired.json"),
            MemoryBook(home / "sizes.json"),
        )
        fronts.on_report = replica.reported
        front = Front()
        async with fronts.listening(run_dir / "front.sock"):
            tasks = [asyncio.ensure_future(replica.run()), asyncio.ensure_future(front.live(run_dir / "front.sock"))]
            try:
                yield Running(replica, front)
            finally:
                for task in tasks:
                    task.cancel()
                    await asyncio.wait({task})


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def starting_workers() -> list[int]:
    own = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()]


def use(name: DeploymentName = ONE, **how: float) -> VersionUse:
    return VersionUse(name.deployment_id, str(VERSION.number), **how)  # type: ignore[arg-type]


async def test_an_unloaded_deployment_has_no_worker_until_it_is_loaded_again(package: Path, tmp_path: Path) -> None:
    async with running(package, tmp_path) as run:
        run.want(one=WorkerSettings(), two=WorkerSettings())
        pid, other = await run.ready(ONE), await run.ready(TWO)
        await run.replica.unload(ONE)
        assert not is_there(pid), "the process has ended, so that all of its memory is back"
        assert is_there(other)
        served = run.front.version(ONE)
        assert (served.state, served.refusal, served.socket_path) == ("unloaded", "MODEL_UNLOADED", "")
        assert served.inputs, "it is known what it takes"
        run.front.say(VersionUse("one", "1", waits_for_worker=True))
        await run.replica.load(ONE)
        assert is_there(await run.ready(ONE))


async def test_what_was_unloaded_stays_so_over_a_restart_and_until_rollout_changes_it(
    package: Path, tmp_path: Path
) -> None:
    async with running(package, tmp_path) as run:
        run.want(one=WorkerSettings(), two=WorkerSettings())
        await run.ready(ONE)
        await run.replica.unload(ONE)
    async with running(package, tmp_path) as run:
        await run.ready(TWO)
        await until(lambda: run.front.version(ONE).refusal == "MODEL_UNLOADED")
        run.want(one=WorkerSettings(), two=WorkerSettings())  # rollout says the same again
        await until(lambda: run.front.version(ONE).refusal == "MODEL_UNLOADED")
        run.want(one=WorkerSettings(compute_timeout_seconds=5), two=WorkerSettings())
        await run.ready(ONE)


async def test_what_is_not_held_can_be_neither_loaded_nor_unloaded(package: Path, tmp_path: Path) -> None:
    async with running(package, tmp_path) as run:
        for call in (run.replica.load, run.replica.unload):
            with pytest.raises(DeploymentNotHeld):
                await call(ONE)


async def test_loading_what_cannot_be_loaded_says_why(package: Path, tmp_path: Path) -> None:
    async with running(package, tmp_path) as run:
        run.want(one=WorkerSettings(on_demand=True, engine="nothing"))
        await until(lambda: (ONE, VERSION) in run.replica.keepers)
        with pytest.raises(DeploymentNotLoaded, match="none for nothing that runs here"):
            await run.replica.load(ONE)


async def test_a_worker_that_keeps_a_batch_for_too_long_is_killed_and_started_again(
    package: Path, tmp_path: Path
) -> None:
    async with running(package, tmp_path) as run:
        run.want(one=WorkerSettings(compute_timeout_seconds=0.5), two=WorkerSettings())
        hung, other = await run.ready(ONE), await run.ready(TWO)
        os.kill(hung, signal.SIGSTOP)

        async def killed() -> bool:
            run.front.say(use(ONE, in_flight_seconds=0.6), use(TWO, in_flight_seconds=20.0))
            return not is_there(hung)

        await until(killed)
        run.front.say(use(ONE), use(TWO))
        assert await run.ready(ONE) != hung
        assert await run.ready(TWO) == other, "without a setting it has 30 s"
        assert run.keeper(ONE).keeping.restart_count == 1


async def test_a_worker_without_memory_fails_to_load_says_so_and_gives_its_memory_back(
    package: Path, tmp_path: Path
) -> None:
    async with running(package, tmp_path) as run:
        run.want(one=WorkerSettings(memory_bytes=16 << 20), two=WorkerSettings(memory_bytes=1 << 30))
        await run.ready(TWO)
        await until(lambda: run.failed(ONE))
        assert "16 MiB" in run.keeper(ONE).keeping.message
        assert not run.keeper(ONE).holds_memory
        run.want(one=WorkerSettings(memory_bytes=1 << 30), two=WorkerSettings(memory_bytes=1 << 30))
        await run.ready(ONE)


async def test_workers_that_load_for_ever_hold_up_nobody_and_fail_in_the_end(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "_SLOT_SECONDS", 0.2)
    monkeypatch.setattr(worker_process, "START_SECONDS", 5.0)
    async with running(package, tmp_path) as run:
        run.want(one=WorkerSettings(), two=WorkerSettings())
        await until(lambda: len(starting_workers()) == 2)
        for pid in starting_workers():
            os.kill(pid, signal.SIGSTOP)
        run.want(one=WorkerSettings(), two=WorkerSettings(), three=WorkerSettings())
        await run.ready(THREE)
        assert not run.is_ready(ONE)
        await until(lambda: run.failed(ONE) and run.failed(TWO))
        assert "was not ready after 5 s" in run.keeper(ONE).keeping.message
        await run.ready(ONE)  # tried again, and nobody stops it


async def test_a_worker_that_dies_while_it_loads_is_tried_again(package: Path, tmp_path: Path) -> None:
    async with running(package, tmp_path) as run:
        run.want(one=WorkerSettings())
        await until(lambda: len(starting_workers()) == 1)
        os.kill(starting_workers()[0], signal.SIGKILL)
        await until(lambda: run.failed(ONE))
        assert "status -9" in run.keeper(ONE).keeping.message
        await run.ready(ONE)


async def test_other_worker_settings_replace_the_worker(package: Path, tmp_path: Path) -> None:
    async with running(package, tmp_path) as run:
        run.want(one=WorkerSettings())
        before = await run.ready(ONE)
        assert run.front.version(ONE).max_batch_rows == 4, "the deployment's, not the replica's 8"
        run.want(one=WorkerSettings(compute_timeout_seconds=3.0))
        run.want(one=WorkerSettings(memory_bytes=1 << 30, engine="onnxruntime:fp32"))
        await until(lambda: not is_there(before))
        assert await run.ready(ONE) != before


async def test_always_loaded_versions_are_loaded_over_the_budget_with_a_word_about_it(
    package: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(package, tmp_path, budget=1 << 20) as run:
        run.want(one=WorkerSettings(), two=WorkerSettings(on_demand=True))
        await run.ready(ONE)
        assert "over the memory budget" in caplog.text
        await until(lambda: run.front.version(TWO).state == "unloaded")
        run.front.say(VersionUse("two", "1", waits_for_worker=True))
        await until(lambda: run.front.version(TWO).refusal == "NO_ROOM_TO_LOAD")
        run.front.say()
        await until(lambda: run.front.version(TWO).refusal == "" or bool(run.front.say()))


async def test_measured_memory_is_remembered_for_the_next_load(package: Path, tmp_path: Path) -> None:
    async with running(package, tmp_path) as run:
        run.want(one=WorkerSettings())
        await run.ready(ONE)
        await until(lambda: (tmp_path / "sizes.json").exists())
        assert run.replica.memory_used_bytes() > 10 << 20
    assert MemoryBook(tmp_path / "sizes.json").expected_bytes(VERSION, 0) > 10 << 20
