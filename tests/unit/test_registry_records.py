"""The rules of what may change: descriptions, tags, states, findings, deletion and what stands against it, aliases."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from registry_records import ANN, EVALUATION, MEASUREMENT, NOW, PLAIN, ManualClock, add_model, add_version

from maas.names import AliasName, DeploymentName, ModelName, VersionName
from maas_registry.domain.alias_rules import Aliases, Holds
from maas_registry.domain.blobs import Blobs
from maas_registry.domain.changes import ChangeKind, Feed, ReadTimeInFuture, ResumeTokenInvalid
from maas_registry.domain.details import ModelDetails, VersionDetails, VersionState
from maas_registry.domain.filters import parse_filter, parse_order
from maas_registry.domain.listing import (
    BY_NAME,
    MODEL_FIELDS,
    MODEL_ORDERS,
    NEWEST_FIRST,
    VERSION_FIELDS,
    VERSION_ORDERS,
    Place,
    Query,
    TooManyToOrder,
)
from maas_registry.domain.model_rules import Models
from maas_registry.domain.models import (
    KEPT_AFTER_DELETION,
    MAX_FINDINGS,
    DeletionExpired,
    ModelDeleted,
    ModelExists,
    ModelNotFound,
    NotDeleted,
    RecordChanged,
    StateTransitionIllegal,
    TooManyFindings,
    VersionDeleted,
    VersionInUse,
    VersionNotDeployable,
    VersionNotFound,
)
from maas_registry.domain.version_rules import Versions
from maas_registry.domain.versions import Provenance, VersionDraft
from maas_registry.storage.memory import MemoryBlobStore, MemoryModelStore

A = ModelName("a")
ONE, TWO, THREE = (VersionName("a", number) for number in (1, 2, 3))
BEST = AliasName("a", "best")
D = DeploymentName("d")
READY, PENDING, ARCHIVED = VersionState.READY, VersionState.PENDING, VersionState.ARCHIVED


class Registry:
    """The rules, over a store in memory that holds model `a` with two versions, the second made of the first."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryModelStore(self.clock)
        self.models = Models(self.store, self.clock)
        self.versions = Versions(self.store, Blobs(MemoryBlobStore(), 1), self.clock)
        self.aliases = Aliases(self.store, self.clock)
        self.holds = Holds(self.store)
        self.feed = Feed(self.store, self.clock, look_again_seconds=0.01, heartbeat_seconds=0.02)

    async def list(self, filter_: str = "", order_by: str = "", **query: Any) -> list[int]:
        order = parse_order(order_by, VERSION_ORDERS, NEWEST_FIRST)
        wanted = Query(order, parse_filter(filter_, VERSION_FIELDS), **query)
        found = await self.versions.list(A, wanted, None, 100)
        assert not found.next_key
        return [version.name.number for version in found.items]


@pytest.fixture
async def registry() -> Registry:
    registry = Registry()
    await add_model(registry.store, "a")
    await add_version(registry.store, "a")
    await add_version(registry.store, "a", replace(PLAIN, provenance=Provenance(parent_version=ONE)))
    return registry


def described(text: str) -> Callable[[Any], Any]:
    return lambda present: replace(present, description=text)


def in_state(state: VersionState) -> Callable[[VersionDetails], VersionDetails]:
    return lambda present: replace(present, state=state)


async def test_a_change_that_changes_nothing_leaves_no_trace(registry: Registry) -> None:
    before = await registry.store.newest_sequence()
    await registry.models.update(A, "", ANN, lambda present: present)
    await registry.versions.update(ONE, "", ANN, described(""))
    await registry.aliases.set(BEST, ONE, ANN)
    await registry.aliases.set(BEST, ONE, ANN)
    assert await registry.store.newest_sequence() == before + 1


