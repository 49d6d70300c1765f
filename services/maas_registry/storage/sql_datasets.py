"""Datasets and their versions in a database; whoever writes is alone."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from maas.names import DatasetName, DatasetVersionName
from maas_registry.domain.changes import Author, ChangeKind
from maas_registry.domain.datasets import Dataset, DatasetContent, DatasetVersion
from maas_registry.storage import tables
from maas_registry.storage.content import dataset_from_json, dataset_to_json
from maas_registry.storage.sql_changes import ChangeWriter
from maas_registry.storage.sql_garbage import check_not_removed
from maas_runtime.database.database import Database


class SqlDatasetStore:
    """DatasetStore in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_dataset(self, dataset: Dataset, author: Author) -> bool:
        """Store a dataset; False when there is one of that name."""

        async def add(connection: AsyncConnection) -> bool:
            if (await connection.execute(_named(dataset.name))).one_or_none() is not None:
                return False
            await connection.execute(
                insert(tables.datasets).values(
                    dataset_id=dataset.name.dataset_id,
                    description=dataset.description,
                    version_count=0,
                    create_time=dataset.create_time,
                )
            )
            changes = await ChangeWriter.begin(connection, author, lambda: dataset.create_time)
            await changes.write(dataset.name, ChangeKind.CREATED, None)
            return True

        return await self._database.write(add)

    async def get_dataset(self, name: DatasetName) -> Dataset | None:
        """Return the dataset."""
        rows = await self._database.rows(_named(name))
        return _dataset(rows[0]) if rows else None

    async def list_datasets(self, after: DatasetName | None, limit: int) -> Sequence[Dataset]:
        """Return a page of datasets."""
        query = select(tables.datasets).order_by(tables.datasets.c.dataset_id).limit(limit)
        if after is not None:
            query = query.where(tables.datasets.c.dataset_id > after.dataset_id)
        return [_dataset(row) for row in await self._database.rows(query)]

    async def add_dataset_version(
        self, dataset: DatasetName, content: DatasetContent, create_time: datetime, request_id: str, author: Author
    ) -> DatasetVersion:
        """Store a version with the next number."""

        async def add(connection: AsyncConnection) -> DatasetVersion:
            if request_id:
                made = (await connection.execute(_dataset_version_of_request(dataset, request_id))).one_or_none()
                if made is not None:
                    return _dataset_version(made)
            await check_not_removed(connection, (split.file.blob for split in content.splits))
            number = (
                await connection.execute(
                    update(tables.datasets)
                    .where(tables.datasets.c.dataset_id == dataset.dataset_id)
                    .values(version_count=tables.datasets.c.version_count + 1)
                    .returning(tables.datasets.c.version_count)
                )
            ).scalar_one()
            await connection.execute(
                insert(tables.dataset_versions).values(
                    dataset_id=dataset.dataset_id,
                    number=number,
                    request_id=request_id or None,
                    content=dataset_to_json(content),
                    create_time=create_time,
                )
            )
            version = DatasetVersion(DatasetVersionName(dataset.dataset_id, number), content, create_time)
            changes = await ChangeWriter.begin(connection, author, lambda: create_time)
            await changes.write(version.name, ChangeKind.CREATED, None)
            return version

        return await self._database.write(add)

    async def get_dataset_version(self, name: DatasetVersionName) -> DatasetVersion | None:
        """Return the version."""
        rows = await self._database.rows(
            select(tables.dataset_versions).where(
                tables.dataset_versions.c.dataset_id == name.dataset_id, tables.dataset_versions.c.number == name.number
            )
        )
        return _dataset_version(rows[0]) if rows else None

    async def get_dataset_version_of_request(self, dataset: DatasetName, request_id: str) -> DatasetVersion | None:
        """Return the version that was made with the request id."""
        rows = await self._database.rows(_dataset_version_of_request(dataset, request_id))
        return _dataset_version(rows[0]) if rows else None

    async def list_dataset_versions(
        self, dataset: DatasetName, before: DatasetVersionName | None, limit: int
    ) -> Sequence[DatasetVersion]:
        """Return a page of versions."""
        query = (
            select(tables.dataset_versions)
            .where(tables.dataset_versions.c.dataset_id == dataset.dataset_id)
            .order_by(tables.dataset_versions.c.number.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(tables.dataset_versions.c.number < before.number)
        return [_dataset_version(row) for row in await self._database.rows(query)]


def _named(name: DatasetName) -> Select[Any]:
    return select(tables.datasets).where(tables.datasets.c.dataset_id == name.dataset_id)


def _dataset_version_of_request(dataset: DatasetName, request_id: str) -> Select[Any]:
    return select(tables.dataset_versions).where(
        tables.dataset_versions.c.dataset_id == dataset.dataset_id, tables.dataset_versions.c.request_id == request_id
    )


def _dataset(row: Row[Any]) -> Dataset:
    return Dataset(DatasetName(row.dataset_id), row.description, row.create_time, row.version_count)


def _dataset_version(row: Row[Any]) -> DatasetVersion:
    return DatasetVersion(
        DatasetVersionName(row.dataset_id, row.number), dataset_from_json(row.content), row.create_time
    )
