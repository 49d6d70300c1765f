"""The client, called as programs call it, against a cluster of plain behaviour behind a real server."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from plain_cluster import PlainCluster, serving

from maas.client import Client, DeploymentFailed, JobFailed, Prediction
from maas.errors import (
    DeadlineExceededError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from maas.rollout.v1 import deployment_pb2


@pytest.fixture
def cluster() -> PlainCluster:
    return PlainCluster()


@pytest.fixture
def client(cluster: PlainCluster) -> Iterator[Client]:
    with serving(cluster) as endpoint, Client(endpoint, retry_seconds=2.0) as client:
        yield client


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    (folder / "servables").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "servables" / "model.onnx").write_bytes(b"o" * 700_000)
    return folder


def parquet(path: Path, rows: int) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"] * rows, "label": [0] * rows}), path)
    return path


def test_a_package_comes_back_as_it_was_pushed(client: Client, package: Path, tmp_path: Path) -> None:
    moved: list[int] = []
    version = client.push_package(package, "reviews", description="first", progress=moved.append)
    assert version.name == "models/reviews/versions/1"
    assert sum(moved) == 700_002
    client.pull_package("reviews@1", tmp_path / "copy")
    for path in ("manifest.json", "servables/model.onnx"):
        assert (tmp_path / "copy" / path).read_bytes() == (package / path).read_bytes()


def test_a_folder_that_holds_something_is_not_written_to(client: Client, package: Path) -> None:
    client.push_package(package, "reviews")
    with pytest.raises(InvalidInputError, match="not empty"):
        client.pull_package("reviews", package)


def test_a_folder_without_a_manifest_is_no_package(client: Client, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"manifest\.json"):
        client.push_package(tmp_path, "reviews")


def test_versions_are_found_by_model_number_and_alias(client: Client, package: Path) -> None:
    for _ in range(2):
        client.push_package(package, "reviews")
    client.set_alias("reviews@1", "production")
    assert client.version("reviews").name == "models/reviews/versions/2"
    assert client.version("reviews@1").name == "models/reviews/versions/1"
    assert client.version("reviews@production").name == "models/reviews/versions/1"
    assert client.version("models/reviews/aliases/production").name == "models/reviews/versions/1"
    client.delete_alias("reviews", "production")
    with pytest.raises(NotFoundError):
        client.version("reviews@production")


def test_lists_go_over_all_pages(client: Client, package: Path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        client.push_package(package, name)
    assert [model.name for model in client.models()] == [f"models/{name}" for name in "abcde"]


def test_a_dataset_is_stored_with_its_rows_and_columns(client: Client, tmp_path: Path) -> None:
    splits = {"train": parquet(tmp_path / "a.parquet", 5), "test": parquet(tmp_path / "b.parquet", 2)}
    version = client.push_dataset("reviews", splits, description="little")
    assert version.name == "datasets/reviews/versions/1"
    assert [(one.split_id, one.row_count) for one in version.splits] == [("train", 5), ("test", 2)]
    assert [column.name for column in version.columns] == ["text", "label"]
    assert client.push_dataset("reviews", splits) == version, "the newest version has the same"
    assert client.push_dataset("reviews", {"train": splits["train"]}).name == "datasets/reviews/versions/2"
    assert client.dataset_version("reviews").name == "datasets/reviews/versions/2"
    assert client.dataset_version("reviews@1") == version


def test_a_file_that_is_no_parquet_is_refused_before_anything_is_stored(
    client: Client, cluster: PlainCluster, tmp_path: Path
) -> None:
    (tmp_path / "x.parquet").write_text("text,label")
    with pytest.raises(InvalidInputError, match="Parquet"):
        client.push_dataset("reviews", {"train": tmp_path / "x.parquet"})
    assert not cluster.datasets


def test_a_job_is_watched_to_its_end_through_a_broken_watch(client: Client, cluster: PlainCluster) -> None:
    job = client.train("reviews", "reviews@3")
    assert job.dataset_version == "datasets/reviews/versions/3"
    cluster.unavailable["WatchTrainingJob"] = 1
    done = client.wait_for_job(job.name)
    assert done.result_version == "models/reviews/versions/1"
    assert cluster.called.count("WatchTrainingJob") >= 2


def test_a_failed_job_raises_what_the_job_said(client: Client, cluster: PlainCluster) -> None:
    cluster.failing_job = True
    with pytest.raises(JobFailed, match="the data is empty") as caught:
        client.wait_for_job(client.train("reviews", "reviews").name)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_waiting_for_a_job_ends_when_the_time_is_over(client: Client) -> None:
    job = client.train("reviews", "reviews")
    with pytest.raises(DeadlineExceededError, match="it goes on"):
        client.wait_for_job(job.name, timeout=0.0)


def test_a_job_is_found_by_its_id_alone(client: Client, package: Path) -> None:
    client.push_package(package, "reviews")
    client.train("reviews", "reviews")
    made = client.compress("reviews", ["clip", "fixed_point(fractional_bits=6)"])
    assert client.job("c1").name == made.name == "compressionJobs/c1"
    assert [one.WhichOneof("technique") for one in made.recipe.techniques] == ["clip", "fixed_point"]
    with pytest.raises(NotFoundError):
        client.job("nothing")


def test_deploy_makes_then_changes_and_waits_until_ready(client: Client, cluster: PlainCluster, package: Path) -> None:
    for _ in range(2):
        client.push_package(package, "reviews")
    client.deploy("live", ["reviews@1"], actor="me", reason="first")
    assert client.wait_until_ready("live").state == deployment_pb2.DEPLOYMENT_STATE_READY
    client.deploy("live", ["reviews@1=9", "reviews=1"])
    targets = client.deployment("live").targets
    assert [(target.version[-1], target.weight) for target in targets] == [("1", 9), ("2", 1)]
    assert [event.action for event in client.deployment_events("live")] == ["updated", "created"]
    client.undeploy("live")
    with pytest.raises(NotFoundError):
        client.deployment("live")


def test_deploy_changes_the_serving_settings_that_are_given_and_keeps_the_others(
    client: Client, cluster: PlainCluster, package: Path
) -> None:
    client.push_package(package, "reviews")
    given = deployment_pb2.ServingSettings
    client.deploy("live", ["reviews"], serving=given(max_batch_rows=64, engine="openvino:bf16"))
    client.deploy("live", ["reviews"], serving=given(max_batch_rows=16))
    assert client.deployment("live").serving == given(max_batch_rows=16, engine="openvino:bf16")
    client.deploy("live", ["reviews"])
    assert client.deployment("live").serving == given(max_batch_rows=16, engine="openvino:bf16")
    client.deploy("live", ["reviews"], serving=given(max_queue_rows=7), reset_serving=True)
    assert client.deployment("live").serving == given(max_queue_rows=7)


def test_deploying_a_version_that_is_not_there_is_not_taken_for_a_new_deployment(
    client: Client, cluster: PlainCluster, package: Path
) -> None:
    client.push_package(package, "reviews")
    client.deploy("live", ["reviews@1"])
    with pytest.raises(NotFoundError, match="versions/9"):
        client.deploy("live", ["reviews@9"])
    assert [event.action for event in cluster.events] == ["created"]


def test_waiting_for_a_deployment_ends_when_it_failed_and_when_the_time_is_over(
    client: Client, cluster: PlainCluster, package: Path
) -> None:
    client.push_package(package, "reviews")
    client.deploy("live", ["reviews"])
    cluster.deployments["deployments/live"].state = deployment_pb2.DEPLOYMENT_STATE_FAILED
    cluster.deployments["deployments/live"].message = "no engine for it"
    with pytest.raises(DeploymentFailed, match="no engine for it"):
        client.wait_until_ready("live")
    cluster.deployments["deployments/live"].state = deployment_pb2.DEPLOYMENT_STATE_PENDING
    with pytest.raises(DeadlineExceededError, match="still pending"):
        client.wait_until_ready("live", timeout=0.0)


def test_texts_are_classified_with_labels(client: Client, package: Path) -> None:
    client.push_package(package, "reviews")
    client.deploy("live", ["reviews"])
    one = client.predict("live", "so good")
    assert isinstance(one, Prediction)
    assert (one.predicted, one.label, one.version) == (1, "positive", "1")
    assert sum(one.probabilities) == pytest.approx(1.0)
    assert [found.label for found in client.predict("live", ["bad", "good", "größe 好"])] == [
        "negative",
        "positive",
        "negative",
    ]


def test_predictions_go_on_without_labels_when_the_control_services_are_away(
    client: Client, cluster: PlainCluster, package: Path
) -> None:
    client.push_package(package, "reviews")
    client.deploy("live", ["reviews"])
    cluster.versions.clear()
    assert client.predict("live", "good").predicted == 1
    assert client.predict("live", "good").label == ""


@pytest.mark.parametrize("datatype", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64", ">i4"])
def test_tensors_travel_with_their_types_and_shapes(client: Client, package: Path, datatype: str) -> None:
    client.push_package(package, "reviews")
    client.deploy("live", ["reviews"])
    sent = np.arange(6).reshape(2, 3).astype(datatype)
    found = client.infer("live", {"x": sent, "names": [["a"], ["größe"]]})
    assert found["x"].dtype == sent.dtype.newbyteorder("=")
    np.testing.assert_array_equal(found["x"], sent)
    assert found["names"].tolist() == [[b"a"], ["größe".encode()]]


def test_a_datatype_without_a_name_and_a_text_without_utf8_are_refused(client: Client) -> None:
    with pytest.raises(InvalidInputError, match="complex"):
        client.infer("live", {"x": np.zeros(2, dtype=complex)})
    with pytest.raises(InvalidInputError, match="UTF-8"):
        client.predict("live", "\ud800")


def test_an_error_keeps_status_reason_resource_and_request_id(client: Client) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.model("nothing")
    error = caught.value
    assert (error.code, error.reason, error.resource_name) == ("NOT_FOUND", "PLAIN_MISSING", "models/nothing")
    assert error.request_id == "request-1"


def test_a_call_that_changes_nothing_is_sent_again_while_the_cluster_restarts(
    client: Client, cluster: PlainCluster, package: Path
) -> None:
    client.push_package(package, "reviews")
    cluster.unavailable["ListModels"] = 3
    assert len(list(client.models())) == 1
    cluster.unavailable["CreateTrainingJob"] = 2  # carries a request id
    client.train("reviews", "reviews")
    assert len(cluster.training) == 1


def test_a_call_that_may_have_had_its_effect_is_not_sent_again(
    client: Client, cluster: PlainCluster, package: Path
) -> None:
    cluster.unavailable["CreateModel"] = 1
    with pytest.raises(UnavailableError) as caught:
        client.push_package(package, "new")
    assert caught.value.reason == "PLAIN_AWAY"
    assert cluster.called.count("CreateModel") == 1


def test_retries_end_within_their_time(cluster: PlainCluster) -> None:
    cluster.unavailable["ListModels"] = 1000
    with serving(cluster) as endpoint, Client(endpoint, retry_seconds=0.3) as client:
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            list(client.models())
    assert time.monotonic() - started < 5
    assert 2 <= cluster.called.count("ListModels") <= 4


@pytest.mark.parametrize("reference", ["", "A", "models/", "reviews@", "reviews@0", "reviews@-", "a/b", "reviews@1@2"])
def test_a_wrong_reference_is_refused_before_anything_is_sent(client: Client, reference: str) -> None:
    with pytest.raises(InvalidInputError):
        client.version(reference)
