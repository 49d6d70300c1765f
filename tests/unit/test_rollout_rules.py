"""The rules of deployments, over the store in memory."""

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from maas.names import AliasName, DeploymentName, VersionName
from maas.signatures import PublicKey
from maas_package.signed import VersionNotSigned
from maas_rollout.domain.deployments import (
    Action,
    DeploymentState,
    Standing,
    Target,
    TargetsInvalid,
    WantedTarget,
)
from maas_rollout.domain.feed import Feed, ResumePoint
from maas_rollout.domain.replicas import Replicas, TargetState, TargetStatus
from maas_rollout.domain.rollout import (
    Author,
    DeploymentExists,
    DeploymentNotFound,
    EtagMismatch,
    Rollout,
)
from maas_rollout.storage.memory import MemoryDeploymentStore
from maas_runtime.failures import NotFound, Unavailable

NAME = DeploymentName("reviews")
V1, V2, V3 = (VersionName("a", number) for number in (1, 2, 3))
BEST = AliasName("a", "best")
WHO = Author("ann", "because")


class VersionMissing(NotFound):
    """The registry's, as far as these tests go."""

    reason = "TEST_ROLLOUT_VERSION_MISSING"


class Versions:
    """A registry with three versions of one model, one of another, and an alias that can be moved."""

    def __init__(self) -> None:
        self.there = {V1, V2, V3, VersionName("b", 1)}
        self.best = V2
        self.held: dict[DeploymentName, frozenset[VersionName]] = {}
        self.held_at_once: list[frozenset[VersionName]] = []
        self.away = False
        self.signed: dict[VersionName, set[PublicKey]] = {}

    async def check_signed(self, version: VersionName, trusted: Sequence[PublicKey]) -> None:
        await asyncio.sleep(0)
        if self.signed.get(version, set()).isdisjoint(trusted):
            raise VersionNotSigned(f"{version} is not signed", name=str(version))

    async def hold(self, holder: DeploymentName, versions: Collection[VersionName], reason: str) -> None:
        if self.away:
            raise Unavailable("restarting")
        self.held[holder] = frozenset(versions)
        self.held_at_once.append(frozenset(versions))

    async def holds(self) -> dict[DeploymentName, frozenset[VersionName]]:
        return {holder: versions for holder, versions in self.held.items() if versions}

    async def resolve(self, name: VersionName | AliasName) -> VersionName:
        await asyncio.sleep(0)  # as a call over the wire, this lets others in
        if isinstance(name, AliasName):
            return self.best
        if name not in self.there:
            raise VersionMissing(f"no {name}", name=str(name))
        return name


class Cluster:
    """A Rollout, and all it is made of."""

    def __init__(self) -> None:
        self.now = datetime(2024, 5, 6, tzinfo=UTC)
        self.seconds = 0.0
        self.store = MemoryDeploymentStore("s")
        self.versions = Versions()
        self.feed = Feed(self.store)
        self.replicas = Replicas(lambda: self.seconds)
        self.rollout = Rollout(self.store, self.versions, self.replicas, self.feed, lambda: self.now)

    def restarted(self) -> "Cluster":
        """Return what a new process finds: the same store, and nothing that was in memory."""
        other = Cluster()
        other.store = self.store
        other.feed = Feed(self.store)
        other.rollout = Rollout(self.store, other.versions, other.replicas, other.feed, lambda: other.now)
        return other

    async def report(self, **states: TargetState) -> None:
        """One replica reports versions v1, v2, v3 of the deployment."""
        statuses = [
            TargetStatus("r", VersionName("a", int(version[1:])), state, "why" if state is TargetState.FAILED else "")
            for version, state in states.items()
        ]
        await self.rollout.report("r", {NAME: tuple(statuses)})


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def wanted(*targets: tuple[VersionName | AliasName, int]) -> list[WantedTarget]:
    return [WantedTarget(name, weight) for name, weight in targets]


async def test_a_deployment_holds_versions_where_aliases_were_asked_for(cluster: Cluster) -> None:
    live = await cluster.rollout.create(NAME, wanted((BEST, 9), (V1, 1)), WHO)
    assert live.deployment.targets == (Target(V2, 9), Target(V1, 1))
    assert live.standing.state is DeploymentState.PENDING
    cluster.versions.best = V3
    assert (await cluster.rollout.get(NAME)).deployment == live.deployment


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        ([(V1, 1), (VersionName("b", 1), 1)], "several models"),
        ([(V1, 0), (V2, 0)], "no weight above 0"),
        ([(V1, 1), (V1, 2)], "versions/1 2 times"),
        ([(V2, 1), (BEST, 2)], "versions/2 2 times"),
    ],
)
async def test_targets_that_cannot_be_served_together_are_refused(
    cluster: Cluster, targets: list[tuple[VersionName | AliasName, int]], problem: str
) -> None:
    with pytest.raises(TargetsInvalid, match=problem):
        await cluster.rollout.create(NAME, wanted(*targets), WHO)
    await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    with pytest.raises(TargetsInvalid, match=problem):
        await cluster.rollout.update(NAME, wanted(*targets), "", WHO)
    assert len(await cluster.rollout.list_events(NAME, None, 10)) == 1


