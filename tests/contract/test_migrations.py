"""Migrations make the tables that the code knows, keep what is in them on the way up, and lead back down."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, inspect, text

from maas_registry.storage import tables
from maas_rollout.storage import sqlite as rollout
from maas_runtime.database.database import DatabaseLocation, migrate
from maas_runtime.database.migrations import Migrations
from maas_runtime.database.postgresql import PostgresqlDatabase
from maas_runtime.database.sqlite import SqliteFile

OF_REGISTRY = (tables.MIGRATIONS, tables.metadata)
OF_ROLLOUT = (rollout.MIGRATIONS, rollout.metadata)
CASES = [("sqlite", OF_REGISTRY), ("postgresql", OF_REGISTRY), ("sqlite", OF_ROLLOUT)]

# What a registry of each revision holds, as that revision wrote it; the next revisions have to find it.
DATA = {
    "0001": (
        "INSERT INTO models VALUES ('a', 'films', '{\"team\": \"text\"}', 1, 1700000000000000)",
        "INSERT INTO versions VALUES ('a', 1, NULL, 'r', '{}', 1700000000000000)",
        "INSERT INTO versions VALUES ('a', 2, 1, NULL, '{}', 1700000000000000)",
        "INSERT INTO aliases VALUES ('a', 'best', 2, 1700000000000000)",
        "INSERT INTO datasets VALUES ('d', '', 1, 1700000000000000)",
        "INSERT INTO dataset_versions VALUES ('d', 1, NULL, '{}', 1700000000000000)",
    ),
    "0002": ("INSERT INTO version_signatures VALUES ('a', 1, 'f', '', 'bundle', 1700000000000000)",),
}


def location_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> DatabaseLocation:
    if kind == "sqlite":
        return SqliteFile(folder / "a.sqlite")
    return PostgresqlDatabase(request.getfixturevalue("postgresql").new_database())


@pytest.mark.parametrize("migrations", [OF_REGISTRY[0], OF_ROLLOUT[0]], ids=["registry", "rollout"])
def test_migrations_are_one_line(migrations: Migrations) -> None:
    script = ScriptDirectory(str(migrations.folder), version_locations=[str(migrations.folder)])
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert revisions == [f"{number:04d}" for number in range(len(revisions), 0, -1)]


@pytest.mark.parametrize(("kind", "of"), CASES)
async def test_migrations_make_the_tables_that_the_code_knows(
    kind: str, of: tuple[Migrations, MetaData], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    migrations, metadata = of

    def check(connection: Connection) -> None:
        migrations.upgrade(connection, "a database")
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []

    await migrate(location_of(kind, request, tmp_path), check)


@pytest.mark.parametrize(("kind", "of"), CASES)
async def test_migrations_lead_up_and_back_down(
    kind: str, of: tuple[Migrations, MetaData], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    migrations, _ = of
    location = location_of(kind, request, tmp_path)

    def up(connection: Connection) -> None:
        migrations.upgrade(connection, "a database")

    def down(connection: Connection) -> None:
        migrations.downgrade(connection)
        assert inspect(connection).get_table_names() == ["alembic_version"]

    for change in (up, down, up):
        await migrate(location, change)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_what_a_registry_holds_survives_every_step_up_and_down(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    location = location_of(kind, request, tmp_path)
    script = ScriptDirectory(str(tables.MIGRATIONS.folder), version_locations=[str(tables.MIGRATIONS.folder)])
    revisions = [revision.revision for revision in script.walk_revisions()][::-1]

    def rows(connection: Connection) -> dict[str, int]:
        names = inspect(connection).get_table_names()
        return {name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one() for name in names}

    counted: dict[str, dict[str, int]] = {}

    def climb(connection: Connection) -> None:
        for revision in revisions:
            tables.MIGRATIONS.upgrade(connection, "a database", revision)
            for statement in DATA.get(revision, ()):
                connection.exec_driver_sql(statement)
            counted[revision] = rows(connection)
            if location == SqliteFile(tmp_path / "a.sqlite"):
                assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []

    def descend(connection: Connection) -> None:
        for revision in revisions[-2::-1]:
            tables.MIGRATIONS.downgrade(connection, revision)
            below = rows(connection)
            assert below == {name: counted[revision][name] for name in below}

    await migrate(location, climb)
    await migrate(location, descend)
    await migrate(location, lambda connection: tables.MIGRATIONS.upgrade(connection, "a database"))
