"""Each part of pruning against what it stands for, calculated in another way."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from maas_compression.techniques import prune_lstm, prune_transformer
from maas_compression.techniques.prune_columns import covariance_of, eliminate, refit, ridged, sensitive
from maas_compression.techniques.prune_transformer import Kept
from maas_package.architectures import load_architecture
from maas_package.architectures.bert import BertTextClassifier
from maas_package.architectures.lstm_text_classifier import LstmTextClassifier
from maas_package.package import Package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import load_module, package_trained_model

BERT_SIZES = {"vocabulary_size": 60, "hidden_size": 32, "layers": 3, "heads": 4, "inner_size": 64, "positions": 64}
LSTM_SIZES = {"vocabulary_size": 60, "embedding_size": 12, "hidden_size": 32}


def package_of(folder: Path, name: str, sizes: dict[str, int]) -> Package:
    architecture = load_architecture(name)
    config = architecture.parse_config(sizes)
    torch.manual_seed(3)
    module = architecture.build(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in module.named_parameters():
            if "norm" not in parameter_name:
                parameter.mul_(4 if "bert" in name else 1)
            if parameter_name.endswith("bias"):
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=build_word_tokenizer([" ".join(f"w{number}" for number in range(58))], vocabulary_size=60),
        labels=("negative", "positive"),
    )


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return package_of(tmp_path_factory.mktemp("packages") / "transformer", "bert-text-classifier", BERT_SIZES)


@pytest.fixture(scope="module")
def lstm(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return package_of(tmp_path_factory.mktemp("packages") / "lstm", "lstm-text-classifier", LSTM_SIZES)


def batches(count: int = 6) -> list[Tensor]:
    architecture = load_architecture("lstm-text-classifier")
    return [architecture.example_inputs(LSTM_SIZES, 32, seed)["tokens"] for seed in range(count)]


KEPT = Kept((0, 1, 2), ((0, 2), (), (1,)), (tuple(range(0, 64, 2)), (1, 2, 3), ()))


def test_a_network_without_parts_answers_as_the_whole_one_with_these_at_zero(transformer: Package) -> None:
    whole = load_module(transformer)
    assert isinstance(whole, BertTextClassifier)
    smaller, config = prune_transformer.cut(transformer, whole, KEPT)
    assert (config["heads"], config["inner_size"]) == ([2, 0, 1], [32, 3, 0])
    with torch.inference_mode():
        for layer, heads, channels in zip(whole.encoder.layers, KEPT.heads, KEPT.channels, strict=True):
            for head in set(range(4)) - set(heads):
                layer.attention_output.weight[:, head * 8 : (head + 1) * 8] = 0.0
            layer.inner_output.weight[:, sorted(set(range(64)) - set(channels))] = 0.0
        for tokens in batches():
            torch.testing.assert_close(smaller(tokens), whole(tokens), rtol=0, atol=1e-5)


def test_a_network_without_a_layer_answers_as_the_whole_one_that_skips_it(transformer: Package) -> None:
    whole = load_module(transformer)
    assert isinstance(whole, BertTextClassifier)
    everything = prune_transformer.whole(whole)
    kept = Kept((0, 2), everything.heads[:2], everything.channels[:2])
    smaller, _ = prune_transformer.cut(transformer, whole, kept)
    del whole.encoder.layers[1]
    with torch.inference_mode():
        assert torch.equal(smaller(batches()[1]), whole(batches()[1]))


def test_an_lstm_without_units_answers_as_the_whole_one_whose_states_are_masked(lstm: Package) -> None:
    whole = load_module(lstm)
    assert isinstance(whole, LstmTextClassifier)
    kept = (0, 3, 4, 9, 17, 18, 30, 31)
    smaller, _ = prune_lstm.cut(lstm, whole, kept)
    gone = sorted(set(range(32)) - set(kept))
    with torch.inference_mode():
        # An output gate that is always shut makes a state that is always zero.
        whole.lstm.bias_ih_l0[[96 + unit for unit in gone]] = -1e4
        for tokens in batches():
            torch.testing.assert_close(smaller(tokens), whole(tokens), rtol=0, atol=1e-5)


def test_fitting_to_a_whole_network_changes_no_answer(transformer: Package, lstm: Package) -> None:
    whole = load_module(transformer)
    everything = prune_transformer.whole(whole)
    same, _ = prune_transformer.cut(transformer, whole, everything)
    prune_transformer.fit(whole, same, everything, batches())
    whole_lstm = load_module(lstm)
    assert isinstance(whole_lstm, LstmTextClassifier)
    same_lstm, _ = prune_lstm.cut(lstm, whole_lstm, tuple(range(32)))
    prune_lstm.fit(whole_lstm, same_lstm, tuple(range(32)), batches())
    with torch.inference_mode():
        for one, other in ((whole, same), (whole_lstm, same_lstm)):
            torch.testing.assert_close(one(batches()[2]), other(batches()[2]), rtol=0, atol=1e-3)


def test_fitting_brings_a_cut_network_nearer(transformer: Package, lstm: Package) -> None:
    whole = load_module(transformer)
    smaller, _ = prune_transformer.cut(transformer, whole, KEPT)
    whole_lstm = load_module(lstm)
    assert isinstance(whole_lstm, LstmTextClassifier)
    units = prune_lstm.keep_units(lstm, whole_lstm, batches(), 0.5)
    smaller_lstm, _ = prune_lstm.cut(lstm, whole_lstm, units)
    unseen = load_architecture("lstm-text-classifier").example_inputs(LSTM_SIZES, 64, 99)["tokens"]

    def distances() -> list[float]:
        with torch.inference_mode():
            return [
                (one(unseen) - other(unseen)).square().mean().item()
                for one, other in ((whole, smaller), (whole_lstm, smaller_lstm))
            ]

    before = distances()
    prune_transformer.fit(whole, smaller, KEPT, batches(16))
    prune_lstm.fit(whole_lstm, smaller_lstm, units, batches(16))
    assert all(after < 0.7 * earlier for earlier, after in zip(before, distances(), strict=True))


def least_cost(weight: np.ndarray, covariance: np.ndarray, gone: tuple[int, ...]) -> float:
    """The smallest E|V x - V' x'|^2, from the normal equations of the regression on what is left."""
    kept = [index for index in range(len(covariance)) if index not in gone]
    cross = weight @ covariance[:, kept]
    fitted = np.linalg.solve(covariance[np.ix_(kept, kept)], cross.T).T
    return float(np.trace(weight @ covariance @ weight.T) - np.trace(fitted @ cross.T))


def made_up(inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    samples = generator.normal(size=(500, inputs)) @ generator.normal(size=(inputs, inputs))
    return generator.normal(size=(outputs, inputs)), np.cov(samples, rowvar=False)


@pytest.mark.parametrize(("inputs", "group_size"), [(10, 1), (12, 3), (130, 1)])
def test_costs_are_what_the_best_regression_without_the_group_leaves(inputs: int, group_size: int) -> None:
    weight, covariance = made_up(inputs, 5)
    found = eliminate(weight, covariance, group_size)
    damped = ridged(covariance)
    gone: tuple[int, ...] = ()
    spent = 0.0
    for group, cost in list(zip(found.order, found.costs, strict=True))[:-1]:
        gone += tuple(range(group * group_size, (group + 1) * group_size))
        spent += cost
        assert spent == pytest.approx(least_cost(weight, damped, gone), rel=1e-6)


def test_the_group_that_goes_first_is_the_cheapest_of_all() -> None:
    weight, covariance = made_up(12, 4)
    damped = ridged(covariance)
    by_hand = {group: least_cost(weight, damped, (2 * group, 2 * group + 1)) for group in range(6)}
    assert eliminate(weight, covariance, 2).order[0] == min(by_hand, key=lambda group: by_hand[group])


@pytest.mark.parametrize("group_size", [1, 4])
def test_inputs_that_never_change_or_were_never_seen_have_an_order_too(group_size: int) -> None:
    weight, _ = made_up(16, 5)
    samples = np.random.default_rng(4).normal(size=(20, 3)) @ np.random.default_rng(5).normal(size=(3, 16))
    for covariance in (np.cov(samples, rowvar=False), np.zeros((16, 16)), covariance_of(np.zeros((17, 17)))):
        found = eliminate(weight, covariance, group_size)
        assert sorted(found.order) == list(range(16 // group_size))
        assert np.isfinite(found.costs).all()


def test_a_copy_of_an_input_goes_for_nothing() -> None:
    generator = np.random.default_rng(3)
    samples = generator.normal(size=(400, 6))
    samples[:, 5] = 2 * samples[:, 1]
    found = eliminate(generator.normal(size=(3, 6)), np.cov(samples, rowvar=False), 1)
    assert found.order[0] in (1, 5)
    assert found.costs[0] < 0.01 * found.costs[1]
    assert not any(set(pair) == {1, 5} for pair in combinations(found.order[:3], 2))


def test_outputs_that_nobody_needs_any_more_cost_nothing() -> None:
    weight, covariance = np.eye(4), np.diag([1.0, 2.0, 3.0, 4.0])
    rows = np.array([[1], [0], [3], [2]])
    found = eliminate(weight, covariance, 1, rows)
    assert found.order[:2] == (0, 1)
    assert found.costs[1] == pytest.approx(0.0, abs=1e-9)


def test_sensitive_weights_have_the_costs_of_their_gradients() -> None:
    weight, _ = made_up(6, 4)
    gradients = np.cov(np.random.default_rng(2).normal(size=(40, 4)), rowvar=False)
    made = sensitive(weight, gradients)
    np.testing.assert_allclose(made.T @ made, weight.T @ gradients @ weight, atol=1e-10)


def test_a_fit_is_numpys_least_squares_where_there_are_data_enough() -> None:
    generator = np.random.default_rng(1)
    inputs = np.concatenate([generator.normal(size=(3000, 5)), np.ones((3000, 1))], axis=1)
    wanted = inputs @ generator.normal(size=(6, 3)) + 0.1 * generator.normal(size=(3000, 3))
    fitted = refit(wanted.T @ inputs, inputs.T @ inputs, np.zeros((3, 6)))
    np.testing.assert_allclose(fitted, np.linalg.lstsq(inputs, wanted, rcond=None)[0].T, atol=1e-3)
    means = inputs[:, :5].mean(0)
    centred = inputs[:, :5] - means
    np.testing.assert_allclose(covariance_of(inputs.T @ inputs), centred.T @ centred / 3000, atol=2e-5)
