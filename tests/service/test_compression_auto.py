"""Searches with real processes: the step that searches, its trials, and once the whole service."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict
from job_cluster import JobCluster, failure_of, job_cluster, reviews
from search_job import make_job_folder

from maas.cli.search_output import plot_search, write_search
from maas.compression.v1 import compression_job_pb2, search_pb2
from maas.compression.v1 import compression_service_pb2 as messages
from maas.jobs.v1 import job_state_pb2
from maas.names import DatasetVersionName, VersionName
from maas.registry.v1 import registry_service_pb2, version_pb2
from maas_compression.limits import Limits
from maas_compression.searching.folders import SearchFolders
from maas_compression.searching.search import Judgement, Place, Search
from maas_compression.searching.trials import Record, TrialState
from maas_compression.spec import CompressionSpec, SearchWork
from maas_jobs.step import StepRequest, write_request
from maas_package.package import read_package

GIBIBYTE = 2**30
TRIALS = 2
GENEROUS = Limits(max_quality_loss=0.5)


def nothing(share: float, phase: str, metrics: Mapping[str, float]) -> None:
    del share, phase, metrics


def passes(record: Record, folder: Path) -> Judgement:
    assert (folder / "manifest.json").is_file()
    return Judgement((), "")


def search(
    folder: Path,
    *,
    trials: int = TRIALS,
    limits: Limits = GENEROUS,
    memory_bytes: int = 4 * GIBIBYTE,
    seconds: float = 300.0,
    progress: Callable[[float, str, Mapping[str, float]], None] = nothing,
) -> Search:
    work = SearchWork(time_budget_seconds=seconds, most_trials=trials, workers=1)
    place = Place(folder, memory_bytes, cores=1)
    return Search(work, limits, read_package(folder / "source").manifest, place, print, progress)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's folder in which TRIALS trials were made, of which none may be changed."""
    folder = make_job_folder(tmp_path_factory.mktemp("searched"))
    found = search(folder).run(passes)
    assert sum(record.outcome.state is TrialState.MEASURED for record in found.records) >= 2
    return folder


def test_what_was_measured_is_not_run_again(searched: Path) -> None:
    before = SearchFolders(searched).records()
    found = search(searched).run(passes)
    assert SearchFolders(searched).records() == before
    assert found.answer.meets_limits
    assert found.answer.record in before
    assert found.source.p50_seconds is not None


def test_where_the_best_fails_on_the_split_test_the_next_is_judged(searched: Path) -> None:
    judged: list[int] = []

    def refuses_the_first(record: Record, folder: Path) -> Judgement:
        judged.append(record.number)
        return Judgement((), "" if len(judged) > 1 else "bad luck")

    answer = search(searched).run(refuses_the_first).answer
    assert answer.meets_limits
    assert answer.judged == 2
    assert answer.record is not None
    assert answer.record.number == judged[1] != judged[0]


def test_a_trial_whose_process_is_killed_costs_one_trial(tmp_path: Path) -> None:
    folder, killed = make_job_folder(tmp_path), []

    def kill_the_first(share: float, phase: str, metrics: Mapping[str, float]) -> None:
        if phase.startswith("trial") and not killed:
            killed.extend(psutil.Process().children())
            killed[0].kill()

    found = search(folder, progress=kill_the_first).run(passes)
    first, second = found.records[:2]
    assert first.outcome.state is TrialState.FAILED
    assert "SIGKILL" in first.outcome.reason
    assert "SIGKILL" not in second.outcome.reason
    assert len(found.records) == TRIALS
    assert found.answer.meets_limits


def test_trials_over_memory_fail_one_by_one_and_the_search_still_ends(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(searched), str(folder)], check=True)
    found = search(folder, trials=TRIALS + 1, memory_bytes=20 * 2**20).run(passes)
    assert found.records[TRIALS].outcome.state is TrialState.FAILED
    assert "MiB" in found.records[TRIALS].outcome.reason
    assert found.answer.meets_limits, "the others are still there"


def test_the_search_ends_when_its_time_is_spent(searched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(searched), str(folder)], check=True)
    SearchFolders(folder).write_spent_seconds(300.0)
    found = search(folder, trials=100).run(passes)
    assert len(found.records) == TRIALS, "no trial was begun"
    assert found.answer.meets_limits