async def test_a_stale_etag_changes_nothing(registry: Registry) -> None:
    model, version = await registry.models.get(A), await registry.versions.get(ONE)
    changed = await registry.models.update(A, model.etag, ANN, described("new"))
    await registry.versions.update(ONE, version.etag, ANN, described("new"))
    assert changed.etag != model.etag
    for stale in (
        registry.models.update(A, model.etag, ANN, described("other")),
        registry.models.delete(A, model.etag, ANN),
        registry.versions.update(ONE, version.etag, ANN, described("other")),
        registry.versions.delete(TWO, version.etag, ANN),
    ):
        with pytest.raises(RecordChanged):
            await stale
    assert (await registry.models.get(A)).details.description == "new"


@pytest.mark.parametrize(
    ("first", "second", "is_legal"),
    [
        (PENDING, READY, True),
        (PENDING, ARCHIVED, True),
        (READY, ARCHIVED, True),
        (ARCHIVED, READY, True),
        (READY, PENDING, False),
        (ARCHIVED, PENDING, False),
    ],
)
async def test_a_version_goes_from_state_to_state_as_the_contract_says(
    registry: Registry, first: VersionState, second: VersionState, is_legal: bool
) -> None:
    await add_version(registry.store, "a", details=VersionDetails(state=first))
    change = registry.versions.update(THREE, "", ANN, in_state(second))
    if is_legal:
        assert (await change).details.state is second
    else:
        with pytest.raises(StateTransitionIllegal):
            await change


async def test_findings_of_the_same_are_replaced_and_others_added(registry: Registry) -> None:
    first = await registry.versions.add_evaluation(ONE, EVALUATION, ANN)
    later = registry.clock.pass_seconds()
    await registry.versions.add_evaluation(ONE, replace(EVALUATION, split="new"), ANN)
    version = await registry.versions.add_evaluation(ONE, replace(EVALUATION, value=0.9), ANN)
    assert [(one.split, one.value, one.create_time) for one in version.details.evaluations] == [
        ("new", 0.75, later),
        ("test", 0.9, later),
    ]
    assert first.details.evaluations == (replace(EVALUATION, create_time=NOW),)
    await registry.versions.add_measurement(ONE, MEASUREMENT, ANN)
    version = await registry.versions.add_measurement(ONE, replace(MEASUREMENT, hardware="other"), ANN)
    assert [one.hardware for one in version.details.measurements] == ["2 cores", "other"]
    assert version.metric("accuracy") == 0.9
    assert version.metric("f1") is None


async def test_findings_are_bounded(registry: Registry) -> None:
    for number in range(MAX_FINDINGS):
        await registry.versions.add_measurement(ONE, replace(MEASUREMENT, hardware=str(number)), ANN)
    with pytest.raises(TooManyFindings):
        await registry.versions.add_measurement(ONE, MEASUREMENT, ANN)


async def test_what_is_a_parent_has_an_alias_or_is_deployed_is_not_deleted(registry: Registry) -> None:
    with pytest.raises(VersionInUse, match="parent of models/a/versions/2"):
        await registry.versions.delete(ONE, "", ANN)
    await registry.aliases.set(BEST, TWO, ANN)
    with pytest.raises(VersionInUse, match="alias best"):
        await registry.versions.delete(TWO, "", ANN)
    with pytest.raises(VersionInUse, match="models/a/aliases/best"):
        await registry.models.delete(A, "", ANN)
    await registry.aliases.delete(BEST, "", ANN)
    await registry.holds.set(D, [TWO], ANN)
    for refused in (
        registry.versions.delete(TWO, "", ANN),
        registry.versions.update(TWO, "", ANN, in_state(ARCHIVED)),
        registry.models.delete(A, "", ANN),
    ):
        with pytest.raises(VersionInUse, match="deployed by deployments/d"):
            await refused
    await registry.holds.set(D, [], ANN)
    await registry.versions.delete(TWO, "", ANN)
    await registry.versions.delete(ONE, "", ANN)


