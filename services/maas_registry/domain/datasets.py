"""Datasets and their versions: a Parquet file a split."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from maas.names import BlobName, DatasetName, DatasetVersionName
from maas_package.manifest import check_path
from maas_registry.domain.blobs import Blobs
from maas_registry.domain.changes import Author, Clock
from maas_registry.domain.parquet_file import Column, ParquetInvalid, ParquetShape, read_parquet_shape
from maas_registry.domain.versions import File
from maas_runtime.failures import AlreadyExists, FieldViolation, InvalidInput, NotFound


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
    """A split's file is not Parquet, cut short, or asks for more memory than a reader should give."""

    reason = "SPLIT_NOT_PARQUET"


class SplitEmpty(InvalidInput):
    """A split has no rows."""

    reason = "SPLIT_EMPTY"


class SplitsDiffer(InvalidInput):
    """Two splits have not the same columns."""

    reason = "SPLITS_DIFFER"


class StatisticsInvalid(InvalidInput):
    """What was counted in a split cannot be true of its file."""

    reason = "STATISTICS_INVALID"


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
class NumberStatistics:
    """Where a column's numbers lie; infinite ones and NaN aside."""

    minimum: float
    maximum: float
    mean: float
    standard_deviation: float


@dataclass(frozen=True, slots=True)
class TextStatistics:
    """How long a column's texts are, in characters; `length_counts` has empty ones, those of 1, of 2 to 3, 4 to 7..."""

    minimum_length: int
    maximum_length: int
    mean_length: float
    length_counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """What whoever stored a split counted in one of its columns."""

    column: str
    null_count: int
    distinct_count: int
    distinct_estimated: bool
    numbers: NumberStatistics | None = None
    texts: TextStatistics | None = None
    values: tuple[tuple[str, int], ...] = ()
    """Each value and its rows, when there are few."""


