"""Where a killed training goes on: the state after the last step that was kept, on disk, without pickle.

`<epochs>-<steps>.safetensors` has the weights, `<epochs>-<steps>.optimizer` Adam's state and the random generator's
(torch.save, read back with weights_only=True), `best-<epoch>.safetensors` the weights of the best epoch, and
`state.json`, which is replaced at last and at once, says which of them count.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class LearningState:
    """How far a training is: epochs that are finished, and the best one so far; epochs count from 1, 0 is none."""

    finished_epochs: int = 0
    best_epoch: int = 0
    best_score: float = float("-inf")
    steps: int = 0
    """Steps of the epoch that is under way."""
    loss_sum: float = 0.0
    """Of all rows of those steps."""


class Checkpoints:
    """The checkpoints of one training, in a folder of its own; only the newest is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        state: LearningState,
        module: nn.Module,
        best_weights: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Make this state the one to go on from."""
        names = _Names.of(state)
        save_file(_tensors(module), self._folder / names.weights)
        if state.best_epoch and not (self._folder / names.best).exists():
            partial = self._folder / f".{names.best}.partial"
            save_file(best_weights, partial)
            os.replace(partial, self._folder / names.best)
        kept = {"optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}
        torch.save(kept, self._folder / names.optimizer)
        partial = self._folder / f".{_STATE}.partial"
        partial.write_text(json.dumps(asdict(state)))
        os.replace(partial, self._folder / _STATE)
        for path in self._folder.iterdir():
            if path.name not in (_STATE, names.weights, names.best, names.optimizer):
                path.unlink()

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[LearningState, dict[str, Tensor]]:
        """Put the newest state into module and optimizer, and torch's generator where it was if in mid-epoch.

        Returns the state and the best weights. Without a checkpoint that is the start, and no weights.
        """
        try:
            state = LearningState(**json.loads((self._folder / _STATE).read_text()))
        except FileNotFoundError:
            return LearningState(), {}
        names = _Names.of(state)
        module.load_state_dict(load_file(self._folder / names.weights))
        kept = torch.load(self._folder / names.optimizer, weights_only=True)
        optimizer.load_state_dict(kept["optimizer"])
        torch.set_rng_state(kept["random"])
        return state, load_file(self._folder / names.best) if state.best_epoch else {}


@dataclass(frozen=True, slots=True)
class _Names:
    weights: str
    optimizer: str
    best: str

    @classmethod
    def of(cls, state: LearningState) -> "_Names":
        point = f"{state.finished_epochs}-{state.steps}"
        return cls(f"{point}.safetensors", f"{point}.optimizer", f"best-{state.best_epoch}.safetensors")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
