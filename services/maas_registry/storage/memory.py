"""Models, datasets and blobs in memory, for tests of the rules; one contract suite holds them to what disks do."""

import asyncio
import copy
import hashlib
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from maas.names import (
    AliasName,
    BlobName,
    DatasetName,
    DatasetVersionName,
    DeploymentName,
    ModelName,
    SignatureName,
    VersionName,
)
from maas_registry.domain.blobs import Blob, BlobCorrupt, BlobState
from maas_registry.domain.changes import (
    Author,
    Change,
    ChangedState,
    ChangeKind,
    Clock,
    ResourceName,
    is_within,
    utc_now,
)
from maas_registry.domain.datasets import Dataset, DatasetContent, DatasetVersion
from maas_registry.domain.details import Deletion, ModelDetails, VersionDetails
from maas_registry.domain.models import Alias, Hold, Model
from maas_registry.domain.signatures import VersionSignature
from maas_registry.domain.store import ModelWriter
from maas_registry.domain.versions import Version, VersionContent

_CHUNK_BYTES = 2**20

ResultT = TypeVar("ResultT")
KeyT = TypeVar("KeyT", ModelName, VersionName, AliasName, Hold)


@dataclass(slots=True)
class _Records:
    """All that a MemoryModelStore holds. What it holds is its own and is not changed, so a copy shares it."""

    models: dict[ModelName, Model] = field(default_factory=dict)
    versions: dict[VersionName, Version] = field(default_factory=dict)
    requests: dict[tuple[ModelName, str], VersionName] = field(default_factory=dict)
    aliases: dict[AliasName, Alias] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def copy(self) -> "_Records":
        return _Records(
            dict(self.models), dict(self.versions), dict(self.requests), dict(self.aliases), list(self.changes)
        )

    def latest(self, model: ModelName) -> VersionName | None:
        ready = (name for name, one in self.versions.items() if name.model == model and one.details.can_be_deployed)
        return max(ready, default=None)

    def model(self, name: ModelName) -> Model | None:
        found = self.models.get(name)
        return None if found is None else replace(found, latest_version=self.latest(name))

    def then(self, at: datetime) -> "_Records":
        """What was there at a time, from the log alone and what never changes."""
        past = _Records()
        for change in self.changes:
            if change.time > at:
                break
            past.changes.append(change)
            match change.resource, change.state:
                case ModelName() as name, ModelDetails() as details:
                    now = self.models[name]
                    count = 0 if name not in past.models else past.models[name].version_count
                    past.models[name] = Model(name, details, now.create_time, change.time, change.sequence, count)
                case VersionName() as name, VersionDetails() as details:
                    past.versions[name] = replace(
                        self.versions[name], details=details, update_time=change.time, revision=change.sequence
                    )
                    past.models[name.model] = replace(
                        past.models[name.model],
                        version_count=max(name.number, past.models[name.model].version_count),
                    )
                case AliasName() as name, VersionName() as version:
                    past.aliases[name] = Alias(name, version, change.time, change.sequence)
                case AliasName() as name, None:
                    past.aliases.pop(name)
        return past


