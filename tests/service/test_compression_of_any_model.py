"""Compression of what is no classifier of texts: vectors of texts, and tensors from tensors."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.rpc import error_details_pb2
from job_cluster import JobCluster, failure_of, job_cluster, reviews
from onnx import TensorProto, helper, numpy_helper

from maas.compression.v1 import compression_job_pb2
from maas.compression.v1 import compression_service_pb2 as messages
from maas.compression.v1.technique_pb2 import Int8, Technique
from maas.jobs.v1 import job_state_pb2
from maas.registry.v1 import registry_service_pb2, version_pb2
from maas_package.manifest import TENSORS, Manifest, Servable, TensorSpec, TextInput
from maas_package.package import write_package
from maas_package.tensors import Array
from maas_package.text import build_word_tokenizer

WORDS, WIDTH = 60, 64
ENCODER, MATRIX, BROKEN = (f"models/{name}/versions/1" for name in ("encoder", "matrix", "broken"))


def weights(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def push_model(cluster: JobCluster, model_id: str, graph: onnx.GraphProto, manifest: Manifest) -> None:
    registry = cluster.registry
    registry.CreateModel(registry_service_pb2.CreateModelRequest(model_id=model_id), timeout=10)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.save(model, str(folder / "model.onnx"))
        if manifest.text is not None:
            build_word_tokenizer([text for text, _ in reviews(40)], WORDS).save(folder / "tokenizer.json")
        write_package(folder, manifest)
        files = cluster.push_package(folder)
    request = registry_service_pb2.CreateVersionRequest(
        parent=f"models/{model_id}", version=version_pb2.Version(files=files)
    )
    registry.CreateVersion(request, timeout=10)


def push_encoder(cluster: JobCluster) -> None:
    """Store a model that gives a text the sum of its words' vectors."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["words"], name="words"),
            helper.make_node("ReduceSum", ["words", "axis"], ["sum"], keepdims=0),
            helper.make_node("MatMul", ["sum", "matrix"], ["vector"], name="matrix"),
        ],
        "encoder",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", WIDTH])],
        [
            numpy_helper.from_array(weights(WORDS, WIDTH), "table"),
            numpy_helper.from_array(weights(WIDTH, WIDTH), "matrix"),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    manifest = Manifest(
        task=TENSORS,
        inputs=(TensorSpec("tokens", "INT64", (-1, -1)),),
        outputs=(TensorSpec("vector", "FP32", (-1, WIDTH)),),
        text=TextInput("text", "tokens", "tokenizer.json", 32),
        servables=(Servable("onnxruntime", "fp32", "model.onnx"),),
    )
    push_model(cluster, "encoder", graph, manifest)


def push_matrix(cluster: JobCluster, model_id: str, matrix: Array) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "matrix"], ["y"], name="matrix")],
        "matrix",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", matrix.shape[1]])],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    manifest = Manifest(
        task=TENSORS,
        inputs=(TensorSpec("x", "FP32", (-1, WIDTH)),),
        outputs=(TensorSpec("y", "FP32", (-1, matrix.shape[1])),),
        servables=(Servable("onnxruntime", "fp32", "model.onnx"),),
    )
    push_model(cluster, model_id, graph, manifest)


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster(["registry", "compression"]) as cluster:
        # No labels: the other column is called something else.
        cluster.push("texts", {"test": reviews(40), "train": reviews(40)}, columns=("text", "stars"))
        push_encoder(cluster)
        push_matrix(cluster, "matrix", weights(WIDTH, 4 * WIDTH))
        broken = weights(WIDTH, WIDTH)
        broken[0, 0] = np.nan
        push_matrix(cluster, "broken", broken)
        yield cluster


def create(cluster: JobCluster, source: str, data: str = "") -> str:
    job = compression_job_pb2.CompressionJob(
        source_version=source,
        recipe=compression_job_pb2.Recipe(techniques=[Technique(int8=Int8())]),
        dataset_version=data,
        allow_no_gain=True,
    )
    request = messages.CreateCompressionJobRequest(compression_job=job)
    return cluster.compression.CreateCompressionJob(request, timeout=10).name


def ended(cluster: JobCluster, name: str) -> compression_job_pb2.CompressionJob:
    request = messages.WatchCompressionJobRequest(name=name)
    return [one.compression_job for one in cluster.compression.WatchCompressionJob(request, timeout=120)][-1]


def test_an_encoder_is_judged_by_its_vectors_on_texts_without_labels(cluster: JobCluster) -> None:
    job = ended(cluster, create(cluster, ENCODER, "datasets/texts/versions/1"))
    assert job.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, job.status.error
    quality = job.report.quality_after
    assert (quality.metric, quality.row_count, quality.split) == ("cosine", 40, "test")
    assert 0.99 < quality.value < 1
    assert job.report.quality_before.value == 1.0
    assert not job.report.HasField("mcnemar_p")


def test_a_model_without_texts_is_judged_on_made_up_inputs(cluster: JobCluster) -> None:
    job = ended(cluster, create(cluster, MATRIX))
    assert job.status.state == job_state_pb2.JOB_STATE_SUCCEEDED, job.status.error
    request = registry_service_pb2.GetVersionRequest(name=job.result_version)
    child = cluster.registry.GetVersion(request, timeout=10)
    assert child.compression_report == job.report
    assert (child.evaluation.metric, child.evaluation.dataset_version, child.evaluation.split) == ("fidelity", "", "")
    assert 0.95 < child.evaluation.value < 1
    assert job.report.smaller


@pytest.mark.parametrize(
    ("source", "data", "reason"),
    [
        (MATRIX, "datasets/texts/versions/1", "DATASET_OF_NO_USE"),
        (ENCODER, "", "JUDGING_DATA_UNKNOWN"),
        (ENCODER, "datasets/none/versions/1", "DATASET_VERSION_NOT_FOUND"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_there_is_a_job(
    cluster: JobCluster, source: str, data: str, reason: str
) -> None:
    code = "NOT_FOUND" if reason.endswith("NOT_FOUND") else "INVALID_ARGUMENT"
    assert failure_of(lambda: create(cluster, source, data)) == (code, reason)


def test_weights_that_are_no_numbers_fail_the_job_before_any_work(cluster: JobCluster) -> None:
    job = ended(cluster, create(cluster, BROKEN))
    info = error_details_pb2.ErrorInfo()
    assert job.status.error.details[0].Unpack(info)
    assert info.reason == "SOURCE_ANSWERS_INVALID"
    assert job.result_version == ""
