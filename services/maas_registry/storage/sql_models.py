"""Models, versions and aliases in a database.

Whoever writes is alone (maas_runtime/database), so that what a transaction has looked up still holds when it writes.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from maas.names import AliasName, ModelName, VersionName
from maas_registry.domain.models import Alias, Model
from maas_registry.domain.versions import Version, VersionContent
from maas_registry.storage import tables
from maas_registry.storage.content import version_from_json, version_to_json
from maas_runtime.database.database import Database


class SqlModelStore:
    """ModelStore in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_model(self, model: Model) -> bool:
        """Store a model; False when there is one of that name."""

        async def add(connection: AsyncConnection) -> bool:
            if (await connection.execute(_named(model.name))).one_or_none() is not None:
                return False
            await connection.execute(
                insert(tables.models).values(
                    model_id=model.name.model_id,
                    description=model.description,
                    tags=dict(model.tags),
                    version_count=0,
                    create_time=model.create_time,
                )
            )
            return True

        return await self._database.write(add)

    async def get_model(self, name: ModelName) -> Model | None:
        """Return the model."""
        rows = await self._database.rows(_named(name))
        return _model(rows[0]) if rows else None

    async def list_models(self, after: ModelName | None, limit: int) -> Sequence[Model]:
        """Return a page of models."""
        query = select(tables.models).order_by(tables.models.c.model_id).limit(limit)
        if after is not None:
            query = query.where(tables.models.c.model_id > after.model_id)
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
                    update(tables.models)
                    .where(tables.models.c.model_id == model.model_id)
                    .values(version_count=tables.models.c.version_count + 1)
                    .returning(tables.models.c.version_count)
                )
            ).scalar_one()
            parent = content.provenance.parent_version
            await connection.execute(
                insert(tables.versions).values(
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
            select(tables.versions).where(
                tables.versions.c.model_id == name.model_id, tables.versions.c.number == name.number
            )
        )
        return _version(rows[0]) if rows else None

    async def get_version_of_alias(self, name: AliasName) -> Version | None:
        """Return the version that the alias points to."""
        rows = await self._database.rows(
            select(tables.versions)
            .join(
                tables.aliases,
                (tables.aliases.c.model_id == tables.versions.c.model_id)
                & (tables.aliases.c.number == tables.versions.c.number),
            )
            .where(tables.aliases.c.model_id == name.model_id, tables.aliases.c.alias_id == name.alias_id)
        )
        return _version(rows[0]) if rows else None

    async def get_version_of_request(self, model: ModelName, request_id: str) -> Version | None:
        """Return the version that was made with the request id."""
        rows = await self._database.rows(_version_of_request(model, request_id))
        return _version(rows[0]) if rows else None

    async def list_versions(self, model: ModelName, before: VersionName | None, limit: int) -> Sequence[Version]:
        """Return a page of versions."""
        query = (
            select(tables.versions)
            .where(tables.versions.c.model_id == model.model_id)
            .order_by(tables.versions.c.number.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(tables.versions.c.number < before.number)
        return [_version(row) for row in await self._database.rows(query)]

    async def set_alias(self, alias: Alias, max_aliases: int) -> bool:
        """Store or move an alias; False when it would be one too many."""
        of_model = tables.aliases.c.model_id == alias.name.model_id
        is_named = of_model & (tables.aliases.c.alias_id == alias.name.alias_id)
        values = {"number": alias.version.number, "update_time": alias.update_time}

        async def put(connection: AsyncConnection) -> bool:
            others = select(func.count()).where(of_model, tables.aliases.c.alias_id != alias.name.alias_id)
            if (await connection.execute(others)).scalar_one() >= max_aliases:
                return False
            moved = await connection.execute(update(tables.aliases).where(is_named).values(**values))
            if moved.rowcount == 0:
                await connection.execute(
                    insert(tables.aliases).values(model_id=alias.name.model_id, alias_id=alias.name.alias_id, **values)
                )
            return True

        return await self._database.write(put)

    async def list_aliases(self, model: ModelName, after: AliasName | None, limit: int) -> Sequence[Alias]:
        """Return a page of aliases."""
        query = (
            select(tables.aliases)
            .where(tables.aliases.c.model_id == model.model_id)
            .order_by(tables.aliases.c.alias_id)
            .limit(limit)
        )
        if after is not None:
            query = query.where(tables.aliases.c.alias_id > after.alias_id)
        return [_alias(row) for row in await self._database.rows(query)]

    async def delete_alias(self, name: AliasName) -> bool:
        """Remove an alias; False when there is none."""
        removed = await self._database.write(
            lambda connection: connection.execute(
                delete(tables.aliases).where(
                    tables.aliases.c.model_id == name.model_id, tables.aliases.c.alias_id == name.alias_id
                )
            )
        )
        return removed.rowcount == 1


def _named(name: ModelName) -> Select[Any]:
    return select(tables.models).where(tables.models.c.model_id == name.model_id)


def _version_of_request(model: ModelName, request_id: str) -> Select[Any]:
    return select(tables.versions).where(
        tables.versions.c.model_id == model.model_id, tables.versions.c.request_id == request_id
    )


def _model(row: Row[Any]) -> Model:
    return Model(ModelName(row.model_id), row.description, row.create_time, row.tags, row.version_count)


def _version(row: Row[Any]) -> Version:
    return Version(VersionName(row.model_id, row.number), version_from_json(row.content), row.create_time)


def _alias(row: Row[Any]) -> Alias:
    return Alias(AliasName(row.model_id, row.alias_id), VersionName(row.model_id, row.number), row.update_time)
