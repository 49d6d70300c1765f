"""One suite for every store of deployments, and a watch over it that resumes wherever it broke."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maas.names import DeploymentName, VersionName
from maas.signatures import PublicKey
from maas_rollout.domain.deployments import (
    PENDING,
    Action,
    Deployment,
    DeploymentState,
    Event,
    Standing,
    Target,
)
from maas_rollout.domain.feed import Changes, ChangeStore, Feed, ResumePoint
from maas_rollout.domain.rollout import DeploymentStore
from maas_rollout.domain.serving import LoadPolicy, ServingSettings
from maas_rollout.storage.memory import MemoryDeploymentStore
from maas_rollout.storage.sqlite import MIGRATIONS, SqliteDeploymentStore
from maas_runtime.database.database import open_database
from maas_runtime.database.sqlite import SqliteFile

NOW = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
A, B = DeploymentName("a"), DeploymentName("b")
ONE, TWO = (Target(VersionName("m", number), 10 * number) for number in (1, 2))


class Store(DeploymentStore, ChangeStore, Protocol):
    """What a store of deployments is: both."""


@asynccontextmanager
async def open_store(kind: str, folder: Path, kept_revisions: int = 1000) -> AsyncIterator[Store]:
    if kind == "memory":
        yield MemoryDeploymentStore("identity", kept_revisions)
        return
    async with open_database(SqliteFile(folder / "rollout.sqlite"), MIGRATIONS) as database:
        store = SqliteDeploymentStore(database, kept_revisions)
        await store.prepare("identity")
        yield store


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(request.param, tmp_path) as store:
        yield store


def new(name: DeploymentName, *targets: Target) -> Deployment:
    return Deployment(name, targets, PENDING, NOW, NOW, trusted_keys=(PublicKey("-----BEGIN", "ab" * 32),))


def event(name: DeploymentName, action: Action, actor: str = "ann") -> Event:
    return Event(name, NOW, action, (ONE,), (TWO, ONE), actor, 'for "ü"', ("ab",), ("ab", "cd"))


async def create(store: Store, name: DeploymentName, *targets: Target) -> Deployment:
    created = await store.create(new(name, *targets), event(name, Action.CREATED))
    assert created is not None
    return created


async def test_a_deployment_comes_back_as_it_was_stored(store: Store) -> None:
    created = await create(store, A, TWO, ONE)
    assert created == replace(new(A, TWO, ONE), revision=1)
    assert await store.get(A) == created
    assert await store.get(B) is None


async def test_of_many_who_create_the_same_name_one_wins(store: Store) -> None:
    made = await asyncio.gather(*(store.create(new(A, ONE), event(A, Action.CREATED)) for _ in range(5)))
    assert sum(deployment is not None for deployment in made) == 1
    assert len(await store.list_events(A, None, 10)) == 1


async def test_deployments_are_listed_by_name_from_where_the_page_ended(store: Store) -> None:
    assert list(await store.list(None, 10)) == []
    for deployment_id in ("c", "a", "b-1", "b"):
        await create(store, DeploymentName(deployment_id), ONE)
    first = await store.list(None, 2)
    rest = await store.list(first[-1].name, 10)
    assert [deployment.name.deployment_id for deployment in (*first, *rest)] == ["a", "b", "b-1", "c"]


async def test_an_update_is_stored_under_a_new_revision_with_its_event(store: Store) -> None:
    created = await create(store, A, ONE)
    wanted = replace(
        created, targets=(TWO,), standing=Standing(DeploymentState.LOADING, "m"), update_time=NOW + timedelta(days=1)
    )
    updated = await store.update(wanted, event(A, Action.UPDATED))
    assert updated == replace(wanted, revision=2)
    assert await store.get(A) == updated
    assert [found.action for found in await store.list_events(A, None, 10)] == [Action.UPDATED, Action.CREATED]


async def test_of_two_who_change_the_same_revision_one_wins(store: Store) -> None:
    created = await create(store, A, ONE)
    outcomes = await asyncio.gather(
        *(store.update(replace(created, targets=(target,)), event(A, Action.UPDATED)) for target in (ONE, TWO))
    )
    winner = next(outcome for outcome in outcomes if outcome is not None)
    assert sum(outcome is None for outcome in outcomes) == 1
    assert await store.get(A) == winner
    assert not await store.delete(created, event(A, Action.DELETED))
    assert len(await store.list_events(A, None, 10)) == 2


async def test_what_ended_is_gone_and_its_events_stay(store: Store) -> None:
    created = await create(store, A, ONE)
    assert await store.delete(created, event(A, Action.DELETED))
    assert await store.get(A) is None
    assert not await store.delete(created, event(A, Action.DELETED))
    assert await store.update(created, event(A, Action.UPDATED)) is None
    again = await create(store, A, ONE)
    assert again.revision > created.revision
    assert [found.action for found in await store.list_events(A, None, 10)] == [
        Action.CREATED,
        Action.DELETED,
        Action.CREATED,
    ]


async def test_events_come_back_whole_and_newest_first(store: Store) -> None:
    created = await create(store, A, ONE)
    await create(store, B, ONE)
    for number in range(4):
        updated = await store.update(created, event(A, Action.UPDATED, f"actor {number}"))
        assert updated is not None
        created = updated
    first = await store.list_events(A, None, 2)
    rest = await store.list_events(A, first[-1].number, 10)
    assert [found.actor for found in (*first, *rest)] == ["actor 3", "actor 2", "actor 1", "actor 0", "ann"]
    assert replace(first[0], number=0) == event(A, Action.UPDATED, "actor 3")
    assert list(await store.list_events(DeploymentName("nobody"), None, 10)) == []


async def test_a_standing_is_noted_without_being_a_change(store: Store) -> None:
    created = await create(store, A, ONE)
    ready = Standing(DeploymentState.READY)
    before = await store.changes_since(None)
    await store.set_standing(created, ready)
    assert await store.get(A) == replace(created, standing=ready)
    assert (await store.changes_since(before.point)).deployments == ()
    updated = await store.update(replace(created, standing=PENDING), event(A, Action.UPDATED))
    # Of a revision that is not the present one nothing is noted.
    await store.set_standing(created, ready)
    assert await store.get(A) == updated


async def test_a_snapshot_holds_all_there_is(store: Store) -> None:
    empty = await store.changes_since(None)
    assert (empty.snapshot, empty.deployments, empty.deleted) == (True, (), ())
    one, two = await create(store, B, ONE), await create(store, A, TWO)
    assert await store.changes_since(None) == Changes(ResumePoint("identity", 2), True, (one, two))


async def test_changes_since_a_point_are_those_and_no_others(store: Store) -> None:
    one, two = await create(store, A, ONE), await create(store, B, ONE)
    point = (await store.changes_since(None)).point
    assert await store.changes_since(point) == Changes(point, False, ())
    updated = await store.update(one, event(A, Action.UPDATED))
    await store.delete(two, event(B, Action.DELETED))
    assert updated is not None
    assert await store.changes_since(point) == Changes(ResumePoint("identity", 4), False, (updated,), (B,))


async def test_what_was_deleted_and_made_again_is_a_change_only(store: Store) -> None:
    created = await create(store, A, ONE)
    point = (await store.changes_since(None)).point
    await store.delete(created, event(A, Action.DELETED))
    again = await create(store, A, TWO)
    assert await store.changes_since(point) == Changes(ResumePoint("identity", 3), False, (again,))


@pytest.mark.parametrize("point", [ResumePoint("another", 1), ResumePoint("identity", 10**17)])
async def test_a_point_of_another_store_or_of_the_future_gets_a_snapshot(store: Store, point: ResumePoint) -> None:
    await create(store, A, ONE)
    assert (await store.changes_since(point)).snapshot


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_point_before_the_oldest_deletion_that_is_kept_gets_a_snapshot(kind: str, tmp_path: Path) -> None:
    async with open_store(kind, tmp_path, kept_revisions=4) as store:
        points = []
        for _ in range(5):
            created = await create(store, A, ONE)
            points.append((await store.changes_since(None)).point)
            await store.delete(created, event(A, Action.DELETED))
        answers = [await store.changes_since(point) for point in points]
        assert [answer.snapshot for answer in answers] == [True, True, True, False, False]
        assert answers[-1].deleted == (A,)


SERVING = ServingSettings(
    max_batch_rows=64,
    max_queue_delay=timedelta(milliseconds=5),
    max_queue_rows=2000,
    cache_bytes=64_000_000,
    load_policy=LoadPolicy.ON_DEMAND,
    engine="openvino:bf16",
    worker_memory_bytes=2_000_000_000,
    compute_timeout=timedelta(seconds=10),
)


async def test_serving_settings_come_back_as_they_were_stored(store: Store) -> None:
    created = await store.create(replace(new(A, ONE), serving=SERVING), event(A, Action.CREATED))
    assert created is not None
    assert await store.get(A) == created
    assert created.serving == SERVING
    updated = await store.update(replace(created, serving=ServingSettings()), event(A, Action.CONFIGURED))
    assert updated is not None
    assert updated.serving == ServingSettings()
    assert await store.get(A) == updated


async def test_a_store_keeps_its_identity_and_all_it_knows(tmp_path: Path) -> None:
    async with open_database(SqliteFile(tmp_path / "rollout.sqlite"), MIGRATIONS) as database:
        store = SqliteDeploymentStore(database)
        await store.prepare("first")
        created = await create(store, A, ONE)
        changes = await store.changes_since(None)
    async with open_database(SqliteFile(tmp_path / "rollout.sqlite"), MIGRATIONS) as database:
        store = SqliteDeploymentStore(database)
        await store.prepare("second")
        assert await store.get(A) == created
        assert await store.changes_since(None) == changes
        assert await store.changes_since(changes.point) == Changes(changes.point, False, ())


class Watcher:
    """Knows what it was told. Its connection breaks whenever a test says so; it then resumes from its last token."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.token = ""
        self.known: dict[DeploymentName, tuple[Target, ...]] = {}

    async def watch(self, wanted: ResumePoint) -> None:
        """Read messages until `wanted` is reached, then let the connection break."""
        async with aclosing(self.feed.watch(ResumePoint.parse(self.token))) as changes:
            async for change in changes:
                self.take(change)
                if change.point.revision >= wanted.revision:
                    return

    def take(self, change: Changes) -> None:
        present = {deployment.name: deployment.targets for deployment in change.deployments}
        assert not set(present) & set(change.deleted)
        self.known = present if change.snapshot else self.known | present
        for name in change.deleted:
            self.known.pop(name, None)
        self.token = str(change.point)