class MemoryModelStore:
    """ModelStore and ChangeLog in memory."""

    def __init__(self, clock: Clock = utc_now) -> None:
        self._clock = clock
        self._records = _Records()
        self._writing = asyncio.Lock()

    async def write(self, author: Author, work: Callable[[ModelWriter], Awaitable[ResultT]]) -> ResultT:
        """Return what `work` returns in one transaction."""
        async with self._writing:
            records = self._records.copy()
            last = records.changes[-1].time if records.changes else None
            now = self._clock()
            result = await work(_Writer(records, author, now if last is None else max(now, last)))
            self._records = records
            return copy.deepcopy(result)

    async def log_created(self, resource: DatasetName | DatasetVersionName, time: datetime, author: Author) -> None:
        """Log what another store has made."""
        async with self._writing:
            changes = self._records.changes
            time = max([time, *(change.time for change in changes[-1:])])
            changes.append(Change(len(changes) + 1, time, author, resource, ChangeKind.CREATED, None, None))

    def _at(self, at: datetime | None) -> _Records:
        return self._records if at is None else self._records.then(at)

    async def get_model(self, name: ModelName, at: datetime | None = None) -> Model | None:
        """Return the model."""
        return copy.deepcopy(self._at(at).model(name))

    async def list_models(
        self, after: ModelName | None, limit: int, *, descending: bool = False, at: datetime | None = None
    ) -> Sequence[Model]:
        """Return a page of models."""
        records = self._at(at)
        names = _page(records.models, after, limit, descending=descending)
        return [copy.deepcopy(model) for name in names if (model := records.model(name)) is not None]

    async def get_version(self, name: VersionName | AliasName, at: datetime | None = None) -> Version | None:
        """Return the version."""
        records = self._at(at)
        if isinstance(name, AliasName):
            alias = records.aliases.get(name)
            return None if alias is None else copy.deepcopy(records.versions[alias.version])
        return copy.deepcopy(records.versions.get(name))

    async def get_version_of_request(self, model: ModelName, request_id: str) -> Version | None:
        """Return the version that was made with the request id."""
        name = self._records.requests.get((model, request_id))
        return None if name is None else copy.deepcopy(self._records.versions[name])

    async def list_versions(
        self,
        model: ModelName,
        after: VersionName | None,
        limit: int,
        *,
        descending: bool = True,
        wanted: Mapping[str, str] | None = None,  # noqa: ARG002
        at: datetime | None = None,
    ) -> Sequence[Version]:
        """Return a page of versions."""
        records = self._at(at)
        of_model = [name for name in records.versions if name.model == model]
        return [copy.deepcopy(records.versions[name]) for name in _page(of_model, after, limit, descending=descending)]

    async def get_alias(self, name: AliasName, at: datetime | None = None) -> Alias | None:
        """Return the alias."""
        return self._at(at).aliases.get(name)

    async def list_aliases(
        self, model: ModelName, after: AliasName | None, limit: int, at: datetime | None = None
    ) -> Sequence[Alias]:
        """Return a page of aliases."""
        records = self._at(at)
        of_model = [name for name in records.aliases if name.model == model]
        return [records.aliases[name] for name in _page(of_model, after, limit)]

    async def list_holds(self, after: Hold | None, limit: int) -> Sequence[Hold]:
        """Return a page of holds."""
        holds = [Hold(holder, one.name) for one in self._records.versions.values() for holder in one.details.held_by]
        return _page(holds, after, limit)

    async def newest_sequence(self) -> int:
        """Return the number of the last change."""
        return len(self._records.changes)

    async def list_changes(
        self, resource: ResourceName | None, before: int | None, limit: int, at: datetime | None
    ) -> Sequence[Change]:
        """Return a page of changes, newest first."""
        found = [
            change
            for change in reversed(self._records.changes)
            if is_within(change.resource, resource)
            and (before is None or change.sequence < before)
            and (at is None or change.time <= at)
        ]
        return copy.deepcopy(found[:limit])

    async def changes_after(self, sequence: int, limit: int) -> Sequence[Change]:
        """Return the next changes, oldest first."""
        return copy.deepcopy(self._records.changes[sequence : sequence + limit])


