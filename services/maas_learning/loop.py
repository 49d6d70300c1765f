"""The loop of every training: Adam on any loss, early stopping, the same weights for the same seed, killed or not."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maas_learning.checkpoint import Checkpoints, LearningState
from maas_learning.encoded_rows import EncodedRows
from maas_learning.objectives import Objective, Score
from maas_runtime.failures import InvalidInput

# Rows are sorted by length within windows of this many batches, so that batches have little padding and still differ
# from epoch to epoch.
_WINDOW_BATCHES = 20
_MAX_GRADIENT_NORM = 1.0
# An epoch of a transformer takes minutes; a checkpoint of MiniLM is 270 MB and takes a second.
_CHECKPOINT_SECONDS = 60.0


class LossNotFinite(InvalidInput):
    """The loss became infinite or NaN: nothing can be learned from there on."""

    reason = "LOSS_NOT_FINITE"


@dataclass(frozen=True, slots=True)
class LearningSettings:
    """How to learn.

    With `weight_decay` it is AdamW (Loshchilov and Hutter, arXiv:1711.05101) on matrices, without it Adam. With
    `warm_up`, a share of all steps, the step size rises in a straight line over these and then falls in one to 0, as
    BERT is fine-tuned (Devlin et al., arXiv:1810.04805); without it, it stays.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    patience: int
    """Epochs without a better score after which it stops."""
    seed: int = 0
    weight_decay: float = 0.0
    warm_up: float = 0.0

    def step_size(self, step: int, steps: int) -> float:
        """Return the step size of a step, which counts from 0, of all `steps`."""
        if not self.warm_up:
            return self.learning_rate
        warm_up_steps = math.ceil(self.warm_up * steps)
        if step < warm_up_steps:
            return self.learning_rate * (step + 1) / warm_up_steps
        return self.learning_rate * (steps - step) / (steps - warm_up_steps)


@dataclass(frozen=True, slots=True)
class EpochMoment:
    """Where a training is now; `score` is known at the end of an epoch."""

    epoch: int
    epochs: int
    share: float
    """Finished share of the epoch, 0 to 1."""
    loss: float
    rows_per_second: float
    score: float | None = None

    @property
    def done(self) -> float:
        """Finished share of the training, 0 to 1, if it does not stop before."""
        return (self.epoch - 1 + self.share) / self.epochs


class Watcher(Protocol):
    """Is told of a training's progress."""

    def __call__(self, moment: EpochMoment) -> None:
        """Take notice."""


def learn(
    module: nn.Module,
    rows: EncodedRows,
    objective: Objective,
    score: Score,
    settings: LearningSettings,
    checkpoints: Checkpoints,
    watcher: Watcher,
    clock: Callable[[], float] = time.monotonic,
) -> LearningState:
    """Train the module and leave it with the weights of its best epoch, in evaluation mode.

    Learns what asks for gradients. Uses as many threads as torch was given. Goes on from a checkpoint when there is
    one, and ends with the same weights as without the interruption: each epoch has random numbers of its own. Raises
    LossNotFinite.
    """
    return _Learning(module, rows, objective, score, settings, checkpoints, watcher, clock).run()


class _Learning:
    def __init__(
        self,
        module: nn.Module,
        rows: EncodedRows,
        objective: Objective,
        score: Score,
        settings: LearningSettings,
        checkpoints: Checkpoints,
        watcher: Watcher,
        clock: Callable[[], float],
    ) -> None:
        self._module = module
        self._rows = rows
        self._objective = objective
        self._score = score
        self._settings = settings
        self._checkpoints = checkpoints
        self._watcher = watcher
        self._clock = clock
        self._optimizer = _optimizer(module, settings)
        self._state = LearningState()
        self._best_weights: dict[str, Tensor] = {}
        self._steps_of_an_epoch = math.ceil(len(rows) / settings.batch_size)

    def run(self) -> LearningState:
        self._state, self._best_weights = self._checkpoints.load(self._module, self._optimizer)
        while not self._is_over():
            moment = self._epoch()
            score = self._scored()
            finished = self._state.finished_epochs + 1
            self._state = replace(self._state, finished_epochs=finished, steps=0, loss_sum=0.0)
            if score > self._state.best_score:
                self._state = replace(self._state, best_epoch=finished, best_score=score)
                self._best_weights = {name: tensor.clone() for name, tensor in self._module.state_dict().items()}
            self._save()
            self._watcher(replace(moment, score=score))
        self._module.load_state_dict(self._best_weights)
        self._module.eval()
        return self._state

    def _is_over(self) -> bool:
        state, settings = self._state, self._settings
        waited = state.finished_epochs - state.best_epoch
        return state.finished_epochs >= settings.epochs or waited >= settings.patience

    def _epoch(self) -> EpochMoment:
        self._module.train()
        epoch, skipped = self._state.finished_epochs + 1, self._state.steps
        order = np.random.default_rng([self._settings.seed, epoch])
        seed = int(order.integers(2**63))
        if not skipped:  # else the generator goes on from where the checkpoint left it
            # Dropout draws from torch's global generator, and nothing else here does.
            torch.manual_seed(seed)
        begin = saved = self._clock()
        done = done_before = 0
        moment = EpochMoment(epoch, self._settings.epochs, 0.0, 0.0, 0.0)
        for step, indices in enumerate(_training_batches(self._rows, self._settings.batch_size, order)):
            done += len(indices)
            if step < skipped:
                done_before = done
                continue
            loss = self._step(indices, epoch, step)
            self._state = replace(self._state, steps=step + 1, loss_sum=self._state.loss_sum + loss * len(indices))
            now = self._clock()
            moment = replace(
                moment,
                share=done / len(self._rows),
                loss=self._state.loss_sum / done,
                rows_per_second=(done - done_before) / max(now - begin, 1e-9),
            )
            if now - saved >= _CHECKPOINT_SECONDS:
                self._save()
                saved = self._clock()
            self._watcher(moment)
        return moment

    def _step(self, indices: NDArray[np.int64], epoch: int, step: int) -> float:
        all_steps = self._settings.epochs * self._steps_of_an_epoch
        size = self._settings.step_size((epoch - 1) * self._steps_of_an_epoch + step, all_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = size
        loss = self._objective(self._module, self._rows.batch(indices))
        value = loss.item()
        if not math.isfinite(value):
            raise LossNotFinite(
                f"the loss is {value} in epoch {epoch}: take a smaller learning rate, and look whether the weights "
                "that it began with are finite"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._module.parameters(), _MAX_GRADIENT_NORM)
        self._optimizer.step()
        return value

    def _scored(self) -> float:
        self._module.eval()
        with torch.inference_mode():
            return self._score(self._module)

    def _save(self) -> None:
        self._checkpoints.save(self._state, self._module, self._best_weights, self._optimizer)


def _optimizer(module: nn.Module, settings: LearningSettings) -> torch.optim.Optimizer:
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # What is added (biases) or scales (norms) does not decay, as usual since BERT.
    groups = [
        {"params": [one for one in learned if one.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [one for one in learned if one.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate, fused=True)


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