async def test_targets_stay_signed_when_one_changes_them_and_another_the_keys_at_once(cluster: Cluster) -> None:
    first, second = PublicKey("1", "1"), PublicKey("2", "2")
    cluster.versions.signed = {V1: {first, second}, V2: {first}}
    await cluster.rollout.create(NAME, wanted((V1, 1)), WHO, trusted_keys=(first,))
    results = await asyncio.gather(
        cluster.rollout.update(NAME, wanted((V2, 1)), "", WHO),
        cluster.rollout.update(NAME, None, "", WHO, trusted_keys=(second,)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, VersionNotSigned) for result in results) == 1
    deployment = (await cluster.rollout.get(NAME)).deployment
    for target in deployment.targets:
        await cluster.versions.check_signed(target.version, deployment.trusted_keys)


async def test_all_that_is_wrong_with_targets_is_said_at_once(cluster: Cluster) -> None:
    with pytest.raises(TargetsInvalid) as caught:
        await cluster.rollout.create(NAME, wanted((V1, 0), (VersionName("b", 1), 0)), WHO)
    assert len(caught.value.violations) == 2


async def test_a_version_the_registry_does_not_know_passes_on_its_failure(cluster: Cluster) -> None:
    with pytest.raises(VersionMissing):
        await cluster.rollout.create(NAME, wanted((VersionName("a", 9), 1)), WHO)
    with pytest.raises(DeploymentNotFound):
        await cluster.rollout.get(NAME)


async def test_a_name_is_taken_once(cluster: Cluster) -> None:
    await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    with pytest.raises(DeploymentExists):
        await cluster.rollout.create(NAME, wanted((V2, 1)), WHO)


async def test_an_update_changes_targets_time_and_etag(cluster: Cluster) -> None:
    made = (await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)).deployment
    cluster.now += timedelta(hours=1)
    changed = (await cluster.rollout.update(NAME, wanted((V2, 1)), made.etag, WHO)).deployment
    assert changed.targets == (Target(V2, 1),)
    assert changed.etag != made.etag
    assert (changed.create_time, changed.update_time) == (made.create_time, cluster.now)


async def test_a_stale_etag_is_refused_and_without_one_the_last_wins(cluster: Cluster) -> None:
    stale = (await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)).deployment.etag
    await cluster.rollout.update(NAME, wanted((V2, 1)), stale, WHO)
    with pytest.raises(EtagMismatch):
        await cluster.rollout.update(NAME, wanted((V3, 1)), stale, WHO)
    live = await cluster.rollout.update(NAME, wanted((V3, 1)), "", WHO)
    assert live.deployment.targets == (Target(V3, 1),)


async def test_of_two_updates_with_the_same_etag_one_wins(cluster: Cluster) -> None:
    etag = (await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)).deployment.etag
    outcomes = await asyncio.gather(
        *(cluster.rollout.update(NAME, wanted((version, 1)), etag, WHO) for version in (V2, V3)),
        return_exceptions=True,
    )
    assert sorted(isinstance(outcome, EtagMismatch) for outcome in outcomes) == [False, True]


async def test_an_update_to_what_is_there_is_no_change(cluster: Cluster) -> None:
    made = await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    assert await cluster.rollout.update(NAME, wanted((V1, 1)), "", WHO) == made
    assert len(await cluster.rollout.list_events(NAME, None, 10)) == 1


async def test_what_is_not_there_cannot_be_changed(cluster: Cluster) -> None:
    for call in (
        cluster.rollout.get(NAME),
        cluster.rollout.update(NAME, wanted((V1, 1)), "", WHO),
        cluster.rollout.delete(NAME, WHO),
    ):
        with pytest.raises(DeploymentNotFound):
            await call


async def test_every_change_of_traffic_is_on_record_and_stays(cluster: Cluster) -> None:
    await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    await cluster.rollout.update(NAME, wanted((V2, 1)), "", Author("bob", "better"))
    await cluster.rollout.delete(NAME, Author())
    events = await cluster.rollout.list_events(NAME, None, 10)
    assert [(event.action, event.targets_before, event.targets_after, event.actor) for event in events] == [
        (Action.DELETED, (Target(V2, 1),), (), ""),
        (Action.UPDATED, (Target(V1, 1),), (Target(V2, 1),), "bob"),
        (Action.CREATED, (), (Target(V1, 1),), "ann"),
    ]
    assert await cluster.rollout.list_events(NAME, events[1].number, 10) == [events[2]]