@dataclass(frozen=True, slots=True)
class SplitDraft:
    """One part of a dataset that somebody wants stored."""

    split_id: str
    path: str
    blob: BlobName
    statistics: tuple[ColumnStatistics, ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """One part of a dataset."""

    split_id: str
    file: File
    row_count: int
    statistics: tuple[ColumnStatistics, ...] = ()


@dataclass(frozen=True, slots=True)
class DatasetContent:
    """A version that was checked; all of it but its number."""

    splits: tuple[Split, ...]
    columns: tuple[Column, ...]
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

    async def add_dataset(self, dataset: Dataset, author: Author) -> bool:
        """Store a dataset without versions, and log it; False, and nothing stored, when there is one of that name."""
        ...

    async def get_dataset(self, name: DatasetName) -> Dataset | None:
        """Return the dataset; None when there is none."""
        ...

    async def list_datasets(self, after: DatasetName | None, limit: int) -> Sequence[Dataset]:
        """Return the first datasets behind `after`, ordered by name."""
        ...

    async def add_dataset_version(
        self, dataset: DatasetName, content: DatasetContent, create_time: datetime, request_id: str, author: Author
    ) -> DatasetVersion:
        """Store a version with the next number, and log it; with a request id that made one before, return that one."""
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

    async def create(self, name: DatasetName, description: str, author: Author) -> Dataset:
        """Store a dataset without versions. Raises DatasetExists."""
        dataset = Dataset(name, description, self._clock())
        if not await self._store.add_dataset(dataset, author):
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
        self, dataset: DatasetName, drafts: Sequence[SplitDraft], description: str, request_id: str, author: Author
    ) -> DatasetVersion:
        """Store a version with the next number; a request id that was seen returns its version.

        Raises DatasetNotFound, BlobNotFound, SplitRepeated, SplitNotParquet, SplitEmpty, SplitsDiffer,
        StatisticsInvalid or PackagePathInvalid.
        """
        await self.get(dataset)
        if request_id and (made := await self._store.get_dataset_version_of_request(dataset, request_id)):
            return made
        check_splits(drafts)
        sizes = await self._blobs.sizes(draft.blob for draft in drafts)
        shapes = {draft.split_id: await self._shape(draft) for draft in drafts}
        columns = common_columns(shapes)
        for draft in drafts:
            check_statistics(draft, shapes[draft.split_id])
        splits = tuple(
            Split(
                draft.split_id,
                File(draft.path, draft.blob, sizes[draft.blob]),
                shapes[draft.split_id].row_count,
                draft.statistics,
            )
            for draft in drafts
        )
        return await self._store.add_dataset_version(
            dataset, DatasetContent(splits, columns, description), self._clock(), request_id, author
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

    async def _shape(self, draft: SplitDraft) -> ParquetShape:
        try:
            shape = await self._blobs.inspect(draft.blob, read_parquet_shape)
        except ParquetInvalid as error:
            raise SplitNotParquet(
                f"the file of split {draft.split_id} cannot be taken: {error}",
                violations=(FieldViolation(f"splits[{draft.split_id}].file", str(error)),),
            ) from error
        if not shape.row_count:
            raise SplitEmpty(f"split {draft.split_id} has no rows: leave it out")
        return shape


def check_splits(drafts: Sequence[SplitDraft]) -> None:
    """Raise SplitRepeated or PackagePathInvalid."""
    seen: set[str] = set()
    for draft in drafts:
        if draft.split_id in seen:
            raise SplitRepeated(f"split {draft.split_id} is there twice")
        seen.add(draft.split_id)
        check_path(draft.path, f"splits[{draft.split_id}].file.path")


def common_columns(shapes: Mapping[str, ParquetShape]) -> tuple[Column, ...]:
    """Return the columns that all splits have; nullable are those that are so in one of them. Raises SplitsDiffer."""
    (first_id, first), *others = shapes.items()
    kinds = [(column.name, column.type) for column in first.columns]
    for split_id, shape in others:
        if [(column.name, column.type) for column in shape.columns] != kinds:
            raise SplitsDiffer(
                f"split {split_id} has the columns {_columns_text(shape.columns)}, split {first_id} "
                f"{_columns_text(first.columns)}: all splits need the same, in the same order"
            )
    together = zip(*(shape.columns for shape in shapes.values()), strict=True)
    return tuple(Column(same[0].name, same[0].type, any(column.nullable for column in same)) for same in together)


def check_statistics(draft: SplitDraft, shape: ParquetShape) -> None:
    """Raise StatisticsInvalid when they name a column that is not there, or count more than there are rows."""
    names = {column.name for column in shape.columns}
    seen: set[str] = set()
    for one in draft.statistics:
        problem = _problem(one, shape.row_count)
        if one.column not in names:
            problem = f"there is no column {one.column}"
        elif one.column in seen:
            problem = f"column {one.column} is there twice"
        seen.add(one.column)
        if problem:
            field = f"splits[{draft.split_id}].statistics[{one.column}]"
            raise StatisticsInvalid(
                f"the statistics of split {draft.split_id} do not fit its file: {problem}",
                violations=(FieldViolation(field, problem),),
            )


def _problem(one: ColumnStatistics, row_count: int) -> str:
    values = row_count - one.null_count
    if values < 0 or one.distinct_count > values:
        return f"column {one.column} has more missing and different values than the {row_count:,} rows"
    if sum(count for _, count in one.values) > values:
        return f"the values of column {one.column} are there more often than there are rows"
    if one.texts is not None and sum(one.texts.length_counts) > values:
        return f"column {one.column} has more lengths than texts"
    if one.numbers is not None:
        numbers = one.numbers
        if not all(map(math.isfinite, (numbers.minimum, numbers.maximum, numbers.mean, numbers.standard_deviation))):
            return f"a number of column {one.column} is not finite"
    return ""


def _columns_text(columns: Sequence[Column]) -> str:
    shown = ", ".join(f"{column.name} ({column.type})" for column in columns[:20])
    return shown + (", ..." if len(columns) > 20 else "")
