import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from maas_compression.techniques.graphs import (
    GraphMissing,
    GraphUnusable,
    float_graph,
    fold_stored_weights,
    write_graph_package,
)
from maas_engine.predictor import open_predictor
from maas_package.architectures import load_architecture
from maas_package.manifest import Manifest, Servable, TensorSpec
from maas_package.package import Package, read_package, write_package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import WeightsInvalid, package_trained_model

GENERATOR = np.random.default_rng(4)
WEIGHT = GENERATOR.standard_normal((6, 3)).astype(np.float32)


def imported(
    folder: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    as_inputs: tuple[str, ...] = (),
    external: bool = False,
) -> Package:
    """A package of plain tensors: `x` [-1, 6] to `y` [-1, 3], as an import of an ONNX file makes it."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 6])]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, weights[name].shape) for name in as_inputs]
    graph = helper.make_graph(
        nodes,
        "plain",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "servables" / "onnxruntime" / "model.onnx"
    path.parent.mkdir(parents=True)
    if external:
        onnx.save(model, str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    else:
        onnx.save(model, str(path))
    manifest = Manifest(
        task="tensors",
        inputs=(TensorSpec("x", "FP32", (-1, 6)),),
        outputs=(TensorSpec("y", "FP32", (-1, 3)),),
        servables=(Servable("onnxruntime", "fp32", "servables/onnxruntime/model.onnx"),),
    )
    return write_package(folder, manifest)


def plain(folder: Path, *, external: bool = False) -> Package:
    return imported(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WEIGHT}, external=external)


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def answer(package: Package, rows: np.ndarray) -> np.ndarray:
    predictor = open_predictor(package)
    try:
        return predictor.predict({"x": rows}).outputs["y"]
    finally:
        predictor.close()


@pytest.fixture
def classifier(tmp_path: Path) -> Package:
    architecture = load_architecture("lstm-text-classifier")
    config = architecture.parse_config({"vocabulary_size": 40, "embedding_size": 6, "hidden_size": 8})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = architecture.build(config)
    return package_trained_model(
        tmp_path / "classifier",
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=build_word_tokenizer([" ".join(f"w{number}" for number in range(38))], vocabulary_size=40),
        labels=("negative", "positive"),
    )


@pytest.mark.parametrize("external", [False, True])
def test_an_imported_graph_comes_with_its_weights_inside(tmp_path: Path, external: bool) -> None:
    package = plain(tmp_path / "source", external=external)
    model = float_graph(package)
    np.testing.assert_array_equal(initializers(model)["w"], WEIGHT)
    made = write_graph_package(package, model, tmp_path / "made", precision="same")
    assert [entry.path for entry in made.manifest.files] == ["servables/onnxruntime/model.onnx"]
    rows = GENERATOR.standard_normal((4, 6)).astype(np.float32)
    np.testing.assert_allclose(answer(made, rows), rows @ WEIGHT, atol=1e-5)


def test_weights_stored_as_integers_or_as_a_codebook_are_floats_again(tmp_path: Path) -> None:
    integers = GENERATOR.integers(-100, 100, (6, 6)).astype(np.int16)
    codebook, indices = GENERATOR.standard_normal(16).astype(np.float32), GENERATOR.integers(0, 16, (6, 3))
    nodes = [
        helper.make_node("Cast", ["integers"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "scale"], ["first"]),
        helper.make_node("Cast", ["indices"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["codebook", "wide"], ["second"]),
        helper.make_node("MatMul", ["x", "first"], ["between"]),
        helper.make_node("MatMul", ["between", "second"], ["y"]),
    ]
    weights: dict[str, np.ndarray] = {
        "integers": integers,
        "scale": np.array(1 / 64, np.float32),
        "codebook": codebook,
        "indices": indices.astype(np.uint8),
    }
    model = float_graph(imported(tmp_path / "source", nodes, weights))
    assert [node.op_type for node in model.graph.node] == ["MatMul", "MatMul"]
    found = initializers(model)
    assert set(found) == {"first", "second"}
    np.testing.assert_array_equal(found["first"], integers.astype(np.float32) / 64)
    np.testing.assert_array_equal(found["second"], codebook[indices])


def test_integers_that_the_engine_computes_with_stay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["stored", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights: dict[str, np.ndarray] = {
        "stored": np.arange(-9, 9, dtype=np.int8).reshape(6, 3),
        "scale": np.array(0.5, np.float32),
    }
    model = float_graph(imported(tmp_path / "source", nodes, weights))
    assert [node.op_type for node in model.graph.node] == ["DequantizeLinear", "MatMul"]


def test_a_constant_that_only_an_inner_graph_reads_is_kept() -> None:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["then"])],
        "inner",
        [],
        [helper.make_tensor_value_info("then", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["else"])],
        "other",
        [],
        [helper.make_tensor_value_info("else", TensorProto.FLOAT, None)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["halves"], ["w"], to=TensorProto.FLOAT),
            helper.make_node("If", ["condition"], ["y"], then_branch=inner, else_branch=other),
        ],
        "branches",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 6]),
            helper.make_tensor_value_info("condition", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(WEIGHT.astype(np.float16), "halves")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    fold_stored_weights(model)
    assert [node.op_type for node in model.graph.node] == ["If"]
    np.testing.assert_array_equal(initializers(model)["w"], WEIGHT.astype(np.float16).astype(np.float32))
    onnx.checker.check_model(model)


def test_weights_listed_as_inputs_are_no_inputs_any_more(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    package = imported(tmp_path / "source", nodes, {"w": WEIGHT}, as_inputs=("w",))
    assert [value.name for value in float_graph(package).graph.input] == ["x"]


def test_the_graph_of_a_trainable_form_is_made_from_its_weights(classifier: Package) -> None:
    served = classifier.path(classifier.manifest.servables[0].path)
    served.write_bytes(b"not read")
    assert "embedding" in initializers(float_graph(classifier))


def test_a_graph_package_keeps_what_callers_see_and_drops_the_trainable_form(
    classifier: Package, tmp_path: Path
) -> None:
    made = write_graph_package(classifier, float_graph(classifier), tmp_path / "made", precision="fp32")
    before, after = classifier.manifest, made.manifest
    assert (after.task, after.inputs, after.outputs, after.labels, after.text) == (
        before.task,
        before.inputs,
        before.outputs,
        before.labels,
        before.text,
    )
    assert after.architecture is None
    assert after.weights is None
    assert read_package(tmp_path / "made") == made
    assert after.servables[0].max_difference is not None
    assert after.servables[0].max_difference < 1e-5
    assert write_graph_package(made, float_graph(made), tmp_path / "again", precision="fp32").manifest == after


def test_the_largest_difference_from_the_source_is_recorded(tmp_path: Path) -> None:
    package = plain(tmp_path / "source")
    model = float_graph(package)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHT + 1, "w"))
    made = write_graph_package(package, model, tmp_path / "made", precision="other")
    difference = made.manifest.servables[0].max_difference
    assert difference is not None
    assert difference > 0.5
    assert made.manifest.servables[0].tolerance is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, wrong: float) -> None:
    weight = WEIGHT.copy()
    weight[2, 1] = wrong
    package = imported(tmp_path / "source", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight})
    with pytest.raises(WeightsInvalid, match="w hold NaN"):
        float_graph(package)


def test_a_graph_without_weights_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Slice", ["x", "zero", "three", "axis"], ["y"])]
    weights = {"zero": np.array([0]), "three": np.array([3]), "axis": np.array([1])}
    with pytest.raises(GraphUnusable, match="no weights"):
        float_graph(imported(tmp_path / "source", nodes, weights))


def test_a_graph_that_is_not_valid_is_not_written(tmp_path: Path) -> None:
    package = plain(tmp_path / "source")
    model = float_graph(package)
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(GraphUnusable, match="not valid ONNX"):
        write_graph_package(package, model, tmp_path / "made", precision="fp32")


def test_a_package_without_a_graph_is_refused(tmp_path: Path) -> None:
    package = plain(tmp_path / "source")
    elsewhere = replace(package.manifest.servables[0], engine="somebody-elses")
    with pytest.raises(GraphMissing, match="no ONNX graph"):
        float_graph(Package(package.folder, replace(package.manifest, servables=(elsewhere,))))
