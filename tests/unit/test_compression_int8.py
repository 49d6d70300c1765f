"""int8, each form beside what numpy computes of the same numbers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maas_compression.materials import Materials, TrainingDataMissing
from maas_compression.recipe import Int8
from maas_compression.techniques.balance import balance
from maas_compression.techniques.calibration import activation_ranges, activations
from maas_compression.techniques.graphs import float_graph
from maas_compression.techniques.int8 import LayerUnknown, apply_int8, kept_layers, layer_names
from maas_engine.predictor import open_predictor
from maas_package.manifest import Manifest, Servable, TensorSpec
from maas_package.package import Package, read_package, write_package

GENERATOR = np.random.default_rng(11)
FIRST = GENERATOR.standard_normal((8, 6)).astype(np.float32)
SECOND = GENERATOR.standard_normal((6, 3)).astype(np.float32)
BIAS = GENERATOR.standard_normal(6).astype(np.float32)
GAIN = np.array([0.1, 9, 1, 1, 2, 0.5, 4, 1], np.float32)
ROWS = GENERATOR.standard_normal((5, 8)).astype(np.float32)


def network(folder: Path, *, convolution: bool = False) -> Package:
    """x [-1, 8], its norm, a matrix with a bias, a relu, a matrix: y [-1, 3]; or a convolution of x [-1, 2, 6]."""
    if convolution:
        nodes = [helper.make_node("Conv", ["x", "kernel"], ["y"], name="conv")]
        weights = {"kernel": GENERATOR.standard_normal((3, 2, 3)).astype(np.float32)}
        shapes: dict[str, tuple[int, ...]] = {"x": (-1, 2, 6), "y": (-1, 3, 4)}
    else:
        nodes = [
            helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["normed"], name="norm"),
            helper.make_node("MatMul", ["normed", "first"], ["product"], name="inner"),
            helper.make_node("Add", ["product", "bias"], ["sum"]),
            helper.make_node("Relu", ["sum"], ["positive"]),
            helper.make_node("Gemm", ["positive", "second"], ["scores"], name="outer"),
            helper.make_node("ReduceSum", ["normed", "axis"], ["total"], keepdims=1),
            helper.make_node("Add", ["scores", "total"], ["y"]),
        ]
        weights = {
            "gain": GAIN,
            "shift": np.linspace(-1, 1, 8, dtype=np.float32),
            "first": FIRST,
            "bias": BIAS,
            "second": SECOND,
            "axis": np.array([1]),
        }
        shapes = {"x": (-1, 8), "y": (-1, 3)}
    infos = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [None if size < 0 else size for size in shape])
        for name, shape in shapes.items()
    }
    graph = helper.make_graph(
        nodes,
        "network",
        [infos["x"]],
        [infos["y"]],
        [numpy_helper.from_array(one, name) for name, one in weights.items()],
    )
    path = folder / "servables" / "onnxruntime" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    manifest = Manifest(
        task="tensors",
        inputs=(TensorSpec("x", "FP32", shapes["x"]),),
        outputs=(TensorSpec("y", "FP32", shapes["y"]),),
        servables=(Servable("onnxruntime", "fp32", "servables/onnxruntime/model.onnx"),),
    )
    return write_package(folder, manifest)


@pytest.fixture
def source(tmp_path: Path) -> Package:
    return network(tmp_path / "source")


@pytest.fixture
def materials(tmp_path: Path) -> Materials:
    return Materials(scratch=tmp_path / "scratch")


def answer(package: Package, rows: np.ndarray = ROWS) -> np.ndarray:
    predictor = open_predictor(package)
    try:
        return predictor.predict({"x": rows}).outputs["y"]
    finally:
        predictor.close()


def graph_of(package: Package) -> onnx.GraphProto:
    return onnx.load(str(package.path(package.manifest.servables[0].path))).graph


def values_of(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def integers(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """What 8 bits for low to high leave of the values."""
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    rounded: np.ndarray = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    return rounded


def weights_in_7_bits(weight: np.ndarray) -> np.ndarray:
    scale = np.abs(weight).max(axis=0) / 63
    rounded: np.ndarray = np.rint(weight / scale) * scale
    return rounded


def normed(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    states: np.ndarray = centred / length * GAIN + np.linspace(-1, 1, 8)
    return states


def test_static_integers_are_those_that_numpy_computes(source: Package, tmp_path: Path, materials: Materials) -> None:
    made = apply_int8(source, Int8(mode="static", calibration_rows=64), tmp_path / "made", materials)
    stored = values_of(graph_of(made))
    limits = [
        (float(-zero * scale), float((255 - zero) * scale))
        for scale, zero in (
            (stored[f"{name}_scale"].astype(np.float64), stored[f"{name}_zero_point"].astype(np.float64))
            for name in ("normed", "positive")
        )
    ]
    states = normed(ROWS)
    hidden = np.maximum(integers(states, *limits[0]) @ weights_in_7_bits(FIRST) + BIAS, 0)
    expected = integers(hidden, *limits[1]) @ weights_in_7_bits(SECOND) + states.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer(made), expected, atol=1e-3)
    assert np.abs(answer(made) - answer(source)).max() > 1e-3, "rounding is visible"
    operators = [node.op_type for node in graph_of(made).node]
    assert operators.count("MatMulIntegerToFloat") == 2
    assert "Gemm" not in operators


def test_dynamic_integers_are_those_that_numpy_computes(source: Package, tmp_path: Path, materials: Materials) -> None:
    made = apply_int8(source, Int8(), tmp_path / "made", materials)
    stored = values_of(graph_of(made))
    first, second = (
        stored[f"{name}_quantized"].astype(np.float64) * stored[f"{name}_scale"] for name in ("first", "second")
    )
    np.testing.assert_allclose(first, FIRST, atol=np.abs(FIRST).max() / 60)
    states = normed(ROWS)
    hidden = np.maximum(integers(states, min(0, states.min()), states.max()) @ first + BIAS, 0)
    expected = integers(hidden, 0, hidden.max()) @ second + states.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer(made), expected, atol=0.02)


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_each_calibration_gives_the_range_that_its_rule_says(source: Package, calibration: str) -> None:
    model = float_graph(source)
    generator = np.random.default_rng(2)
    batches = [{"x": generator.standard_normal((500, 8)).astype(np.float32)} for _ in range(4)]
    seen = np.concatenate([one["positive"].ravel() for one in activations(model, ["positive"], batches)])
    found = activation_ranges(model, ["positive"], batches, method=calibration, percentile=90.0)
    low, high = found["positive"]
    assert low == 0.0, "nothing is negative behind a relu"
    if calibration == "minmax":
        assert high == seen.max()
    elif calibration == "percentile":
        assert high == pytest.approx(np.quantile(seen, 0.95), abs=float(seen.max() / 50))
    else:
        assert 0 < high <= seen.max() * 1.001


def test_balancing_moves_the_channels_and_changes_no_answer(source: Package) -> None:
    model = float_graph(source)
    batches = [{"x": ROWS}]
    before = next(activations(model, ["y", "normed"], batches))
    assert balance(model, layer_names(model), batches, alpha=0.5) == 1
    after = next(activations(model, ["y", "normed"], batches))
    np.testing.assert_allclose(after["y"], before["y"], atol=1e-4)
    largest, rows = np.abs(before["normed"]).max(axis=0), np.abs(FIRST).max(axis=1)
    scale = np.sqrt(largest / rows)
    np.testing.assert_allclose(after["normed"], before["normed"] / scale, atol=1e-5)
    np.testing.assert_allclose(values_of(model.graph)["first"], FIRST * scale[:, np.newaxis], rtol=1e-5)
    # Half of the way each: both have the same largest value in a channel.
    np.testing.assert_allclose(np.abs(after["normed"]).max(axis=0), np.sqrt(largest * rows), rtol=1e-4)


def test_a_kept_layer_stays_float(source: Package, tmp_path: Path, materials: Materials) -> None:
    for index, technique in enumerate((Int8(keep=("inn*",)), Int8(mode="static", keep=("inner",)))):
        made = apply_int8(source, technique, tmp_path / str(index), materials)
        np.testing.assert_array_equal(values_of(graph_of(made))["first"], FIRST)
        assert "second" not in values_of(graph_of(made))


def test_an_unknown_layer_is_refused_with_the_names_that_there_are(source: Package) -> None:
    with pytest.raises(LayerUnknown, match="inner, outer"):
        kept_layers(float_graph(source), ["inner", "encoder.*"])


def test_what_is_integers_already_stays(source: Package, tmp_path: Path, materials: Materials) -> None:
    once = apply_int8(source, Int8(keep=("outer",)), tmp_path / "once", materials)
    twice = apply_int8(once, Int8(), tmp_path / "twice", materials)
    before, after = values_of(graph_of(once)), values_of(graph_of(twice))
    np.testing.assert_array_equal(before["first_quantized"], after["first_quantized"])
    assert "second_quantized" in after


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_convolution_is_quantized(mode: str, tmp_path: Path, materials: Materials) -> None:
    source = network(tmp_path / "source", convolution=True)
    rows = GENERATOR.standard_normal((2, 2, 6)).astype(np.float32)
    made = apply_int8(source, Int8(mode=mode, calibration_rows=64), tmp_path / "made", materials)
    assert any(array.dtype == np.int8 and array.size == 18 for array in values_of(graph_of(made)).values())
    np.testing.assert_allclose(answer(made, rows), answer(source, rows), atol=0.3)


def test_calibrating_a_model_of_texts_needs_rows(
    tiny_package_folder: Path, tmp_path: Path, materials: Materials
) -> None:
    with pytest.raises(TrainingDataMissing):
        apply_int8(read_package(tiny_package_folder), Int8(mode="static"), tmp_path / "made", materials)


@pytest.mark.filterwarnings("ignore")  # of nncf's own imports
def test_openvino_serves_its_integers_in_a_process_without_nncf(
    source: Package, tmp_path: Path, materials: Materials
) -> None:
    technique = Int8(engine="openvino", calibration_rows=64, keep=("outer",))
    made = apply_int8(source, technique, tmp_path / "made", materials)
    servable = made.manifest.servables[0]
    assert servable.engine == "openvino"
    assert {Path(entry.path).suffix for entry in made.manifest.files} == {".xml", ".data"}
    assert made.servable_bytes(servable) == sum(entry.size_bytes for entry in made.manifest.files)
    program = (
        "import sys; sys.modules['nncf'] = None; from pathlib import Path; import numpy as np\n"
        "from maas_package.package import read_package; from maas_engine.predictor import open_predictor\n"
        "predictor = open_predictor(read_package(Path(sys.argv[1])))\n"
        f"rows = np.array({ROWS.tolist()}, np.float32)\n"
        "print(predictor.predict({'x': rows}).outputs['y'].tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(made.folder)], capture_output=True, text=True, check=True, timeout=120
    )
    np.testing.assert_allclose(
        np.array(json.loads(done.stdout)), answer(source), atol=0.15 * np.abs(answer(source)).max()
    )
