"""Datasets and their versions: a Parquet file a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from maas.names import BlobName, DatasetName, DatasetVersionName
from maas_package.manifest import check_path
from maas_registry.domain.blobs import Blobs
from maas_registry.domain.models import Clock
from maas_registry.domain.versions import File
from maas_runtime.failures import AlreadyExists, InvalidInput, NotFound

_PARQUET_MARK = b"PAR1"


class DatasetNotFound(NotFound):
    """There is no such dataset."""

    reason = "DATASET_NOT_FOUND"


class DatasetVersionNotFound(NotFound):
    """The dataset has no such version."""

    reason = "DATASET_VERSION_NOT_FOUND"


class DatasetExists(AlreadyExists):
    """There is a dataset of that name."""

    reason = "DATASET_EXISTS"


class SplitRepeated(InvalidInput):
    """Two splits have the same name."""

    reason = "SPLIT_REPEATED"


class SplitNotParquet(InvalidInput):
    """A split's file is not Parquet, or cut short."""

    reason = "SPLIT_NOT_PARQUET"


@dataclass(frozen=True, slots=True)
class Dataset:
    """A line of versions of some data, counted like those of a model."""

    name: DatasetName
    description: str
    create_time: datetime
    version_count: int = 0

    @property
    def latest_version(self) -> DatasetVersionName | None:
        """The newest version; None while there is none."""
        return DatasetVersionName(self.name.dataset_id, self.version_count) if self.version_count else None


@dataclass(frozen=True, slots=True)
class SplitDraft:
    """One part of a dataset that somebody wants stored."""

    split_id: str
    path: str
    blob: BlobName
    row_count: int
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """One part of a dataset."""

    split_id: str
    file: File
    row_count: int
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DatasetContent:
    """A version that was checked; all of it but its number."""

    splits: tuple[Split, ...]
    description: str = ""


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """A stored version; it never changes."""

    name: DatasetVersionName
    content: DatasetContent
    create_time: datetime

    @property
    def size_bytes(self) -> int:
        """All splits together."""
        return sum(split.file.size_bytes for split in self.content.splits)


class DatasetStore(Protocol):
    """Where datasets are kept. Each method is one transaction; what it returned is on disk."""

    async def add_dataset(self, dataset: Dataset) -> bool:
        """Store a dataset without versions; False, and nothing stored, when there is one of that name."""
        ...

    async def get_dataset(self, name: DatasetName) -> Dataset | None:
        """Return the dataset; None when there is none."""
        ...

    async def list_datasets(self, after: DatasetName | None, limit: int) -> Sequence[Dataset]:
        """Return the first datasets behind `after`, ordered by name."""
        ...

    async def add_dataset_version(
        self, dataset: DatasetName, content: DatasetContent, create_time: datetime, request_id: str
    ) -> DatasetVersion:
        """Store a version with the next number; with a request id that made one before, return that one."""
        ...

    async def get_dataset_version(self, name: DatasetVersionName) -> DatasetVersion | None:
        """Return the version; None when there is none."""
        ...

    async def get_dataset_version_of_request(self, dataset: DatasetName, request_id: str) -> DatasetVersion | None:
        """Return the version that was made with the request id; None when there is none."""
        ...

    async def list_dataset_versions(
        self, dataset: DatasetName, before: DatasetVersionName | None, limit: int
    ) -> Sequence[DatasetVersion]:
        """Return the newest versions older than `before`, newest first."""
        ...


class Datasets:
    """The rules of datasets."""

    def __init__(self, store: DatasetStore, blobs: Blobs, clock: Clock) -> None:
        self._store = store
        self._blobs = blobs
        self._clock = clock

    async def create(self, name: DatasetName, description: str) -> Dataset:
        """Store a dataset without versions. Raises DatasetExists."""
        dataset = Dataset(name, description, self._clock())
        if not await self._store.add_dataset(dataset):
            raise DatasetExists(f"{name} is there already", name=str(name))
        return dataset

    async def get(self, name: DatasetName) -> Dataset:
        """Return the dataset. Raises DatasetNotFound."""
        dataset = await self._store.get_dataset(name)
        if dataset is None:
            raise DatasetNotFound(f"there is no {name}: `maas data ls` shows those there are", name=str(name))
        return dataset

    async def list(self, after: DatasetName | None, limit: int) -> Sequence[Dataset]:
        """Return the first datasets behind `after`, ordered by name."""
        return await self._store.list_datasets(after, limit)

    async def create_version(
        self, dataset: DatasetName, drafts: Sequence[SplitDraft], description: str, request_id: str
    ) -> DatasetVersion:
        """Store a version with the next number; a request id that was seen returns its version.

        Raises DatasetNotFound, BlobNotFound, SplitRepeated, SplitNotParquet or PackagePathInvalid.
        """
        await self.get(dataset)
        if request_id and (made := await self._store.get_dataset_version_of_request(dataset, request_id)):
            return made
        check_splits(drafts)
        sizes = await self._blobs.sizes(draft.blob for draft in drafts)
        for draft in drafts:
            if not await self._blobs.inspect(draft.blob, is_parquet):
                raise SplitNotParquet(f"the file of split {draft.split_id} is not Parquet, or cut short")
        splits = tuple(
            Split(draft.split_id, File(draft.path, draft.blob, sizes[draft.blob]), draft.row_count, draft.columns)
            for draft in drafts
        )
        return await self._store.add_dataset_version(
            dataset, DatasetContent(splits, description), self._clock(), request_id
        )

    async def get_version(self, name: DatasetVersionName) -> DatasetVersion:
        """Return the version. Raises DatasetVersionNotFound."""
        version = await self._store.get_dataset_version(name)
        if version is None:
            raise DatasetVersionNotFound(f"there is no {name}: `maas data ls` shows those there are", name=str(name))
        return version

    async def list_versions(
        self, dataset: DatasetName, before: DatasetVersionName | None, limit: int
    ) -> Sequence[DatasetVersion]:
        """Return the newest versions older than `before`, newest first. Raises DatasetNotFound."""
        await self.get(dataset)
        return await self._store.list_dataset_versions(dataset, before, limit)


def check_splits(drafts: Sequence[SplitDraft]) -> None:
    """Raise SplitRepeated or PackagePathInvalid."""
    seen: set[str] = set()
    for draft in drafts:
        if draft.split_id in seen:
            raise SplitRepeated(f"split {draft.split_id} is there twice")
        seen.add(draft.split_id)
        check_path(draft.path, f"splits[{draft.split_id}].file.path")


def is_parquet(location: Path) -> bool:
    """Return whether a file begins and ends like a Parquet file."""
    with location.open("rb") as file:
        begins = file.read(4) == _PARQUET_MARK
        # The shortest: both marks, and the length of a footer between them.
        if not begins or file.seek(0, 2) < 12:
            return False
        file.seek(-4, 2)
        return file.read(4) == _PARQUET_MARK