Step: TypeAlias = tuple[str, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put"] * 5 + ["delete"] * 5 + ["read"] * 3 + ["lose the token", "restart"]), st.integers(0, 2)
    ),
    min_size=6,
    max_size=60,
)


async def replay(kind: str, folder: Path, steps: list[Step], kept_revisions: int) -> None:
    """Change deployments and read the watch in some order; the watcher must end up knowing exactly what there is."""
    async with open_store(kind, folder, kept_revisions) as store:
        watcher = Watcher(Feed(store))
        for number, (step, which) in enumerate(steps):
            name = DeploymentName(f"d{which}")
            present = await store.get(name)
            match step:
                case "put" if present is None:
                    await create(store, name, Target(VersionName("m", number + 1), 1))
                case "put":
                    assert present is not None
                    targets = (Target(VersionName("m", number + 1), 1),)
                    await store.update(replace(present, targets=targets), event(name, Action.UPDATED))
                case "delete" if present is not None:
                    await store.delete(present, event(name, Action.DELETED))
                case "read":
                    await catch_up(store, watcher)
                case "lose the token":
                    watcher.token = "lost"
                case "restart":
                    watcher.feed = Feed(store)
        await catch_up(store, watcher)


async def catch_up(store: Store, watcher: Watcher) -> None:
    now = (await store.changes_since(None)).point
    await asyncio.wait_for(watcher.watch(now), timeout=10)
    assert watcher.known == {deployment.name: deployment.targets for deployment in await store.list(None, 100)}