async def test_what_is_deleted_is_hidden_kept_and_brought_back(registry: Registry) -> None:
    await registry.versions.delete(TWO, "", ANN)
    assert await registry.list() == [1]
    assert await registry.list(show_deleted=True) == [2, 1]
    deleted = (await registry.versions.get(TWO)).details.deletion
    assert deleted is not None
    assert (deleted.delete_time, deleted.expire_time) == (NOW, NOW + KEPT_AFTER_DELETION)
    assert (await registry.models.get(A)).latest_version == ONE
    child = replace(VersionDraft(()), provenance=Provenance(parent_version=TWO))
    for refused, kind in (
        (registry.versions.delete(TWO, "", ANN), VersionNotFound),
        (registry.versions.update(TWO, "", ANN, described("x")), VersionDeleted),
        (registry.versions.add_evaluation(TWO, EVALUATION, ANN), VersionDeleted),
        (registry.aliases.set(BEST, TWO, ANN), VersionDeleted),
        (registry.holds.set(D, [TWO], ANN), VersionDeleted),
        (registry.versions.undelete(ONE, ANN), NotDeleted),
    ):
        with pytest.raises(kind):
            await refused
    del child
    await registry.versions.delete(ONE, "", ANN)
    with pytest.raises(VersionDeleted, match="versions/1"):
        await registry.versions.undelete(TWO, ANN)
    await registry.versions.undelete(ONE, ANN)
    assert (await registry.versions.undelete(TWO, ANN)).details.deletion is None
    assert await registry.list() == [2, 1]


async def test_a_deleted_model_takes_its_versions_along_and_brings_them_back(registry: Registry) -> None:
    await registry.models.delete(A, "", ANN)
    assert (await registry.models.list(Query(BY_NAME), None, 10)).items == []
    assert [one.name for one in (await registry.models.list(Query(BY_NAME, show_deleted=True), None, 10)).items] == [A]
    for refused, kind in (
        (registry.models.delete(A, "", ANN), ModelNotFound),
        (registry.models.create(A, ModelDetails(), ANN), ModelExists),
        (registry.models.update(A, "", ANN, described("x")), ModelDeleted),
        (registry.versions.update(ONE, "", ANN, described("x")), ModelDeleted),
        (registry.versions.delete(TWO, "", ANN), ModelDeleted),
        (registry.aliases.set(BEST, ONE, ANN), ModelDeleted),
        (registry.holds.set(D, [ONE], ANN), ModelDeleted),
    ):
        with pytest.raises(kind):
            await refused
    await registry.models.undelete(A, ANN)
    assert await registry.list() == [2, 1]
    with pytest.raises(NotDeleted):
        await registry.models.undelete(A, ANN)


async def test_after_its_time_what_is_deleted_is_purged_once_and_does_not_come_back(registry: Registry) -> None:
    await registry.versions.delete(TWO, "", ANN)
    assert await registry.versions.purge_expired(ANN) == []
    registry.clock.pass_seconds(KEPT_AFTER_DELETION.total_seconds())
    with pytest.raises(DeletionExpired):
        await registry.versions.undelete(TWO, ANN)
    assert await registry.versions.purge_expired(ANN) == [TWO]
    assert await registry.versions.purge_expired(ANN) == []
    with pytest.raises(DeletionExpired):
        await registry.versions.undelete(TWO, ANN)
    found = await registry.versions.get(TWO)
    assert found.details.deletion is not None
    assert found.details.deletion.purge_time == registry.clock.now
    await registry.models.delete(A, "", ANN)
    registry.clock.pass_seconds(KEPT_AFTER_DELETION.total_seconds())
    with pytest.raises(DeletionExpired):
        await registry.models.undelete(A, ANN)
    assert await registry.versions.purge_expired(ANN) == [ONE]


