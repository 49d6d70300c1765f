import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from maas_engine.engine import InputsRefused, ServableBroken, choose_servable, open_engine
from maas_engine.measure import measure_memory
from maas_engine.publish import BF16_TOLERANCE, FP32_TOLERANCE, agreeing, publish_servables
from maas_package.manifest import TENSORS, Manifest, Servable, TensorSpec
from maas_package.package import Package, read_package, write_package

TOKENS = {"tokens": np.array([[5, 6, 7, 8], [9, 10, 0, 0]], np.int64)}
TORCH = Servable("torch", "fp32", "model.safetensors")


@pytest.fixture
def package(tiny_package_folder: Path, tmp_path: Path) -> Package:
    return read_package(Path(shutil.copytree(tiny_package_folder, tmp_path / "package")))


def gemm_package(folder: Path) -> Package:
    """x [n, 3] to its sums [n, 2], in an ONNX file."""
    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor("w", TensorProto.FLOAT, [3, 2], [1.0] * 6)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "m.onnx")
    )
    manifest = Manifest(
        task=TENSORS,
        inputs=(TensorSpec("x", "FP32", (-1, 3)),),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        servables=(Servable("onnxruntime", "fp32", "m.onnx"),),
    )
    return write_package(folder, manifest)


def test_what_is_published_was_checked_against_the_trainable_form_and_measured(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maas_engine.engine.has_bf16", lambda: False)
    lines: list[str] = []
    published = publish_servables(package, ["a great story"], lines.append)
    assert read_package(package.folder) == published
    assert [(one.engine, one.precision) for one in published.manifest.servables] == [
        ("onnxruntime", "fp32"),
        ("torch", "fp32"),
    ]
    for servable in published.manifest.servables:
        assert servable.tolerance is not None
        assert servable.max_difference is not None
        assert servable.max_difference <= servable.tolerance
        [measurement] = servable.measurements
        assert measurement.rows_per_second > 0
        assert measurement.peak_memory_bytes > 10_000_000
    left_out = [line for line in lines if "left out" in line]
    # OpenVINO computes the LSTM's padding too (docs/decisions/0009-engines.md): nobody gets such an answer.
    assert any(line.startswith("openvino fp32 is left out: it differs by") for line in left_out)
    assert "torch bf16 is left out: this host cannot run it" in left_out
    assert any(line.startswith("onnxruntime fp32: ") for line in lines)


def test_bfloat16_is_published_where_the_processor_has_it_with_a_tolerance_of_its_own(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maas_engine.engine.has_bf16", lambda: True)
    published = publish_servables(package, (), lambda _: None)
    bf16 = next(one for one in published.manifest.servables if one.precision == "bf16")
    assert (bf16.engine, bf16.path) == ("torch", "model.safetensors")
    assert bf16.tolerance is not None
    assert bf16.tolerance >= BF16_TOLERANCE > FP32_TOLERANCE
    assert bf16.max_difference is not None
    assert 0 < bf16.max_difference <= bf16.tolerance


def test_a_package_without_a_trainable_form_is_only_measured(package: Package) -> None:
    (package.folder / "model.safetensors").unlink()
    served = write_package(package.folder, replace(package.manifest, weights=None, architecture=None, files=()))
    published = publish_servables(served, (), lambda _: None)
    [servable] = published.manifest.servables
    assert len(servable.measurements) == 1


def test_a_package_that_torch_serves_already_is_only_measured(package: Package) -> None:
    torch_only = write_package(package.folder, replace(package.manifest, servables=(TORCH,), files=()))
    published = publish_servables(torch_only)
    assert [(one.engine, one.precision) for one in published.manifest.servables] == [("torch", "fp32")]
    assert published.manifest.servables[0].measurements


def test_the_trainable_form_answers_as_its_onnx_file_does(package: Package) -> None:
    before = torch.get_num_threads()
    engine = open_engine(package, TORCH, threads=1)
    expected = open_engine(package, package.manifest.servables[0]).run(TOKENS)["logits"]
    np.testing.assert_allclose(engine.run(TOKENS)["logits"], expected, atol=1e-5)
    with pytest.raises(InputsRefused):
        engine.run({"tokens": np.full((1, 3), 1_000, np.int64)})
    engine.close()
    assert torch.get_num_threads() == before


def test_torch_takes_tensors_that_it_must_not_write_to(package: Package) -> None:
    received = np.frombuffer(TOKENS["tokens"].tobytes(), np.int64).reshape(2, 4)
    engine = open_engine(package, TORCH)
    assert engine.run({"tokens": received})["logits"].shape == (2, 2)
    engine.close()


def test_torch_runs_nothing_but_the_trainable_form(package: Package) -> None:
    with pytest.raises(ServableBroken):
        open_engine(package, replace(TORCH, path="tokenizer.json"))


def test_openvino_answers_as_onnxruntime_does(tmp_path: Path) -> None:
    package = gemm_package(tmp_path / "package")
    engine = open_engine(package, Servable("openvino", "fp32", "m.onnx"))
    for rows in (1, 5, 2):
        x = np.random.default_rng(rows).standard_normal((rows, 3)).astype(np.float32)
        answer = engine.run({"x": x})["y"]
        np.testing.assert_allclose(answer, np.repeat(x.sum(axis=1, keepdims=True), 2, axis=1), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputsRefused):
        engine.run({"x": np.ones((1, 4), np.float32)})
    engine.close()
    (package.folder / "m.onnx").write_bytes(b"not onnx")
    with pytest.raises(ServableBroken):
        open_engine(package, Servable("openvino", "fp32", "m.onnx"))


def test_an_engine_that_cannot_load_a_candidate_leaves_it_out(package: Package) -> None:
    reference = package.manifest.servables[0]
    lines: list[str] = []
    same = Servable("onnxruntime", "fp32", reference.path)
    broken = Servable("onnxruntime", "fp32", "tokenizer.json")
    assert list(agreeing(package, (same, broken), reference, [TOKENS], lines.append)) == [
        replace(same, tolerance=FP32_TOLERANCE, max_difference=0.0)
    ]
    assert len(lines) == 1
    assert lines[0].startswith("onnxruntime fp32 is left out: onnxruntime cannot load tokenizer.json")


def test_memory_is_that_of_the_engine_alone(package: Package) -> None:
    onnxruntime = measure_memory(package, package.manifest.servables[0])
    trainable = measure_memory(package, TORCH)
    assert onnxruntime.peak_bytes < trainable.peak_bytes


def test_an_engine_is_asked_for_by_name_and_precision(package: Package) -> None:
    onnx_file = package.manifest.servables[0]
    manifest = replace(package.manifest, servables=(onnx_file, TORCH))
    several = replace(package, manifest=manifest)
    assert choose_servable(several, "torch") == TORCH
    assert choose_servable(several, "torch:fp32") == TORCH
    assert choose_servable(several, "onnxruntime") == onnx_file
