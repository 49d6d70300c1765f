"""One suite for every store of signatures: memory, SQLite on disk, and a PostgreSQL server."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from registry_records import add_model, add_version

from maas.names import SignatureName, VersionName
from maas_registry.domain.signatures import SignatureStore, VersionSignature
from maas_registry.storage.memory import MemorySignatureStore
from maas_registry.storage.sql_models import SqlModelStore
from maas_registry.storage.sql_signatures import SqlSignatureStore
from maas_registry.storage.tables import MIGRATIONS
from maas_runtime.database.database import DatabaseLocation, open_database
from maas_runtime.database.postgresql import PostgresqlDatabase
from maas_runtime.database.sqlite import SqliteFile

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
FIRST, SECOND = VersionName("a", 1), VersionName("a", 2)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SignatureStore]:
    if request.param == "memory":
        yield MemorySignatureStore()
        return
    location: DatabaseLocation = (
        SqliteFile(tmp_path / "registry.sqlite")
        if request.param == "sqlite"
        else PostgresqlDatabase(request.getfixturevalue("postgresql").new_database())
    )
    async with open_database(location, MIGRATIONS) as database:
        models = SqlModelStore(database)
        await add_model(models, "a")
        for _ in (FIRST, SECOND):
            await add_version(models, "a")
        yield SqlSignatureStore(database)


def signature(version: VersionName, key: int) -> VersionSignature:
    name = SignatureName(version.model_id, version.number, f"{key:064x}")
    return VersionSignature(name, "-----BEGIN PUBLIC KEY-----\n", b'{"\x00\xff', NOW)


async def test_a_signature_comes_back_as_it_was_stored(store: SignatureStore) -> None:
    made = signature(FIRST, 1)
    assert await store.get(made.name) is None
    assert await store.add(made, 16) == made
    assert await store.get(made.name) == made
    assert await store.get(signature(SECOND, 1).name) is None


async def test_the_first_signature_of_a_key_stays(store: SignatureStore) -> None:
    made = signature(FIRST, 1)
    await store.add(made, 1)
    later = replace(made, bundle=b"other", create_time=NOW + timedelta(days=1))
    assert await store.add(later, 1) == made
    assert await store.get(made.name) == made


async def test_signatures_are_listed_by_version_in_order_and_page_by_page(store: SignatureStore) -> None:
    made = [signature(FIRST, key) for key in (3, 1, 2)]
    for one in (*made, signature(SECOND, 1)):
        await store.add(one, 16)
    in_order = sorted(made, key=lambda one: one.name)
    assert list(await store.list(FIRST, None, 10)) == in_order
    assert list(await store.list(FIRST, in_order[0].name, 1)) == in_order[1:2]
    assert list(await store.list(FIRST, in_order[2].name, 10)) == []


async def test_of_signatures_at_once_no_more_are_stored_than_there_may_be(store: SignatureStore) -> None:
    stored = await asyncio.gather(*(store.add(signature(FIRST, key), 3) for key in range(10)))
    assert sum(one is not None for one in stored) == 3
    assert len(await store.list(FIRST, None, 100)) == 3
