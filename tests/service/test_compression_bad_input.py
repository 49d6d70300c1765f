"""What cannot be compressed: refused with a precise reason before there is a job where that can be known, else the job
fails with one; either way no version is published.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import onnx
import pytest
from compression_sources import small_package
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from job_cluster import JobCluster, failure_of, job_cluster, reviews
from onnx import TensorProto, helper, numpy_helper

from maas.compression.v1 import compression_service_pb2 as messages
from maas.compression.v1.compression_job_pb2 import CompressionJob, Limits, Recipe, SearchSettings
from maas.compression.v1.technique_pb2 import (
    Clip,
    Distill,
    FixedPoint,
    Int4,
    Int8,
    LowRank,
    Prune,
    Technique,
    Vocabulary,
)
from maas.jobs.v1 import job_state_pb2
from maas.recipes import RecipeUnreadable, load_recipe, parse_technique
from maas.registry.v1 import registry_service_pb2, version_pb2
from maas_package.manifest import Servable
from maas_package.package import Package, write_package
from maas_package.trainable import ONNX_PATH

INT8 = Technique(int8=Int8())
SPLITS = {name: reviews(40) for name in ("train", "validation", "test")}
DATA = "datasets/reviews/versions/1"
# The least that a step may be given; importing torch alone takes more.
LEAST_MEMORY_MIB = "64"


def plain_package(folder: Path, source: Package, nodes: list[onnx.NodeProto], weight: np.ndarray | None) -> Package:
    """A classifier of texts that has only an ONNX file: each word's vector is a row of `w`, if there is one."""
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["rows", "words"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", "classes"])],
        [] if weight is None else [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder.joinpath(*ONNX_PATH.split("/"))
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))
    (folder / "tokenizer.json").write_bytes(source.path("tokenizer.json").read_bytes())
    manifest = source.manifest
    assert manifest.text is not None
    return write_package(
        folder,
        replace(
            manifest,
            inputs=(replace(manifest.inputs[0], name="tokens"),),
            text=replace(manifest.text, feeds="tokens"),
            architecture=None,
            weights=None,
            servables=(Servable("onnxruntime", "fp32", ONNX_PATH),),
            files=(),
        ),
    )


def nan_package(folder: Path, source: Package) -> Package:
    weight = np.random.default_rng(0).standard_normal((100, 2)).astype(np.float32)
    weight[7, 1] = np.nan
    nodes = [
        helper.make_node("Gather", ["w", "tokens"], ["vectors"]),
        helper.make_node("ReduceMean", ["vectors"], ["logits"], axes=[1], keepdims=0),
    ]
    return plain_package(folder, source, nodes, weight)


def weightless_package(folder: Path, source: Package) -> Package:
    nodes = [helper.make_node("Cast", ["tokens"], ["logits"], to=TensorProto.FLOAT)]
    return plain_package(folder, source, nodes, None)


def push(cluster: JobCluster, package: Package) -> str:
    version = version_pb2.Version(files=cluster.push_package(package.folder), dataset_version=DATA)
    request = registry_service_pb2.CreateVersionRequest(parent="models/reviews", version=version)
    return cluster.registry.CreateVersion(request, timeout=10).name


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    folder = tmp_path_factory.mktemp("packages")
    small = small_package(folder / "small")
    return {
        "small": small,
        "nan": nan_package(folder / "nan", small),
        "weightless": weightless_package(folder / "weightless", small),
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster(["registry", "compression"]) as cluster:
        cluster.push("reviews", SPLITS)
        cluster.registry.CreateModel(registry_service_pb2.CreateModelRequest(model_id="reviews"), timeout=10)
        yield cluster


@pytest.fixture(scope="module")
def versions(cluster: JobCluster, packages: dict[str, Package]) -> dict[str, str]:
    return {name: push(cluster, package) for name, package in packages.items()}


def published(cluster: JobCluster) -> set[str]:
    request = registry_service_pb2.ListVersionsRequest(parent="models/reviews")
    return {version.name for version in cluster.registry.ListVersions(request, timeout=10).versions}


def create(cluster: JobCluster, job: CompressionJob) -> CompressionJob:
    request = messages.CreateCompressionJobRequest(compression_job=job)
    return cluster.compression.CreateCompressionJob(request, timeout=10)


def ended(cluster: JobCluster, job: CompressionJob) -> CompressionJob:
    watched = messages.WatchCompressionJobRequest(name=create(cluster, job).name)
    *_, last = cluster.compression.WatchCompressionJob(watched, timeout=300)
    return last.compression_job


def failure(cluster: JobCluster, job: CompressionJob) -> tuple[str, str]:
    """Return reason and message of a job that fails; nothing is published."""
    before = published(cluster)
    last = ended(cluster, job)
    assert last.status.state == job_state_pb2.JOB_STATE_FAILED, last.status
    assert not last.result_version
    assert published(cluster) == before
    info = error_details_pb2.ErrorInfo()
    assert last.status.error.details[0].Unpack(info)
    return info.reason, last.status.error.message


def by_recipe(source: str, *recipe: Technique, **fields: object) -> CompressionJob:
    return CompressionJob(source_version=source, recipe=Recipe(techniques=recipe), **fields)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("int9", "there is no technique 'int9'; there are: clip"),
        ("int8(mod=static)", "int8 has no setting 'mod'; it has: mode"),
        ("int4(group_size=large)", "group_size is a whole number, not 'large'"),
        ("prune(share=0.5", "is not a technique"),
        ("prune(share=__import__('os'))", "share"),
        ("", "is not a technique"),
    ],
)
def test_a_line_that_is_no_technique_is_refused_where_it_is_read(line: str, says: str) -> None:
    with pytest.raises(RecipeUnreadable) as refused:
        parse_technique(line)
    assert says in refused.value.message