@given(STEPS, st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_a_watch_that_resumes_misses_nothing_in_memory(steps: list[Step], kept_revisions: int) -> None:
    asyncio.run(replay("memory", Path(), steps, kept_revisions))


@given(STEPS, st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_a_watch_that_resumes_misses_nothing_on_disk(steps: list[Step], kept_revisions: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(replay("sqlite", Path(folder), steps, kept_revisions))


async def test_watchers_beside_many_writers_end_up_with_what_there_is(store: Store) -> None:
    feed = Feed(store)
    watchers = [Watcher(feed) for _ in range(3)]
    ended = asyncio.Event()

    async def write(deployment_id: str) -> None:
        name = DeploymentName(deployment_id)
        for number in range(1, 11):
            present = await store.get(name)
            if present is None:
                await create(store, name, Target(VersionName("m", number), 1))
            elif number % 4 == 0:
                await store.delete(present, event(name, Action.DELETED))
            else:
                targets = (Target(VersionName("m", number), 1),)
                await store.update(replace(present, targets=targets), event(name, Action.UPDATED))
            feed.wake()

    async def watch_in_pieces(watcher: Watcher) -> None:
        while not ended.is_set():
            # At least the next change; the connection then breaks.
            point = ResumePoint.parse(watcher.token) or ResumePoint("", 0)
            await watcher.watch(ResumePoint("", point.revision + 1))

    async with asyncio.timeout(30), asyncio.TaskGroup() as reading:
        for watcher in watchers:
            reading.create_task(watch_in_pieces(watcher))
        async with asyncio.TaskGroup() as writing:
            for deployment_id in ("a", "b", "c"):
                writing.create_task(write(deployment_id))
        ended.set()
        feed.close()
    for watcher in watchers:
        await catch_up(store, watcher)


async def test_a_slow_watcher_gets_one_message_for_many_changes(store: Store) -> None:
    feed = Feed(store)
    async with aclosing(feed.watch(None)) as changes:
        assert (await anext(changes)).snapshot
        for number in range(20):
            await create(store, DeploymentName(f"d{number}"), ONE)
            feed.wake()
        change = await asyncio.wait_for(anext(changes), timeout=5)
    assert len(change.deployments) == 20


async def test_a_watcher_hears_of_a_change_that_nobody_woke_it_for(store: Store) -> None:
    feed = Feed(store, look_again_seconds=0.01)
    async with aclosing(feed.watch(None)) as changes:
        await anext(changes)
        await create(store, A, ONE)
        assert len((await asyncio.wait_for(anext(changes), timeout=5)).deployments) == 1


async def test_a_resumed_watch_that_missed_nothing_is_told_so_at_once(store: Store) -> None:
    await create(store, A, ONE)
    point = (await store.changes_since(None)).point
    async with aclosing(Feed(store).watch(point)) as changes:
        assert await asyncio.wait_for(anext(changes), timeout=5) == Changes(point, False, ())


async def test_a_closed_feed_ends_its_watches_after_what_they_still_have_to_say(store: Store) -> None:
    feed = Feed(store)
    async with aclosing(feed.watch(None)) as changes:
        await anext(changes)
        await create(store, A, ONE)
        feed.close()
        rest = [change async for change in changes]
    assert [len(change.deployments) for change in rest] == [1]
    assert [change.snapshot async for change in feed.watch(None)] == [True]
