"""What a training makes smaller, and what says how good a network is."""

from typing import Protocol

from torch import Tensor, nn

from maas_learning.encoded_rows import Batch, EncodedRows

_EVALUATION_ROWS = 128


class Objective(Protocol):
    """A loss. It may hold whatever it compares with: a teacher, or what a teacher said of each row."""

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss of the batch, a number that can be derived."""


class Score(Protocol):
    """How good a network is; more is better."""

    def __call__(self, module: nn.Module) -> float:
        """Return it. The network is in evaluation mode, and nothing is derived."""


def cross_entropy(module: nn.Module, batch: Batch) -> Tensor:
    """Return the usual loss of a classifier: the mean of -log(share given to the right class)."""
    return nn.functional.cross_entropy(module(batch.tokens), batch.labels)


class Accuracy:
    """The share of the rows whose largest logit is that of their class."""

    def __init__(self, rows: EncodedRows) -> None:
        self._rows = rows

    def __call__(self, module: nn.Module) -> float:
        """Return it, 0 to 1."""
        right = 0
        for batch in self._rows.batches_by_length(_EVALUATION_ROWS):
            right += int((module(batch.tokens).argmax(dim=1) == batch.labels).sum())
        return right / len(self._rows)
