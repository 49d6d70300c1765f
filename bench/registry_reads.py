"""How long reads take when 100,000 versions are stored: one caller, and eight at once."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

import grpc
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from registry_packages import small_package, upload_requests
from registry_processes import RegistryProcess
from report import say, table
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

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
ALIASES = 4
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


@dataclass(frozen=True, slots=True)
class Filled:
    """How long it took, and a time at which the aliases stood elsewhere."""

    seconds: float
    read_time: datetime


def fill(registry: RegistryProcess) -> Filled:
    """Register one version of each model and copy its rows; then set aliases, and move them once."""
    begun = time.perf_counter()
    read_time = asyncio.run(_fill(registry.endpoint, registry.database_url))
    return Filled(time.perf_counter() - begun, read_time)


async def _fill(endpoint: str, database_url: str) -> datetime:
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
                await _copy_versions(connection, model_id)
        await engine.dispose()
        await _set_aliases(registry, 0)
        read_time = datetime.now(UTC)
        await _set_aliases(registry, 1)
    return read_time


async def _copy_versions(connection: AsyncConnection, model_id: str) -> None:
    """Copy the first version and its entry in the log, as if so many had been registered in a moment."""
    versions, changes, models = tables.versions, tables.changes, tables.models
    first = (await connection.execute(select(versions).where(versions.c.model_id == model_id))).one()._asdict()
    name = f"models/{model_id}/versions/"
    entry = (await connection.execute(select(changes).where(changes.c.resource == f"{name}1"))).one()._asdict()
    last = (await connection.execute(select(func.max(changes.c.sequence)))).scalar_one()
    now = datetime.now(UTC)
    for start in range(2, versions_of(model_id) + 1, _BATCH):
        numbers = range(start, min(start + _BATCH, versions_of(model_id) + 1))
        await connection.execute(
            insert(versions), [first | {"number": number, "create_time": now, "update_time": now} for number in numbers]
        )
        copies = [
            entry | {"sequence": last + number - 1, "time": now, "resource": f"{name}{number}"} for number in numbers
        ]
        await connection.execute(insert(changes), copies)
    await connection.execute(
        update(models).where(models.c.model_id == model_id).values(version_count=versions_of(model_id))
    )


async def _set_aliases(registry: "RegistryServiceAsyncStub", offset: int) -> None:
    for model_id in MODEL_IDS:
        for number in range(ALIASES):
            version = 1 + offset + number * versions_of(model_id) // ALIASES
            request = messages.SetAliasRequest(
                name=f"models/{model_id}/aliases/a{number}", version=f"models/{model_id}/versions/{version}"
            )
            await registry.SetAlias(request, timeout=_TIMEOUT_SECONDS)


def measure_reads(stores: str, registry: RegistryProcess, read_time: datetime, seconds: float) -> list[Read]:
    """Ask for each kind of thing for so long, one caller first, from a process of its own."""
    reads = []
    for name, (target_ms, _) in CALLS.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            run = partial(pool.submit, _run, registry.endpoint, name, read_time, seconds)
            alone, _ = run(1).result(timeout=600)
            together, per_second = run(TOGETHER).result(timeout=600)
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


def _run(
    endpoint: str, call: str, read_time: datetime, seconds: float, callers: int
) -> tuple[tuple[float, float], float]:
    return asyncio.run(_ask(endpoint, call, read_time, seconds, callers))


async def _ask(
    endpoint: str, call: str, read_time: datetime, seconds: float, callers: int
) -> tuple[tuple[float, float], float]:
    taken: list[float] = []
    async with grpc.aio.insecure_channel(endpoint) as channel:
        reader = _Reader(RegistryServiceStub(channel), read_time)
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

    def __init__(self, registry: "RegistryServiceAsyncStub", read_time: datetime) -> None:
        self._registry = registry
        self._read_time = Timestamp()
        self._read_time.FromDatetime(read_time)
        self._random = random.Random(7)
        self._tokens: list[str] = []

    async def _turn_pages(self) -> None:
        """Learn where the pages of the large model begin."""
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

    async def get_version_of_alias_then(self) -> None:
        name = f"models/{self._random.choice(MODEL_IDS)}/aliases/a{self._random.randrange(ALIASES)}"
        await self._registry.GetVersion(messages.GetVersionRequest(name=name, read_time=self._read_time))

    async def list_models(self) -> None:
        page = await self._registry.ListModels(messages.ListModelsRequest())
        assert len(page.models) == len(MODEL_IDS)

    async def list_newest_versions(self) -> None:
        page = await self._registry.ListVersions(messages.ListVersionsRequest(parent=f"models/{LARGE_MODEL}"))
        assert len(page.versions) == 100

    async def list_versions_in_the_middle(self) -> None:
        if not self._tokens:
            await self._turn_pages()
        request = messages.ListVersionsRequest(
            parent=f"models/{LARGE_MODEL}", page_token=self._random.choice(self._tokens)
        )
        page = await self._registry.ListVersions(request)
        assert len(page.versions) == 100

    async def list_versions_then(self) -> None:
        request = messages.ListVersionsRequest(parent=f"models/{LARGE_MODEL}", read_time=self._read_time)
        page = await self._registry.ListVersions(request)
        assert len(page.versions) == 100

    async def list_some_versions(self) -> None:
        request = messages.ListVersionsRequest(
            parent=f"models/{LARGE_MODEL}", filter='state = ready AND description : "version"'
        )
        page = await self._registry.ListVersions(request)
        assert len(page.versions) == 100

    async def list_no_versions(self) -> None:
        request = messages.ListVersionsRequest(parent=f"models/{LARGE_MODEL}", filter='tags.team = "nobody"')
        page = await self._registry.ListVersions(request)
        assert not page.versions


CALLS: Mapping[str, tuple[float, Callable[[_Reader], Awaitable[None]]]] = {
    "GetModel": (TARGET_MS, _Reader.get_model),
    "GetVersion": (TARGET_MS, _Reader.get_version),
    "GetVersion of an alias": (TARGET_MS, _Reader.get_version_of_alias),
    "GetVersion of an alias, as before its move": (TARGET_MS, _Reader.get_version_of_alias_then),
    "ListModels, all 51": (TARGET_PAGE_MS, _Reader.list_models),
    "ListVersions, the newest 100": (TARGET_PAGE_MS, _Reader.list_newest_versions),
    "ListVersions, 100 in the middle": (TARGET_PAGE_MS, _Reader.list_versions_in_the_middle),
    "ListVersions, 100 as at an earlier time": (TARGET_PAGE_MS, _Reader.list_versions_then),
    "ListVersions, a filter that all pass": (TARGET_PAGE_MS, _Reader.list_some_versions),
    "ListVersions, a filter that none passes": (TARGET_PAGE_MS, _Reader.list_no_versions),
}
"""What is asked for, and its target."""
