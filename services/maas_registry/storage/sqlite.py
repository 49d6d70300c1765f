"""Models and datasets in SQLite."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    Row,
    Select,
    String,
    Table,
    UniqueConstraint,
    delete,
    func,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from maas.names import AliasName, DatasetName, DatasetVersionName, ModelName, VersionName
from maas_registry.domain.datasets import Dataset, DatasetContent, DatasetVersion
from maas_registry.domain.models import Alias, Model
from maas_registry.domain.versions import Version, VersionContent
from maas_registry.storage.content import dataset_from_json, dataset_to_json, version_from_json, version_to_json
from maas_runtime.sqlite import Database, UtcTime

SCHEMA_VERSION = 1

metadata = MetaData()

_models = Table(
    "models",
    metadata,
    Column("model_id", String, primary_key=True),
    Column("description", String, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("version_count", Integer, nullable=False),
    Column("create_time", UtcTime, nullable=False),
)

_versions = Table(
    "versions",
    metadata,
    Column("model_id", String, ForeignKey("models.model_id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("parent_number", Integer),
    Column("request_id", String),
    # A version never changes and is read whole, so what it holds is one value.
    Column("content", JSON, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    ForeignKeyConstraint(["model_id", "parent_number"], ["versions.model_id", "versions.number"]),
    UniqueConstraint("model_id", "request_id"),
)

_aliases = Table(
    "aliases",
    metadata,
    Column("model_id", String, primary_key=True),
    Column("alias_id", String, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    ForeignKeyConstraint(["model_id", "number"], ["versions.model_id", "versions.number"]),
)

_datasets = Table(
    "datasets",
    metadata,
    Column("dataset_id", String, primary_key=True),
    Column("description", String, nullable=False),
    Column("version_count", Integer, nullable=False),
    Column("create_time", UtcTime, nullable=False),
)

_dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("dataset_id", String, ForeignKey("datasets.dataset_id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("request_id", String),
    Column("content", JSON, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    UniqueConstraint("dataset_id", "request_id"),
)


class SqliteModelStore:
    """ModelStore in SQLite."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_model(self, model: Model) -> bool:
        """Store a model; False when there is one of that name."""
        added = await self._database.write(
            lambda connection: connection.execute(
                insert(_models)
                .values(
                    model_id=model.name.model_id,
                    description=model.description,
                    tags=dict(model.tags),
                    version_count=0,
                    create_time=model.create_time,
                )
                .on_conflict_do_nothing()
            )
        )
        return added.rowcount == 1

    async def get_model(self, name: ModelName) -> Model | None:
        """Return the model."""
        rows = await self._database.rows(select(_models).where(_models.c.model_id == name.model_id))
        return _model(rows[0]) if rows else None

    async def list_models(self, after: ModelName | None, limit: int) -> Sequence[Model]:
        """Return a page of models."""
        query = select(_models).order_by(_models.c.model_id).limit(limit)
        if after is not None:
            query = query.where(_models.c.model_id > after.model_id)
        return [_model(row) for row in await self._database.rows(query)]

    async def add_version(
        self, model: ModelName, content: VersionContent, create_time: datetime, request_id: str
    ) -> Version:
        """Store a version with the next number."""

        async def add(connection: AsyncConnection) -> Version:
            if request_id:
                made = (await connection.execute(_version_of_request(model, request_id))).one_or_none()
                if made is not None:
                    return _version(made)
            number = (
                await connection.execute(
                    update(_models)
                    .where(_models.c.model_id == model.model_id)
                    .values(version_count=_models.c.version_count + 1)
                    .returning(_models.c.version_count)
                )
            ).scalar_one()
            parent = content.provenance.parent_version
            await connection.execute(
                insert(_versions).values(
                    model_id=model.model_id,
                    number=number,
                    parent_number=None if parent is None else parent.number,
                    request_id=request_id or None,
                    content=version_to_json(content),
                    create_time=create_time,
                )
            )
            return Version(VersionName(model.model_id, number), content, create_time)

        return await self._database.write(add)

    async def get_version(self, name: VersionName) -> Version | None:
        """Return the version."""
        rows = await self._database.rows(
            select(_versions).where(_versions.c.model_id == name.model_id, _versions.c.number == name.number)
        )
        return _version(rows[0]) if rows else None

    async def get_version_of_alias(self, name: AliasName) -> Version | None:
        """Return the version that the alias points to."""
        rows = await self._database.rows(
            select(_versions)
            .join(_aliases, (_aliases.c.model_id == _versions.c.model_id) & (_aliases.c.number == _versions.c.number))
            .where(_aliases.c.model_id == name.model_id, _aliases.c.alias_id == name.alias_id)
        )
        return _version(rows[0]) if rows else None

    async def get_version_of_request(self, model: ModelName, request_id: str) -> Version | None:
        """Return the version that was made with the request id."""
        rows = await self._database.rows(_version_of_request(model, request_id))
        return _version(rows[0]) if rows else None

    async def list_versions(self, model: ModelName, before: VersionName | None, limit: int) -> Sequence[Version]:
        """Return a page of versions."""
        query = (
            select(_versions)
            .where(_versions.c.model_id == model.model_id)
            .order_by(_versions.c.number.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(_versions.c.number < before.number)
        return [_version(row) for row in await self._database.rows(query)]

    async def set_alias(self, alias: Alias, max_aliases: int) -> bool:
        """Store or move an alias; False when it would be one too many."""
        values = {"number": alias.version.number, "update_time": alias.update_time}
        others = select(func.count()).where(
            _aliases.c.model_id == alias.name.model_id, _aliases.c.alias_id != alias.name.alias_id
        )

        async def put(connection: AsyncConnection) -> bool:
            if (await connection.execute(others)).scalar_one() >= max_aliases:
                return False
            await connection.execute(
                insert(_aliases)
                .values(model_id=alias.name.model_id, alias_id=alias.name.alias_id, **values)
                .on_conflict_do_update(index_elements=["model_id", "alias_id"], set_=values)
            )
            return True

        return await self._database.write(put)

    async def list_aliases(self, model: ModelName, after: AliasName | None, limit: int) -> Sequence[Alias]:
        """Return a page of aliases."""
        query = select(_aliases).where(_aliases.c.model_id == model.model_id).order_by(_aliases.c.alias_id).limit(limit)
        if after is not None:
            query = query.where(_aliases.c.alias_id > after.alias_id)
        return [_alias(row) for row in await self._database.rows(query)]

    async def delete_alias(self, name: AliasName) -> bool:
        """Remove an alias; False when there is none."""
        removed = await self._database.write(
            lambda connection: connection.execute(
                delete(_aliases).where(_aliases.c.model_id == name.model_id, _aliases.c.alias_id == name.alias_id)
            )
        )
        return removed.rowcount == 1


class SqliteDatasetStore:
    """DatasetStore in SQLite."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_dataset(self, dataset: Dataset) -> bool:
        """Store a dataset; False when there is one of that name."""
        added = await self._database.write(
            lambda connection: connection.execute(
                insert(_datasets)
                .values(
                    dataset_id=dataset.name.dataset_id,
                    description=dataset.description,
                    version_count=0,
                    create_time=dataset.create_time,
                )
                .on_conflict_do_nothing()
            )
        )
        return added.rowcount == 1

    async def get_dataset(self, name: DatasetName) -> Dataset | None:
        """Return the dataset."""
        rows = await self._database.rows(select(_datasets).where(_datasets.c.dataset_id == name.dataset_id))
        return _dataset(rows[0]) if rows else None

    async def list_datasets(self, after: DatasetName | None, limit: int) -> Sequence[Dataset]:
        """Return a page of datasets."""
        query = select(_datasets).order_by(_datasets.c.dataset_id).limit(limit)
        if after is not None:
            query = query.where(_datasets.c.dataset_id > after.dataset_id)
        return [_dataset(row) for row in await self._database.rows(query)]

    async def add_dataset_version(
        self, dataset: DatasetName, content: DatasetContent, create_time: datetime, request_id: str
    ) -> DatasetVersion:
        """Store a version with the next number."""

        async def add(connection: AsyncConnection) -> DatasetVersion:
            if request_id:
                made = (await connection.execute(_dataset_version_of_request(dataset, request_id))).one_or_none()
                if made is not None:
                    return _dataset_version(made)
            number = (
                await connection.execute(
                    update(_datasets)
                    .where(_datasets.c.dataset_id == dataset.dataset_id)
                    .values(version_count=_datasets.c.version_count + 1)
                    .returning(_datasets.c.version_count)
                )
            ).scalar_one()
            await connection.execute(
                insert(_dataset_versions).values(
                    dataset_id=dataset.dataset_id,
                    number=number,
                    request_id=request_id or None,
                    content=dataset_to_json(content),
                    create_time=create_time,
                )
            )
            return DatasetVersion(DatasetVersionName(dataset.dataset_id, number), content, create_time)

        return await self._database.write(add)

    async def get_dataset_version(self, name: DatasetVersionName) -> DatasetVersion | None:
        """Return the version."""
        rows = await self._database.rows(
            select(_dataset_versions).where(
                _dataset_versions.c.dataset_id == name.dataset_id, _dataset_versions.c.number == name.number
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
            select(_dataset_versions)
            .where(_dataset_versions.c.dataset_id == dataset.dataset_id)
            .order_by(_dataset_versions.c.number.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(_dataset_versions.c.number < before.number)
        return [_dataset_version(row) for row in await self._database.rows(query)]


def _version_of_request(model: ModelName, request_id: str) -> Select[Any]:
    return select(_versions).where(_versions.c.model_id == model.model_id, _versions.c.request_id == request_id)


def _dataset_version_of_request(dataset: DatasetName, request_id: str) -> Select[Any]:
    return select(_dataset_versions).where(
        _dataset_versions.c.dataset_id == dataset.dataset_id, _dataset_versions.c.request_id == request_id
    )


def _model(row: Row[Any]) -> Model:
    return Model(ModelName(row.model_id), row.description, row.create_time, row.tags, row.version_count)


def _version(row: Row[Any]) -> Version:
    return Version(VersionName(row.model_id, row.number), version_from_json(row.content), row.create_time)


def _alias(row: Row[Any]) -> Alias:
    return Alias(AliasName(row.model_id, row.alias_id), VersionName(row.model_id, row.number), row.update_time)


def _dataset(row: Row[Any]) -> Dataset:
    return Dataset(DatasetName(row.dataset_id), row.description, row.create_time, row.version_count)


def _dataset_version(row: Row[Any]) -> DatasetVersion:
    return DatasetVersion(
        DatasetVersionName(row.dataset_id, row.number), dataset_from_json(row.content), row.create_time
    )
