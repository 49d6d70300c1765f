"""Where a killed training goes on: the state after the last finished epoch, on disk, without pickle.

`<epoch>.safetensors` has the weights, `<epoch>-best.safetensors` those of the best epoch, `<epoch>.optimizer` Adam's
state (torch.save, read back with weights_only=True), and `state.json`, which is replaced at last and at once, says
which epoch counts.
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
class TrainingState:
    """How far a training is: epochs that are finished, and the best one so far; epochs count from 1, 0 is none."""

    finished_epochs: int = 0
    best_epoch: int = 0
    best_accuracy: float = -1.0


class Checkpoints:
    """The checkpoints of one job, in a folder of its own; only the newest is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        state: TrainingState,
        module: nn.Module,
        best_weights: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Make this state the one to go on from."""
        epoch = state.finished_epochs
        save_file(module.state_dict(), self._folder / f"{epoch}.safetensors")
        save_file(best_weights, self._folder / f"{epoch}-best.safetensors")
        torch.save(optimizer.state_dict(), self._folder / f"{epoch}.optimizer")
        partial = self._folder / f".{_STATE}.partial"
        partial.write_text(json.dumps(asdict(state)))
        os.replace(partial, self._folder / _STATE)
        for path in self._folder.iterdir():
            if path.name != _STATE and path.name.partition(".")[0].partition("-")[0] != str(epoch):
                path.unlink()

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[TrainingState, dict[str, Tensor]]:
        """Put the newest state into module and optimizer; return it with the best weights. Without one: the start."""
        try:
            state = TrainingState(**json.loads((self._folder / _STATE).read_text()))
        except FileNotFoundError:
            return TrainingState(), {}
        epoch = state.finished_epochs
        module.load_state_dict(load_file(self._folder / f"{epoch}.safetensors"))
        optimizer.load_state_dict(torch.load(self._folder / f"{epoch}.optimizer", weights_only=True))
        return state, load_file(self._folder / f"{epoch}-best.safetensors")