class _Writer:
    """ModelWriter on a copy of the records."""

    def __init__(self, records: _Records, author: Author, now: datetime) -> None:
        self._records = records
        self._author = author
        self.now = now

    async def get_model(self, name: ModelName) -> Model | None:
        """Return the model."""
        return self._records.model(name)

    async def put_model(self, name: ModelName, details: ModelDetails, kind: ChangeKind) -> Model:
        """Store a new model, or what changed of one."""
        details = copy.deepcopy(details)
        before = self._records.models.get(name)
        revision = self._log(name, kind, details)
        self._records.models[name] = (
            Model(name, details, self.now, self.now, revision)
            if before is None
            else replace(before, details=details, update_time=self.now, revision=revision)
        )
        return replace(self._records.models[name], latest_version=self._records.latest(name))

    async def get_version(self, name: VersionName) -> Version | None:
        """Return the version."""
        return self._records.versions.get(name)

    async def get_version_of_request(self, model: ModelName, request_id: str) -> Version | None:
        """Return the version that was made with the request id."""
        name = self._records.requests.get((model, request_id))
        return None if name is None else self._records.versions[name]

    async def add_version(
        self, model: ModelName, content: VersionContent, details: VersionDetails, request_id: str
    ) -> Version:
        """Store a version with the next number."""
        details = copy.deepcopy(details)
        number = self._records.models[model].version_count + 1
        self._records.models[model] = replace(self._records.models[model], version_count=number)
        name = VersionName(model.model_id, number)
        revision = self._log(name, ChangeKind.CREATED, details)
        self._records.versions[name] = Version(name, content, self.now, details, self.now, revision)
        if request_id:
            self._records.requests[model, request_id] = name
        return self._records.versions[name]

    async def put_version(self, name: VersionName, details: VersionDetails, kind: ChangeKind) -> Version:
        """Store what changed of a version."""
        details = copy.deepcopy(details)
        revision = self._log(name, kind, details)
        self._records.versions[name] = replace(
            self._records.versions[name], details=details, update_time=self.now, revision=revision
        )
        return self._records.versions[name]

    async def get_alias(self, name: AliasName) -> Alias | None:
        """Return the alias."""
        return self._records.aliases.get(name)

    async def put_alias(self, name: AliasName, version: VersionName) -> Alias:
        """Store or move an alias."""
        kind = ChangeKind.UPDATED if name in self._records.aliases else ChangeKind.CREATED
        self._records.aliases[name] = Alias(name, version, self.now, self._log(name, kind, version))
        return self._records.aliases[name]

    async def delete_alias(self, name: AliasName) -> None:
        """Remove an alias."""
        self._log(name, ChangeKind.DELETED, None)
        del self._records.aliases[name]

    async def count_aliases(self, model: ModelName) -> int:
        """Return how many aliases the model has."""
        return sum(name.model == model for name in self._records.aliases)

    async def alias_of(self, name: ModelName | VersionName) -> AliasName | None:
        """Return an alias of the version, or of any version of the model."""
        return min(
            (one.name for one in self._records.aliases.values() if name in (one.version, one.name.model)), default=None
        )

    async def hold_of(self, model: ModelName) -> Hold | None:
        """Return a hold of any version of the model."""
        held = (one for name, one in self._records.versions.items() if name.model == model and one.details.held_by)
        found = next(held, None)
        return None if found is None else Hold(found.details.held_by[0], found.name)

    async def child_of(self, name: VersionName) -> VersionName | None:
        """Return a version that was made of this one and is not deleted."""
        children = (
            one.name
            for one in self._records.versions.values()
            if one.content.provenance.parent_version == name and one.details.deletion is None
        )
        return next(children, None)

    async def versions_held_by(self, holder: DeploymentName) -> Sequence[VersionName]:
        """Return the versions that a deployment holds."""
        return sorted(name for name, one in self._records.versions.items() if holder in one.details.held_by)

    async def expired_versions(self) -> Sequence[Version]:
        """Return the versions whose files may go now and have not gone."""

        def is_over(deletion: Deletion | None) -> bool:
            return deletion is not None and deletion.expire_time <= self.now

        return [
            one
            for name, one in self._records.versions.items()
            if (is_over(one.details.deletion) or is_over(self._records.models[name.model].details.deletion))
            and (one.details.deletion is None or one.details.deletion.purge_time is None)
        ]

    def _log(self, resource: ResourceName, kind: ChangeKind, state: ChangedState) -> int:
        changes = self._records.changes
        before = next((change.state for change in reversed(changes) if change.resource == resource), None)
        changes.append(Change(len(changes) + 1, self.now, self._author, resource, kind, state, before))
        return len(changes)


def _page(items: Iterable[KeyT], after: KeyT | None, limit: int, *, descending: bool = False) -> list[KeyT]:
    found = sorted(items, reverse=descending)
    behind = [one for one in found if after is None or (one < after if descending else one > after)]
    return behind[:limit]


class MemorySignatureStore:
    """SignatureStore in memory."""

    def __init__(self) -> None:
        self._signatures: dict[SignatureName, VersionSignature] = {}

    async def add(self, signature: VersionSignature, max_signatures: int) -> VersionSignature | None:
        """Store a signature; None when it would be one too many."""
        if signature.name not in self._signatures:
            if len(await self.list(signature.name.version, None, max_signatures)) >= max_signatures:
                return None
            self._signatures[signature.name] = signature
        return self._signatures[signature.name]

    async def get(self, name: SignatureName) -> VersionSignature | None:
        """Return the signature."""
        return self._signatures.get(name)

    async def list(self, version: VersionName, after: SignatureName | None, limit: int) -> Sequence[VersionSignature]:
        """Return a page of signatures."""
        names = sorted(name for name in self._signatures if name.version == version and (after is None or name > after))
        return [self._signatures[name] for name in names[:limit]]