async def test_only_what_is_ready_may_be_held_but_what_is_held_stays_so(registry: Registry) -> None:
    await registry.versions.update(ONE, "", ANN, in_state(ARCHIVED))
    with pytest.raises(VersionNotDeployable):
        await registry.holds.set(D, [ONE, TWO], ANN)
    assert (await registry.versions.get(TWO)).details.held_by == ()
    await registry.holds.set(D, [TWO], ANN)
    await registry.holds.set(DeploymentName("c"), [TWO], ANN)
    await registry.holds.set(D, [TWO], ANN)
    assert (await registry.versions.get(TWO)).details.held_by == (DeploymentName("c"), D)
    with pytest.raises(VersionNotFound):
        await registry.holds.set(D, [THREE], ANN)


async def test_an_alias_is_set_only_where_it_is_expected_to_be(registry: Registry) -> None:
    with pytest.raises(RecordChanged):
        await registry.aliases.set(BEST, ONE, ANN, expected=TWO)
    with pytest.raises(RecordChanged):
        await registry.aliases.set(BEST, ONE, ANN, etag="7")
    made = await registry.aliases.set(BEST, ONE, ANN, expected_none=True)
    for expected in ({"expected_none": True}, {"expected": TWO}, {"etag": "7"}):
        with pytest.raises(RecordChanged):
            await registry.aliases.set(BEST, TWO, ANN, **expected)  # type: ignore[arg-type]
    moved = await registry.aliases.set(BEST, TWO, ANN, expected=ONE, etag=made.etag)
    with pytest.raises(RecordChanged):
        await registry.aliases.delete(BEST, made.etag, ANN)
    await registry.aliases.delete(BEST, moved.etag, ANN)


async def test_a_time_that_has_not_come_cannot_be_read(registry: Registry) -> None:
    future = registry.clock.now + timedelta(microseconds=1)
    for reading in (
        registry.models.get(A, future),
        registry.versions.get(ONE, future),
        registry.aliases.list(A, None, 10, future),
        registry.versions.list(A, Query(NEWEST_FIRST, at=future), None, 10),
        registry.models.list(Query(BY_NAME, at=future), None, 10),
        registry.feed.list(None, None, 10, future),
    ):
        with pytest.raises(ReadTimeInFuture):
            await reading


async def test_versions_are_filtered_by_what_is_known_of_them(registry: Registry) -> None:
    await registry.versions.update(ONE, "", ANN, lambda now: replace(now, tags={"team": "nlp"}, state=ARCHIVED))
    await registry.versions.add_evaluation(TWO, EVALUATION, ANN)
    for text, expected in (
        (f'parent_version = "{ONE}"', [2]),
        ("state = archived", [1]),
        ("state = ready AND metrics.accuracy > 0.7", [2]),
        ("metrics.accuracy > 0.8", []),
        ("tags.team = nlp OR number = 2", [2, 1]),
        ("task = text-classification AND size_bytes > 1", [2, 1]),
        (f'create_time > "{NOW.isoformat()}"', []),
    ):
        assert await registry.list(text) == expected, text


async def test_versions_are_listed_in_any_order_page_by_page(registry: Registry) -> None:
    for number in range(3, 30):
        await add_version(registry.store, "a")
        if number % 2:
            evaluation = replace(EVALUATION, value=1 / (number % 7 + 1))
            await registry.versions.add_evaluation(VersionName("a", number), evaluation, ANN)
    for order_by in ("number", "number desc", "metrics.accuracy", "metrics.accuracy desc", "size_bytes", "update_time"):
        order = parse_order(order_by, VERSION_ORDERS, NEWEST_FIRST)
        parse: Any = VersionName.parse if order.field == "number" else Place.parse
        names: list[int] = []
        key = ""
        while key or not names:
            found = await registry.versions.list(A, Query(order), parse(key) if key else None, 4)
            names += [version.name.number for version in found.items]
            key = found.next_key
        assert names == await registry.list(order_by=order_by)
        assert sorted(names) == list(range(1, 30))
    best = await registry.list(order_by="metrics.accuracy desc")
    assert best[:2] == [7, 21]
    assert set(best[14:]) == {1, *range(2, 30, 2)}, "those without the metric come last"


