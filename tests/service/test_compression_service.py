"""Compression with real processes: the registry, the service, and its steps."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import torch
from google.rpc import code_pb2, error_details_pb2
from job_cluster import JobCluster, failure_of, job_cluster, reviews

from maas.compression.v1 import compression_job_pb2
from maas.compression.v1 import compression_service_pb2 as messages
from maas.compression.v1.technique_pb2 import Clip, FixedPoint, Int8, Technique
from maas.jobs.v1 import job_state_pb2
from maas.registry.v1 import blob_pb2, registry_service_pb2, version_pb2
from maas_package.architectures import load_architecture
from maas_package.text import build_word_tokenizer
from maas_package.trainable import package_trained_model

CLIP, FIXED_POINT, INT8 = Technique(clip=Clip()), Technique(fixed_point=FixedPoint()), Technique(int8=Int8())
SOURCE = "models/reviews/versions/1"
DATA = "datasets/reviews/versions/1"


def package_files(cluster: JobCluster) -> list[blob_pb2.File]:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    rows = reviews(40)
    tokenizer = build_word_tokenizer([text for text, _ in rows], 100)
    architecture = load_architecture("lstm-text-classifier")
    config = {"vocabulary_size": tokenizer.vocabulary_size, "embedding_size": 16, "hidden_size": 32}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "package")
        package_trained_model(
            folder,
            architecture=architecture,
            config=config,
            module=architecture.build(config),
            tokenizer=tokenizer,
            labels=("negative", "positive"),
        )
        return cluster.push_package(folder)


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster(["registry", "compression"]) as cluster:
        cluster.push("reviews", {"test": reviews(40)})
        cluster.push("untested", {"train": reviews(4)})
        registry = cluster.registry
        registry.CreateModel(registry_service_pb2.CreateModelRequest(model_id="reviews"), timeout=10)
        files = package_files(cluster)
        for dataset_version in (DATA, ""):
            registry.CreateVersion(
                registry_service_pb2.CreateVersionRequest(
                    parent="models/reviews", version=version_pb2.Version(files=files, dataset_version=dataset_version)
                ),
                timeout=10,
            )
        registry.SetAlias(
            registry_service_pb2.SetAliasRequest(name="models/reviews/aliases/best", version=SOURCE), timeout=10
        )
        yield cluster


def create(
    cluster: JobCluster,
    *recipe: Technique,
    source: str = SOURCE,
    data: str = "",
    request_id: str = "",
    allow_no_gain: bool = True,
    limits: compression_job_pb2.Limits | None = None,
) -> compression_job_pb2.CompressionJob:
    job = compression_job_pb2.CompressionJob(
        source_version=source,
        recipe=compression_job_pb2.Recipe(techniques=recipe),
        dataset_version=data,
        allow_no_gain=allow_no_gain,
        limits=limits,
    )
    request = messages.CreateCompressionJobRequest(compression_job=job, request_id=request_id)
    return cluster.compression.CreateCompressionJob(request, timeout=10)


def watch(cluster: JobCluster, name: str) -> Iterator[compression_job_pb2.CompressionJob]:
    request = messages.WatchCompressionJobRequest(name=name)
    for response in cluster.compression.WatchCompressionJob(request, timeout=120):
        yield response.compression_job


def ended(cluster: JobCluster, name: str) -> compression_job_pb2.CompressionJob:
    return list(watch(cluster, name))[-1]


def get_version(cluster: JobCluster, name: str) -> version_pb2.Version:
    return cluster.registry.GetVersion(registry_service_pb2.GetVersionRequest(name=name), timeout=10)


def test_a_recipe_makes_a_child_with_a_report(cluster: JobCluster) -> None:
    created = create(cluster, CLIP, FIXED_POINT, INT8, source="models/reviews/aliases/best", request_id="three")
    assert (created.source_version, created.dataset_version) == (SOURCE, DATA)
    assert created.recipe.techniques[1].fixed_point.fractional_bits == 8
    job = ended(cluster, created.name)
    assert job.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, job.status.error
    child = get_version(cluster, job.result_version)
    assert child.parent_version == SOURCE
    assert list(child.recipe) == ["clip", "fixed_point", "int8"]
    assert (child.source_job, child.dataset_version) == (job.name, DATA)
    assert child.compression_report == job.report
    assert child.evaluation == job.report.quality_after
    assert [servable.precision for servable in child.signature.servables] == ["int8"]
    assert child.signature.architecture == ""
    report = job.report
    assert report.before.parameter_count == report.after.parameter_count
    assert report.before.servable_bytes > report.after.servable_bytes == child.signature.servables[0].size_bytes
    assert report.after.package_bytes == child.size_bytes
    assert report.smaller
    for measurement in (report.before, report.after):
        assert 0 < measurement.latency_p50_ms <= measurement.latency_p99_ms
        assert measurement.throughput_rows > 0
        assert measurement.peak_memory_bytes > 10 * 2**20
        assert 0.5 < measurement.nonzero_share <= 1
        assert measurement.engine == "onnxruntime"
    assert (report.quality_after.split, report.quality_after.row_count) == ("test", 40)
    assert 0 <= report.agreement <= 1
    assert report.verdict in [line.text for line in job.status.log_lines]
    assert report.quality_difference.low <= report.quality_difference.value <= report.quality_difference.high
    assert {one.slice for one in report.slices if one.kind == "class"} == {"negative", "positive"}
    assert report.work_duration.ToNanoseconds() > 0
    assert create(cluster, CLIP, request_id="three").name == job.name


def test_fixed_point_keeps_its_trainable_form_and_can_be_made_int8_later(cluster: JobCluster) -> None:
    fixed = ended(cluster, create(cluster, FIXED_POINT, source="models/reviews/versions/2", data=DATA).name)
    assert fixed.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, fixed.status.error
    child = get_version(cluster, fixed.result_version)
    assert child.signature.architecture == "lstm-text-classifier"
    assert fixed.report.after.servable_bytes < fixed.report.before.servable_bytes
    int8 = ended(cluster, create(cluster, INT8, source=child.name, data=DATA).name)
    assert int8.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, int8.status.error
    assert get_version(cluster, int8.result_version).parent_version == child.name


@pytest.mark.parametrize(
    ("recipe", "fields", "code", "reason"),
    [
        ((), {}, "INVALID_ARGUMENT", "REQUEST_INVALID"),
        ((Technique(),), {}, "INVALID_ARGUMENT", "REQUEST_INVALID"),
        ((Technique(fixed_point=FixedPoint(fractional_bits=16)),), {}, "INVALID_ARGUMENT", "REQUEST_INVALID"),
        ((INT8, CLIP), {}, "INVALID_ARGUMENT", "RECIPE_INVALID"),
        ((CLIP,), {"source": "models/reviews"}, "INVALID_ARGUMENT", "RESOURCE_NAME_INVALID"),
        ((CLIP,), {"source": "models/reviews/versions/99"}, "NOT_FOUND", "VERSION_NOT_FOUND"),
        ((CLIP,), {"source": "models/reviews/versions/2"}, "INVALID_ARGUMENT", "JUDGING_DATA_UNKNOWN"),
        ((CLIP,), {"data": "datasets/reviews/versions/9"}, "NOT_FOUND", "DATASET_VERSION_NOT_FOUND"),
        ((CLIP,), {"data": "datasets/untested/versions/1"}, "INVALID_ARGUMENT", "DATASET_SPLIT_MISSING"),
    ],
)
def test_what_cannot_be_compressed_is_refused_before_there_is_a_job(
    cluster: JobCluster, recipe: tuple[Technique, ...], fields: dict[str, str], code: str, reason: str
) -> None:
    before = cluster.compression.ListCompressionJobs(messages.ListCompressionJobsRequest(), timeout=10)
    assert failure_of(lambda: create(cluster, *recipe, **fields)) == (code, reason)
    assert cluster.compression.ListCompressionJobs(messages.ListCompressionJobsRequest(), timeout=10) == before


def reason_of(job: compression_job_pb2.CompressionJob) -> str:
    assert job.status.state == job_state_pb2.JOB_STATE_FAILED
    info = error_details_pb2.ErrorInfo()
    assert job.status.error.details[0].Unpack(info)
    return info.reason


def test_a_result_that_breaks_a_limit_or_gains_nothing_is_not_published(cluster: JobCluster) -> None:
    def versions() -> int:
        request = registry_service_pb2.ListVersionsRequest(parent="models/reviews")
        return len(cluster.registry.ListVersions(request, timeout=10).versions)

    before = versions()
    # Half a thousand bytes: a file format alone is larger.
    tight = create(cluster, INT8, limits=compression_job_pb2.Limits(max_size_bytes=500))
    useless = create(cluster, CLIP, allow_no_gain=False)
    broken = ended(cluster, tight.name)
    assert reason_of(broken) == "LIMITS_NOT_MET"
    assert "at most 500 bytes was asked for" in broken.status.error.message
    assert reason_of(ended(cluster, useless.name)) == "NO_GAIN"
    assert versions() == before


def test_what_each_layer_loses_is_told_and_nothing_is_made(cluster: JobCluster) -> None:
    data = cluster.push("chosen", {"test": reviews(40), "validation": reviews(30)})
    job = compression_job_pb2.CompressionJob(
        source_version=SOURCE,
        sensitivity=compression_job_pb2.SensitivitySettings(bits=4),
        dataset_version=data,
        limits=compression_job_pb2.Limits(max_quality_loss=1.0),
    )
    request = messages.CreateCompressionJobRequest(compression_job=job)
    last = ended(cluster, cluster.compression.CreateCompressionJob(request, timeout=10).name)
    assert last.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, last.status.error
    report = last.sensitivity_report
    assert (report.bits, report.metric, report.row_count, report.fewest_to_keep) == (4, "accuracy", 30, 0)
    assert {layer.operator for layer in report.layers} == {"Gather", "LSTM", "Gemm"}
    assert last.result_version == ""


def test_labels_that_the_model_does_not_know_fail_the_job_with_a_reason(cluster: JobCluster) -> None:
    data = cluster.push("other-labels", {"test": [("a great film", 5)]})
    job = ended(cluster, create(cluster, CLIP, data=data).name)
    assert reason_of(job) == "LABELS_INVALID"
    assert job.status.error.code == code_pb2.INVALID_ARGUMENT


def test_a_killed_service_registers_one_child(cluster: JobCluster) -> None:
    name = create(cluster, FIXED_POINT).name
    with pytest.raises(grpc.RpcError):
        for job in watch(cluster, name):
            if job.status.phase in ("compress", "fixed_point"):
                cluster.kill("compression")
    cluster.start("compression")
    cluster.wait_for(["compression"])
    job = ended(cluster, name)
    assert job.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, job.status.error
    versions = cluster.registry.ListVersions(
        registry_service_pb2.ListVersionsRequest(parent="models/reviews"), timeout=10
    ).versions
    assert [version.name for version in versions if version.source_job == name] == [job.result_version]
