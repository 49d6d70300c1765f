"""compile and bf16: the same answers from another engine, or from half the bytes."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from maas_compression.materials import Materials
from maas_compression.recipe import Bf16, Compile, Int8
from maas_compression.techniques.bf16 import apply_bf16, store_halves
from maas_compression.techniques.compile import apply_compile
from maas_compression.techniques.graphs import float_graph
from maas_compression.techniques.int8 import apply_int8
from maas_engine.engine import ServableMissing
from maas_engine.host import has_bf16
from maas_engine.predictor import open_predictor
from maas_package.manifest import Manifest, Servable, TensorSpec
from maas_package.package import Package, read_package, write_package

TEXTS = ["a great story", "it is a bore"]


@pytest.fixture
def source(tiny_package_folder: Path, tmp_path: Path) -> Package:
    shutil.copytree(tiny_package_folder, tmp_path / "source")
    return read_package(tmp_path / "source")


@pytest.fixture
def materials(tmp_path: Path) -> Materials:
    return Materials(scratch=tmp_path / "scratch")


def logits(package: Package) -> np.ndarray:
    predictor = open_predictor(package)
    try:
        return predictor.predict_texts(TEXTS).outputs["logits"]
    finally:
        predictor.close()


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_compile_leaves_the_engine_that_was_asked_for_and_its_files(
    engine: str, source: Package, tmp_path: Path, materials: Materials
) -> None:
    made = apply_compile(source, Compile(engine=engine, precision="float32"), tmp_path / "made", materials)
    assert [one.engine for one in made.manifest.servables] == [engine]
    assert made.manifest.servables[0].measurements
    assert read_package(tmp_path / "made") == made
    paths = {entry.path for entry in made.manifest.files}
    assert ("model.safetensors" in paths) == (engine == "torch") == (made.manifest.architecture is not None)
    assert ("servables/onnxruntime/model.onnx" in paths) == (engine != "torch")
    np.testing.assert_allclose(logits(made), logits(source), atol=1e-4)


def test_openvino_serves_the_same_file(tmp_path: Path, materials: Materials) -> None:
    weight = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "plain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "plain" / "model.onnx"
    path.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    manifest = Manifest(
        task="tensors",
        inputs=(TensorSpec("x", "FP32", (-1, 6)),),
        outputs=(TensorSpec("y", "FP32", (-1, 3)),),
        servables=(Servable("onnxruntime", "fp32", "model.onnx"),),
    )
    source = write_package(path.parent, manifest)
    made = apply_compile(source, Compile(engine="openvino", precision="float32"), tmp_path / "made", materials)
    assert [one.engine for one in made.manifest.servables] == ["openvino"]
    rows = np.ones((2, 6), np.float32)
    predictor = open_predictor(made)
    np.testing.assert_allclose(predictor.predict({"x": rows}).outputs["y"], rows @ weight, atol=1e-5)
    predictor.close()


def test_compile_takes_the_fastest_that_there_is(source: Package, tmp_path: Path, materials: Materials) -> None:
    made = apply_compile(source, Compile(), tmp_path / "made", materials)
    assert len(made.manifest.servables) == 1
    np.testing.assert_allclose(logits(made), logits(source), atol=0.05)


def test_compile_after_int8_keeps_the_integers(source: Package, tmp_path: Path, materials: Materials) -> None:
    integers = apply_int8(source, Int8(), tmp_path / "integers", materials)
    made = apply_compile(integers, Compile(engine="onnxruntime"), tmp_path / "made", materials)
    assert made.manifest.servables[0].precision == "int8"
    np.testing.assert_array_equal(logits(made), logits(integers))


def test_compile_says_when_nothing_can_serve_it_so(source: Package, tmp_path: Path, materials: Materials) -> None:
    integers = apply_int8(source, Int8(), tmp_path / "integers", materials)
    with pytest.raises(ServableMissing, match="torch"):
        apply_compile(integers, Compile(engine="torch"), tmp_path / "made", materials)
    assert not (tmp_path / "made").exists()


def test_bf16_halves_the_file_and_answers_as_halves_do(source: Package, tmp_path: Path, materials: Materials) -> None:
    made = apply_bf16(source, Bf16(), tmp_path / "made", materials)
    model = onnx.load(str(made.path(made.manifest.servables[0].path)))
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in float_graph(source).graph.initializer}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    large = {name: value for name, value in before.items() if value.dtype == np.float32 and value.size >= 64}
    assert large
    for name, value in large.items():
        np.testing.assert_array_equal(stored[f"{name}_halves"], value.astype(np.float16))
    np.testing.assert_allclose(logits(made), logits(source), atol=2e-3)
    assert made.manifest.servables[0].precision == "fp16"
    assert ("openvino" in {one.engine for one in made.manifest.servables}) == has_bf16()


def test_weights_beyond_float16_are_stored_as_bfloat16(source: Package) -> None:
    model = float_graph(source)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "embedding")
    value = numpy_helper.to_array(weight).copy()
    value[3, 2] = 1e6
    weight.CopyFrom(numpy_helper.from_array(value, "embedding"))
    store_halves(model)
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "embedding_halves")
    assert stored.data_type == TensorProto.BFLOAT16
    np.testing.assert_allclose(numpy_helper.to_array(stored).astype(np.float32), value, rtol=2**-8)
