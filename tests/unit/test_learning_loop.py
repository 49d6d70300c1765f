"""The loop of every training: the same weights for the same seed, killed or not; early stopping; the schedule."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maas_learning.checkpoint import Checkpoints, LearningState
from maas_learning.encoded_rows import Batch, EncodedRows, store_rows
from maas_learning.loop import EpochMoment, LearningSettings, LossNotFinite, learn
from maas_learning.objectives import Accuracy, Objective, cross_entropy
from maas_package.architectures import load_architecture

VOCABULARY = 30
SHORT = LearningSettings(epochs=2, batch_size=16, learning_rate=3e-3, patience=3)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rows(path: Path, count: int, seed: int) -> EncodedRows:
    """Rows whose first word decides the class."""
    generator = np.random.default_rng(seed)
    tokens = [generator.integers(2, VOCABULARY, generator.integers(1, 9)) for _ in range(count)]
    return store_rows(path, ((ids, int(ids[0] % 2)) for ids in tokens), padding_id=0)


def fresh_module(dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(5)
    config = {"vocabulary_size": VOCABULARY, "embedding_size": 8, "hidden_size": 8, "dropout": dropout}
    return load_architecture("lstm-text-classifier").build(config)


class Killed(Exception):
    pass


def minute_clock() -> Callable[[], float]:
    """A clock on which every look takes half a minute, so that a checkpoint is due every other step."""
    now = 0.0

    def look() -> float:
        nonlocal now
        now += 30.0
        return now

    return look


def trained(
    folder: Path,
    settings: LearningSettings,
    kill_at: tuple[int, int] = (0, 0),
    objective: Objective = cross_entropy,
    module: nn.Module | None = None,
) -> tuple[LearningState, dict[str, Tensor], list[EpochMoment]]:
    """Train, and die at the step `kill_at` of an epoch; both count from 1."""
    moments: list[EpochMoment] = []

    def watcher(moment: EpochMoment) -> None:
        moments.append(moment)
        if (moment.epoch, sum(one.epoch == moment.epoch for one in moments)) == kill_at:
            raise Killed

    module = module or fresh_module()
    checkpoints = Checkpoints(folder / "checkpoints")
    with rows(folder / "train.ids", 200, 1) as train_rows, rows(folder / "validation.ids", 60, 2) as validation_rows:
        score = Accuracy(validation_rows)
        state = learn(module, train_rows, objective, score, settings, checkpoints, watcher, minute_clock())
    return state, module.state_dict(), moments


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    settings = LearningSettings(epochs=2, batch_size=16, learning_rate=3e-3, patience=3, seed=3)
    _, first, _ = trained(tmp_path / "a", settings)
    torch.rand(7)  # whatever else draws from the global generator
    _, second, _ = trained(tmp_path / "b", settings)
    assert_same(first, second)
    _, other, _ = trained(tmp_path / "c", SHORT)
    assert not torch.equal(first["output.weight"], other["output.weight"])


@pytest.mark.parametrize(("kill_at", "goes_on_at"), [((3, 1), 1 / 13), ((3, 9), 9 / 13), ((1, 4), 5 / 13)])
def test_a_killed_training_goes_on_and_ends_with_the_weights_of_an_unbroken_one(
    tmp_path: Path, kill_at: tuple[int, int], goes_on_at: float
) -> None:
    settings = LearningSettings(epochs=4, batch_size=16, learning_rate=3e-3, patience=4, weight_decay=0.1, warm_up=0.2)
    state, weights, unbroken = trained(tmp_path / "unbroken", settings)
    with pytest.raises(Killed):
        trained(tmp_path / "killed", settings, kill_at)
    state_again, weights_again, moments = trained(tmp_path / "killed", settings)
    assert moments[0].epoch == kill_at[0]
    assert moments[0].share == pytest.approx(goes_on_at, abs=0.05)
    assert [one.loss for one in moments] == pytest.approx([one.loss for one in unbroken[-len(moments) :]])
    assert state_again == state
    assert_same(weights, weights_again)


def test_it_learns_and_keeps_the_weights_of_the_best_epoch(tmp_path: Path) -> None:
    settings = LearningSettings(epochs=12, batch_size=16, learning_rate=0.02, patience=12)
    state, _, moments = trained(tmp_path, settings, module=fresh_module(dropout=0.0))
    scores = [moment.score for moment in moments if moment.score is not None]
    assert state.best_score == max(scores) > 0.8
    assert scores.index(state.best_score) == state.best_epoch - 1
    assert moments[-1].done == 1


def test_it_stops_when_validation_does_not_get_better(tmp_path: Path) -> None:
    settings = LearningSettings(epochs=50, batch_size=200, learning_rate=1e-9, patience=2)
    state, _, _ = trained(tmp_path, settings)
    assert (state.best_epoch, state.finished_epochs) == (1, 3)


def test_only_the_newest_checkpoint_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    state, _, _ = trained(tmp_path, LearningSettings(epochs=3, batch_size=64, learning_rate=3e-3, patience=3))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "state.json",
        "3-0.safetensors",
        "3-0.optimizer",
        f"best-{state.best_epoch}.safetensors",
    }


def test_a_loss_that_is_no_number_ends_the_training_with_a_reason(tmp_path: Path) -> None:
    def broken(module: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(module, batch) * float("nan")

    with pytest.raises(LossNotFinite, match="smaller learning rate"):
        trained(tmp_path, SHORT, objective=broken)


def test_only_weights_that_ask_for_gradients_are_learned(tmp_path: Path) -> None:
    module = fresh_module()
    module.get_parameter("embedding.weight").requires_grad_(False)
    _, weights, _ = trained(tmp_path, SHORT, module=module)
    before = fresh_module().state_dict()
    assert torch.equal(weights["embedding.weight"], before["embedding.weight"])
    assert not torch.equal(weights["output.weight"], before["output.weight"])


def test_the_step_size_rises_and_falls_in_straight_lines() -> None:
    settings = LearningSettings(epochs=1, batch_size=1, learning_rate=8.0, patience=1, warm_up=0.2)
    assert [settings.step_size(step, 10) for step in range(10)] == [4, 8, 8, 7, 6, 5, 4, 3, 2, 1]
    assert SHORT.step_size(0, 10) == SHORT.step_size(9, 10) == SHORT.learning_rate


def test_without_decay_and_warm_up_the_steps_are_adams(tmp_path: Path) -> None:
    module = fresh_module(dropout=0.0)
    one_step = LearningSettings(epochs=1, batch_size=200, learning_rate=0.01, patience=1)
    _, weights, _ = trained(tmp_path, one_step, module=module)
    other = fresh_module(dropout=0.0)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    with rows(tmp_path / "again.ids", 200, 1) as again:
        cross_entropy(other, again.batch(np.argsort(again.lengths, kind="stable"))).backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    optimizer.step()
    for name, expected in other.state_dict().items():
        torch.testing.assert_close(weights[name], expected, atol=1e-4, rtol=0)


def test_rows_come_back_from_their_file_in_any_order(tmp_path: Path) -> None:
    tokens = [np.arange(2, 2 + length) for length in (3, 1, 7)]
    with store_rows(tmp_path / "a.ids", zip(tokens, [1, 0, 2], strict=True), padding_id=9) as found:
        assert (len(found), found.lengths.tolist(), found.labels.tolist()) == (3, [3, 1, 7], [1, 0, 2])
        for row in (2, 0, 1, 2):
            assert found.tokens(row).tolist() == tokens[row].tolist()
        batch = found.batch(np.array([1, 0]))
        assert batch.tokens.tolist() == [[2, 9, 9], [2, 3, 4]]
        assert (batch.labels.tolist(), batch.rows.tolist()) == ([0, 1], [1, 0])
        assert [one.rows.tolist() for one in found.batches_by_length(2)] == [[1, 0], [2]]
