"""Training with real processes: the registry, the service, and its steps."""

from collections.abc import Iterator

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2
from job_cluster import JobCluster, failure_of, job_cluster, reviews

from maas.jobs.v1 import job_state_pb2
from maas.registry.v1 import registry_service_pb2, version_pb2
from maas.training.v1 import training_job_pb2
from maas.training.v1 import training_service_pb2 as messages

SPLITS = {"train": reviews(80), "validation": reviews(20), "test": reviews(30)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster(["registry", "training"]) as cluster:
        cluster.push("reviews", SPLITS)
        yield cluster


def create(
    cluster: JobCluster, request_id: str = "", epochs: int = 2, patience: int = 3, **fields: str
) -> training_job_pb2.TrainingJob:
    job = training_job_pb2.TrainingJob(
        **{"model": "models/reviews", "dataset_version": "datasets/reviews", **fields},  # type: ignore[arg-type]
        hyperparameters=training_job_pb2.Hyperparameters(epochs=epochs, batch_size=16, patience=patience),
    )
    request = messages.CreateTrainingJobRequest(training_job=job, request_id=request_id)
    return cluster.training.CreateTrainingJob(request, timeout=10)


def watch(cluster: JobCluster, name: str) -> Iterator[training_job_pb2.TrainingJob]:
    for response in cluster.training.WatchTrainingJob(messages.WatchTrainingJobRequest(name=name), timeout=120):
        yield response.training_job


def last_of(jobs: Iterator[training_job_pb2.TrainingJob]) -> training_job_pb2.TrainingJob:
    return list(jobs)[-1]


def versions_of(cluster: JobCluster, model: str) -> list[version_pb2.Version]:
    return list(
        cluster.registry.ListVersions(registry_service_pb2.ListVersionsRequest(parent=model), timeout=10).versions
    )


def reason_of(job: training_job_pb2.TrainingJob) -> str:
    info = error_details_pb2.ErrorInfo()
    assert job.status.error.details[0].Unpack(info)
    return info.reason


def test_a_job_ends_with_a_version_that_says_where_it_is_from(cluster: JobCluster) -> None:
    created = create(cluster, "request-1", model="models/lineage")
    assert created.status.state == job_state_pb2.JOB_STATE_QUEUED
    assert created.dataset_version == "datasets/reviews/versions/1"
    assert created.hyperparameters.learning_rate > 0
    seen = list(watch(cluster, created.name))
    job = seen[-1]
    assert job.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, job.status.error
    progress = [job.status.progress for job in seen]
    assert progress == sorted(progress)
    assert progress[-1] == 1
    assert {"loss", "validation_accuracy", "rows_per_second", "test_accuracy"} <= {
        metric.name for metric in job.status.metrics
    }
    assert any("epoch 2 of 2" in line.text for line in job.status.log_lines)
    (version,) = versions_of(cluster, "models/lineage")
    assert version.name == job.result_version
    assert (version.source_job, version.dataset_version) == (job.name, "datasets/reviews/versions/1")
    assert version.evaluation == job.evaluation
    assert (job.evaluation.row_count, job.evaluation.split) == (30, "test")
    assert job.evaluation.low <= job.evaluation.value <= job.evaluation.high
    assert version.signature.architecture == "lstm-text-classifier"
    assert list(version.signature.labels) == ["0", "1"]
    assert version.signature.text_input == "text"
    assert create(cluster, "request-1", model="models/another").name == job.name
    listed = cluster.training.ListTrainingJobs(messages.ListTrainingJobsRequest(), timeout=10).training_jobs
    assert job.name in [other.name for other in listed]
    assert not any(other.status.log_lines for other in listed)


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"architecture": "perceptron"}, "INVALID_ARGUMENT", "ARCHITECTURE_UNKNOWN"),
        ({"model": "reviews"}, "INVALID_ARGUMENT", "RESOURCE_NAME_INVALID"),
        ({"model": ""}, "INVALID_ARGUMENT", "REQUEST_INVALID"),
        ({"dataset_version": "datasets/reviews/versions/7"}, "NOT_FOUND", "DATASET_VERSION_NOT_FOUND"),
        ({"dataset_version": "datasets/none"}, "NOT_FOUND", "DATASET_NOT_FOUND"),
        ({"dataset_version": "datasets/no-test/versions/1"}, "INVALID_ARGUMENT", "DATASET_SPLIT_MISSING"),
        ({"dataset_version": "datasets/no-label/versions/1"}, "INVALID_ARGUMENT", "DATASET_COLUMN_MISSING"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_there_is_a_job(
    cluster: JobCluster, fields: dict[str, str], code: str, reason: str
) -> None:
    if "no-test" in fields.get("dataset_version", ""):
        cluster.push("no-test", {name: SPLITS[name] for name in ("train", "validation")})
    if "no-label" in fields.get("dataset_version", ""):
        cluster.push("no-label", SPLITS, columns=("text", "rating"))
    before = cluster.training.ListTrainingJobs(messages.ListTrainingJobsRequest(), timeout=10)
    assert failure_of(lambda: create(cluster, **fields)) == (code, reason)
    assert cluster.training.ListTrainingJobs(messages.ListTrainingJobsRequest(), timeout=10) == before


def test_data_that_cannot_be_learned_from_fails_the_job_with_a_reason(cluster: JobCluster) -> None:
    version = cluster.push("gap", {**SPLITS, "train": [("some text", 0), ("other text", 2)]})
    job = last_of(watch(cluster, create(cluster, dataset_version=version).name))
    assert job.status.state == job_state_pb2.JOB_STATE_FAILED
    assert (job.status.error.code, reason_of(job)) == (code_pb2.INVALID_ARGUMENT, "LABELS_INVALID")
    assert "label 1" in job.status.error.message
    assert not job.result_version


def test_a_job_that_is_not_there_is_not_found(cluster: JobCluster) -> None:
    name = "trainingJobs/none"
    assert failure_of(
        lambda: cluster.training.GetTrainingJob(messages.GetTrainingJobRequest(name=name), timeout=10)
    ) == ("NOT_FOUND", "JOB_NOT_FOUND")
    assert failure_of(lambda: list(watch(cluster, name))) == ("NOT_FOUND", "JOB_NOT_FOUND")
    assert failure_of(lambda: list(watch(cluster, "compressionJobs/none")))[1] == "RESOURCE_NAME_INVALID"


def test_cancel_leaves_neither_process_nor_version(cluster: JobCluster) -> None:
    name = create(cluster, epochs=1000, patience=1000, model="models/cancelled").name
    for job in watch(cluster, name):
        if job.status.phase == "train" and job.status.metrics:
            break
    cancelled = cluster.training.CancelTrainingJob(messages.CancelTrainingJobRequest(name=name), timeout=10)
    assert cancelled.training_job.status.state == job_state_pb2.JOB_STATE_CANCELLING
    job = last_of(watch(cluster, name))
    assert cluster.steps("training") == []
    assert job.status.state == job_state_pb2.JOB_STATE_CANCELLED
    assert (job.status.error.code, reason_of(job)) == (code_pb2.CANCELLED, "JOB_CANCELLED")
    assert failure_of(lambda: versions_of(cluster, "models/cancelled"))[0] == "NOT_FOUND"


def test_a_killed_service_goes_on_from_the_last_epoch_and_registers_once(cluster: JobCluster) -> None:
    epochs = 12
    name = create(cluster, epochs=epochs, patience=epochs, model="models/killed").name
    with pytest.raises(grpc.RpcError):
        for job in watch(cluster, name):
            if any(line.text.startswith("epoch 2 ") for line in job.status.log_lines):
                cluster.kill("training")
    cluster.start("training")
    cluster.wait_for(["training"])
    seen = list(watch(cluster, name))
    assert seen[0].status.state == job_state_pb2.JOB_STATE_RUNNING
    assert seen[0].status.progress >= job.status.progress
    assert seen[-1].status.state == job_state_pb2.JOB_STATE_SUCCEEDED, seen[-1].status.error
    lines = [line.text for line in seen[-1].status.log_lines]
    assert "the service was restarted; going on" in lines
    for epoch in (1, epochs):
        assert sum(line.startswith(f"epoch {epoch} of") for line in lines) == 1
    assert [version.name for version in versions_of(cluster, "models/killed")] == [seen[-1].result_version]


def test_training_goes_on_from_a_version_of_the_same_model_or_another(cluster: JobCluster) -> None:
    first = last_of(watch(cluster, create(cluster, model="models/source").name))
    created = create(cluster, model="models/source", source_version=first.result_version)
    assert created.source_version == first.result_version
    assert created.hyperparameters.warm_up > 0
    assert created.hyperparameters.learning_rate < first.hyperparameters.learning_rate
    second = last_of(watch(cluster, created.name))
    assert second.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, second.status.error
    child = next(one for one in versions_of(cluster, "models/source") if one.name == second.result_version)
    assert child.parent_version == first.result_version
    other = last_of(watch(cluster, create(cluster, model="models/other", source_version=first.result_version).name))
    (version,) = versions_of(cluster, "models/other")
    assert version.name == other.result_version
    assert dict(version.tags) == {"fine_tuned_from": first.result_version}
    refused = {"source_version": first.result_version, "architecture": "bert-text-classifier"}
    assert failure_of(lambda: create(cluster, **refused)) == ("INVALID_ARGUMENT", "ARCHITECTURE_NOT_OF_SOURCE")
    assert failure_of(lambda: create(cluster, source_version="models/source/versions/9")) == (
        "NOT_FOUND",
        "VERSION_NOT_FOUND",
    )
