"""Versions written as what others read: a package folder, an ONNX file, a Triton model repository."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from plain_cluster import PlainCluster, serving
from test_onnx_import import classifier, save, two_inputs, value
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from typer.testing import CliRunner

from maas.cli.app import app
from maas_package.package import read_package
from maas_package.text import build_word_tokenizer


class Console:
    """The command, in front of a cluster; its answers are JSON."""

    def __init__(self, endpoint: str, home: Path) -> None:
        self.environment = {"MAAS_ENDPOINT": endpoint, "MAAS_HOME": str(home)}

    def __call__(self, *arguments: object) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["models", *map(str, arguments), "--json"], env=self.environment)
        assert done.exit_code == 0, done.output
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def refused(self, *arguments: object) -> str:
        done = CliRunner().invoke(app, ["models", *map(str, arguments)], env=self.environment)
        assert done.exit_code == 1, done.output
        return done.stderr


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    with serving(PlainCluster()) as endpoint:
        yield Console(endpoint, tmp_path / "home")


def triton_config(folder: Path) -> ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def test_a_version_is_exported_as_the_package_that_was_imported(console: Console, tmp_path: Path) -> None:
    console("import", two_inputs(tmp_path / "any.onnx"), "mine")
    console("alias", "mine@1", "production")
    console("export", "mine@production", tmp_path / "package")
    first = read_package(tmp_path / "package")
    made = console("import", tmp_path / "package", "again")
    assert (made["kind"], made["version"]) == ("package", "models/again/versions/1")
    console("export", "models/again/versions/1", tmp_path / "twice", "--format", "package")
    assert read_package(tmp_path / "twice").manifest == first.manifest


def test_a_version_goes_through_an_oci_layout_and_keeps_every_hash(console: Console, tmp_path: Path) -> None:
    console("import", two_inputs(tmp_path / "any.onnx"), "mine")
    made = console("export", "mine@1", tmp_path / "layout", "--format", "oci")
    assert made["files"] == ["oci-layout", "index.json", "blobs/sha256"]
    assert console("import", tmp_path / "layout", "again")["kind"] == "oci"
    first, again = (console("show", f"{model}@1")["files"] for model in ("mine", "again"))
    assert {(one["path"], one["blob"]) for one in first} == {(one["path"], one["blob"]) for one in again}
    assert "leave the options out" in console.refused("import", tmp_path / "layout", "more", "--labels", "a,b")


def test_an_exported_onnx_file_answers_alike(console: Console, tmp_path: Path) -> None:
    two_inputs(tmp_path / "any.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    console("import", tmp_path / "any.onnx", "mine")
    made = console("export", "mine", tmp_path / "out", "--format", "onnx")
    assert made["files"] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    inputs = {"features": np.eye(3, dtype=np.float32)[:1], "flag": [[True]], "name": np.array(["a"], object)}
    assert session.run(["score"], inputs)[0].tolist() == [[0, 1]]
    assert "not empty" in console.refused("export", "mine", tmp_path / "out", "--format", "onnx")


def test_a_model_of_texts_is_exported_with_its_tokenizer_and_says_so(console: Console, tmp_path: Path) -> None:
    build_word_tokenizer(["one two three"], 12).save(tmp_path / "words.json")
    options = ("--tokenizer", tmp_path / "words.json", "--max-tokens", 16, "--labels", "no,yes")
    console("import", classifier(tmp_path / "any.onnx"), "mine", *options)
    made = console("export", "mine", tmp_path / "onnx", "--format", "onnx")
    assert made["files"] == ["model.onnx", "tokenizer.json"]
    assert made["notes"] == [
        "model.onnx takes word ids (ids), not texts: tokenizer.json makes them, at most 16 of a text",
        "its classes are, in this order: no, yes",
    ]
    made = console("export", "mine", tmp_path / "triton", "--format", "triton")
    assert made["files"] == ["mine/1/model.onnx", "mine/config.pbtxt", "mine/labels.txt"]
    assert "Triton takes the tensor ids only" in made["notes"][0]
    config = triton_config(tmp_path / "triton" / "mine")
    assert (config.name, config.backend, config.max_batch_size) == ("mine", "onnxruntime", 64)
    assert config.HasField("dynamic_batching")
    assert [(one.name, one.data_type, one.dims) for one in config.input] == [("ids", DataType.TYPE_INT64, [-1])]
    [logits] = config.output
    assert (logits.name, logits.data_type, logits.dims) == ("logits", DataType.TYPE_FP32, [2])
    assert (tmp_path / "triton" / "mine" / logits.label_filename).read_text() == "no\nyes\n"


def test_several_models_fit_into_one_triton_repository(console: Console, tmp_path: Path) -> None:
    console("import", two_inputs(tmp_path / "any.onnx"), "mine")
    console("import", two_inputs(tmp_path / "any.onnx"), "mine")
    console("import", two_inputs(tmp_path / "any.onnx", rows=2), "other")
    console("export", "mine@2", tmp_path / "triton", "--format", "triton")
    console("export", "other", tmp_path / "triton", "--format", "triton")
    assert (tmp_path / "triton" / "mine" / "2" / "model.onnx").is_file()
    tensors = triton_config(tmp_path / "triton" / "mine")
    assert [(one.data_type, one.dims, one.HasField("reshape")) for one in tensors.input] == [
        (DataType.TYPE_FP32, [3], False),
        (DataType.TYPE_BOOL, [1], False),
        (DataType.TYPE_STRING, [1], True),
    ]
    fixed = triton_config(tmp_path / "triton" / "other")
    assert (fixed.max_batch_size, fixed.HasField("dynamic_batching")) == (0, False)
    assert [one.dims for one in fixed.input] == [[2, 3], [2, 1], [2]]


def test_names_of_tensors_that_need_quoting_are_quoted(console: Console, tmp_path: Path) -> None:
    name = 'a "quoted"\\ name'
    graph = save(
        tmp_path / "any.onnx",
        [helper.make_node("Relu", [name], ["über"])],
        [value(name, TensorProto.FLOAT, ["n", 3])],
        [value("über", TensorProto.FLOAT, ["n", 3])],
    )
    console("import", graph, "mine")
    console("export", "mine", tmp_path / "triton", "--format", "triton")
    config = triton_config(tmp_path / "triton" / "mine")
    assert (config.input[0].name, config.output[0].name) == (name, "über")
