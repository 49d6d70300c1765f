"""A TensorFlow SavedModel (tests/data/saved_model/make.py) made into a package, or refused with what to do."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from maas.formats import SourceKind
from maas_engine.predictor import open_predictor
from maas_formats.kinds import detect
from maas_formats.saved_model import ConverterMissing, SavedModelReachesOut, import_saved_model
from maas_package.package import read_package

SOURCE = Path(__file__).resolve().parents[1] / "data" / "saved_model"
HAS_CONVERTER = all(importlib.util.find_spec(name) for name in ("tensorflow", "tf2onnx"))


def imported(source: Path, folder: Path) -> None:
    assert detect(source) is SourceKind.SAVED_MODEL
    import_saved_model(source, folder, log=lambda _: None)


@pytest.mark.skipif(not HAS_CONVERTER, reason="the extra maas[tensorflow] is not installed")
def test_a_saved_model_answers_as_tensorflow_does(tmp_path: Path) -> None:
    imported(SOURCE, tmp_path / "package")
    package = read_package(tmp_path / "package")
    assert [(one.name, one.shape) for one in package.manifest.inputs] == [("x", (-1, 3))]
    predictor = open_predictor(package)
    answer = predictor.predict({"x": np.array([[1, 1, 1], [-1, 0, 0]], np.float32)}).outputs["y"]
    predictor.close()
    np.testing.assert_allclose(answer, [[5, 8], [-1, -1]])


@pytest.mark.skipif(HAS_CONVERTER, reason="the extra maas[tensorflow] is installed")
def test_without_tensorflow_the_refusal_says_which_command_to_run_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConverterMissing, match=r"python -m tf2onnx\.convert --saved-model saved_model --output"):
        imported(SOURCE, tmp_path / "package")


@pytest.mark.parametrize("operation", ["PyFunc", "ReadFile", "WriteFile"])
def test_a_graph_that_reaches_beyond_the_model_is_refused_before_it_is_loaded(tmp_path: Path, operation: str) -> None:
    source = Path(shutil.copytree(SOURCE, tmp_path / "source"))
    graph = source / "saved_model.pb"
    graph.write_bytes(graph.read_bytes() + b"\x12" + bytes([len(operation)]) + operation.encode())
    with pytest.raises(SavedModelReachesOut, match=operation):
        imported(source, tmp_path / "package")
