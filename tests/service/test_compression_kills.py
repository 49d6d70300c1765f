"""A search outlives `kill -9` of the service and of its trials; `make bench-compression` has a real one killed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from compression_kills import kill_searches
from compression_sources import small_package
from google.protobuf.duration_pb2 import Duration
from job_cluster import JobCluster, job_cluster, reviews

from maas.compression.v1.compression_job_pb2 import CompressionJob, Limits, SearchSettings
from maas.registry.v1 import registry_service_pb2, version_pb2


@pytest.fixture
def cluster() -> Iterator[JobCluster]:
    with job_cluster(["registry", "compression"]) as cluster:
        yield cluster


def test_killed_at_random_moments_a_search_runs_no_ended_trial_again_and_ends_with_an_answer(
    cluster: JobCluster, tmp_path: Path
) -> None:
    data = cluster.push("reviews", {name: reviews(40) for name in ("train", "validation", "test")})
    cluster.registry.CreateModel(registry_service_pb2.CreateModelRequest(model_id="reviews"), timeout=10)
    files = cluster.push_package(small_package(tmp_path / "source", "lstm-text-classifier").folder)
    version = version_pb2.Version(files=files, dataset_version=data)
    request = registry_service_pb2.CreateVersionRequest(parent="models/reviews", version=version)
    job = CompressionJob(
        source_version=cluster.registry.CreateVersion(request, timeout=10).name,
        search=SearchSettings(most_trials=6, time_budget=Duration(seconds=300), workers=1),
        limits=Limits(max_quality_loss=0.5),
    )
    found = kill_searches(cluster, job, kills=3, longest=3.0, seed=6)
    assert found.count == 3
    assert found.finished_before >= 1
    assert (found.run_again, found.without_answer) == (0, 0), found
