"""How long reads take when 100,000 versions are stored: one caller, and eight at once."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING

import grpc
import numpy as np
from registry_packages import small_package, upload_requests
from registry_processes import RegistryProcess
from report import say, table
from sqlalchemy import insert, select, update

from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_registry.storage import tables
from maas_runtime.database.location import parse_database_url

if TYPE_CHECKING:
    from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

LARGE_MODEL = "large"
LARGE_VERSIONS = 50_000
SMALL_MODELS = 50
SMALL_VERSIONS = 1_000
ALIASES = 10
"""Of each model."""
TARGET_MS = 10.0
TARGET_PAGE_MS = 30.0
TOGETHER = 8
_BATCH = 5_000
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Read:
    """What one kind of call took, in milliseconds."""

    stores: str
    call: str
    target_ms: float
    alone_ms: tuple[float, float]
    """p50 and p99 of one caller."""
    together_ms: tuple[float, float]
    together_per_second: float


def versions_of(model_id: str) -> int:
    """Return how many versions the model is filled with."""
    return LARGE_VERSIONS if model_id == LARGE_MODEL else SMALL_VERSIONS


MODEL_IDS = (LARGE_MODEL, *(f"small-{number}" for number in range(SMALL_MODELS)))


def fill(registry: RegistryProcess) -> float:
    """Register one version of each model and copy its row; return how long that took."""
    begun = time.perf_counter()
    asyncio.run(_fill(registry.endpoint, registry.database_url))
    return time.perf_counter() - begun


async def _fill(endpoint: str, database_url: str) -> None:
    package = small_package(b"the same in all versions")
    async with grpc.aio.insecure_channel(endpoint) as channel:
        registry = RegistryServiceStub(channel)
        for content in package.members.values():
            await registry.UploadBlob(upload_requests(content), timeout=_TIMEOUT_SECONDS)
        for model_id in MODEL_IDS:
            await registry.CreateModel(messages.CreateModelRequest(model_id=model_id), timeout=_TIMEOUT_SECONDS)
            await registry.CreateVersion(
                messages.CreateVersionRequest(parent=f"models/{model_id}", version=package.version("a version")),
                timeout=_TIMEOUT_SECONDS,
            )
        engine = parse_database_url(database_url).migrating()
        for model_id in MODEL_IDS:
            async with engine.begin() as connection:
                of_model = tables.versions.c.model_id == model_id
                row = (await connection.execute(select(tables.versions).where(of_model))).one()
                for start in range(2, versions_of(model_id) + 1, _BATCH):
                    numbers = range(start, min(start + _BATCH, versions_of(model_id) + 1))
                    await connection.execute(
                        insert(tables.versions), [row._asdict() | {"number": number} for number in numbers]
                    )
                await connection.execute(
                    update(tables.models)
                    .where(tables.models.c.model_id == model_id)
                    .values(version_count=versions_of(model_id))
                )
        await engine.dispose()
        for model_id in MODEL_IDS:
            for number in range(ALIASES):
                version = f"models/{model_id}/versions/{1 + number * versions_of(model_id) // ALIASES}"
                await registry.SetAlias(
                    messages.SetAliasRequest(name=f"models/{model_id}/aliases/a{number}", version=version),
                    timeout=_TIMEOUT_SECONDS,
                )


def measure_reads(stores: str, registry: RegistryProcess, seconds: float) -> list[Read]:
    """Ask for each kind of thing for so long, one caller first, from a process of its own."""
    reads = []
    for name, (target_ms, _) in CALLS.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            alone, _ = pool.submit(_run, registry.endpoint, name, 1, seconds).result(timeout=600)
            together, per_second = pool.submit(_run, registry.endpoint, name, TOGETHER, seconds).result(timeout=600)
        reads.append(Read(stores, name, target_ms, alone, together, per_second))
        say(f"{stores}: {name}: {alone[0]:.2f} / {alone[1]:.2f} ms, {TOGETHER} at once {together[1]:.2f} ms")
    return reads


def describe_reads(reads: list[Read]) -> str:
    """Return the Markdown."""
    head = ["stores", "call", "p50 / p99 ms", f"{TOGETHER} at once: p50 / p99 ms", "calls/s", "target p99 ms"]
    return table(
        head,
        [
            [
                read.stores,
                read.call,
                f"{read.alone_ms[0]:.2f} / {read.alone_ms[1]:.2f}",
                f"{read.together_ms[0]:.2f} / {read.together_ms[1]:.2f}",
                f"{read.together_per_second:,.0f}",
                f"{read.target_ms:.0f}",
            ]
            for read in reads
        ],
    )


def _run(endpoint: str, call: str, callers: int, seconds: float) -> tuple[tuple[float, float], float]:
    return asyncio.run(_ask(endpoint, call, callers, seconds))


async def _ask(endpoint: str, call: str, callers: int, seconds: float) -> tuple[tuple[float, float], float]:
    taken: list[float] = []
    async with grpc.aio.insecure_channel(endpoint) as channel:
        reader = _Reader(RegistryServiceStub(channel))
        await reader.prepare()
        ask = CALLS[call][1]
        for _ in range(20):
            await ask(reader)
        begun = time.perf_counter()

        async def ask_again() -> None:
            while (started := time.perf_counter()) < begun + seconds:
                await ask(reader)
                taken.append(time.perf_counter() - started)

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(ask_again())
        ended = time.perf_counter()
    p50, p99 = np.percentile(taken, [50, 99]) * 1000
    return (float(p50), float(p99)), len(taken) / (ended - begun)


class _Reader:
    """Asks for things at random."""

    def __init__(self, registry: "RegistryServiceAsyncStub") -> None:
        self._registry = registry
        self._random = random.Random(7)
        self._tokens: list[str] = []

    async def prepare(self) -> None:
        """Turn the large model's pages, so that one in the middle can be asked for."""
        request = messages.ListVersionsRequest(parent=f"models/{LARGE_MODEL}", page_size=1000)
        while True:
            page = await self._registry.ListVersions(request)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
            self._tokens.append(page.next_page_token)

    async def get_model(self) -> None:
        await self._registry.GetModel(messages.GetModelRequest(name=f"models/{self._random.choice(MODEL_IDS)}"))

    async def get_version(self) -> None:
        model_id = self._random.choice((LARGE_MODEL, self._random.choice(MODEL_IDS)))
        number = self._random.randint(1, versions_of(model_id))
        await self._registry.GetVersion(messages.GetVersionRequest(name=f"models/{model_id}/versions/{number}"))

    async def get_version_of_alias(self) -> None:
        name = f"models/{self._random.choice(MODEL_IDS)}/aliases/a{self._random.randrange(ALIASES)}"
        await self._registry.GetVersion(messages.GetVersionRequest(name=name))

    async def list_models(self) -> None:
        page = await self._registry.ListModels(messages.ListModelsRequest())
        assert len(page.models) == len(MODEL_IDS)

    async def list_newest_versions(self) -> None:
        page = await self._registry.ListVersions(messages.ListVersionsRequest(parent=f"models/{LARGE_MODEL}"))
        assert len(page.versions) == 100

    async def list_versions_in_the_middle(self) -> None:
        request = messages.ListVersionsRequest(
            parent=f"models/{LARGE_MODEL}", page_token=self._random.choice(self._tokens)
        )
        page = await self._registry.ListVersions(request)
        assert len(page.versions) == 100


CALLS: Mapping[str, tuple[float, Callable[[_Reader], Awaitable[None]]]] = {
    "GetModel": (TARGET_MS, _Reader.get_model),
    "GetVersion": (TARGET_MS, _Reader.get_version),
    "GetVersion of an alias": (TARGET_MS, _Reader.get_version_of_alias),
    "ListModels, all 51": (TARGET_PAGE_MS, _Reader.list_models),
    "ListVersions, the newest 100": (TARGET_PAGE_MS, _Reader.list_newest_versions),
    "ListVersions, 100 in the middle": (TARGET_PAGE_MS, _Reader.list_versions_in_the_middle),
}
"""What is asked for, and its target."""
