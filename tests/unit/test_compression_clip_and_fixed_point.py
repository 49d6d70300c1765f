"""clip's rules, and clip and fixed_point of graphs that nobody can train."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from compression_graphs import SMALL_LSTM, answer, graph_of, numbers, served, small_package
from onnx import helper, numpy_helper

from maas_compression.recipe import Clip, FixedPoint
from maas_compression.techniques.clip import apply_clip, clip_graph, clip_weights
from maas_compression.techniques.fixed_point import apply_fixed_point
from maas_compression.techniques.graphs import float_graph
from maas_package.package import Package, read_package, write_package
from maas_package.trainable import WeightsInvalid


def bound(weights: np.ndarray, fan_in: int, technique: Clip) -> float:
    rules = {
        "fan_in": np.sqrt(6 / fan_in),
        "absolute": technique.bound,
        "percentile": np.quantile(np.abs(weights), technique.percentile / 100),
    }
    return float(rules[technique.rule])


@pytest.mark.parametrize(
    "technique", [Clip(), Clip(rule="absolute", bound=0.2), Clip(rule="percentile", percentile=80)]
)
def test_each_rule_has_its_bound(technique: Clip) -> None:
    module = torch.nn.ModuleDict({"words": torch.nn.Embedding(9, 24), "dense": torch.nn.Linear(24, 5)})
    weight, words, bias = (numbers(5, 24), numbers(9, 24, seed=1), numbers(5, seed=2))
    module.load_state_dict(
        {
            "words.weight": torch.from_numpy(words),
            "dense.weight": torch.from_numpy(weight.copy()),
            "dense.bias": torch.from_numpy(bias),
        }
    )
    clip_weights(module, technique)
    limit = bound(weight, 24, technique)
    assert 0.05 < (np.abs(weight) > limit).mean() < 1
    np.testing.assert_allclose(module["dense"].weight.detach().numpy(), weight.clip(-limit, limit), rtol=1e-6)
    np.testing.assert_array_equal(module["words"].weight.detach().numpy(), words)
    np.testing.assert_array_equal(module["dense"].bias.detach().numpy(), bias)


@pytest.mark.parametrize(
    "technique", [Clip(), Clip(rule="absolute", bound=0.2), Clip(rule="percentile", percentile=80)]
)
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_a_graph_s_matrices_are_limited_too(operator: str, technique: Clip) -> None:
    weight, x = numbers(24, 5), numbers(3, 24, seed=1)
    model = graph_of([helper.make_node(operator, ["x", "w"], ["y"])], {"w": weight})
    limit = bound(weight, 24, technique)
    np.testing.assert_allclose(answer(clip_graph(model, technique), x), x @ weight.clip(-limit, limit), rtol=1e-5)


@pytest.fixture
def bare(tmp_path: Path) -> Package:
    """A version without a trainable form, as an import makes it."""
    package = small_package(tmp_path / "trained", "lstm-text-classifier", SMALL_LSTM)
    folder = tmp_path / "bare"
    for path in (package.manifest.servables[0].path, "tokenizer.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(package.path(path).read_bytes())
    return write_package(folder, replace(package.manifest, architecture=None, weights=None, files=()))


def weights(package: Package) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in float_graph(package).graph.initializer}


def test_an_imported_lstm_is_clipped_by_its_fan_in(bare: Package, tmp_path: Path) -> None:
    made = apply_clip(bare, Clip(), tmp_path / "out")
    assert read_package(tmp_path / "out") == made
    before, after = weights(bare), weights(made)
    for name, fan_in in (("lstm_input", 12), ("lstm_recurrent", 16), ("output_weight", 16)):
        limit = np.sqrt(6 / fan_in)
        np.testing.assert_allclose(after[name], before[name].clip(-limit, limit), rtol=1e-6)
    for name in ("embedding", "lstm_bias", "output_bias"):
        np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.parametrize("bits", [4, 8])
def test_an_imported_graph_s_weights_become_integers(bare: Package, tmp_path: Path, bits: int) -> None:
    made = apply_fixed_point(bare, FixedPoint(bits), tmp_path / "out")
    assert read_package(tmp_path / "out") == made
    assert made.manifest.servables[0].precision == f"fixed{bits}"
    before, after = weights(bare), weights(made)
    for name in ("embedding", "lstm_input", "lstm_recurrent", "output_weight"):
        np.testing.assert_array_equal(after[name], np.round(before[name] * 2**bits) / 2**bits)
    np.testing.assert_array_equal(after["output_bias"], before["output_bias"])
    stored = {tensor.name: numpy_helper.to_array(tensor).dtype for tensor in served(made).graph.initializer}
    assert stored["embedding_integers"] in (np.int8, np.int16)


def test_an_imported_weight_that_no_integer_holds_is_named(bare: Package, tmp_path: Path) -> None:
    model = served(bare)
    for tensor in model.graph.initializer:
        if tensor.name == "lstm_input":
            huge = numpy_helper.to_array(tensor) * np.float32(1e9)
            tensor.CopyFrom(numpy_helper.from_array(huge, tensor.name))
    bare.path(bare.manifest.servables[0].path).write_bytes(model.SerializeToString())
    source = write_package(bare.folder, replace(bare.manifest, files=()))
    with pytest.raises(WeightsInvalid, match="lstm_input"):
        apply_fixed_point(source, FixedPoint(8), tmp_path / "out")