class MemoryDatasetStore:
    """DatasetStore in memory."""

    def __init__(self, models: MemoryModelStore) -> None:
        self._models = models
        self._datasets: dict[DatasetName, Dataset] = {}
        self._versions: dict[DatasetVersionName, DatasetVersion] = {}
        self._requests: dict[tuple[DatasetName, str], DatasetVersionName] = {}

    async def add_dataset(self, dataset: Dataset, author: Author) -> bool:
        """Store a dataset; False when there is one of that name."""
        if dataset.name in self._datasets:
            return False
        self._datasets[dataset.name] = dataset
        await self._models.log_created(dataset.name, dataset.create_time, author)
        return True

    async def get_dataset(self, name: DatasetName) -> Dataset | None:
        """Return the dataset."""
        return self._datasets.get(name)

    async def list_datasets(self, after: DatasetName | None, limit: int) -> Sequence[Dataset]:
        """Return a page of datasets."""
        names = sorted(name for name in self._datasets if after is None or name > after)
        return [self._datasets[name] for name in names[:limit]]

    async def add_dataset_version(
        self, dataset: DatasetName, content: DatasetContent, create_time: datetime, request_id: str, author: Author
    ) -> DatasetVersion:
        """Store a version with the next number."""
        if made := await self.get_dataset_version_of_request(dataset, request_id):
            return made
        number = self._datasets[dataset].version_count + 1
        self._datasets[dataset] = replace(self._datasets[dataset], version_count=number)
        version = DatasetVersion(DatasetVersionName(dataset.dataset_id, number), content, create_time)
        self._versions[version.name] = version
        if request_id:
            self._requests[dataset, request_id] = version.name
        await self._models.log_created(version.name, create_time, author)
        return version

    async def get_dataset_version(self, name: DatasetVersionName) -> DatasetVersion | None:
        """Return the version."""
        return self._versions.get(name)

    async def get_dataset_version_of_request(self, dataset: DatasetName, request_id: str) -> DatasetVersion | None:
        """Return the version that was made with the request id."""
        name = self._requests.get((dataset, request_id))
        return None if name is None else self._versions[name]

    async def list_dataset_versions(
        self, dataset: DatasetName, before: DatasetVersionName | None, limit: int
    ) -> Sequence[DatasetVersion]:
        """Return a page of versions."""
        of_dataset = (version for name, version in self._versions.items() if name.dataset == dataset)
        older = [version for version in of_dataset if before is None or version.name.number < before.number]
        return sorted(older, key=lambda version: -version.name.number)[:limit]


class MemoryBlobStore:
    """BlobStore in memory."""

    def __init__(self) -> None:
        self._committed: dict[BlobName, bytes] = {}
        self._received: dict[BlobName, bytearray] = {}
        self._damaged: dict[BlobName, bytes] = {}

    async def find(self, name: BlobName) -> Blob | None:
        """Return what is stored of a blob."""
        for state, stored in (
            (BlobState.COMMITTED, self._committed),
            (BlobState.RECEIVING, self._received),
            (BlobState.DAMAGED, self._damaged),
        ):
            if name in stored:
                return Blob(name, state, len(stored[name]))
        return None

    @asynccontextmanager
    async def upload(self, name: BlobName, offset: int) -> AsyncIterator["MemoryUpload"]:
        """Go on with an upload at `offset`."""
        received = self._received.setdefault(name, bytearray())
        del received[offset:]
        yield MemoryUpload(self, name, received)

    async def read(self, name: BlobName, offset: int, length: int | None) -> AsyncGenerator[bytes, None]:
        """Yield a committed blob's bytes."""
        content = self._committed[name]
        end = len(content) if length is None else min(len(content), offset + length)
        for start in range(offset, end, _CHUNK_BYTES):
            yield content[start : min(end, start + _CHUNK_BYTES)]
        if offset == 0 and length is None and hashlib.sha256(content).hexdigest() != name.sha256:
            self._damaged[name] = self._committed.pop(name)
            raise BlobCorrupt(f"the stored bytes of {name} are damaged: upload them again", name=str(name))

    async def inspect(self, name: BlobName, look: Callable[[Path], ResultT]) -> ResultT:
        """Return what `look` finds in a file with the blob's bytes."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(self._committed[name])
            file.flush()
            return look(Path(file.name))

    async def list(self) -> AsyncIterator[Blob]:
        """Yield all blobs that are committed or damaged."""
        for state, stored in ((BlobState.COMMITTED, self._committed), (BlobState.DAMAGED, self._damaged)):
            for name, content in list(stored.items()):
                yield Blob(name, state, len(content))

    async def remove(self, name: BlobName) -> None:
        """Remove a blob's bytes."""
        self._committed.pop(name, None)
        self._damaged.pop(name, None)

    async def drop_abandoned(self) -> int:
        """Do nothing: an unfinished upload lives as long as the process."""
        return 0

    def damage(self, name: BlobName, content: bytes) -> None:
        """Let the stored bytes of a committed blob be others, as a bad disk would."""
        self._committed[name] = content

    def commit(self, name: BlobName) -> None:
        """Make a blob visible if its bytes have its hash."""
        content = bytes(self._received.pop(name))
        if hashlib.sha256(content).hexdigest() != name.sha256:
            raise BlobCorrupt(f"the bytes are not those of {name}", name=str(name))
        self._committed[name] = content
        self._damaged.pop(name, None)


class MemoryUpload:
    """An upload whose bytes are appended to memory."""

    def __init__(self, store: MemoryBlobStore, name: BlobName, received: bytearray) -> None:
        self._store = store
        self._name = name
        self._received = received

    @property
    def received_bytes(self) -> int:
        """How many bytes are stored."""
        return len(self._received)

    async def write(self, chunk: bytes) -> None:
        """Store the next bytes."""
        self._received += chunk

    async def commit(self) -> None:
        """Make the blob visible."""
        self._store.commit(self._name)
