"""Signatures of versions in a database."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from maas.names import SignatureName, VersionName
from maas_registry.domain.signatures import VersionSignature
from maas_registry.storage import tables
from maas_runtime.database.database import Database

_columns = tables.version_signatures.c


class SqlSignatureStore:
    """SignatureStore in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, signature: VersionSignature, max_signatures: int) -> VersionSignature | None:
        """Store a signature; None when it would be one too many."""

        async def add(connection: AsyncConnection) -> VersionSignature | None:
            made = (await connection.execute(_named(signature.name))).one_or_none()
            if made is not None:
                return _signature(made)
            others = select(func.count()).where(*_of_version(signature.name.version))
            if (await connection.execute(others)).scalar_one() >= max_signatures:
                return None
            await connection.execute(
                insert(tables.version_signatures).values(
                    model_id=signature.name.model_id,
                    number=signature.name.number,
                    fingerprint=signature.name.fingerprint,
                    public_key=signature.public_key,
                    bundle=signature.bundle,
                    create_time=signature.create_time,
                )
            )
            return signature

        return await self._database.write(add)

    async def get(self, name: SignatureName) -> VersionSignature | None:
        """Return the signature."""
        rows = await self._database.rows(_named(name))
        return _signature(rows[0]) if rows else None

    async def list(self, version: VersionName, after: SignatureName | None, limit: int) -> Sequence[VersionSignature]:
        """Return a page of signatures."""
        query = (
            select(tables.version_signatures).where(*_of_version(version)).order_by(_columns.fingerprint).limit(limit)
        )
        if after is not None:
            query = query.where(_columns.fingerprint > after.fingerprint)
        return [_signature(row) for row in await self._database.rows(query)]


def _named(name: SignatureName) -> Select[Any]:
    return select(tables.version_signatures).where(*_of_version(name.version), _columns.fingerprint == name.fingerprint)


def _of_version(version: VersionName) -> tuple[Any, ...]:
    return _columns.model_id == version.model_id, _columns.number == version.number


def _signature(row: Row[Any]) -> VersionSignature:
    return VersionSignature(
        SignatureName(row.model_id, row.number, row.fingerprint), row.public_key, row.bundle, row.create_time
    )