@pytest.mark.parametrize(
    "text", ["int8: {mode: static}", "[]", "- int8: [1]", "- {int8: {}, clip: {}}", "- &a int8\n- *a"]
)
def test_yaml_that_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(RecipeUnreadable):
        load_recipe(text)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ((), "REQUEST_INVALID"),
        ((Technique(),), "REQUEST_INVALID"),
        ((Technique(clip=Clip(rule="widest")),), "REQUEST_INVALID"),
        ((Technique(clip=Clip(rule="percentile", percentile=49)),), "REQUEST_INVALID"),
        ((Technique(fixed_point=FixedPoint(fractional_bits=0)),), "REQUEST_INVALID"),
        ((Technique(prune=Prune(structure="words")),), "REQUEST_INVALID"),
        ((Technique(prune=Prune(share=float("nan"))),), "REQUEST_INVALID"),
        ((Technique(int4=Int4(group_size=33)),), "REQUEST_INVALID"),
        ((Technique(low_rank=LowRank(energy=1.5)),), "REQUEST_INVALID"),
        ((Technique(vocabulary=Vocabulary(minimum_count=-1)),), "REQUEST_INVALID"),
        ((Technique(distill=Distill(temperature=0.0)),), "REQUEST_INVALID"),
        (
            tuple(Technique(fixed_point=FixedPoint(fractional_bits=1 + bits % 15)) for bits in range(17)),
            "REQUEST_INVALID",
        ),
        ((INT8, INT8), "RECIPE_INVALID"),
        ((INT8, Technique(prune=Prune())), "RECIPE_INVALID"),
        ((INT8, Technique(distill=Distill())), "RECIPE_INVALID"),
    ],
)
def test_a_recipe_of_wrong_range_or_order_is_refused_before_there_is_a_job(
    cluster: JobCluster, versions: dict[str, str], recipe: tuple[Technique, ...], reason: str
) -> None:
    job = by_recipe(versions["small"], *recipe)
    before = cluster.compression.ListCompressionJobs(messages.ListCompressionJobsRequest(), timeout=10)
    assert failure_of(lambda: create(cluster, job)) == ("INVALID_ARGUMENT", reason)
    assert cluster.compression.ListCompressionJobs(messages.ListCompressionJobsRequest(), timeout=10) == before


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_size_bytes=0),
        Limits(max_p50=Duration(seconds=-1)),
        Limits(min_throughput_rows=float("inf")),
        Limits(min_throughput_rows=float("nan")),
        Limits(max_memory_bytes=-5),
        Limits(max_quality_loss=1.5),
    ],
)
def test_a_limit_that_is_none_is_refused_before_there_is_a_job(
    cluster: JobCluster, versions: dict[str, str], limits: Limits
) -> None:
    job = by_recipe(versions["small"], INT8, limits=limits)
    assert failure_of(lambda: create(cluster, job)) == ("INVALID_ARGUMENT", "REQUEST_INVALID")


@pytest.mark.parametrize(
    "search",
    [
        SearchSettings(objective="prettiest"),
        SearchSettings(time_budget=Duration(seconds=1)),
        SearchSettings(most_trials=0),
        SearchSettings(workers=-1),
    ],
)
def test_a_search_of_wrong_range_is_refused_before_there_is_a_job(
    cluster: JobCluster, versions: dict[str, str], search: SearchSettings
) -> None:
    job = CompressionJob(source_version=versions["small"], search=search)
    assert failure_of(lambda: create(cluster, job)) == ("INVALID_ARGUMENT", "REQUEST_INVALID")