def start_step(folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "maas_compression.run", str(folder), str(os.getpid())],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def test_a_step_killed_in_mid_search_goes_on_and_says_which_limit_nothing_meets(tmp_path: Path) -> None:
    folder = make_job_folder(tmp_path)
    spec = CompressionSpec(
        VersionName.parse("models/m/versions/1"),
        SearchWork(time_budget_seconds=300.0, most_trials=3, workers=1),
        Limits(max_size_bytes=100),
        DatasetVersionName.parse("datasets/d/versions/1"),
    )
    write_request(StepRequest(folder, "compressionJobs/j", spec.to_json(), {"dataset_version": ""}, "", 4 * GIBIBYTE))
    folders = SearchFolders(folder)
    step = start_step(folder)
    try:
        wait_until(lambda: len(folders.records()) >= 2)  # the source and a trial
        children = psutil.Process(step.pid).children(recursive=True)
    finally:
        step.kill()
        step.communicate()
    wait_until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))
    before = folders.records()
    output, _ = start_step(folder).communicate(timeout=300)
    assert folders.records()[: len(before)] == before
    assert [record.number for record in folders.records() if record.recipe][-1] >= 3
    result = json.loads(output.decode().strip().splitlines()[-1])["result"]
    assert "report" not in result, "nothing is to be registered"
    report = ParseDict(result["search"], search_pb2.SearchReport())
    assert len(report.trials) == 3
    assert search_pb2.SEARCH_TRIAL_STATE_STOPPED in {trial.state for trial in report.trials}
    assert search_pb2.SEARCH_TRIAL_STATE_MEASURED not in {trial.state for trial in report.trials}
    assert not report.answer.meets_limits
    assert [broken.limit for broken in report.answer.broken_limits] == ["max_size_bytes"]
    assert "times too much" in report.answer.verdict


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobCluster]:
    folder = make_job_folder(tmp_path_factory.mktemp("source"))
    with job_cluster(["registry", "compression"]) as cluster:
        cluster.push("reviews", {name: reviews(40) for name in ("train", "validation", "test")})
        cluster.push("unvalidated", {"test": reviews(4)})
        registry = cluster.registry
        registry.CreateModel(registry_service_pb2.CreateModelRequest(model_id="reviews"), timeout=10)
        files = cluster.push_package(folder / "source")
        version = version_pb2.Version(files=files, dataset_version="datasets/reviews/versions/1")
        registry.CreateVersion(
            registry_service_pb2.CreateVersionRequest(parent="models/reviews", version=version), timeout=10
        )
        yield cluster


def create(cluster: JobCluster, trials: int, data: str = "") -> compression_job_pb2.CompressionJob:
    settings = compression_job_pb2.SearchSettings(most_trials=trials, time_budget=Duration(seconds=300), workers=1)
    job = compression_job_pb2.CompressionJob(
        source_version="models/reviews/versions/1",
        search=settings,
        limits=compression_job_pb2.Limits(max_quality_loss=0.5),
        dataset_version=data,
    )
    request = messages.CreateCompressionJobRequest(compression_job=job)
    return cluster.compression.CreateCompressionJob(request, timeout=10)


def test_an_answer_that_keeps_to_the_limits_is_registered_with_its_recipe(
    cluster: JobCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    created = create(cluster, trials=2)
    assert created.search.objective == "fastest"
    watch = cluster.compression.WatchCompressionJob(messages.WatchCompressionJobRequest(name=created.name), timeout=300)
    jobs = [response.compression_job for response in watch]
    job, report = jobs[-1], jobs[-1].search_report
    assert job.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, job.status.error
    assert any(one.status.phase.startswith("trial") for one in jobs)
    assert len(report.trials) == 2
    assert report.answer.meets_limits, report.answer.verdict
    child = cluster.registry.GetVersion(registry_service_pb2.GetVersionRequest(name=job.result_version), timeout=10)
    assert list(child.recipe) == list(report.answer.recipe)
    assert child.compression_report == job.report
    assert report.answer.trial in {trial.number for trial in report.trials if trial.is_pareto}
    listed = cluster.compression.ListCompressionJobs(messages.ListCompressionJobsRequest(), timeout=10)
    assert not listed.compression_jobs[0].search_report.trials
    assert listed.compression_jobs[0].search_report.answer == report.answer
    write_search(report)
    assert report.answer.verdict[:40] in capsys.readouterr().out
    plot_search(report, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_search_without_rows_to_choose_by_is_refused(cluster: JobCluster) -> None:
    refused = failure_of(lambda: create(cluster, trials=1, data="datasets/unvalidated/versions/1"))
    assert refused == ("INVALID_ARGUMENT", "DATASET_SPLIT_MISSING")
