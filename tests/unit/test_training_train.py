"""Training: the same weights for the same seed, killed or not; early stopping."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maas_package.architectures import load_architecture
from maas_training.checkpoint import Checkpoints, TrainingState
from maas_training.encoded_rows import EncodedRows, store_rows
from maas_training.spec import Hyperparameters, TrainingSpec
from maas_training.train import EpochMoment, train

VOCABULARY = 30


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rows(path: Path, count: int, seed: int) -> EncodedRows:
    """Rows whose first word decides the class."""
    generator = np.random.default_rng(seed)
    tokens = [generator.integers(2, VOCABULARY, generator.integers(1, 9)) for _ in range(count)]
    return store_rows(path, ((ids, int(ids[0] % 2)) for ids in tokens))


def fresh_module() -> nn.Module:
    torch.manual_seed(5)
    config = {"vocabulary_size": VOCABULARY, "embedding_size": 8, "hidden_size": 8, "dropout": 0.2}
    return load_architecture("lstm-text-classifier").build(config)


class Killed(Exception):
    pass


def trained(
    folder: Path, hyperparameters: Hyperparameters, kill_in_epoch: int = 0
) -> tuple[TrainingState, dict[str, Tensor], list[EpochMoment]]:
    moments: list[EpochMoment] = []

    def watcher(moment: EpochMoment) -> None:
        moments.append(moment)
        if moment.epoch == kill_in_epoch:
            raise Killed

    module = fresh_module()
    checkpoints = Checkpoints(folder / "checkpoints")
    with rows(folder / "train.ids", 200, 1) as train_rows, rows(folder / "validation.ids", 60, 2) as validation_rows:
        state = train(module, train_rows, validation_rows, hyperparameters, 0, checkpoints, watcher)
    return state, module.state_dict(), moments


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(epochs=2, batch_size=16, seed=3)
    _, first, _ = trained(tmp_path / "a", hyperparameters)
    torch.rand(7)  # whatever else draws from the global generator
    _, second, _ = trained(tmp_path / "b", hyperparameters)
    assert_same(first, second)
    _, other, _ = trained(tmp_path / "c", Hyperparameters(epochs=2, batch_size=16, seed=4))
    assert not torch.equal(first["output.weight"], other["output.weight"])


def test_a_killed_training_goes_on_and_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(epochs=4, batch_size=16, patience=4)
    state, weights, _ = trained(tmp_path / "unbroken", hyperparameters)
    with pytest.raises(Killed):
        trained(tmp_path / "killed", hyperparameters, kill_in_epoch=3)
    state_again, weights_again, moments = trained(tmp_path / "killed", hyperparameters)
    assert moments[0].epoch == 3
    assert state_again == state
    assert_same(weights, weights_again)


def test_it_learns_and_keeps_the_weights_of_the_best_epoch(tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(epochs=12, batch_size=16, learning_rate=0.02, patience=12, dropout=0.0)
    state, _, moments = trained(tmp_path, hyperparameters)
    accuracies = [moment.accuracy for moment in moments if moment.accuracy is not None]
    assert state.best_accuracy == max(accuracies) > 0.8
    assert accuracies.index(state.best_accuracy) == state.best_epoch - 1


def test_it_stops_when_validation_does_not_get_better(tmp_path: Path) -> None:
    hyperparameters = Hyperparameters(epochs=50, batch_size=200, learning_rate=1e-9, patience=2)
    state, _, _ = trained(tmp_path, hyperparameters)
    assert (state.best_epoch, state.finished_epochs) == (1, 3)


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path) -> None:
    trained(tmp_path, Hyperparameters(epochs=3, batch_size=64))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "state.json",
        "3.safetensors",
        "3-best.safetensors",
        "3.optimizer",
    }


def test_a_specs_stored_form_gives_the_same_spec_back() -> None:
    value = {
        "model": "models/reviews",
        "dataset_version": "datasets/reviews/versions/2",
        "architecture": "lstm-text-classifier",
        "hyperparameters": {
            "epochs": 3,
            "batch_size": 8,
            "learning_rate": 0.01,
            "dropout": 0.1,
            "patience": 2,
            "seed": 9,
        },
    }
    assert TrainingSpec.from_json(value).to_json() == value


def test_rows_come_back_from_their_file_in_any_order(tmp_path: Path) -> None:
    tokens = [np.arange(2, 2 + length) for length in (3, 1, 7)]
    with store_rows(tmp_path / "a.ids", zip(tokens, [1, 0, 2], strict=True)) as found:
        assert (len(found), found.lengths.tolist(), found.labels.tolist()) == (3, [3, 1, 7], [1, 0, 2])
        for row in (2, 0, 1, 2):
            assert found.tokens(row).tolist() == tokens[row].tolist()