def test_a_recipe_that_needs_weights_is_refused_for_a_version_that_has_only_a_graph(
    cluster: JobCluster, versions: dict[str, str]
) -> None:
    job = by_recipe(versions["nan"], Technique(distill=Distill()))
    assert failure_of(lambda: create(cluster, job)) == ("INVALID_ARGUMENT", "RECIPE_INVALID")


def test_limits_that_the_result_does_not_meet_fail_the_job_with_the_figure_of_each(
    cluster: JobCluster, versions: dict[str, str]
) -> None:
    limits = Limits(
        max_size_bytes=100,
        max_p50=timedelta(microseconds=1),
        max_p99=timedelta(microseconds=1),
        min_throughput_rows=1e12,
        max_memory_bytes=1000,
    )
    reason, message = failure(cluster, by_recipe(versions["small"], INT8, limits=limits))
    assert reason == "LIMITS_NOT_MET"
    for said in ("served file", "median time", "99th percentile", "1,000,000,000,000 rows/s", "peak memory"):
        assert said in message
    assert message.count("was asked for") == 5


def test_a_search_for_what_no_model_meets_ends_with_the_best_seen_and_no_version(
    cluster: JobCluster, versions: dict[str, str]
) -> None:
    before = published(cluster)
    search = SearchSettings(most_trials=2, time_budget=Duration(seconds=120), workers=1)
    job = CompressionJob(source_version=versions["small"], search=search, limits=Limits(max_size_bytes=100))
    last = ended(cluster, job)
    assert last.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, last.status
    assert not last.result_version
    assert published(cluster) == before
    assert not last.search_report.answer.meets_limits
    assert [broken.limit for broken in last.search_report.answer.broken_limits] == ["max_size_bytes"]


@pytest.mark.parametrize(
    ("name", "rows", "reason"),
    [
        ("too-many-classes", [("a great film", 2)], "LABELS_INVALID"),
        ("words-as-labels", [("a great film", "good")], "LABELS_INVALID"),
        ("no-text", [(" \n", 1)], "TEXTS_INVALID"),
    ],
)
def test_data_that_does_not_fit_the_model_fails_the_job(
    cluster: JobCluster, versions: dict[str, str], name: str, rows: list[tuple[str, int]], reason: str
) -> None:
    data = cluster.push(name, {"test": rows})
    assert failure(cluster, by_recipe(versions["small"], INT8, dataset_version=data))[0] == reason


def test_data_without_labels_is_refused_for_a_classifier(cluster: JobCluster, versions: dict[str, str]) -> None:
    data = cluster.push("unlabelled", {"test": reviews(4)}, columns=("text", "stars"))
    job = by_recipe(versions["small"], INT8, dataset_version=data)
    assert failure_of(lambda: create(cluster, job)) == ("INVALID_ARGUMENT", "DATASET_COLUMN_MISSING")


def test_weights_that_are_no_numbers_fail_the_job_before_anything_is_made_of_them(
    cluster: JobCluster, versions: dict[str, str]
) -> None:
    reason, message = failure(cluster, by_recipe(versions["nan"], INT8, allow_no_gain=True))
    assert reason == "SOURCE_ANSWERS_INVALID"
    assert "its weights may hold NaN" in message


def test_a_model_without_weights_fails_the_job(cluster: JobCluster, versions: dict[str, str]) -> None:
    reason, message = failure(cluster, by_recipe(versions["weightless"], INT8, allow_no_gain=True))
    assert reason == "GRAPH_UNUSABLE"
    assert "nothing to compress" in message


@pytest.mark.parametrize("work", ["recipe", "search"])
def test_a_step_without_memory_fails_the_job_with_a_reason(packages: dict[str, Package], work: str) -> None:
    with job_cluster(["registry"]) as cluster:
        cluster.start("compression", MAAS_JOBS_STEP_MEMORY_MIB=LEAST_MEMORY_MIB)
        cluster.wait_for(["compression"])
        cluster.push("reviews", SPLITS)
        cluster.registry.CreateModel(registry_service_pb2.CreateModelRequest(model_id="reviews"), timeout=10)
        source = push(cluster, packages["small"])
        fields = {"recipe": Recipe(techniques=[INT8])} if work == "recipe" else {"search": SearchSettings()}
        reason, message = failure(cluster, CompressionJob(source_version=source, **fields))
        assert reason == "JOB_STEP_OVER_MEMORY"
        assert f"{LEAST_MEMORY_MIB} MiB" in message
