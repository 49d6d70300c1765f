"""The examples of docs/custom-code.md, installed as a distribution and run by a real worker."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from one_worker import running_worker
from onnx import TensorProto, helper, numpy_helper

from maas_package.manifest import TENSORS, Manifest, Servable, StepRef, TensorSpec
from maas_package.package import write_package

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "custom-code.md").read_text()
STEP, ENGINE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STEP_ENTRY, ENGINE_ENTRY = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
PIXELS = np.array([[255, 0, 0, 0], [0, 0, 0, 255], [0, 255, 0, 0]], np.uint8)
CONFIG = {"mean": 127.5, "scale": 127.5}


def distribution(folder: Path, name: str, code: str, entry: str) -> Path:
    """What `pip install` leaves of a distribution with one module."""
    (folder / f"{name}-1.0.dist-info").mkdir(parents=True)
    (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(entry)
    (folder / f"{name}.py").write_text(code)
    return folder


def scores_graph(path: Path) -> None:
    """x [n, 4] to scores [n, 2]: the first two numbers against the last two."""
    weights = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["scores"])],
        "scores",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))


def pixels_package(folder: Path, config: dict[str, Any] = CONFIG, output: str = "class") -> Path:
    scores_graph(folder / "servables" / "model.onnx")
    manifest = Manifest(
        task=TENSORS,
        inputs=(TensorSpec("pixels", "UINT8", (-1, 4)),),
        outputs=(TensorSpec(output, "INT64", (-1,)),),
        servables=(Servable("onnxruntime", "fp32", "servables/model.onnx"),),
        steps=(StepRef("pixels", config),),
    )
    write_package(folder, manifest)
    return folder


def test_the_step_of_the_page_runs_around_the_engine(tmp_path: Path) -> None:
    installed = distribution(tmp_path / "site", "pixels", STEP, STEP_ENTRY)
    package = pixels_package(tmp_path / "package")
    with running_worker(package, tmp_path, import_from=installed) as worker:
        assert worker.report["failure"] == ""
        [(reply, outputs)] = worker.ask({"pixels": ("UINT8", PIXELS)}, rows=(1, 2))
    assert reply.refusal is None
    assert outputs == {"class": [0, 1, 0]}


def test_the_engine_of_the_page_runs(tmp_path: Path) -> None:
    installed = distribution(tmp_path / "site", "nearest", ENGINE, ENGINE_ENTRY)
    package = tmp_path / "package"
    package.mkdir()
    np.save(package / "points.npy", np.array([[7, 0.0, 0.0], [8, 1.0, 1.0]], np.float32))
    manifest = Manifest(
        task=TENSORS,
        inputs=(TensorSpec("x", "FP32", (-1, 2)),),
        outputs=(TensorSpec("label", "INT64", (-1,)),),
        servables=(Servable("nearest", "fp32", "points.npy"),),
    )
    write_package(package, manifest)
    with running_worker(package, tmp_path, import_from=installed) as worker:
        assert (worker.report["failure"], worker.report["engine"]) == ("", "nearest")
        x = np.array([[0.1, 0.2], [2, 2]], np.float32)
        [(_, outputs)] = worker.ask({"x": ("FP32", x)}, rows=(1, 1))
    assert outputs == {"label": [7, 8]}
    with running_worker(package, tmp_path) as worker:
        assert worker.report["reason"] == "SERVABLE_MISSING"


def replaced(old: str, new: str) -> Callable[[], str]:
    assert old in STEP
    return lambda: STEP.replace(old, new)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (lambda: "import nothing_of_this_name", "STEP_UNKNOWN"),
        (replaced('config["mean"]', 'config["average"]'), "STEP_CONFIG_INVALID"),
        (replaced('return {"x": ', 'return {"y": '), "INPUTS_REFUSED"),
        (replaced('return {"class": ', 'return {"number": '), "OUTPUTS_WRONG"),
        (replaced(".argmax(axis=1)", ".argmax(axis=1).astype(np.int32)"), "OUTPUTS_WRONG"),
        (replaced(".argmax(axis=1)", ".argmax(axis=1)[1:]"), "STEP_FAILED"),
        (replaced('return {"x": ', 'return [1] or {"x": '), "STEP_FAILED"),
        (replaced('return {"x": ', 'return 1 / 0, {"x": '), "STEP_FAILED"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_at_load_with_a_reason(
    tmp_path: Path, code: Callable[[], str], reason: str
) -> None:
    installed = distribution(tmp_path / "site", "pixels", code(), STEP_ENTRY)
    with running_worker(pixels_package(tmp_path / "package"), tmp_path, import_from=installed) as worker:
        assert worker.report["reason"] == reason, worker.report["failure"]


def test_a_step_that_is_not_installed_is_refused_at_load(tmp_path: Path) -> None:
    with running_worker(pixels_package(tmp_path / "package"), tmp_path) as worker:
        assert worker.report["reason"] == "STEP_UNKNOWN"
        assert "'pixels'" in worker.report["failure"]


def test_rows_that_a_step_refuses_fail_only_the_caller_who_sent_them(tmp_path: Path) -> None:
    check = '        if (inputs["pixels"] == 99).any():\n            raise ValueError("99 is no colour")\n'
    code = STEP.replace("    def before(self, inputs):\n", "    def before(self, inputs):\n" + check)
    installed = distribution(tmp_path / "site", "pixels", code, STEP_ENTRY)
    with running_worker(pixels_package(tmp_path / "package"), tmp_path, import_from=installed) as worker:
        rows = np.vstack([PIXELS, np.full((1, 4), 99, np.uint8)])
        replies = worker.ask({"pixels": ("UINT8", rows)}, rows=(3, 1))
    (good, outputs), (bad, _) = replies
    assert (good.refusal, outputs) == (None, {"class": [0, 1, 0]})
    assert bad.refusal is not None
    assert (bad.refusal.reason, bad.refusal.invalid) == ("STEP_REFUSED", True)
    assert "99 is no colour" in bad.refusal.message


def test_a_step_that_changes_the_number_of_rows_fails_the_batch(tmp_path: Path) -> None:
    # Rows that it gets while it is warmed up are never three.
    code = STEP.replace(
        'outputs["scores"].argmax(axis=1)',
        'outputs["scores"].argmax(axis=1)[: 2 if len(inputs["pixels"]) == 3 else None]',
    )
    installed = distribution(tmp_path / "site", "pixels", code, STEP_ENTRY)
    with running_worker(pixels_package(tmp_path / "package"), tmp_path, import_from=installed) as worker:
        [(reply, _)] = worker.ask({"pixels": ("UINT8", PIXELS)}, rows=(3,))
    assert reply.refusal is not None
    assert (reply.refusal.reason, reply.refusal.invalid) == ("STEP_FAILED", False)


def test_a_step_may_say_what_it_is_warmed_up_with(tmp_path: Path) -> None:
    refuse = '        if inputs["pixels"].max() < 2:\n            raise ValueError("too dark")\n'
    code = STEP.replace("    def before(self, inputs):\n", "    def before(self, inputs):\n" + refuse)
    dark = distribution(tmp_path / "dark", "pixels", code, STEP_ENTRY)
    package = pixels_package(tmp_path / "package")
    with running_worker(package, tmp_path, import_from=dark) as worker:
        assert worker.report["reason"] == "STEP_REFUSED"
    code += '\n    def examples(self, rows):\n        return {"pixels": np.full((rows, 4), 200, np.uint8)}\n'
    bright = distribution(tmp_path / "bright", "pixels", code, STEP_ENTRY)
    with running_worker(package, tmp_path, import_from=bright) as worker:
        assert worker.report["failure"] == ""
