"""low_rank against numpy's own decomposition: what stays, what it costs, and that it still can be trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from compression_graphs import SMALL_BERT, SMALL_LSTM, answer, graph_of, numbers, small_package
from onnx import helper

from maas_compression.materials import Materials
from maas_compression.recipe import LowRank
from maas_compression.techniques.graphs import GraphUnusable
from maas_compression.techniques.low_rank import apply_low_rank, factor, low_rank_graph, rank_of_energy
from maas_package.architectures import ArchitectureConfigInvalid, load_architecture
from maas_package.architectures.factored import factor_linears
from maas_package.package import read_package
from maas_package.trainable import load_module


def thin(outputs: int, inputs: int, rank: int) -> np.ndarray:
    """A matrix of that rank, and a little noise."""
    product = numbers(outputs, rank) @ numbers(rank, inputs, seed=1)
    return (product + 0.01 * numbers(outputs, inputs, seed=2)).astype(np.float64)


def test_the_rank_is_the_least_that_keeps_the_energy() -> None:
    singular = np.array([3.0, 2.0, 1.0, 1.0])  # squares: 9, 4, 1, 1
    assert [rank_of_energy(singular, energy) for energy in (0.5, 0.6, 0.61, 13 / 15, 0.9, 0.999)] == [1, 1, 2, 2, 3, 4]


def test_the_product_is_the_nearest_of_its_rank() -> None:
    matrix = thin(40, 60, 5)
    factors = factor(matrix, 0.999)
    assert factors is not None
    second, first = factors
    assert second.shape == (40, 5)
    singular = np.linalg.svd(matrix, compute_uv=False)
    error = np.square(second @ first - matrix).sum()
    assert error == pytest.approx(np.square(singular[5:]).sum(), rel=1e-9), "Eckart and Young's least"


def test_a_matrix_that_would_need_more_weights_stays() -> None:
    assert factor(numbers(30, 30).astype(np.float64), 0.95) is None


def test_what_the_data_never_asks_for_costs_nothing() -> None:
    matrix = numbers(32, 48).astype(np.float64)
    given = numbers(500, 4, seed=1).astype(np.float64) @ numbers(4, 48, seed=2)
    factors = factor(matrix, 0.99, given.T @ given / len(given))
    assert factors is not None
    second, first = factors
    assert len(first) <= 4
    expected, actual = given @ matrix.T, given @ (second @ first).T
    assert np.square(actual - expected).sum() < 0.011 * np.square(expected).sum()
    plain = factor(matrix, 0.5)
    assert plain is None or len(plain[1]) > len(first)


def test_a_graph_multiplies_twice(tmp_path: Path) -> None:
    weight, x = thin(64, 48, 6).astype(np.float32), numbers(5, 64, seed=4)
    made = low_rank_graph(graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}), LowRank(0.999))
    assert [node.op_type for node in made.graph.node] == ["MatMul", "MatMul"]
    assert sorted(tuple(tensor.dims) for tensor in made.graph.initializer) == [(6, 48), (64, 6)]
    np.testing.assert_allclose(answer(made, x), x @ weight, atol=0.5)


def test_nothing_to_gain_is_refused() -> None:
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": numbers(48, 48)})
    with pytest.raises(GraphUnusable, match="less energy"):
        low_rank_graph(model, LowRank(0.99))


def test_an_lstm_s_words_get_shorter_vectors(tmp_path: Path) -> None:
    source = small_package(tmp_path / "source", "lstm-text-classifier", SMALL_LSTM)
    made = apply_low_rank(source, LowRank(0.8), tmp_path / "out", Materials(tmp_path))
    assert read_package(tmp_path / "out") == made
    before, after = load_module(source).state_dict(), load_module(made).state_dict()
    rank = after["embedding.weight"].shape[1]
    assert rank < before["embedding.weight"].shape[1]
    product = (before["embedding.weight"] @ before["lstm.weight_ih_l0"].T).double().numpy()
    kept = (after["embedding.weight"] @ after["lstm.weight_ih_l0"].T).double().numpy()
    squares = np.square(np.linalg.svd(product, compute_uv=False))
    assert squares[:rank].sum() >= 0.8 * squares.sum() > squares[: rank - 1].sum()
    assert np.square(kept - product).sum() == pytest.approx(squares[rank:].sum(), rel=1e-3)
    assert made.servable_bytes(made.manifest.servables[0]) < source.servable_bytes(source.manifest.servables[0])


def test_a_transformer_s_layers_stay_trainable(tmp_path: Path) -> None:
    source = small_package(tmp_path / "source", "bert-text-classifier", SMALL_BERT | {"layers": 1})
    made = apply_low_rank(source, LowRank(0.6), tmp_path / "out", Materials(tmp_path))
    assert read_package(tmp_path / "out") == made
    assert made.manifest.architecture is not None
    ranks = made.manifest.architecture.config["ranks"]
    assert ranks
    module, original = load_module(made), load_module(source)
    for name, rank in ranks.items():
        first, second = module.get_submodule(name)
        matrix = original.get_submodule(name).weight.detach()
        assert second.weight.shape[1] == rank
        lost = (second.weight.detach() @ first.weight.detach() - matrix).square().sum() / matrix.square().sum()
        assert float(lost) <= 0.4 + 1e-5
        torch.testing.assert_close(second.bias.detach(), original.get_submodule(name).bias.detach())
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    "ranks", [{"nowhere": 4}, {"pooler": 0}, {"pooler": 33}, {"pooler": "4"}, {"pooler": True}, [3]]
)
def test_ranks_that_no_layer_has_are_refused(ranks: object) -> None:
    architecture = load_architecture("bert-text-classifier")
    with pytest.raises(ArchitectureConfigInvalid, match="rank"):
        architecture.build({**SMALL_BERT, "ranks": ranks})


def test_a_factored_layer_may_lack_a_bias() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False))
    factor_linears(module, {"0": 2})
    assert [tuple(parameter.shape) for parameter in module.parameters()] == [(2, 6), (5, 2)]
