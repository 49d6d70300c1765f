"""Which layers lose most with few bits, and how many have to stay."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from maas_compression.materials import Materials, TrainingDataMissing
from maas_compression.measuring.judging import Judge
from maas_compression.measuring.sensitivity import (
    coarse,
    coarse_weights,
    fewest_to_keep,
    layer_loss,
    looking_judge,
    measure_sensitivity,
    rank_layers,
)
from maas_compression.measuring.sensitivity_report import sensitivity_to_proto, summary
from maas_compression.recipe import Int8
from maas_compression.techniques.graphs import float_graph
from maas_compression.techniques.int8 import apply_int8
from maas_engine.predictor import open_predictor
from maas_package.manifest import TENSORS, Manifest, Servable, TensorSpec
from maas_package.package import Package, read_package, write_package
from maas_package.tensors import Array

WIDTH = 16
LAYERS = ("first", "second", "third")


def matrix(seed: int, outliers: float = 0.0) -> Array:
    """Return weights; one large one a column leaves few steps to the others."""
    weights = np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    weights[0] += outliers
    return weights


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """Three matrices in a row, of which the second has outliers."""
    weights = {"w0": matrix(0), "w1": matrix(1, 40.0), "w2": matrix(2)}
    names = ["x", "h0", "h1", "y"]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [names[index], f"w{index}"], [names[index + 1]], name=layer)
            for index, layer in enumerate(LAYERS)
        ],
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    folder = tmp_path / "package"
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(folder / "model.onnx"))
    return write_package(
        folder,
        Manifest(
            task=TENSORS,
            inputs=(TensorSpec("x", "FP32", (-1, WIDTH)),),
            outputs=(TensorSpec("y", "FP32", (-1, WIDTH)),),
            servables=(Servable("onnxruntime", "fp32", "model.onnx"),),
        ),
    )


@pytest.fixture
def judge(package: Package, tmp_path: Path) -> Judge:
    return Judge(package, package.manifest.servables[0], None, tmp_path / "answers")


def say_nothing(share: float, phase: str) -> None:
    del share, phase


def test_weights_are_rounded_to_what_the_bits_can_tell_apart_in_each_output() -> None:
    weights = matrix(3, 5.0)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    for column, rounded in zip(weights.T, coarse_weights(weights, node, 8).T, strict=True):
        scale = float(np.abs(column).max()) / 64
        expected = [round(float(value) / scale) * scale for value in column]
        np.testing.assert_allclose(rounded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_below_8_bits_groups_of_an_outputs_weights_have_scales_of_their_own(bits: int) -> None:
    weights = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    rounded = coarse_weights(weights, helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), bits)
    for row, found in zip(weights, rounded, strict=True):
        for begin in (0, 32):
            group = row[begin : begin + 32]
            scale = float(np.abs(group).max()) / (2 ** (bits - 1) - 1)
            np.testing.assert_allclose(found[begin : begin + 32], np.rint(group / scale) * scale, rtol=1e-4, atol=1e-6)


def test_tables_of_8_bits_have_one_scale() -> None:
    table = matrix(3, 5.0)
    rounded = coarse_weights(table, helper.make_node("Gather", ["w", "i"], ["y"]), 8)
    steps = rounded / (np.abs(table).max() / 64)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)


def test_zeros_stay_zeros() -> None:
    rounded = coarse_weights(np.zeros((4, 4), np.float32), helper.make_node("MatMul", ["x", "w"], ["y"]), 4)
    assert not rounded.any()


def test_the_layer_with_outliers_is_the_most_sensitive(package: Package, judge: Judge) -> None:
    steps: list[float] = []
    ranked = rank_layers(package, float_graph(package), LAYERS, judge, 4, lambda share, _: steps.append(share))
    assert ranked[0].layer == "second"
    assert {one.layer for one in ranked} == set(LAYERS)
    assert [one.error for one in ranked] == sorted((one.error for one in ranked), reverse=True)
    assert all((one.operator, one.weights) == ("MatMul", WIDTH**2) for one in ranked)
    assert steps == [0.0, 1 / 3, 2 / 3]


def test_only_the_layers_that_were_asked_for_change(package: Package) -> None:
    model = float_graph(package)
    changed = coarse(model, ["second"], 4)
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in changed.graph.initializer}
    assert {name for name in after if name not in before} == {"w1_1_coarse"}
    for name in ("w0", "w2"):
        np.testing.assert_array_equal(after[name], before[name])
    assert "w1" not in after
    assert [node.op_type for node in changed.graph.node] == ["MatMul"] * 3
    rounded = [node.op_type for node in coarse(model, ["second"], 8).graph.node]
    assert rounded == ["MatMul", "DynamicQuantizeLinear", "DequantizeLinear", "MatMul", "MatMul"]


def test_the_loss_of_8_bits_is_close_to_what_onnxruntimes_own_integers_lose(
    package: Package, judge: Judge, tmp_path: Path
) -> None:
    """The simulation is compared with the real thing, which computes with integers."""
    simulated = layer_loss(package, float_graph(package), LAYERS, judge, 8)
    folder = tmp_path / "real"
    folder.mkdir()
    quantize_dynamic(
        str(package.path("model.onnx")),
        str(folder / "model.onnx"),
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )
    predictor = open_predictor(write_package(folder, package.manifest))
    try:
        real = judge.judge(predictor)
    finally:
        predictor.close()
    assert simulated.error == pytest.approx(real.error, rel=0.25)
    assert simulated.quality_loss == pytest.approx(real.loss, rel=0.25)


def test_the_fewest_layers_are_kept_that_meet_the_loss(package: Package, judge: Judge) -> None:
    model = float_graph(package)
    ranked = rank_layers(package, model, LAYERS, judge, 4, say_nothing)
    names = [one.layer for one in ranked]
    losses = [layer_loss(package, model, names[kept:], judge, 4).quality_loss for kept in range(len(names))]
    assert losses == sorted(losses, reverse=True)
    for kept, loss in enumerate(losses):
        assert fewest_to_keep(package, model, ranked, judge, 4, loss + 1e-9) == kept
    assert fewest_to_keep(package, model, ranked, judge, 4, 0.0) == len(names)


def test_int8_keeps_the_layers_that_matter_most_as_floats(package: Package, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    log: list[str] = []
    made = apply_int8(package, Int8(keep_most_sensitive=1), tmp_path / "made", Materials(scratch, log=log.append))
    graph = onnx.load(str(made.path(made.manifest.servables[0].path))).graph
    floats = [tensor.dims for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert [list(dims) for dims in floats if len(dims) == 2] == [[WIDTH, WIDTH]]
    assert len(log) == 1
    assert log[0].startswith("second stays as it is")


def test_the_whole_measurement_says_what_all_layers_lose_together(package: Package, tmp_path: Path) -> None:
    model = float_graph(package)
    found = measure_sensitivity(package, model, LAYERS, Materials(tmp_path / "scratch"), 4, 1.0)
    assert (found.metric, found.rows, found.fewest_to_keep) == ("fidelity", 256, 0)
    assert found.all_layers.weights == 3 * WIDTH**2
    assert found.all_layers.quality_loss >= max(one.quality_loss for one in found.layers)
    message = sensitivity_to_proto(found, 2.5)
    assert [layer.layer for layer in message.layers] == [one.layer for one in found.layers]
    assert (message.bits, message.fewest_to_keep, message.work_duration.ToNanoseconds()) == (4, 0, 2_500_000_000)
    assert "all 3 layers lose" in summary(found)


def test_a_model_of_texts_needs_texts_to_look_at(tiny_package_folder: Path, tmp_path: Path) -> None:
    source = read_package(tiny_package_folder)
    with pytest.raises(TrainingDataMissing, match="validation"):
        looking_judge(source, Materials(tmp_path))
