"""Models, datasets and blobs in memory, for tests of the rules; one contract suite holds them to what disks do."""

import copy
import hashlib
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from maas.names import AliasName, BlobName, DatasetName, DatasetVersionName, ModelName, SignatureName, VersionName
from maas_registry.domain.blobs import Blob, BlobCorrupt, BlobState
from maas_registry.domain.datasets import Dataset, DatasetContent, DatasetVersion
from maas_registry.domain.models import Alias, Model
from maas_registry.domain.signatures import VersionSignature
from maas_registry.domain.versions import Version, VersionContent

_CHUNK_BYTES = 2**20

ResultT = TypeVar("ResultT")


class MemoryModelStore:
    """ModelStore in memory."""

    def __init__(self) -> None:
        self._models: dict[ModelName, Model] = {}
        self._versions: dict[VersionName, Version] = {}
        self._requests: dict[tuple[ModelName, str], VersionName] = {}
        self._aliases: dict[AliasName, Alias] = {}

    async def add_model(self, model: Model) -> bool:
        """Store a model; False when there is one of that name."""
        if model.name in self._models:
            return False
        self._models[model.name] = copy.deepcopy(model)
        return True

    async def get_model(self, name: ModelName) -> Model | None:
        """Return the model."""
        return copy.deepcopy(self._models.get(name))

    async def list_models(self, after: ModelName | None, limit: int) -> Sequence[Model]:
        """Return a page of models."""
        names = sorted(name for name in self._models if after is None or name > after)
        return [copy.deepcopy(self._models[name]) for name in names[:limit]]

    async def add_version(
        self, model: ModelName, content: VersionContent, create_time: datetime, request_id: str
    ) -> Version:
        """Store a version with the next number."""
        if made := await self.get_version_of_request(model, request_id):
            return made
        number = self._models[model].version_count + 1
        self._models[model] = replace(self._models[model], version_count=number)
        version = Version(VersionName(model.model_id, number), content, create_time)
        self._versions[version.name] = version
        if request_id:
            self._requests[model, request_id] = version.name
        return version

    async def get_version(self, name: VersionName) -> Version | None:
        """Return the version."""
        return self._versions.get(name)

    async def get_version_of_alias(self, name: AliasName) -> Version | None:
        """Return the version that the alias points to."""
        alias = self._aliases.get(name)
        return None if alias is None else self._versions[alias.version]

    async def get_version_of_request(self, model: ModelName, request_id: str) -> Version | None:
        """Return the version that was made with the request id."""
        name = self._requests.get((model, request_id))
        return None if name is None else self._versions[name]

    async def list_versions(self, model: ModelName, before: VersionName | None, limit: int) -> Sequence[Version]:
        """Return a page of versions."""
        of_model = (version for name, version in self._versions.items() if name.model == model)
        older = [version for version in of_model if before is None or version.name.number < before.number]
        return sorted(older, key=lambda version: -version.name.number)[:limit]

    async def set_alias(self, alias: Alias, max_aliases: int) -> bool:
        """Store or move an alias; False when it would be one too many."""
        others = [name for name in self._aliases if name.model == alias.name.model and name != alias.name]
        if len(others) >= max_aliases:
            return False
        self._aliases[alias.name] = alias
        return True

    async def list_aliases(self, model: ModelName, after: AliasName | None, limit: int) -> Sequence[Alias]:
        """Return a page of aliases."""
        names = sorted(name for name in self._aliases if name.model == model and (after is None or name > after))
        return [self._aliases[name] for name in names[:limit]]

    async def delete_alias(self, name: AliasName) -> bool:
        """Remove an alias; False when there is none."""
        return self._aliases.pop(name, None) is not None


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

    def __init__(self) -> None:
        self._datasets: dict[DatasetName, Dataset] = {}
        self._versions: dict[DatasetVersionName, DatasetVersion] = {}
        self._requests: dict[tuple[DatasetName, str], DatasetVersionName] = {}

    async def add_dataset(self, dataset: Dataset) -> bool:
        """Store a dataset; False when there is one of that name."""
        if dataset.name in self._datasets:
            return False
        self._datasets[dataset.name] = dataset
        return True

    async def get_dataset(self, name: DatasetName) -> Dataset | None:
        """Return the dataset."""
        return self._datasets.get(name)

    async def list_datasets(self, after: DatasetName | None, limit: int) -> Sequence[Dataset]:
        """Return a page of datasets."""
        names = sorted(name for name in self._datasets if after is None or name > after)
        return [self._datasets[name] for name in names[:limit]]

    async def add_dataset_version(
        self, dataset: DatasetName, content: DatasetContent, create_time: datetime, request_id: str
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
