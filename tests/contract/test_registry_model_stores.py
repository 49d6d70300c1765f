"""One suite for every store of models, versions, aliases and holds: memory, SQLite on disk, and a PostgreSQL server."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from registry_records import (
    ANN,
    EVALUATION,
    FULL,
    MEASUREMENT,
    NOW,
    PLAIN,
    ManualClock,
    add_model,
    add_version,
    put_alias,
)

from maas.names import AliasName, DeploymentName, ModelName, VersionName
from maas_registry.domain.alias_rules import Aliases, Holds
from maas_registry.domain.blobs import Blobs
from maas_registry.domain.changes import Author, Change, ChangeKind, ChangeLog
from maas_registry.domain.details import Deletion, ModelDetails, VersionDetails, VersionState
from maas_registry.domain.model_rules import Models
from maas_registry.domain.models import Alias, Hold, RecordChanged
from maas_registry.domain.store import ModelStore, ModelWriter
from maas_registry.domain.version_rules import Versions
from maas_registry.domain.versions import Provenance, Version
from maas_registry.storage.memory import MemoryBlobStore, MemoryModelStore
from maas_registry.storage.sql_changes import SqlChangeLog
from maas_registry.storage.sql_models import SqlModelStore
from maas_registry.storage.tables import MIGRATIONS
from maas_runtime.database.database import DatabaseLocation, open_database
from maas_runtime.database.failures import TextNotStorable
from maas_runtime.database.postgresql import PostgresqlDatabase
from maas_runtime.database.sqlite import SqliteFile
from maas_runtime.failures import Failure

A, B = ModelName("a"), ModelName("b")
BEST = AliasName("a", "best")
ONE, TWO = VersionName("a", 1), VersionName("a", 2)
D = DeploymentName("d")


@dataclass
class Stored:
    """A store, its log, and the clock of both."""

    models: ModelStore
    log: ChangeLog
    clock: ManualClock


def database_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> DatabaseLocation:
    if kind == "sqlite":
        return SqliteFile(folder / "registry.sqlite")
    return PostgresqlDatabase(request.getfixturevalue("postgresql").new_database())


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> DatabaseLocation:
    return database_of(request.param, request, tmp_path)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def stored(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stored]:
    clock = ManualClock()
    if request.param == "memory":
        memory = MemoryModelStore(clock)
        yield Stored(memory, memory, clock)
        return
    async with open_database(database_of(request.param, request, tmp_path), MIGRATIONS) as database:
        yield Stored(SqlModelStore(database, clock), SqlChangeLog(database), clock)


@pytest.fixture
def models(stored: Stored) -> ModelStore:
    return stored.models


async def put_version(models: ModelStore, name: VersionName, **changes: Any) -> Version:
    async def put(writer: ModelWriter) -> Version:
        present = await writer.get_version(name)
        assert present is not None
        return await writer.put_version(name, replace(present.details, **changes), ChangeKind.UPDATED)

    return await models.write(ANN, put)


async def test_a_model_comes_back_as_it_was_stored(models: ModelStore) -> None:
    details = ModelDetails("reviews, judged", {"team": "text", "": "ü"}, Deletion(NOW, NOW + timedelta(days=30)))
    made = await add_model(models, "a", details)
    assert (made.name, made.details, made.create_time, made.update_time) == (A, details, NOW, NOW)
    assert (made.version_count, made.latest_version) == (0, None)
    assert await models.get_model(A) == made


async def test_a_stored_model_is_a_copy(models: ModelStore) -> None:
    tags = {"team": "text"}
    made = await add_model(models, "a", ModelDetails("", tags))
    tags["team"] = made.details.tags["team"] = "changed"
    read = await models.get_model(A)
    assert read is not None
    read.details.tags["team"] = "changed too"
    again = await models.get_model(A)
    assert again is not None
    assert again.details == ModelDetails("", {"team": "text"})


async def test_what_is_missing_is_none(models: ModelStore) -> None:
    for at in (None, NOW):
        assert await models.get_model(A, at) is None
        assert await models.get_version(ONE, at) is None
        assert await models.get_version(VersionName("a", 10**17), at) is None
        assert await models.get_version(BEST, at) is None
        assert await models.get_alias(BEST, at) is None
        assert list(await models.list_models(None, 10, at=at)) == []
        assert list(await models.list_versions(A, None, 10, at=at)) == []
        assert list(await models.list_versions(A, VersionName("a", 10**17), 10, at=at)) == []
        assert list(await models.list_aliases(A, None, 10, at)) == []
    assert await models.get_version_of_request(A, "r") is None
    assert list(await models.list_holds(None, 10)) == []


async def test_models_are_listed_by_name_from_where_the_page_ended(models: ModelStore) -> None:
    for model_id in ("c", "a", "b-1", "b"):
        await add_model(models, model_id)
    first = await models.list_models(None, 2)
    rest = await models.list_models(first[-1].name, 10)
    assert [model.name.model_id for model in (*first, *rest)] == ["a", "b", "b-1", "c"]
    last = await models.list_models(None, 2, descending=True)
    others = await models.list_models(last[-1].name, 10, descending=True)
    assert [model.name.model_id for model in (*last, *others)] == ["c", "b-1", "b", "a"]


async def test_versions_count_from_one_for_each_model(models: ModelStore) -> None:
    for model_id in ("a", "b"):
        await add_model(models, model_id)
    made = [await add_version(models, model_id) for model_id in ("a", "a", "b")]
    assert [version.name for version in made] == [ONE, TWO, VersionName("b", 1)]
    model = await models.get_model(A)
    assert model is not None
    assert (model.version_count, model.latest_version) == (2, TWO)


async def test_the_latest_version_is_the_newest_that_can_be_deployed(models: ModelStore) -> None:
    await add_model(models, "a")
    for _ in range(3):
        await add_version(models, "a")
    await add_version(models, "a", details=VersionDetails(state=VersionState.PENDING))
    await put_version(models, VersionName("a", 3), state=VersionState.ARCHIVED)
    await put_version(models, TWO, deletion=Deletion(NOW, NOW))
    model = await models.get_model(A)
    assert model is not None
    assert (model.version_count, model.latest_version) == (4, ONE)
    assert await models.get_model(A, NOW) == model


async def test_fifty_versions_at_once_get_fifty_numbers(models: ModelStore) -> None:
    await add_model(models, "a")
    made = await asyncio.gather(*(add_version(models, "a") for _ in range(50)))
    assert sorted(version.name.number for version in made) == list(range(1, 51))


async def test_a_version_comes_back_as_it_was_stored(stored: Stored) -> None:
    models, clock = stored.models, stored.clock
    await add_model(models, "a")
    plain = await add_version(models, "a")
    clock.pass_seconds()
    details = VersionDetails(
        '"quoted" \x00 ü',
        {"team": "nlp"},
        VersionState.PENDING,
        (EVALUATION, replace(EVALUATION, metric="f1", create_time=NOW)),
        (replace(MEASUREMENT, create_time=NOW),),
        (D,),
        Deletion(NOW, NOW, NOW),
    )
    made = await add_version(models, "a", FULL, replace(details, held_by=()))
    assert (made.name, made.content, made.create_time) == (TWO, FULL, clock.now)
    changed = await put_version(models, TWO, held_by=(D,))
    assert changed.details == details
    assert await models.get_version(TWO) == changed
    assert await models.get_version(ONE) == plain
    assert len({plain.etag, made.etag, changed.etag}) == 3


async def test_a_request_id_is_remembered_within_its_model(models: ModelStore) -> None:
    for model_id in ("a", "b"):
        await add_model(models, model_id)
    made = await add_version(models, "a", request_id="once")
    assert await models.get_version_of_request(A, "once") == made
    assert await models.get_version_of_request(B, "once") is None
    await add_version(models, "b", request_id="once")
    for _ in range(2):
        await add_version(models, "a", request_id="")


async def test_versions_are_listed_in_both_directions_and_by_parent_and_state(models: ModelStore) -> None:
    for model_id in ("a", "b"):
        await add_model(models, model_id)
    child = replace(PLAIN, provenance=Provenance(parent_version=ONE))
    for number in range(12):
        await add_version(models, "a", child if number % 3 == 1 else PLAIN)
    await add_version(models, "b")
    first = await models.list_versions(A, None, 5)
    rest = await models.list_versions(A, first[-1].name, 100)
    assert [version.name.number for version in (*first, *rest)] == list(range(12, 0, -1))
    assert {version.name.model for version in (*first, *rest)} == {A}
    first = await models.list_versions(A, None, 5, descending=False)
    rest = await models.list_versions(A, first[-1].name, 100, descending=False)
    assert [version.name.number for version in (*first, *rest)] == list(range(1, 13))
    await put_version(models, VersionName("a", 5), state=VersionState.ARCHIVED)
    await put_version(models, VersionName("a", 2), state=VersionState.ARCHIVED, deletion=Deletion(NOW, NOW))

    async def wanted(**texts: str) -> set[int]:
        found = await models.list_versions(A, None, 100, wanted=texts)
        return {version.name.number for version in found}

    # Others may be among them, but none of these may be left out.
    assert {2, 5, 8, 11} <= await wanted(parent_version=str(ONE))
    assert {2, 5} <= await wanted(state="archived")
    assert await wanted(parent_version="nobody") <= set(range(1, 13))


async def test_an_alias_leads_to_its_version_moves_and_ends(stored: Stored) -> None:
    models, clock = stored.models, stored.clock
    await add_model(models, "a")
    one, two = [await add_version(models, "a") for _ in range(2)]
    made = await put_alias(models, "best", ONE)
    assert await models.get_alias(BEST) == made
    assert await models.get_version(BEST) == one
    moved_time = clock.pass_seconds()
    moved = await put_alias(models, "best", TWO)
    assert (moved.version, moved.update_time) == (TWO, moved_time)
    assert await models.get_version(BEST) == two
    assert list(await models.list_aliases(A, None, 10)) == [moved]
    clock.pass_seconds()
    await models.write(ANN, lambda writer: writer.delete_alias(BEST))
    assert await models.get_version(BEST) is None
    assert await models.get_version(TWO) == two
    assert await models.get_version(BEST, NOW) == one
    assert await models.get_version(BEST, moved_time) == two
    assert await models.get_version(BEST, clock.now) is None
    assert list(await models.list_aliases(A, None, 10, NOW)) == [made]
    assert list(await models.list_aliases(A, None, 10, clock.now)) == []


async def test_aliases_are_listed_by_name_from_where_the_page_ended(models: ModelStore) -> None:
    await add_model(models, "a")
    await add_version(models, "a")
    for alias_id in ("c", "a", "b"):
        await put_alias(models, alias_id, ONE)
    for at in (None, NOW):
        first = await models.list_aliases(A, None, 2, at)
        rest = await models.list_aliases(A, first[-1].name, 10, at)
        assert [alias.name.alias_id for alias in (*first, *rest)] == ["a", "b", "c"]


async def test_a_writer_finds_what_keeps_a_version(models: ModelStore) -> None:
    await add_model(models, "a")
    await add_version(models, "a")
    await add_version(models, "a", replace(PLAIN, provenance=Provenance(parent_version=ONE)))

    async def look(writer: ModelWriter) -> tuple[Any, ...]:
        return (
            await writer.child_of(ONE),
            await writer.child_of(TWO),
            await writer.alias_of(ONE),
            await writer.alias_of(A),
            await writer.hold_of(A),
            await writer.versions_held_by(D),
            await writer.count_aliases(A),
        )

    assert await models.write(ANN, look) == (TWO, None, None, None, None, [], 0)
    await put_alias(models, "best", TWO)
    await put_version(models, ONE, held_by=(D, DeploymentName("e")))
    hold = Hold(D, ONE)
    found = await models.write(ANN, look)
    assert found[4] in (hold, Hold(DeploymentName("e"), ONE))
    assert (*found[:4], *found[5:]) == (TWO, None, None, BEST, [ONE], 1)
    listed = list(await models.list_holds(None, 10))
    assert listed == [hold, Hold(DeploymentName("e"), ONE)]
    assert list(await models.list_holds(hold, 10)) == listed[1:]
    await put_version(models, TWO, deletion=Deletion(NOW, NOW))
    await put_version(models, ONE, held_by=())
    found = await models.write(ANN, look)
    assert (found[0], found[4], found[5]) == (None, None, [])


async def test_what_expired_is_found_until_it_is_purged(stored: Stored) -> None:
    models, clock = stored.models, stored.clock
    for model_id in ("a", "b"):
        await add_model(models, model_id)
        for _ in range(2):
            await add_version(models, model_id)
    deletion = Deletion(NOW, NOW + timedelta(seconds=1))
    await put_version(models, ONE, deletion=deletion)
    await models.write(ANN, lambda writer: writer.put_model(B, ModelDetails(deletion=deletion), ChangeKind.DELETED))

    async def expired() -> set[VersionName]:
        found = await models.write(ANN, lambda writer: writer.expired_versions())
        return {version.name for version in found}

    assert await expired() == set()
    clock.pass_seconds()
    assert await expired() == {ONE, VersionName("b", 1), VersionName("b", 2)}
    await put_version(models, ONE, deletion=replace(deletion, purge_time=clock.now))
    await put_version(models, VersionName("b", 1), deletion=replace(deletion, purge_time=clock.now))
    assert await expired() == {VersionName("b", 2)}


async def test_a_write_that_fails_leaves_nothing(stored: Stored) -> None:
    models = stored.models
    await add_model(models, "a")

    async def fail(writer: ModelWriter) -> None:
        await writer.put_model(A, ModelDetails("changed"), ChangeKind.UPDATED)
        await writer.add_version(A, PLAIN, VersionDetails(), "r")
        raise RecordChanged("no")

    before = await models.get_model(A)
    with pytest.raises(RecordChanged):
        await models.write(ANN, fail)
    assert await models.get_model(A) == before
    assert await models.get_version_of_request(A, "r") is None
    assert await stored.log.newest_sequence() == 1


async def test_the_log_tells_who_changed_what_when_and_why(stored: Stored) -> None:
    models, clock, log = stored.models, stored.clock, stored.log
    await add_model(models, "a", ModelDetails("first"))
    await add_model(models, "b")
    await add_version(models, "a")
    await add_version(models, "a")
    await put_alias(models, "best", ONE)
    later = clock.pass_seconds()
    bob = Author("bob", "better")
    await models.write(bob, lambda writer: writer.put_alias(BEST, TWO))
    await models.write(bob, lambda writer: writer.delete_alias(BEST))
    of_alias = await log.list_changes(BEST, None, 10, None)
    assert list(of_alias) == [
        Change(7, later, bob, BEST, ChangeKind.DELETED, None, TWO),
        Change(6, later, bob, BEST, ChangeKind.UPDATED, TWO, ONE),
        Change(5, NOW, ANN, BEST, ChangeKind.CREATED, ONE, None),
    ]
    assert list(await log.list_changes(BEST, 6, 10, None)) == list(of_alias[2:])
    assert list(await log.list_changes(BEST, None, 1, None)) == list(of_alias[:1])
    assert list(await log.list_changes(BEST, None, 10, NOW)) == list(of_alias[2:])
    of_model = await log.list_changes(A, None, 10, None)
    assert [change.sequence for change in of_model] == [7, 6, 5, 4, 3, 1]
    assert of_model[-1].state == ModelDetails("first")
    everything = await log.list_changes(None, None, 10, None)
    assert [change.sequence for change in everything] == [7, 6, 5, 4, 3, 2, 1]
    assert list(await log.changes_after(0, 10)) == list(reversed(everything))
    assert [change.sequence for change in await log.changes_after(4, 2)] == [5, 6]
    assert await log.newest_sequence() == 7


async def test_time_never_goes_back_along_the_log(stored: Stored) -> None:
    await add_model(stored.models, "a")
    stored.clock.pass_seconds(-60)
    made = await add_version(stored.models, "a")
    assert made.create_time == NOW


async def test_what_was_stored_is_there_after_the_database_is_opened_again(location: DatabaseLocation) -> None:
    async with open_database(location, MIGRATIONS) as database:
        models = SqlModelStore(database)
        await add_model(models, "a")
        await add_version(models, "a")
        made = await add_version(models, "a", FULL, request_id="r")
    async with open_database(location, MIGRATIONS) as database:
        assert await SqlModelStore(database).get_version_of_request(A, "r") == made
        assert await SqlChangeLog(database).newest_sequence() == 3


async def test_a_text_that_one_database_could_not_take_is_refused_by_all(location: DatabaseLocation) -> None:
    async with open_database(location, MIGRATIONS) as database:
        with pytest.raises(TextNotStorable, match="NUL"):
            await SqlModelStore(database).write(
                Author("ann", "\x00"), lambda writer: writer.put_model(A, ModelDetails(), ChangeKind.CREATED)
            )


async def test_processes_that_write_at_once_make_one_log(location: DatabaseLocation) -> None:
    """Two stores on one database, as two registries have on a PostgreSQL server."""
    async with open_database(location, MIGRATIONS) as one, open_database(location, MIGRATIONS) as other:
        stores = [SqlModelStore(one), SqlModelStore(other)]
        await add_model(stores[0], "a")
        made = await asyncio.gather(*(add_version(stores[n % 2], "a") for n in range(40)))
        assert sorted(version.name.number for version in made) == list(range(1, 41))
        changes = await SqlChangeLog(other).changes_after(0, 100)
        assert [change.sequence for change in changes] == list(range(1, 42))
        assert [change.time for change in changes] == sorted(change.time for change in changes)


async def do_anything(stored: Stored, chance: random.Random) -> str:
    """Ask for one change of any kind, and return how it ended."""
    models, clock = stored.models, stored.clock
    author = Author(chance.choice(("ann", "bob")), chance.choice(("", "because")))
    versions = Versions(models, Blobs(MemoryBlobStore(), 1), clock)
    aliases, holds, rules = Aliases(models, clock), Holds(models), Models(models, clock)
    model = chance.choice((A, B))
    name = VersionName(model.model_id, chance.randint(1, 3))
    alias = AliasName(model.model_id, chance.choice(("best", "new")))
    parent = chance.choice((None, name))
    content = replace(PLAIN, provenance=Provenance(parent_version=parent))
    state = chance.choice(tuple(VersionState))

    async def add(writer: ModelWriter) -> Version:
        if parent is not None and await writer.get_version(parent) is None:
            raise RecordChanged("no such parent")
        if await writer.get_model(model) is None:
            raise RecordChanged("no such model")
        return await writer.add_version(model, content, VersionDetails(state=state), "")

    asked = chance.choice(
        (
            *[lambda: models.write(author, add)] * 3,
            *[lambda: aliases.set(alias, name, author)] * 4,
            lambda: rules.create(model, ModelDetails(), author),
            lambda: rules.update(model, "", author, lambda now: replace(now, description=str(chance.random()))),
            lambda: rules.delete(B, "", author),
            *[lambda: rules.undelete(model, author)] * 4,
            lambda: versions.update(name, "", author, lambda now: replace(now, state=state)),
            lambda: versions.update(name, "", author, lambda now: replace(now, tags={"t": str(chance.random())})),
            lambda: versions.add_evaluation(name, replace(EVALUATION, value=chance.random()), author),
            lambda: versions.add_measurement(name, MEASUREMENT, author),
            lambda: versions.delete(name, "", author),
            *[lambda: versions.undelete(name, author)] * 2,
            lambda: versions.purge_expired(author),
            lambda: aliases.set(alias, name, author, expected_none=True),
            lambda: aliases.delete(alias, "", author),
            lambda: holds.set(D, [name], author),
            lambda: holds.set(D, [], author),
        )
    )
    if chance.random() < 0.5:
        clock.pass_seconds(chance.choice((1, 60, 86400)))
    try:
        return repr(await asked())
    except Failure as failure:
        return failure.reason


async def seen(stored: Stored, at: datetime | None) -> list[Sequence[Any] | Any]:
    """All that can be read as at a time."""
    models = stored.models
    found: list[Any] = [await models.list_models(None, 10, at=at), await stored.log.list_changes(None, None, 999, at)]
    for model in (A, B):
        found += [
            await models.get_model(model, at),
            await models.list_versions(model, None, 99, at=at),
            await models.list_aliases(model, None, 9, at),
        ]
        found += [await models.get_version(AliasName(model.model_id, alias), at) for alias in ("best", "new")]
        found += [await models.get_version(VersionName(model.model_id, number), at) for number in range(1, 4)]
    return [list(one) if isinstance(one, Sequence) else one for one in found]


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_happened_every_store_tells_the_same_of_every_time(
    location: DatabaseLocation, seed: int
) -> None:
    """A random history, in memory and in a database; and what was read at a time then is what is read of it later."""
    clocks = ManualClock(), ManualClock()
    memory = MemoryModelStore(clocks[0])
    plain = Stored(memory, memory, clocks[0])
    async with open_database(location, MIGRATIONS) as database:
        real = Stored(SqlModelStore(database, clocks[1]), SqlChangeLog(database), clocks[1])
        then: dict[datetime, list[Any]] = {}
        outcomes = set()
        chances = random.Random(seed), random.Random(seed)
        for _ in range(70):
            outcome = await do_anything(plain, chances[0])
            assert await do_anything(real, chances[1]) == outcome
            outcomes.add(outcome.partition("(")[0])
            then[real.clock.now] = await seen(real, None)
        assert {"Model", "Version", "Alias"} <= outcomes
        assert await seen(real, None) == await seen(plain, None)
        assert list(await real.models.list_holds(None, 9)) == list(await plain.models.list_holds(None, 9))
        for time, expected in list(then.items())[::5]:
            assert await seen(real, time) == expected
            assert await seen(plain, time) == expected


async def test_an_alias_is_moved_by_one_of_many_who_saw_the_same(stored: Stored) -> None:
    await add_model(stored.models, "a")
    for _ in range(10):
        await add_version(stored.models, "a")
    aliases = Aliases(stored.models, stored.clock)
    first = await aliases.set(BEST, ONE, ANN)

    async def move(number: int) -> Alias | None:
        try:
            return await aliases.set(BEST, VersionName("a", number), ANN, etag=first.etag)
        except RecordChanged:
            return None

    moved = await asyncio.gather(*(move(number) for number in range(2, 11)))
    (won,) = [alias for alias in moved if alias is not None]
    assert await stored.models.get_alias(BEST) == won