async def test_reports_move_a_deployment_from_pending_to_ready_without_changing_its_etag(cluster: Cluster) -> None:
    etag = (await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)).deployment.etag
    await cluster.report(v1=TargetState.LOADING)
    assert (await cluster.rollout.get(NAME)).standing.state is DeploymentState.LOADING
    await cluster.report(v1=TargetState.READY)
    live = await cluster.rollout.get(NAME)
    assert live.standing == Standing(DeploymentState.READY)
    assert [status.replica for status in live.statuses] == ["r"]
    assert live.deployment.etag == etag
    assert [deployment.standing for deployment in await cluster.rollout.list(None, 10)] == [live.standing]


async def test_new_versions_are_loading_and_new_weights_are_not(cluster: Cluster) -> None:
    await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    await cluster.report(v1=TargetState.READY)
    live = await cluster.rollout.update(NAME, wanted((V1, 9), (V2, 1)), "", WHO)
    assert live.standing.state is DeploymentState.LOADING
    await cluster.report(v1=TargetState.READY, v2=TargetState.READY)
    live = await cluster.rollout.update(NAME, wanted((V1, 5), (V2, 5)), "", WHO)
    assert live.standing.state is DeploymentState.READY


async def test_after_a_restart_the_last_state_stands_until_replicas_had_their_turn(cluster: Cluster) -> None:
    await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    await cluster.report(v1=TargetState.READY)
    restarted = cluster.restarted()
    assert (await restarted.rollout.get(NAME)).standing.state is DeploymentState.READY
    restarted.seconds += 16
    silent = (await restarted.rollout.get(NAME)).standing
    assert silent.state is DeploymentState.LOADING
    assert "no inference replica reports" in silent.message
    await restarted.report(v1=TargetState.FAILED)
    assert (await restarted.rollout.get(NAME)).standing.state is DeploymentState.FAILED
    again = (await restarted.restarted().rollout.get(NAME)).standing
    assert again.state is DeploymentState.FAILED
    assert "why" in again.message


async def test_a_deployment_made_again_begins_anew(cluster: Cluster) -> None:
    first = await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    await cluster.report(v1=TargetState.READY)
    await cluster.rollout.delete(NAME, WHO)
    again = await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    assert again.standing.state is DeploymentState.PENDING
    assert again.deployment.etag != first.deployment.etag


async def test_a_report_on_a_deployment_that_ended_harms_nobody(cluster: Cluster) -> None:
    await cluster.report(v1=TargetState.READY)
    assert await cluster.rollout.list(None, 10) == []


@pytest.mark.parametrize("text", ["", "x", "s.", "s.-1", "s.1x", "s." + "9" * 19, ".", "s.１"])
def test_a_text_that_is_no_resume_token_is_as_good_as_an_unknown_one(text: str) -> None:
    assert ResumePoint.parse(text) is None


def test_a_resume_token_comes_back_as_it_was() -> None:
    point = ResumePoint("0af", 17)
    assert ResumePoint.parse(str(point)) == point


async def test_what_is_deployed_is_held_before_it_is_and_released_after_it_is_not(cluster: Cluster) -> None:
    await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    await cluster.rollout.update(NAME, wanted((V2, 1)), "", WHO)
    await cluster.rollout.update(NAME, wanted((V2, 5)), "", WHO)
    assert cluster.versions.held_at_once == [{V1}, {V1, V2}]
    await cluster.rollout.reconcile_holds()
    assert cluster.versions.held == {NAME: {V2}}
    await cluster.rollout.delete(NAME, WHO)
    await cluster.rollout.reconcile_holds()
    assert cluster.versions.held == {NAME: set()}


async def test_what_the_registry_does_not_hold_is_not_deployed(cluster: Cluster) -> None:
    cluster.versions.away = True
    with pytest.raises(Unavailable):
        await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    with pytest.raises(DeploymentNotFound):
        await cluster.rollout.get(NAME)
    cluster.versions.away = False
    await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    with pytest.raises(DeploymentExists):
        await cluster.rollout.create(NAME, wanted((V2, 1)), WHO)
    assert cluster.versions.held == {NAME: {V1}}
    cluster.versions.away = True
    with pytest.raises(Unavailable):
        await cluster.rollout.update(NAME, wanted((V2, 1)), "", WHO)
    await cluster.rollout.delete(NAME, WHO)


async def test_after_a_crash_between_the_two_no_hold_is_missing_and_none_is_left(cluster: Cluster) -> None:
    await cluster.rollout.create(NAME, wanted((V1, 1)), WHO)
    other = DeploymentName("other")
    cluster.versions.held = {other: frozenset({V3})}  # one that was held and not made; and one made by an older release
    again = cluster.restarted()
    again.versions.held = cluster.versions.held
    await again.rollout.reconcile_holds()
    assert again.versions.held == {NAME: {V1}, other: set()}
    keeper = asyncio.create_task(again.rollout.keep_holds())
    await again.rollout.update(NAME, wanted((V2, 1)), "", WHO)
    async with asyncio.timeout(10):
        while again.versions.held[NAME] != {V2}:  # noqa: ASYNC110
            await asyncio.sleep(0)
    keeper.cancel()
