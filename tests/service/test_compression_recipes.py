"""Recipes, limits and advice through the whole path: what is wrong is refused with a reason."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_cluster import JobCluster, failure_of, job_cluster, reviews
from test_compression_service import DATA, SOURCE, ended, package_files

from maas.compression.v1 import compression_service_pb2 as messages
from maas.compression.v1.advice_pb2 import Advice
from maas.compression.v1.compression_job_pb2 import CompressionJob
from maas.compressions import Work, advice, limits, new_job, search
from maas.jobs.v1 import job_state_pb2
from maas.recipes import technique_names
from maas.registry.v1 import registry_service_pb2, version_pb2


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster(["registry", "compression"]) as cluster:
        cluster.push("reviews", {"train": reviews(60), "validation": reviews(40), "test": reviews(40)})
        cluster.registry.CreateModel(registry_service_pb2.CreateModelRequest(model_id="reviews"), timeout=10)
        cluster.registry.CreateVersion(
            registry_service_pb2.CreateVersionRequest(
                parent="models/reviews",
                version=version_pb2.Version(files=package_files(cluster), dataset_version=DATA),
            ),
            timeout=10,
        )
        yield cluster


def create(cluster: JobCluster, job: CompressionJob) -> CompressionJob:
    return cluster.compression.CreateCompressionJob(
        messages.CreateCompressionJobRequest(compression_job=job), timeout=10
    )


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        ([], "REQUEST_INVALID"),
        (["int8"] * 17, "REQUEST_INVALID"),
        (["int8(mode=fast)"], "REQUEST_INVALID"),
        (["int8(calibration_rows=0)"], "REQUEST_INVALID"),
        (["prune(share=0.0)"], "REQUEST_INVALID"),
        (["prune(share=1.5)"], "REQUEST_INVALID"),
        (["fixed_point(fractional_bits=16)"], "REQUEST_INVALID"),
        (["int8", "distill"], "RECIPE_INVALID"),
        (["int8", "prune(structure=heads)"], "RECIPE_INVALID"),
        (search(objective="best"), "REQUEST_INVALID"),
        (search(time_budget="1s"), "REQUEST_INVALID"),
        (search(most_trials=0), "REQUEST_INVALID"),
    ],
    ids=str,
)
def test_work_that_cannot_be_done_is_refused_before_there_is_a_job(
    cluster: JobCluster, work: Work, reason: str
) -> None:
    assert failure_of(lambda: create(cluster, new_job(SOURCE, work))) == ("INVALID_ARGUMENT", reason)


def test_a_job_does_one_kind_of_work() -> None:
    job = new_job(SOURCE, ["int8"])
    job.advice.CopyFrom(advice())
    assert job.WhichOneof("work") == "advice", "the contract holds one"


@pytest.mark.parametrize(
    "field", ["max_size_bytes", "min_throughput_rows", "max_memory_bytes", "max_p50", "max_p99", "max_quality_loss"]
)
def test_a_limit_that_nothing_can_meet_is_refused(cluster: JobCluster, field: str) -> None:
    job = new_job(SOURCE, ["int8"])
    match field:
        case "max_p50" | "max_p99":
            getattr(job.limits, field).SetInParent()
        case "max_quality_loss":
            job.limits.max_quality_loss = -0.1
        case _:
            setattr(job.limits, field, 0)
    assert failure_of(lambda: create(cluster, job)) == ("INVALID_ARGUMENT", "REQUEST_INVALID")


STRANGE = st.sampled_from([-1, 0, 1, 2**31 - 1, -(2**31)])


@st.composite
def jobs(draw: st.DrawFn) -> CompressionJob:
    """Jobs with any settings: what a caller without our client may send."""
    job = CompressionJob(source_version=draw(st.sampled_from([SOURCE, "models/reviews/versions/99", "", "x/y"])))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(technique_names()))
        message = getattr(job.recipe.techniques.add(), name)
        message.SetInParent()
        for field in message.DESCRIPTOR.fields:
            if not draw(st.booleans()):
                continue
            if field.cpp_type == field.CPPTYPE_BOOL:
                setattr(message, field.name, True)
            elif field.is_repeated:
                getattr(message, field.name).append(draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=5)))
            elif field.cpp_type == field.CPPTYPE_STRING:
                setattr(message, field.name, draw(st.sampled_from(["", "static", "lstm-text-classifier", "\n"])))
            elif field.cpp_type == field.CPPTYPE_DOUBLE:
                setattr(message, field.name, draw(st.floats(width=32)))
            else:
                setattr(message, field.name, draw(STRANGE))
    if draw(st.booleans()):
        job.limits.max_quality_loss = draw(st.floats())
    job.dataset_version = draw(st.sampled_from(["", DATA, "datasets/x/versions/1", "?"]))
    # So that none of them is worked on: the data that it names as more texts is not there.
    job.unlabelled_dataset_version = "datasets/nothing/versions/1"
    return job


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(job=jobs())
def test_no_request_is_a_bug_of_the_service(cluster: JobCluster, job: CompressionJob) -> None:
    code, reason = failure_of(lambda: create(cluster, job))
    assert code in ("INVALID_ARGUMENT", "NOT_FOUND"), (code, reason)


def test_a_limit_that_the_result_breaks_fails_the_job_with_the_figures(cluster: JobCluster) -> None:
    job = new_job(SOURCE, ["int8"])
    job.limits.CopyFrom(limits(max_size="100"))
    last = ended(cluster, create(cluster, job).name)
    assert last.status.state == job_state_pb2.JOB_STATE_FAILED
    assert "the served file is" in last.status.error.message
    assert not last.result_version


def test_advice_ranks_recipes_that_can_be_run_as_they_stand(cluster: JobCluster) -> None:
    job = new_job(SOURCE, advice())
    job.limits.CopyFrom(limits(max_size="1GB"))
    last = ended(cluster, create(cluster, job).name)
    assert last.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, last.status.error
    assert not last.result_version
    found: Advice = last.advised
    assert found.summary
    assert {"model", "data", "host"} == {finding.subject for finding in found.findings}
    assert "clip" in [one.technique for one in found.excluded]
    best = found.recipes[0]
    assert best.reason
    assert not best.unmet_limits
    assert best.quality.row_count > 0
    assert best.size_gain == pytest.approx(found.source_bytes / best.servable_bytes)
    again = new_job(SOURCE, list(best.lines))
    again.allow_no_gain = True
    made = ended(cluster, create(cluster, again).name)
    assert made.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, made.status.error
    assert made.report.smaller == (best.size_gain > 1 / 0.95)
