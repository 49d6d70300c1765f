"""Where a deployment is, from what should be and what replicas say: one table."""

import pytest

from maas.names import DeploymentName, VersionName
from maas_rollout.domain.deployments import PENDING, DeploymentState, Standing, Target
from maas_rollout.domain.replicas import (
    MAX_REPLICAS,
    SILENT_AFTER_SECONDS,
    Replicas,
    TargetState,
    TargetStatus,
    TooManyReplicas,
    standing_of,
)

V1, V2, OLD = (VersionName("reviews", number) for number in (1, 2, 7))
TARGETS = (Target(V1, 90), Target(V2, 10))
NAME, OTHER = DeploymentName("reviews"), DeploymentName("other")
READY = Standing(DeploymentState.READY)
LOADING, RESTARTING, UP, FAILED, UNLOADED = (
    TargetState.LOADING,
    TargetState.RESTARTING,
    TargetState.READY,
    TargetState.FAILED,
    TargetState.UNLOADED,
)


def said(replica: str, *states: TargetState, message: str = "") -> list[TargetStatus]:
    return [TargetStatus(replica, version, state, message) for version, state in zip((V1, V2), states, strict=False)]


@pytest.mark.parametrize(
    ("replicas", "statuses", "before", "settling", "state", "message"),
    [
        # Nobody has ever reported.
        ([], [], PENDING, False, "PENDING", "no inference replica has reported"),
        ([], [], PENDING, True, "PENDING", "no inference replica has reported"),
        # A replica is there and has not heard of it yet.
        (["a"], [], PENDING, False, "PENDING", "no inference replica has reported"),
        # Rollout began a moment ago: what was known stands.
        ([], [], READY, True, "READY", ""),
        ([], [], Standing(DeploymentState.FAILED, "why"), True, "FAILED", "why"),
        # It did not, and all replicas are silent.
        ([], [], READY, False, "LOADING", "no inference replica reports"),
        # A replica that began again and says nothing of it is news, however young rollout is.
        (["a"], [], READY, True, "LOADING", "models/reviews/versions/1 is being loaded on a"),
        # One replica.
        (["a"], said("a", LOADING, LOADING), PENDING, False, "LOADING", "versions/1 is being loaded on a"),
        (["a"], said("a", UP, LOADING), PENDING, False, "LOADING", "versions/2 is being loaded on a"),
        (["a"], said("a", UP), READY, False, "LOADING", "versions/2 is being loaded on a"),
        (["a"], said("a", UP, UP), PENDING, False, "READY", ""),
        (["a"], said("a", UP, UNLOADED), PENDING, False, "READY", ""),
        (
            ["a"],
            said("a", LOADING, UNLOADED, message="by hand"),
            READY,
            False,
            "LOADING",
            "versions/2 is not loaded on a",
        ),
        (["a"], said("a", UP, LOADING, message="no room"), READY, False, "LOADING", "loaded on a: no room"),
        (["a"], said("a", UP, RESTARTING), READY, False, "LOADING", "versions/2 is being restarted on a"),
        (["a"], said("a", LOADING, FAILED, message="no memory"), READY, False, "FAILED", "on a: no memory"),
        (["a"], said("a", FAILED, RESTARTING), READY, False, "FAILED", "versions/1 cannot be loaded on a"),
        # Two replicas: warm on all of them, or not READY.
        (["a", "b"], [*said("a", UP, UP), *said("b", UP, UP)], PENDING, False, "READY", ""),
        (["a", "b"], [*said("a", UP, UP), *said("b", UP, LOADING)], READY, False, "LOADING", "loaded on b"),
        (["a", "b"], said("a", UP, UP), READY, False, "LOADING", "versions/1 is being loaded on b"),
        (["a", "b"], [*said("a", UP, UP), *said("b", FAILED, UP)], READY, False, "FAILED", "loaded on b"),
        # A version that is no target any more does not count, good or bad.
        (
            ["a"],
            [*said("a", UP, UP), TargetStatus("a", OLD, FAILED, "old")],
            READY,
            False,
            "READY",
            "",
        ),
        (["a"], [TargetStatus("a", OLD, UP)], PENDING, False, "PENDING", "no inference replica has reported"),
        (["a"], [TargetStatus("a", OLD, UP)], READY, False, "LOADING", "versions/1 is being loaded on a"),
    ],
)
def test_the_state_follows_from_targets_and_reports(
    replicas: list[str], statuses: list[TargetStatus], before: Standing, settling: bool, state: str, message: str
) -> None:
    standing = standing_of(TARGETS, replicas, statuses, before, settling=settling)
    assert standing.state is DeploymentState[state]
    assert message in standing.message
    assert bool(standing.message) == bool(message)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_replica_that_is_silent_is_forgotten() -> None:
    clock = Clock()
    replicas = Replicas(clock)
    replicas.report("a", {NAME: tuple(said("a", UP, UP))})
    clock.now += SILENT_AFTER_SECONDS / 2
    replicas.report("b", {NAME: tuple(said("b", UP, LOADING))})
    assert replicas.standing(NAME, TARGETS, READY).state is DeploymentState.LOADING
    clock.now += SILENT_AFTER_SECONDS / 2
    assert [status.replica for status in replicas.statuses(NAME)] == ["b", "b"]
    clock.now += SILENT_AFTER_SECONDS / 2
    assert replicas.statuses(NAME) == []
    assert "no inference replica reports" in replicas.standing(NAME, TARGETS, READY).message


def test_what_was_known_before_a_restart_stands_until_replicas_had_their_turn() -> None:
    clock = Clock()
    replicas = Replicas(clock)
    clock.now += SILENT_AFTER_SECONDS - 1
    assert replicas.standing(NAME, TARGETS, READY) == READY
    clock.now += 2
    assert replicas.standing(NAME, TARGETS, READY).state is DeploymentState.LOADING


def test_a_report_tells_which_deployments_it_changes() -> None:
    replicas = Replicas(Clock())
    first = {NAME: tuple(said("a", LOADING)), OTHER: tuple(said("a", UP))}
    assert replicas.report("a", first) == [OTHER, NAME]
    assert replicas.report("a", first) == []
    assert replicas.report("a", first | {NAME: tuple(said("a", UP))}) == [NAME]
    assert replicas.report("a", {NAME: tuple(said("a", UP))}) == [OTHER]


def test_statuses_are_ordered_by_replica_and_version() -> None:
    replicas = Replicas(Clock())
    for replica in ("b", "a"):
        replicas.report(replica, {NAME: tuple(reversed(said(replica, UP, LOADING)))})
    assert [(status.replica, status.version) for status in replicas.statuses(NAME)] == [
        ("a", V1),
        ("a", V2),
        ("b", V1),
        ("b", V2),
    ]


def test_a_deployment_that_ended_is_forgotten() -> None:
    replicas = Replicas(Clock())
    replicas.report("a", {NAME: tuple(said("a", UP)), OTHER: tuple(said("a", UP))})
    replicas.forget(NAME)
    assert replicas.statuses(NAME) == []
    assert len(replicas.statuses(OTHER)) == 1


def test_replicas_are_bounded_and_those_known_may_go_on() -> None:
    replicas = Replicas(Clock())
    for number in range(MAX_REPLICAS):
        replicas.report(f"r{number}", {})
    with pytest.raises(TooManyReplicas):
        replicas.report("one more", {})
    replicas.report("r0", {NAME: tuple(said("r0", UP))})
