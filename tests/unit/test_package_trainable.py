import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from maas_package.architectures import (
    ArchitectureConfigInvalid,
    ArchitectureUnknown,
    architecture_names,
    load_architecture,
)
from maas_package.architectures.lstm_text_classifier import LstmTextClassifierConfig
from maas_package.manifest import ArchitectureRef, FixedPointStorage, Float32Storage, TensorSpec
from maas_package.package import Package, read_package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import (
    ONNX_TOLERANCE,
    ExportDiffers,
    TrainableFormMissing,
    WeightsInvalid,
    export_onnx,
    load_module,
    load_weights,
    package_trained_model,
    save_weights,
)

LSTM = load_architecture("lstm-text-classifier")
SMALL = {"vocabulary_size": 40, "embedding_size": 6, "hidden_size": 8}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        yield


@pytest.fixture
def package(tiny_package_folder: Path) -> Package:
    return read_package(tiny_package_folder)


def test_the_architectures_are_the_entry_points() -> None:
    names = {"bert-sentence-encoder", "bert-text-classifier", "lstm-text-classifier"}
    assert names <= set(architecture_names())
    with pytest.raises(ArchitectureUnknown):
        load_architecture("perceptron")


def test_what_serves_does_not_import_torch() -> None:
    modules = "maas_package.inputs, maas_package.architectures, maas_package.weight_statistics, maas.example_data"
    engine = "maas_engine.measure, maas_engine.quality, maas_engine.onnxruntime_engine, maas_engine.memory_probe"
    check = f"import sys, {modules}, {engine}; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_the_default_configuration_is_the_seeds() -> None:
    assert LSTM.default_config == asdict(LstmTextClassifierConfig(10_000, 100, 256, 2, 0.5))
    assert LSTM.parse_config({"hidden_size": 8})["vocabulary_size"] == 10_000


@pytest.mark.parametrize(
    "config",
    [
        {"hidden": 8},
        {"hidden_size": 0},
        {"hidden_size": "8"},
        {"hidden_size": True},
        {"vocabulary_size": 10**9},
        {"classes": 1},
        {"dropout": 1.0},
        {"dropout": None},
    ],
)
def test_a_configuration_out_of_bounds_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureConfigInvalid):
        LSTM.parse_config(config)


def test_padding_never_changes_an_answer() -> None:
    module = LSTM.build(SMALL).eval()
    short = torch.tensor([[5, 6, 7]])
    beside_a_long_one = torch.tensor([[5, 6, 7, 0, 0, 0], [9, 8, 7, 6, 5, 4]])
    torch.testing.assert_close(module(beside_a_long_one)[:1], module(short), rtol=0, atol=1e-6)


def test_a_module_comes_back_from_its_package(package: Package) -> None:
    module = load_module(package)
    stored = load_weights(package.path("model.safetensors"), Float32Storage())
    assert not module.training
    assert all(torch.equal(tensor, stored[name]) for name, tensor in module.state_dict().items())


def test_loading_leaves_the_random_generator_alone(package: Package) -> None:
    before = torch.get_rng_state()
    load_module(package)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_do_not_fit_the_architecture_are_refused(package: Package) -> None:
    # The second would take 16 GB if it were built before it is compared.
    for config in (SMALL | {"hidden_size": 9}, SMALL | {"vocabulary_size": 1_000_000, "embedding_size": 4096}):
        changed = replace(package.manifest, architecture=ArchitectureRef("lstm-text-classifier", config))
        with pytest.raises(WeightsInvalid):
            load_module(replace(package, manifest=changed))


def test_a_package_without_a_trainable_form_cannot_be_loaded(package: Package) -> None:
    with pytest.raises(TrainableFormMissing):
        load_module(replace(package, manifest=replace(package.manifest, weights=None)))


@pytest.mark.parametrize(("fraction_bits", "dtype"), [(5, torch.int8), (10, torch.int16), (20, torch.int32)])
def test_fixed_point_weights_are_integers_and_come_back_rounded(
    tmp_path: Path, fraction_bits: int, dtype: torch.dtype
) -> None:
    module = LSTM.build(SMALL)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.clamp_(-3, 3)
    scale = 2.0**-fraction_bits
    storage = FixedPointStorage(dict.fromkeys(["embedding.weight", "output.bias"], scale))
    save_weights(module, tmp_path / "w.safetensors", storage)
    from safetensors.torch import load_file

    assert load_file(tmp_path / "w.safetensors")["embedding.weight"].dtype == dtype
    back = load_weights(tmp_path / "w.safetensors", storage)
    for name, tensor in module.state_dict().items():
        expected = torch.round(tensor / scale) * scale if name in storage.scales else tensor
        assert torch.equal(back[name], expected)


def test_fixed_point_weights_too_large_for_32_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsInvalid):
        save_weights(LSTM.build(SMALL), tmp_path / "w.safetensors", FixedPointStorage({"embedding.weight": 2.0**-40}))


def test_a_scale_without_its_tensor_is_refused(tmp_path: Path) -> None:
    module = LSTM.build(SMALL)
    with pytest.raises(WeightsInvalid):
        save_weights(module, tmp_path / "w.safetensors", FixedPointStorage({"nothing": 0.5}))
    save_weights(module, tmp_path / "w.safetensors")
    with pytest.raises(WeightsInvalid):
        load_weights(tmp_path / "w.safetensors", FixedPointStorage({"embedding.weight": 0.5}))


