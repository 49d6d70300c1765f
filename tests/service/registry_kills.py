"""`kill -9` of a registry at random points of its work, and a look at what is there afterwards.

Clients upload, register and move aliases, and write down what they ask for and what was acknowledged. The registry is
killed at a random moment, started again, and held against what they wrote down: whatever was acknowledged is there as
it was, and whatever was not is there whole or not at all.
"""

import asyncio
import itertools
import os
import random
import sys
import time
from asyncio.subprocess import PIPE, STDOUT
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import grpc
from registry_packages import SmallPackage, blob_name, small_package, upload_requests
from registry_processes import RegistryProcess

from maas.registry.v1 import model_pb2, version_pb2
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

if TYPE_CHECKING:
    from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

MODELS = ("a", "b")
ALIASES = ("models/a/aliases/best", "models/a/aliases/next", "models/b/aliases/best")
LONGEST_WORK_SECONDS = 0.5
"""The longest time from the first answer to the kill."""
LONGEST_START_SECONDS = 1.2
"""The longest time to the kill of one that is killed while it starts."""
KILLED_AT_START = 0.1
"""The share of those."""
ALL_IS_READ_EVERY = 25
ONE_PACKAGE = small_package(b"the same each time")
TIMEOUT_SECONDS = 60.0
T = TypeVar("T")