async def test_a_filter_that_lets_little_through_looks_at_a_bounded_number(registry: Registry) -> None:
    """A page may be empty and not the last; an order of too many is refused, with what to do."""
    versions = {}
    one = await registry.versions.get(ONE)
    for number in range(1, 10_501):
        versions[VersionName("a", number)] = replace(one, name=VersionName("a", number))

    class Many(MemoryModelStore):
        async def list_versions(self, model: ModelName, after: Any, limit: int, **_: Any) -> Any:
            last = 10_501 if after is None else after.number
            return [versions[VersionName("a", number)] for number in range(last - 1, max(0, last - 1 - limit), -1)]

        async def get_model(self, name: ModelName, at: Any = None) -> Any:
            return await registry.models.get(A)

    rules = Versions(Many(registry.clock), Blobs(MemoryBlobStore(), 1), registry.clock)
    query = Query(NEWEST_FIRST, parse_filter("number = 1", VERSION_FIELDS))
    pages, key = 0, None
    while True:
        found = await rules.list(A, query, key, 10)
        pages += 1
        if not found.next_key:
            break
        key = VersionName.parse(found.next_key)
    assert [version.name.number for version in found.items] == [1]
    assert pages > 3
    with pytest.raises(TooManyToOrder):
        await rules.list(A, Query(parse_order("size_bytes", VERSION_ORDERS, NEWEST_FIRST)), None, 10)


async def test_models_are_filtered_and_ordered(registry: Registry) -> None:
    for model_id, team in (("b", "nlp"), ("c", "vision"), ("d", "nlp")):
        registry.clock.pass_seconds()
        await add_model(registry.store, model_id, ModelDetails("", {"team": team}))

    async def listed(filter_: str, order_by: str) -> str:
        order = parse_order(order_by, MODEL_ORDERS, BY_NAME)
        found = await registry.models.list(Query(order, parse_filter(filter_, MODEL_FIELDS)), None, 10)
        return "".join(model.name.model_id for model in found.items)

    assert await listed("tags.team = nlp", "") == "bd"
    assert await listed("tags.team = nlp", "name desc") == "db"
    assert await listed("", "create_time desc") == "dcba"
    assert await listed("version_count > 1", "update_time") == "a"


async def test_a_watcher_is_told_what_happens_from_its_token_on(registry: Registry) -> None:
    async with aclosing(registry.feed.watch(A, None)) as watch:
        first = await anext(watch)
        assert (first.changes, first.sequence) == ((), 3)
        await add_model(registry.store, "b")
        await registry.aliases.set(BEST, ONE, ANN)
        registry.feed.wake()
        news = await anext(watch)
        while not news.changes:
            news = await anext(watch)
        assert [(str(change.resource), change.kind) for change in news.changes] == [
            ("models/a/aliases/best", ChangeKind.CREATED)
        ]
        assert news.sequence == 5
    async with aclosing(registry.feed.watch(None, 3)) as watch:
        again = await anext(watch)
        assert [str(change.resource) for change in again.changes] == ["models/b", "models/a/aliases/best"]
        assert (await anext(watch)).changes == (), "nothing happened, and it says so"
    with pytest.raises(ResumeTokenInvalid):
        await anext(registry.feed.watch(None, 6))


async def test_a_watcher_of_much_gets_pages_and_ends_when_the_feed_closes(registry: Registry) -> None:
    for number in range(450):
        await registry.models.update(A, "", ANN, described(str(number)))
    registry.feed.close()
    async with asyncio.timeout(10):
        told = [news async for news in registry.feed.watch(A, 3)]
    assert [len(news.changes) for news in told] == [200, 200, 50]
    assert [change.sequence for news in told for change in news.changes] == list(range(4, 454))