def test_a_fixed_point_package_serves_its_rounded_weights(tmp_path: Path) -> None:
    module = LSTM.build(SMALL)
    package = package_trained_model(
        tmp_path / "package",
        architecture=LSTM,
        config=SMALL,
        module=module,
        tokenizer=build_word_tokenizer(["a b c"], 40),
        labels=("no", "yes"),
        storage=FixedPointStorage(dict.fromkeys(module.state_dict(), 2.0 ** (-4))),
    )
    loaded = load_module(read_package(tmp_path / "package"))
    assert not torch.equal(loaded.state_dict()["output.weight"], module.state_dict()["output.weight"])
    embedded = onnx.load(str(package.path(package.manifest.servables[0].path)))
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in embedded.graph.initializer}
    assert (weights["output_weight"] == loaded.state_dict()["output.weight"].numpy()).all()


def test_the_lstm_exports_to_few_operators_that_answer_alike(package: Package) -> None:
    servable = package.manifest.servables[0]
    model = onnx.load(str(package.path(servable.path)))
    assert [node.op_type for node in model.graph.node].count("LSTM") == 1
    assert len(model.graph.node) == 10
    assert servable.tolerance == ONNX_TOLERANCE
    assert servable.max_difference is not None
    assert 0 <= servable.max_difference <= 1e-6


class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8, padding_idx=0)
        self.output = nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.output(self.embedding(tokens).sum(1))
        return logits


class BagOfWordsArchitecture:
    """What a user adds: nothing of ONNX in it."""

    name = "bag-of-words"

    @property
    def default_config(self) -> dict[str, Any]:
        return {}

    def parse_config(self, config: Mapping[str, object]) -> dict[str, Any]:
        return dict(config)

    def build(self, config: Mapping[str, object]) -> nn.Module:
        return BagOfWords()

    def inputs(self, config: Mapping[str, object]) -> tuple[TensorSpec, ...]:
        return (TensorSpec("tokens", "INT64", (-1, -1)),)

    def outputs(self, config: Mapping[str, object]) -> tuple[TensorSpec, ...]:
        return (TensorSpec("logits", "FP32", (-1, 2)),)

    def onnx_model(self, module: nn.Module, config: Mapping[str, object]) -> onnx.ModelProto | None:
        return None

    def example_inputs(self, config: Mapping[str, object], rows: int, seed: int) -> dict[str, Tensor]:
        return {"tokens": torch.randint(0, 50, (rows, 5 + seed), generator=torch.Generator().manual_seed(seed))}


def test_an_architecture_without_a_graph_of_its_own_is_exported_by_torch(tmp_path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    difference = export_onnx(BagOfWords(), BagOfWordsArchitecture(), {}, tmp_path / "model.onnx")
    assert difference <= ONNX_TOLERANCE


class WrongGraph(BagOfWordsArchitecture):
    def onnx_model(self, module: nn.Module, config: Mapping[str, object]) -> onnx.ModelProto | None:
        helper = onnx.helper
        tokens = helper.make_tensor_value_info("tokens", onnx.TensorProto.INT64, ["rows", "time"])
        logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["rows", 2])
        nodes = [
            helper.make_node("Slice", ["tokens", "begin", "end", "axis"], ["two"]),
            helper.make_node("Cast", ["two"], ["logits"], to=onnx.TensorProto.FLOAT),
        ]
        import numpy as np

        constants = {"begin": 0, "end": 2, "axis": 1}
        initializers = [onnx.numpy_helper.from_array(np.array([v], np.int64), k) for k, v in constants.items()]
        graph = helper.make_graph(nodes, "wrong", [tokens], [logits], initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_graph_that_answers_otherwise_than_the_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportDiffers):
        export_onnx(BagOfWords(), WrongGraph(), {}, tmp_path / "model.onnx")


BERT = load_architecture("bert-text-classifier")
BERT_SIZES = {"vocabulary_size": 40, "hidden_size": 16, "layers": 2, "heads": 4, "inner_size": 24, "positions": 32}


def test_one_size_for_all_layers_is_the_same_network_as_that_size_for_each() -> None:
    for_each = BERT_SIZES | {"heads": [4, 4], "inner_size": [24, 24], "head_size": 4}
    one, other = BERT.build(BERT_SIZES).eval(), BERT.build(for_each).eval()
    other.load_state_dict(one.state_dict())
    tokens = BERT.example_inputs(BERT_SIZES, 3, 0)["input_ids"]
    assert torch.equal(one(tokens), other(tokens))
    assert BERT.parse_config(for_each)["heads"] == [4, 4]


@pytest.mark.parametrize(("heads", "inner_size"), [([1, 3], [8, 24]), ([0, 2], [24, 0]), ([0, 0], [0, 0])])
def test_a_network_whose_layers_differ_in_size_is_exported(
    tmp_path: Path, heads: list[int], inner_size: list[int]
) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    config = BERT.parse_config(BERT_SIZES | {"heads": heads, "inner_size": inner_size, "head_size": 4})
    package = package_trained_model(
        tmp_path / "package",
        architecture=BERT,
        config=config,
        module=BERT.build(config),
        tokenizer=build_word_tokenizer(["a b c"], 40),
        labels=("no", "yes"),
    )
    assert read_package(tmp_path / "package") == package
    assert load_module(package).state_dict().keys() == BERT.build(config).state_dict().keys()


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": [4, 4]},
        {"heads": [4], "head_size": 4},
        {"heads": [4, -1], "head_size": 4},
        {"heads": [4, "4"], "head_size": 4},
        {"heads": 0},
        {"inner_size": [24, 24, 24]},
        {"inner_size": [24, 70_000]},
        {"head_size": -1},
    ],
)
def test_sizes_by_layer_that_fit_no_network_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArchitectureConfigInvalid):
        BERT.parse_config(BERT_SIZES | wrong)
