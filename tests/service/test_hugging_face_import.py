"""Hugging Face folders made into packages: they answer what transformers answers (tests/data/hugging_face/make.py)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain_cluster import PlainCluster, serving
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from maas.cli.app import app
from maas_engine.predictor import open_predictor
from maas_formats.hugging_face import HuggingFaceFolderInvalid, HuggingFaceModelUnsupported, import_hugging_face
from maas_package.package import PackageHoldsPickle, read_package
from maas_package.trainable import WeightsInvalid, load_module
from maas_runtime.failures import InvalidInput

DATA = Path(__file__).resolve().parents[1] / "data" / "hugging_face"
FOLDERS = ("bert-classifier", "bert-encoder", "distilbert-classifier", "roberta-classifier")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "bert-classifier", tmp_path / "source"))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "bert-encoder", tmp_path / "encoder"))


def edit(location: Path, **changes: Any) -> None:
    document = json.loads(location.read_text()) if location.is_file() else {}
    location.write_text(json.dumps(document | changes))


def imported(source: Path, folder: Path, **options: Any) -> list[str]:
    notes: list[str] = []
    import_hugging_face(source, folder, log=notes.append, **options)
    return notes


@pytest.mark.parametrize("name", FOLDERS)
def test_every_engine_answers_what_transformers_answers(name: str, tmp_path: Path) -> None:
    expected = json.loads((DATA / name / "expected.json").read_text())
    imported(DATA / name, tmp_path / "package", max_tokens=expected["max_tokens"])
    package = read_package(tmp_path / "package")
    assert [one.engine for one in package.manifest.servables][:2] == ["onnxruntime", "torch"]
    texts = np.array([text.encode() for text in expected["texts"]], object)
    for servable in package.manifest.servables:
        predictor = open_predictor(package, servable)
        prepared = predictor.preparer.prepare({"text": texts})
        answer = predictor.compute(prepared)[package.manifest.outputs[0].name]
        predictor.close()
        assert prepared["input_ids"].tolist() == expected["input_ids"], "the texts are cut into the same word ids"
        tolerance = 2e-6 if servable.precision == "fp32" else 0.03
        np.testing.assert_allclose(answer, expected["answers"], atol=tolerance, err_msg=servable.engine)
    classifies = "classifier" in name
    assert package.manifest.task == ("text-classification" if classifies else "tensors")
    assert package.manifest.labels == (("negative", "neutral", "positive") if classifies else ())
    # It can be compressed: the trainable form is there, and answers alike.
    module = load_module(package)
    with torch.no_grad():
        again = module.eval()(torch.tensor(expected["input_ids"]))
    np.testing.assert_allclose(again.numpy(), expected["answers"], atol=2e-6)


def test_half_precision_weights_and_old_names_of_norms_are_read(source: Path, tmp_path: Path) -> None:
    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    weights = load_file(source / "model.safetensors")
    save_file({old(name): tensor.half() for name, tensor in weights.items()}, source / "model.safetensors")
    imported(source, tmp_path / "package", max_tokens=16)
    expected = json.loads((source / "expected.json").read_text())
    predictor = open_predictor(read_package(tmp_path / "package"))
    texts = np.array([text.encode() for text in expected["texts"]], object)
    np.testing.assert_allclose(predictor.predict({"text": texts}).outputs["logits"], expected["answers"], atol=2e-3)
    predictor.close()


def pooled_by(encoder: Path, *types: str, **modes: bool) -> None:
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"path": paths.get(one, one), "type": f"sentence_transformers.models.{one}"} for one in types]
    (encoder / "modules.json").write_text(json.dumps(modules))
    (encoder / "1_Pooling").mkdir(exist_ok=True)
    (encoder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8} | modes))


def test_a_sentence_encoder_pools_as_its_folder_says(encoder: Path, tmp_path: Path) -> None:
    pooled_by(encoder, "Transformer", "Pooling", "Normalize", pooling_mode_mean_tokens=True)
    edit(encoder / "sentence_bert_config.json", max_seq_length=16)
    imported(encoder, tmp_path / "package")
    package = read_package(tmp_path / "package")
    assert package.manifest.text is not None
    assert package.manifest.text.max_tokens == 16
    expected = json.loads((encoder / "expected.json").read_text())
    means = np.array(expected["answers"])
    predictor = open_predictor(package)
    texts = np.array([text.encode() for text in expected["texts"]], object)
    answer = predictor.predict({"text": texts}).outputs["sentence_embedding"]
    predictor.close()
    np.testing.assert_allclose(answer, means / np.linalg.norm(means, axis=1, keepdims=True), atol=2e-6)


def test_weights_that_are_pickles_beside_safetensors_are_not_read(source: Path, tmp_path: Path) -> None:
    (source / "pytorch_model.bin").write_bytes(b"\x80\x02whatever")
    assert "pytorch_model.bin is not read: model.safetensors has the weights" in imported(
        source, tmp_path / "package", max_tokens=16
    )


def without(source: Path, *names: str) -> None:
    weights = load_file(source / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if name not in names}, source / "model.safetensors")


def with_more(source: Path, name: str) -> None:
    weights = load_file(source / "model.safetensors")
    save_file(weights | {name: torch.zeros(2)}, source / "model.safetensors")


@pytest.mark.parametrize(
    ("break_it", "failure", "says"),
    [
        (lambda it: (it / "config.json").write_text("{"), HuggingFaceFolderInvalid, "config.json cannot be read"),
        (lambda it: (it / "config.json").write_text("[]"), HuggingFaceFolderInvalid, "no JSON object"),
        (lambda it: (it / "tokenizer.json").unlink(), HuggingFaceFolderInvalid, "no tokenizer.json"),
        (lambda it: (it / "model.safetensors").unlink(), HuggingFaceFolderInvalid, "neither model.safetensors nor"),
        (lambda it: edit(it / "config.json", model_type="llama"), HuggingFaceModelUnsupported, "'llama'"),
        (lambda it: edit(it / "config.json", model_type=[]), HuggingFaceModelUnsupported, "write the model as ONNX"),
        (lambda it: edit(it / "config.json", auto_map={"AutoModel": "m.M"}), HuggingFaceModelUnsupported, "auto_map"),
        (
            lambda it: edit(it / "config.json", architectures=["BertForTokenClassification"]),
            HuggingFaceModelUnsupported,
            "BertForTokenClassification",
        ),
        (lambda it: edit(it / "config.json", problem_type="regression"), HuggingFaceModelUnsupported, "regression"),
        (lambda it: edit(it / "config.json", hidden_act="swish"), HuggingFaceModelUnsupported, "swish"),
        (
            lambda it: edit(it / "config.json", position_embedding_type="relative_key"),
            HuggingFaceModelUnsupported,
            "relative positions",
        ),
        (lambda it: edit(it / "config.json", hidden_act=["gelu"]), HuggingFaceModelUnsupported, "activation"),
        (lambda it: edit(it / "config.json", vocab_size="many"), InvalidInput, "vocabulary_size"),
        (lambda it: edit(it / "config.json", hidden_size=80_000), InvalidInput, "hidden_size"),
        (lambda it: edit(it / "config.json", hidden_size=4096), WeightsInvalid, "does not fit the weights"),
        (lambda it: edit(it / "config.json", num_hidden_layers=3), HuggingFaceFolderInvalid, "encoder.layer.2"),
        (lambda it: edit(it / "config.json", num_hidden_layers=1), HuggingFaceModelUnsupported, "encoder.layer.1"),
        (lambda it: edit(it / "config.json", vocab_size=23), WeightsInvalid, "encoder.word.weight"),
        (lambda it: edit(it / "config.json", pad_token_id=1), HuggingFaceFolderInvalid, "fills rows up with 0"),
        (lambda it: without(it, "bert.pooler.dense.bias"), HuggingFaceFolderInvalid, "pooler.dense.bias"),
        (lambda it: with_more(it, "bert.adapter.weight"), HuggingFaceModelUnsupported, "adapter.weight"),
        (lambda it: (it / "model.safetensors").write_bytes(b"\x80\x04N."), PackageHoldsPickle, "model.safetensors"),
    ],
)
def test_a_folder_that_cannot_be_served_is_refused_with_a_reason(
    source: Path, tmp_path: Path, break_it: Callable[[Path], object], failure: type[InvalidInput], says: str
) -> None:
    break_it(source)
    with pytest.raises(failure, match=says) as raised:
        imported(source, tmp_path / "package", max_tokens=16)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "absent.safetensors", ""])
def test_shards_outside_the_folder_or_missing_are_refused(encoder: Path, tmp_path: Path, name: str) -> None:
    index = encoder / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    (tmp_path / "outside.safetensors").write_bytes((encoder / "model-00001-of-00002.safetensors").read_bytes())
    edit(index, weight_map=dict.fromkeys(shards, name))
    with pytest.raises(InvalidInput):
        imported(encoder, tmp_path / "package", max_tokens=16)


@pytest.mark.parametrize(
    ("types", "modes"),
    [
        (("Transformer", "Pooling", "Dense"), {"pooling_mode_mean_tokens": True}),
        (("Transformer", "Pooling"), {"pooling_mode_max_tokens": True}),
        (("Transformer", "Pooling"), {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}),
        (("Transformer", "Pooling"), {}),
    ],
)
def test_a_pooling_that_is_not_here_is_refused(
    encoder: Path, tmp_path: Path, types: tuple[str, ...], modes: dict[str, bool]
) -> None:
    pooled_by(encoder, *types, **modes)
    with pytest.raises(HuggingFaceModelUnsupported):
        imported(encoder, tmp_path / "package", max_tokens=16)


def test_the_command_tells_the_kind_and_stores_the_version(tmp_path: Path) -> None:
    with serving(PlainCluster()) as endpoint:
        environment = {"MAAS_ENDPOINT": endpoint, "MAAS_HOME": str(tmp_path / "home")}
        command = ["models", "import", str(DATA / "bert-classifier"), "mine", "--max-tokens", "16"]
        done = CliRunner().invoke(app, [*command, "--labels", "a,b,c", "--json"], env=environment)
        assert done.exit_code == 0, done.output
        document = json.loads(done.stdout)
        assert (document["version"], document["kind"]) == ("models/mine/versions/1", "hugging-face")
        forced = CliRunner().invoke(app, [*command[:4], "--kind", "package"], env=environment)
        assert forced.exit_code == 1
        assert "manifest.json" in forced.stderr
        unused = CliRunner().invoke(app, [*command, "--kind", "package"], env=environment)
        assert "leave the options out" in unused.stderr
        tokenizer = ["--tokenizer", str(DATA / "bert-classifier" / "tokenizer.json")]
        surplus = CliRunner().invoke(app, [*command, *tokenizer], env=environment)
        assert "leave --tokenizer out" in surplus.stderr
