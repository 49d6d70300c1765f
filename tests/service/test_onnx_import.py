"""ONNX files that the project never saw: made into packages, and served by a real worker."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from one_worker import running_worker
from onnx import TensorProto, helper, numpy_helper
from plain_cluster import PlainCluster, serving
from typer.testing import CliRunner

from maas.cli.app import app
from maas_engine.predictor import open_predictor
from maas_package.package import read_package
from maas_package.tensors import Array
from maas_package.text import build_word_tokenizer


def value(name: str, element: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, shape)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: dict[str, Array] | None = None,
    opset: int = 17,
    **options: Any,
) -> Path:
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "made-by-hand", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("org.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path), **options)
    return path


def two_inputs(path: Path, rows: int | str = "rows", **options: Any) -> Path:
    """score = weights . features, in every unit that `flags` says; shout = names as they are."""
    return save(
        path,
        [
            helper.make_node("MatMul", ["features", "w"], ["linear"]),
            helper.make_node("Cast", ["flag"], ["on"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["linear", "on"], ["score"]),
            helper.make_node("Identity", ["name"], ["echo"]),
        ],
        [
            value("features", TensorProto.FLOAT, [rows, 3]),
            value("flag", TensorProto.BOOL, [rows, 1]),
            value("name", TensorProto.STRING, [rows]),
        ],
        [value("score", TensorProto.FLOAT, [rows, 2]), value("echo", TensorProto.STRING, [rows])],
        {"w": np.arange(6, dtype=np.float32).reshape(3, 2)},
        **options,
    )


def imported(file: Path, folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "maas_formats", "import", str(file), "--out", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    result: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == ("failure" in result), done.stderr
    return result


def test_a_graph_of_inputs_of_several_types_is_served_by_a_worker(tmp_path: Path) -> None:
    result = imported(two_inputs(tmp_path / "any.onnx"), tmp_path / "package")
    assert result["inputs"] == ["features FP32 [-1, 3]", "flag BOOL [-1, 1]", "name BYTES [-1]"]
    assert result["outputs"] == ["score FP32 [-1, 2]", "echo BYTES [-1]"]
    assert (result["task"], result["batched"]) == ("tensors", True)
    assert result["servables"][0] == "onnxruntime fp32"
    inputs = {
        "features": ("FP32", np.array([[1, 0, 0], [0, 1, 0], [1, 1, 1]], np.float32)),
        "flag": ("BOOL", np.array([[True], [False], [True]])),
        "name": ("BYTES", np.array([b"a", "ü".encode(), b""], object)),
    }
    with running_worker(tmp_path / "package", tmp_path) as worker:
        assert (worker.report["failure"], worker.report["task"]) == ("", "tensors")
        [(reply, outputs)] = worker.ask(inputs, rows=(1, 2))
    assert reply.refusal is None
    assert outputs == {"score": [[0, 1], [0, 0], [6, 9]], "echo": [b"a", "ü".encode(), b""]}


def test_openvino_serves_what_it_answers_like_onnxruntime(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    graph = save(
        tmp_path / "any.onnx",
        [helper.make_node("Gemm", ["x", "w"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 2])],
        {"w": np.ones((3, 2), np.float32)},
    )
    result = imported(graph, tmp_path / "package")
    assert result["servables"][:2] == ["onnxruntime fp32", "openvino fp32"]
    package = read_package(tmp_path / "package")
    for servable in package.manifest.servables:
        assert servable.measurements
        predictor = open_predictor(package, servable)
        answer = predictor.predict({"x": np.ones((4, 3), np.float32)}).outputs["y"]
        predictor.close()
        np.testing.assert_allclose(answer, np.full((4, 2), 3, np.float32))


def test_a_graph_of_a_fixed_number_of_rows_works_and_is_not_batched(tmp_path: Path) -> None:
    result = imported(two_inputs(tmp_path / "any.onnx", rows=2), tmp_path / "package")
    assert result["batched"] is False
    assert result["inputs"][0] == "features FP32 [2, 3]"


def test_rows_that_depend_on_each_other_are_not_batched(tmp_path: Path) -> None:
    graph = save(
        tmp_path / "any.onnx",
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.FLOAT, ["n", 3])],
    )
    result = imported(graph, tmp_path / "package")
    assert result["batched"] is False
    assert "rows computed together get other answers" in result["notes"][0]
    assert read_package(tmp_path / "package").manifest.rows_apart


def test_a_graph_that_was_traced_with_one_row_takes_one_row(tmp_path: Path) -> None:
    graph = save(
        tmp_path / "any.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.FLOAT, ["n", "a", "b"])],
        {"shape": np.array([1, 2, 2], np.int64)},
    )
    result = imported(graph, tmp_path / "package")
    assert (result["inputs"], result["outputs"]) == (["x FP32 [1, 4]"], ["y FP32 [1, -1, -1]"])
    assert result["batched"] is False


def test_weights_beside_the_file_are_taken_along(tmp_path: Path) -> None:
    two_inputs(tmp_path / "any.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size == 24
    assert "failure" not in imported(tmp_path / "any.onnx", tmp_path / "package")
    read_package(tmp_path / "package")
    (tmp_path / "weights.bin").unlink()
    assert imported(tmp_path / "any.onnx", tmp_path / "again")["reason"] == "ONNX_DATA_MISSING"


def classifier(path: Path, padding_counts: bool = False) -> Path:
    """Word ids to logits: the sum of their vectors."""
    vectors = np.eye(12, 2, k=-1 - padding_counts, dtype=np.float32) + np.eye(12, 2, dtype=np.float32) * padding_counts
    return save(
        path,
        [
            helper.make_node("Gather", ["vectors", "ids"], ["embedded"]),
            helper.make_node("ReduceSum", ["embedded", "time"], ["logits"], keepdims=0),
        ],
        [value("ids", TensorProto.INT64, ["n", "t"])],
        [value("logits", TensorProto.FLOAT, ["n", 2])],
        {"vectors": vectors, "time": np.array([1], np.int64)},
    )


def test_a_text_classifier_takes_its_tokenizer_and_labels(tmp_path: Path) -> None:
    build_word_tokenizer(["one two three"], 12).save(tmp_path / "words.json")
    options = ("--tokenizer", str(tmp_path / "words.json"), "--max-tokens", "16", "--labels", "no, yes")
    result = imported(classifier(tmp_path / "any.onnx"), tmp_path / "package", *options)
    assert result["task"] == "text-classification"
    package = read_package(tmp_path / "package")
    assert package.manifest.labels == ("no", "yes")
    predictor = open_predictor(package)
    assert predictor.predict_texts(["one two"]).predicted.shape == (1,)
    predictor.close()


def test_a_model_of_texts_that_padding_changes_is_refused(tmp_path: Path) -> None:
    # Texts of one batch are padded to the longest of them.
    build_word_tokenizer(["one two three"], 12).save(tmp_path / "words.json")
    graph = classifier(tmp_path / "any.onnx", padding_counts=True)
    result = imported(graph, tmp_path / "package", "--tokenizer", str(tmp_path / "words.json"))
    assert result["reason"] == "ONNX_PADDING_COUNTS"
    assert imported(graph, tmp_path / "without")["inputs"] == ["ids INT64 [-1, -1]"]


def test_more_labels_than_classes_are_refused(tmp_path: Path) -> None:
    result = imported(classifier(tmp_path / "any.onnx"), tmp_path / "package", "--labels", "a,b,c")
    assert result["reason"] == "MANIFEST_INVALID"


def unreadable(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def sequence_output(path: Path) -> Path:
    save(
        path,
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )
    return path


def one_node(path: Path, operator: str, **options: Any) -> Path:
    tensor = value("x", TensorProto.FLOAT, ["n"])
    return save(
        path,
        [helper.make_node(operator, ["x"], ["y"], domain="org.example" if operator == "Surprise" else "")],
        [tensor],
        [value("y", TensorProto.FLOAT, ["n"])],
        **options,
    )


def outside(path: Path) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", "../secret"), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=text)
    (path.parent.parent / "secret").write_bytes(b"\0\0\0\0")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["n"])], [value("y", TensorProto.FLOAT, ["n"])], [tensor]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: unreadable(path, b""), "ONNX_FILE_UNREADABLE"),
        (lambda path: unreadable(path, b"\x89PNG\r\n" * 20), "ONNX_FILE_UNREADABLE"),
        (lambda path: unreadable(path, two_inputs(path).read_bytes()[:-40]), "ONNX_FILE_UNREADABLE"),
        (lambda path: path, "SOURCE_MISSING"),
        (sequence_output, "ONNX_TYPE_UNSUPPORTED"),
        (lambda path: one_node(path, "Surprise"), "ONNX_OPERATOR_UNKNOWN"),
        (lambda path: one_node(path, "Relu", opset=99), "ONNX_VERSION_UNSUPPORTED"),
        (outside, "ONNX_DATA_MISSING"),
    ],
)
def test_a_file_that_cannot_be_served_is_refused_with_a_reason(
    tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    (tmp_path / "in").mkdir()
    result = imported(make(tmp_path / "in" / "any.onnx"), tmp_path / "package")
    assert result["reason"] == reason, result
    assert "\n" not in result["failure"]


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ExitStack() as stack:
        yield stack.enter_context(serving(PlainCluster()))


def test_the_command_imports_a_file_as_a_version(endpoint: str, tmp_path: Path) -> None:
    environment = {"MAAS_ENDPOINT": endpoint, "MAAS_HOME": str(tmp_path / "home")}
    command = ["models", "import", str(two_inputs(tmp_path / "any.onnx")), "mine"]
    done = CliRunner().invoke(app, [*command, "--json"], env=environment)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["version"] == "models/mine/versions/1"
    assert document["inputs"] == ["features FP32 [-1, 3]", "flag BOOL [-1, 1]", "name BYTES [-1]"]
    done = CliRunner().invoke(app, command, env=environment)
    assert "mine@2" in done.stderr


def test_the_command_says_in_a_sentence_why_a_file_cannot_be_imported(endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "any.onnx").write_bytes(b"no")
    environment = {"MAAS_ENDPOINT": endpoint, "MAAS_HOME": str(tmp_path / "home")}
    done = CliRunner().invoke(app, ["models", "import", str(tmp_path / "any.onnx"), "mine"], env=environment)
    assert done.exit_code == 1
    assert done.stderr == "maas: any.onnx is not an ONNX file, or its end is missing; export it again\n"
