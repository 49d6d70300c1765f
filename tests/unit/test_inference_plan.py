"""Start before stop, as a pure function; what the manager remembers; how long it waits."""

from pathlib import Path

from maas.names import DeploymentName, VersionName
from maas.rollout.v1 import deployment_pb2, rollout_service_pb2
from maas_inference.manager.desired import (
    Desired,
    DesiredFile,
    Remembered,
    Targets,
    WantedDeployment,
    WeightedVersion,
    WorkerSettings,
)
from maas_inference.manager.keeper import retry_seconds
from maas_inference.manager.plan import plan
from maas_inference.manager.rollout_link import changed
from maas_inference.table import ServingSettings

REVIEWS = DeploymentName("reviews")


def version(number: int) -> VersionName:
    return VersionName("tiny", number)


def targets(*weights: tuple[int, int]) -> Targets:
    return tuple(WeightedVersion(version(number), weight) for number, weight in weights)


def wanted(*weights: tuple[int, int]) -> WantedDeployment:
    return WantedDeployment(targets(*weights))


def ready(*numbers: int) -> "set[VersionName]":
    return {version(number) for number in numbers}


def test_the_first_versions_answer_as_they_become_warm() -> None:
    step = plan(targets((1, 3), (2, 1)), (), ready(1).__contains__)
    assert step.answering == targets((1, 3), (2, 1))


def test_the_old_version_answers_until_the_new_one_is_warm() -> None:
    step = plan(targets((2, 1)), targets((1, 1)), ready(1).__contains__)
    assert step.held == (version(2), version(1))
    assert step.answering == targets((1, 1))
    assert step.weighted() == targets((2, 0), (1, 1))


def test_the_old_version_is_let_go_once_the_new_one_is_warm() -> None:
    step = plan(targets((2, 1)), targets((1, 1)), ready(1, 2).__contains__)
    assert (step.held, step.answering) == ((version(2),), targets((2, 1)))


def test_a_canary_gets_its_share_only_when_it_is_warm() -> None:
    wanted, before = targets((1, 9), (2, 1)), targets((1, 1))
    assert plan(wanted, before, ready(1).__contains__).answering == before
    assert plan(wanted, before, ready(1, 2).__contains__).answering == wanted


def test_new_weights_of_the_same_versions_hold_at_once() -> None:
    wanted = targets((1, 1), (2, 9))
    assert plan(wanted, targets((1, 9), (2, 1)), ready(1).__contains__).answering == wanted


def test_a_version_without_weight_holds_up_nothing() -> None:
    wanted = targets((2, 1), (3, 0))
    step = plan(wanted, targets((1, 1)), ready(2).__contains__)
    assert (step.held, step.answering) == ((version(2), version(3)), wanted)


def test_a_version_that_never_gets_warm_never_takes_over() -> None:
    answering = targets((1, 1))
    for _ in range(5):
        answering = plan(targets((2, 1)), answering, ready(1).__contains__).answering
    assert answering == targets((1, 1))


def test_a_snapshot_replaces_all_and_a_change_only_what_it_names() -> None:
    def message(name: str, number: int, **more: object) -> rollout_service_pb2.WatchDeploymentsResponse:
        deployment = deployment_pb2.Deployment(name=f"deployments/{name}")
        deployment.targets.add(version=f"models/tiny/versions/{number}", weight=1)
        return rollout_service_pb2.WatchDeploymentsResponse(deployments=[deployment], **more)  # type: ignore[arg-type]

    desired = changed(Desired(), message("reviews", 1, snapshot=True, resume_token="a"))
    desired = changed(desired, message("tweets", 2, resume_token="b"))
    assert desired.deployments == {REVIEWS: wanted((1, 1)), DeploymentName("tweets"): wanted((2, 1))}
    assert desired.resume_token == "b"
    assert changed(desired, message("tweets", 3, snapshot=True)).deployments == {
        DeploymentName("tweets"): wanted((3, 1))
    }
    left = changed(desired, rollout_service_pb2.WatchDeploymentsResponse(deleted=["deployments/tweets"]))
    assert list(left.deployments) == [REVIEWS]


def test_what_is_wanted_and_who_answered_are_remembered(tmp_path: Path) -> None:
    file = DesiredFile(tmp_path / "inference" / "desired.json")
    assert file.load().desired == Desired()
    settings = (
        ServingSettings(max_batch_rows=64, max_queue_delay_seconds=0.005, max_queue_rows=9, cache_bytes=1),
        WorkerSettings(on_demand=True, engine="openvino:bf16", memory_bytes=2, compute_timeout_seconds=1.5),
    )
    desired = Desired({REVIEWS: WantedDeployment(targets((2, 1)), *settings)}, "token")
    remembered = Remembered(desired, {REVIEWS: targets((1, 1))}, frozenset({REVIEWS}))
    file.save(remembered)
    assert DesiredFile(tmp_path / "inference" / "desired.json").load() == remembered


def test_a_memory_of_the_first_release_is_read_with_default_settings(tmp_path: Path) -> None:
    (tmp_path / "desired.json").write_bytes(
        b'{"format_version":1,"resume_token":"a.1","deployments":{"deployments/reviews":[["models/tiny/versions/2",1]]},'
        b'"answering":{"deployments/reviews":[["models/tiny/versions/1",1]]}}'
    )
    assert DesiredFile(tmp_path / "desired.json").load() == Remembered(
        Desired({REVIEWS: wanted((2, 1))}, "a.1"), {REVIEWS: targets((1, 1))}
    )


def test_a_watch_brings_the_serving_settings() -> None:
    serving = deployment_pb2.ServingSettings(
        max_batch_rows=64,
        max_queue_rows=9,
        cache_bytes=1,
        load_policy=deployment_pb2.LOAD_POLICY_ON_DEMAND,
        engine="openvino",
        worker_memory_bytes=2,
    )
    serving.max_queue_delay.nanos = 5_000_000
    serving.compute_timeout.seconds = 10
    message = rollout_service_pb2.WatchDeploymentsResponse(
        snapshot=True, deployments=[deployment_pb2.Deployment(name=str(REVIEWS), serving=serving)]
    )
    assert changed(Desired(), message).deployments[REVIEWS] == WantedDeployment(
        (),
        ServingSettings(max_batch_rows=64, max_queue_delay_seconds=0.005, max_queue_rows=9, cache_bytes=1),
        WorkerSettings(on_demand=True, engine="openvino", memory_bytes=2, compute_timeout_seconds=10.0),
    )


def test_a_damaged_memory_is_no_memory(tmp_path: Path) -> None:
    (tmp_path / "desired.json").write_bytes(b'{"format_version": 1, "resume')
    assert DesiredFile(tmp_path / "desired.json").load().desired == Desired()


def test_waiting_doubles_up_to_its_bound() -> None:
    assert [retry_seconds(failures, at_most=3) for failures in range(1, 6)] == [0.5, 1, 2, 3, 3]
    assert retry_seconds(10_000, at_most=60) == 60
