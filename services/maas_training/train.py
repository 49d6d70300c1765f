"""Training itself: Adam on cross-entropy, early stopping, the same weights for the same seed.

Shapes: N rows of a batch, T tokens.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maas_training.checkpoint import Checkpoints, TrainingState
from maas_training.encoded_rows import EncodedRows
from maas_training.spec import Hyperparameters

# Rows are sorted by length within windows of this many batches, so that batches have little padding and still differ
# from epoch to epoch.
_WINDOW_BATCHES = 20
_EVALUATION_ROWS = 128
_MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class EpochMoment:
    """Where a training is now; `accuracy` is known at the end of an epoch."""

    epoch: int
    share: float
    """Finished share of the epoch, 0 to 1."""
    loss: float
    rows_per_second: float
    accuracy: float | None = None


class Watcher(Protocol):
    """Is told of a training's progress."""

    def __call__(self, moment: EpochMoment) -> None:
        """Take notice."""


def train(
    module: nn.Module,
    train_rows: EncodedRows,
    validation_rows: EncodedRows,
    hyperparameters: Hyperparameters,
    padding_id: int,
    checkpoints: Checkpoints,
    watcher: Watcher,
    clock: Callable[[], float] = time.monotonic,
) -> TrainingState:
    """Train the module and leave it with the weights of its best epoch, in evaluation mode.

    Goes on from a checkpoint when there is one, and ends with the same weights as without the interruption: each epoch
    has random numbers of its own.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=hyperparameters.learning_rate, fused=True)
    state, best_weights = checkpoints.load(module, optimizer)
    while not _is_over(state, hyperparameters):
        epoch = state.finished_epochs + 1
        moment = _train_epoch(module, train_rows, hyperparameters, epoch, padding_id, optimizer, watcher, clock)
        accuracy = _accuracy(module, validation_rows, padding_id)
        state = replace(state, finished_epochs=epoch)
        if accuracy > state.best_accuracy:
            state = replace(state, best_epoch=epoch, best_accuracy=accuracy)
            best_weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        checkpoints.save(state, module, best_weights, optimizer)
        watcher(replace(moment, accuracy=accuracy))
    module.load_state_dict(best_weights)
    module.eval()
    return state


def _is_over(state: TrainingState, hyperparameters: Hyperparameters) -> bool:
    waited = state.finished_epochs - state.best_epoch
    return state.finished_epochs >= hyperparameters.epochs or waited >= hyperparameters.patience


def _train_epoch(
    module: nn.Module,
    rows: EncodedRows,
    hyperparameters: Hyperparameters,
    epoch: int,
    padding_id: int,
    optimizer: torch.optim.Optimizer,
    watcher: Watcher,
    clock: Callable[[], float],
) -> EpochMoment:
    module.train()
    order = np.random.default_rng([hyperparameters.seed, epoch])
    # Dropout draws from torch's global generator, and nothing else here does.
    torch.manual_seed(int(order.integers(2**63)))
    begin, done, loss_sum = clock(), 0, 0.0
    moment = EpochMoment(epoch, 0.0, 0.0, 0.0)
    for indices in _training_batches(rows, hyperparameters.batch_size, order):
        tokens, labels = _batch(rows, indices, padding_id)
        loss = nn.functional.cross_entropy(module(tokens), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), _MAX_GRADIENT_NORM)
        optimizer.step()
        done += len(indices)
        loss_sum += loss.item() * len(indices)
        moment = EpochMoment(epoch, done / len(rows), loss_sum / done, done / max(clock() - begin, 1e-9))
        watcher(moment)
    return moment


def _accuracy(module: nn.Module, rows: EncodedRows, padding_id: int) -> float:
    module.eval()
    by_length = np.argsort(rows.lengths, kind="stable")
    right = 0
    with torch.inference_mode():
        for begin in range(0, len(rows), _EVALUATION_ROWS):
            tokens, labels = _batch(rows, by_length[begin : begin + _EVALUATION_ROWS], padding_id)
            right += int((module(tokens).argmax(dim=1) == labels).sum())
    return right / len(rows)


def _training_batches(
    rows: EncodedRows, batch_size: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    order = generator.permutation(len(rows))
    window = batch_size * _WINDOW_BATCHES
    for begin in range(0, len(rows), window):
        indices = order[begin : begin + window]
        order[begin : begin + window] = indices[np.argsort(rows.lengths[indices], kind="stable")]
    begins = np.arange(0, len(rows), batch_size)
    for begin in generator.permutation(begins):
        yield order[begin : begin + batch_size]


def _batch(rows: EncodedRows, indices: NDArray[np.int64], padding_id: int) -> tuple[Tensor, Tensor]:
    """Return tokens int64 [N, T], right-padded, and labels int64 [N]."""
    chosen = [rows.tokens(index) for index in indices]
    tokens = np.full((len(chosen), max(map(len, chosen))), padding_id, np.int64)
    for row, ids in zip(tokens, chosen, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(tokens), torch.from_numpy(rows.labels[indices].astype(np.int64))
