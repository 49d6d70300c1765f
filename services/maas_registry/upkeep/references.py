"""What the records of a registry say of its blobs."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Table, select, tuple_

from maas.names import BlobName, DatasetVersionName, VersionName
from maas_registry.domain.versions import File
from maas_registry.storage import tables
from maas_registry.storage.content import dataset_from_json, version_details_from_json, version_from_json
from maas_runtime.database.database import Database

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Reference:
    """A record that needs a blob."""

    holder: str
    """The name of the version."""
    blob: BlobName
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record whose content is not what this release writes."""

    holder: str
    problem: str


async def references(database: Database) -> AsyncIterator[Reference | Unreadable]:
    """Yield every use of a blob; one blob may be used many times."""
    async for row in _rows(database, tables.versions):
        for reference in _of_version(row):
            yield reference
    async for row in _rows(database, tables.dataset_versions):
        for reference in _of_dataset_version(row):
            yield reference


def _of_version(row: Row[Any]) -> Iterable[Reference | Unreadable]:
    holder = str(VersionName(row.model_id, row.number))
    try:
        content = version_from_json(row.content)
        deletion = version_details_from_json(row.details).deletion
    except (KeyError, TypeError, ValueError) as error:
        return [Unreadable(holder, f"its content cannot be read: {error!r}")]
    parent = content.provenance.parent_version
    problems = []
    if row.parent_number != (None if parent is None else parent.number):
        problems = [Unreadable(holder, f"its parent is {parent}, but it is recorded under number {row.parent_number}")]
    if deletion is not None and deletion.purge_time is not None:
        return problems  # its files may have been removed
    return [*problems, *_of_files(holder, content.files)]


def _of_dataset_version(row: Row[Any]) -> Iterable[Reference | Unreadable]:
    holder = str(DatasetVersionName(row.dataset_id, row.number))
    try:
        content = dataset_from_json(row.content)
    except (KeyError, TypeError, ValueError) as error:
        return [Unreadable(holder, f"its content cannot be read: {error!r}")]
    return _of_files(holder, [split.file for split in content.splits])


def _of_files(holder: str, files: Iterable[File]) -> list[Reference | Unreadable]:
    return [Reference(holder, file.blob, file.size_bytes) for file in files]


async def _rows(database: Database, table: Table) -> AsyncIterator[Row[Any]]:
    """Yield all rows in the order of their keys, a page at a time: others may write meanwhile."""
    key = tuple(table.primary_key.columns)
    query = select(table).order_by(*key).limit(_PAGE)
    page = await database.rows(query)
    while page:
        for row in page:
            yield row
        last = tuple(page[-1]._mapping[column] for column in key)
        page = await database.rows(query.where(tuple_(*key) > tuple_(*last)))