@dataclass(slots=True)
class Found:
    """What a run of kills came to."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    """By what went on: working, or starting."""
    acknowledged: Counter[str] = field(default_factory=Counter)
    """Mutations that were acknowledged, by kind."""
    cut_off: Counter[str] = field(default_factory=Counter)
    """Mutations under way when the kill came, by kind and by what became of them."""
    faults: list[str] = field(default_factory=list)
    verifications: int = 0
    """How often `maas registry verify` looked at everything as well."""
    seconds: float = 0.0


@dataclass(slots=True)
class Journal:
    """What the clients know."""

    versions: dict[str, version_pb2.Version] = field(default_factory=dict)
    """Acknowledged, by name."""
    asked: dict[str, messages.CreateVersionRequest] = field(default_factory=dict)
    """Registrations without an answer, by request id."""
    aliases: dict[str, model_pb2.Alias] = field(default_factory=dict)
    """The last acknowledged place of each."""
    moves: dict[str, str] = field(default_factory=dict)
    """Moves without an answer: where to, by alias."""
    blobs: dict[str, int] = field(default_factory=dict)
    """Acknowledged blobs and their lengths, by name."""
    uploads: dict[str, bytes] = field(default_factory=dict)
    """Uploads without an answer, by name."""
    fresh_versions: list[str] = field(default_factory=list)
    """Acknowledged since the last kill."""
    fresh_blobs: list[str] = field(default_factory=list)


class KilledRegistry:
    """A registry process and the clients that it is taken away from."""

    def __init__(self, process: RegistryProcess, seed: int, progress: Callable[[str], None] = lambda _: None) -> None:
        self._process = process
        self._random = random.Random(seed)
        self._progress = progress
        self._journal = Journal()
        self._numbers = itertools.count(1)
        self.found = Found(seed)

    async def run(self, kills: int) -> Found:
        """Kill so many times. What is wrong is in the result's `faults`."""
        begun = time.monotonic()
        async with self._started() as registry:
            for content in ONE_PACKAGE.members.values():
                await self._upload_blob(registry, content)
            for model_id in MODELS:
                await registry.CreateModel(messages.CreateModelRequest(model_id=model_id), timeout=TIMEOUT_SECONDS)
                await self._register(registry, model_id, ONE_PACKAGE)
            await self._work_until_killed(registry)
        for number in range(2, kills + 1):
            if self._random.random() < KILLED_AT_START:
                self._process.start()
                await asyncio.sleep(self._random.uniform(0, LONGEST_START_SECONDS))
                self._kill("starting")
                continue
            async with self._started() as registry:
                await self._look(registry, at_all=number % ALL_IS_READ_EVERY == 0)
                await self._work_until_killed(registry)
            if number % 10 == 0:
                self._progress(f"{number} kills, {len(self.found.faults)} faults")
        async with self._started() as registry:
            await self._look(registry, at_all=True)
        self.found.seconds = time.monotonic() - begun
        return self.found

    @asynccontextmanager
    async def _started(self) -> AsyncIterator["RegistryServiceAsyncStub"]:
        self._process.start()
        await asyncio.to_thread(self._process.wait_until_it_answers)
        async with grpc.aio.insecure_channel(self._process.endpoint) as channel:
            yield RegistryServiceStub(channel)

    def _kill(self, during: str) -> None:
        self._process.kill()
        self.found.kills[during] += 1

    # ---- the work -----------------------------------------------------------------------------------------------

    async def _work_until_killed(self, registry: "RegistryServiceAsyncStub") -> None:
        clients = [
            self._register_one_package(registry, "a"),
            self._register_one_package(registry, "a"),
            self._register_one_package(registry, "b"),
            self._register_new_packages(registry, "b"),
            *(self._move(registry, alias) for alias in ALIASES),
            self._upload(registry, 2**10, 2**16),
            self._upload(registry, 2**20, 2**23),
        ]
        working = [asyncio.create_task(_until_away(client)) for client in clients]
        await asyncio.sleep(self._random.uniform(0, LONGEST_WORK_SECONDS))
        self._kill("working")
        async with asyncio.timeout(TIMEOUT_SECONDS):
            all_ended = await asyncio.gather(*working, return_exceptions=True)
        for ended in all_ended:
            if isinstance(ended, BaseException):
                self.found.faults.append(f"refused while working: {ended!r}")

    async def _register_one_package(self, registry: "RegistryServiceAsyncStub", model_id: str) -> None:
        while True:
            await self._register(registry, model_id, ONE_PACKAGE)

    async def _register_new_packages(self, registry: "RegistryServiceAsyncStub", model_id: str) -> None:
        while True:
            package = small_package(self._content(2**10, 2**17))
            for content in package.members.values():
                await self._upload_blob(registry, content)
            await self._register(registry, model_id, package)

    async def _register(self, registry: "RegistryServiceAsyncStub", model_id: str, package: SmallPackage) -> None:
        number = next(self._numbers)
        request = messages.CreateVersionRequest(
            parent=f"models/{model_id}", version=package.version(f"number {number}"), request_id=f"request-{number}"
        )
        self._journal.asked[request.request_id] = request
        self._registered(request, await registry.CreateVersion(request, timeout=TIMEOUT_SECONDS))

    def _registered(self, request: messages.CreateVersionRequest, version: version_pb2.Version) -> None:
        del self._journal.asked[request.request_id]
        if version.name in self._journal.versions:
            self.found.faults.append(f"{version.name} was given twice")
        if version.description != request.version.description or version.files[0].blob != request.version.files[0].blob:
            self.found.faults.append(f"{version.name} is not what was registered: {version}")
        self._journal.versions[version.name] = version
        self._journal.fresh_versions.append(version.name)
        self.found.acknowledged["registrations"] += 1

    async def _move(self, registry: "RegistryServiceAsyncStub", alias: str) -> None:
        model = alias.partition("/aliases/")[0]
        while True:
            versions = [name for name in self._journal.versions if name.startswith(f"{model}/")]
            version = self._random.choice(versions)
            self._journal.moves[alias] = version
            request = messages.SetAliasRequest(name=alias, version=version)
            moved = await registry.SetAlias(request, timeout=TIMEOUT_SECONDS)
            del self._journal.moves[alias]
            self._journal.aliases[alias] = moved
            self.found.acknowledged["alias moves"] += 1

    async def _upload(self, registry: "RegistryServiceAsyncStub", least_bytes: int, most_bytes: int) -> None:
        while True:
            await self._upload_blob(registry, self._content(least_bytes, most_bytes))

    async def _upload_blob(self, registry: "RegistryServiceAsyncStub", content: bytes) -> None:
        self._journal.uploads[blob_name(content)] = content
        blob = await registry.UploadBlob(upload_requests(content), timeout=TIMEOUT_SECONDS)
        if not blob.committed:
            self.found.faults.append(f"{blob.name} was acknowledged and is not committed")
        self._uploaded(content)

    def _uploaded(self, content: bytes) -> None:
        name = blob_name(content)
        del self._journal.uploads[name]
        self._journal.blobs[name] = len(content)
        self._journal.fresh_blobs.append(name)
        self.found.acknowledged["uploads"] += 1

    def _content(self, least_bytes: int, most_bytes: int) -> bytes:
        return self._random.randbytes(self._random.randint(least_bytes, most_bytes))

    # ---- what is there afterwards -------------------------------------------------------------------------------

    async def _look(self, registry: "RegistryServiceAsyncStub", *, at_all: bool) -> None:
        """Compare with the journal; what was cut off is asked for again, as a client would."""
        if at_all:
            await self._verify()
        await self._look_at_blobs(registry, at_all=at_all)
        await self._look_at_versions(registry, at_all=at_all)
        for alias in ALIASES:
            await self._look_at_alias(registry, alias)

    async def _verify(self) -> None:
        """Let `maas registry verify` look, before anything that was cut off is made good."""
        command = ("-m", "maas.cli", "registry", "verify", "--hash", "--json", "--home", str(self._process.folder))
        verifying = await asyncio.create_subprocess_exec(
            sys.executable, *command, env=os.environ | self._process.variables, stdout=PIPE, stderr=STDOUT
        )
        said, _ = await verifying.communicate()
        self.found.verifications += 1
        if verifying.returncode != 0:
            self.found.faults.append(f"maas registry verify: {said.decode()}")

    async def _look_at_blobs(self, registry: "RegistryServiceAsyncStub", *, at_all: bool) -> None:
        for name in self._journal.blobs if at_all else self._journal.fresh_blobs:
            await self._expect_blob(registry, name, "acknowledged")
        self._journal.fresh_blobs.clear()
        for name, content in list(self._journal.uploads.items()):
            blob = await _or_none(registry.GetBlob(messages.GetBlobRequest(name=name), timeout=TIMEOUT_SECONDS))
            if blob is None:
                self.found.cut_off["uploads of which nothing is there"] += 1
            elif blob.committed:
                self.found.cut_off["uploads that are there whole"] += 1
                await self._expect_blob(registry, name, "committed")
            else:
                self.found.cut_off["uploads that can go on"] += 1
                if not 0 <= blob.received_bytes <= len(content):
                    self.found.faults.append(f"{name}: {blob.received_bytes} of {len(content)} bytes")
                if await _downloaded(registry, name) is not None:
                    self.found.faults.append(f"{name} can be read before its commit")
            received_bytes = 0 if blob is None else blob.received_bytes
            with self._noted(f"{name} does not go on from {received_bytes}"):
                await registry.UploadBlob(upload_requests(content, received_bytes), timeout=TIMEOUT_SECONDS)
                await self._expect_blob(registry, name, "taken up again")
                self._uploaded(content)

    async def _expect_blob(self, registry: "RegistryServiceAsyncStub", name: str, which: str) -> None:
        content = await _downloaded(registry, name)
        if content is None or blob_name(content) != name:
            self.found.faults.append(f"{which} {name} is {'gone' if content is None else 'damaged'}")

    async def _look_at_versions(self, registry: "RegistryServiceAsyncStub", *, at_all: bool) -> None:
        for name in self._journal.fresh_versions:
            await self._expect_version(registry, name)
        self._journal.fresh_versions.clear()
        for model_id in MODELS:
            model = await registry.GetModel(
                messages.GetModelRequest(name=f"models/{model_id}"), timeout=TIMEOUT_SECONDS
            )
            known = sum(name.startswith(f"{model.name}/") for name in self._journal.versions)
            asked = sum(request.parent == model.name for request in self._journal.asked.values())
            if not known <= model.version_count <= known + asked:
                self.found.faults.append(f"{model.name} counts {model.version_count}: {known} known, {asked} asked for")
            self.found.cut_off["registrations that are there whole"] += model.version_count - known
            self.found.cut_off["registrations of which nothing is there"] += known + asked - model.version_count
        for request in list(self._journal.asked.values()):
            with self._noted(f"{request.request_id} cannot be asked for again"):
                self._registered(request, await registry.CreateVersion(request, timeout=TIMEOUT_SECONDS))
        for model_id in MODELS if at_all else ():
            await self._look_at_all_versions(registry, f"models/{model_id}")

    async def _expect_version(self, registry: "RegistryServiceAsyncStub", name: str) -> None:
        version = await _or_none(registry.GetVersion(messages.GetVersionRequest(name=name), timeout=TIMEOUT_SECONDS))
        if version != self._journal.versions[name]:
            self.found.faults.append(f"acknowledged {name} is now {version}")

    async def _look_at_all_versions(self, registry: "RegistryServiceAsyncStub", model: str) -> None:
        listed: list[version_pb2.Version] = []
        request = messages.ListVersionsRequest(parent=model, page_size=1000)
        while True:
            page = await registry.ListVersions(request, timeout=TIMEOUT_SECONDS)
            listed += page.versions
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        numbers = [int(version.name.rpartition("/")[2]) for version in listed]
        if numbers != list(range(len(listed), 0, -1)):
            self.found.faults.append(f"{model} has the numbers {numbers}")
        for version in listed:
            if version != self._journal.versions.get(version.name):
                self.found.faults.append(f"listed {version.name} is not what was acknowledged: {version}")
        known = {name for name in self._journal.versions if name.startswith(f"{model}/")}
        self.found.faults += [f"{name} is not listed" for name in known - {version.name for version in listed}]

    async def _look_at_alias(self, registry: "RegistryServiceAsyncStub", alias: str) -> None:
        version = await _or_none(registry.GetVersion(messages.GetVersionRequest(name=alias), timeout=TIMEOUT_SECONDS))
        moved_to = self._journal.moves.pop(alias, None)
        last = self._journal.aliases.get(alias)
        at = None if version is None else version.name
        if at not in ({None if last is None else last.version} | ({moved_to} if moved_to else set())):
            self.found.faults.append(f"{alias} is at {at}, neither where it was, {last}, nor at {moved_to}")
        if moved_to:
            self.found.cut_off[f"alias moves {'done' if at == moved_to else 'not begun'}"] += 1
        if at is not None:
            self._journal.aliases[alias] = model_pb2.Alias(name=alias, version=at)

    @contextmanager
    def _noted(self, what: str) -> Iterator[None]:
        """Write an error of a call down as a fault."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            self.found.faults.append(f"{what}: {error.code().name} {error.details()}")


async def _until_away(work: Awaitable[None]) -> None:
    """Work until the registry is killed. Raises what else it answers."""
    try:
        await work
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise


async def _or_none(call: Awaitable[T]) -> T | None:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return None


async def _downloaded(registry: "RegistryServiceAsyncStub", name: str) -> bytes | None:
    """The blob's bytes; None when it cannot be read."""
    call = registry.DownloadBlob(messages.DownloadBlobRequest(name=name), timeout=TIMEOUT_SECONDS)
    try:
        return b"".join([response.chunk async for response in call])
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS):
            raise
        return None
