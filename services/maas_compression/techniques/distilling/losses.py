"""What a student is told by its teacher. Shapes: N rows of a batch, T tokens, C classes, H hidden sizes."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from maas_learning.encoded_rows import UNLABELLED, Batch, EncodedRows

_EVALUATION_ROWS = 128


class SoftAndHardLoss:
    """Hinton et al., 2015 (arXiv:1503.02531), section 2, for each row:

        soft_weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - soft_weight) * cross-entropy

    T^2 makes up for the gradients of the first part, which shrink with 1 / T^2. A row without a label has only that
    part. `answers`: the teacher's logits of all rows, float32 [rows, C].
    """

    def __init__(self, answers: NDArray[np.float32], temperature: float, soft_weight: float) -> None:
        self._answers = answers
        self._temperature = temperature
        self._soft_weight = soft_weight

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean of the batch."""
        logits = module(batch.tokens)
        teacher = torch.from_numpy(np.asarray(self._answers[batch.rows]))
        soft = functional.kl_div(
            functional.log_softmax(logits / self._temperature, dim=1),
            functional.log_softmax(teacher / self._temperature, dim=1),
            reduction="none",
            log_target=True,
        ).sum(dim=1)
        hard = functional.cross_entropy(logits, batch.labels, ignore_index=UNLABELLED, reduction="none")
        rows = self._soft_weight * self._temperature**2 * soft + (1 - self._soft_weight) * hard
        return rows.mean()


class VectorLoss:
    """Of encoders, for each row: 1 - cosine + the mean square of the difference to the teacher's vector.

    `answers`: the teacher's vectors of all rows, float32 [rows, H].
    """

    def __init__(self, answers: NDArray[np.float32]) -> None:
        self._answers = answers

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean of the batch."""
        vectors = module(batch.tokens)
        teacher = torch.from_numpy(np.asarray(self._answers[batch.rows]))
        return (1 - functional.cosine_similarity(vectors, teacher)).mean() + functional.mse_loss(vectors, teacher)


class MeanCosine:
    """How good an encoder is: the mean cosine between its vectors and the teacher's."""

    def __init__(self, rows: EncodedRows, answers: NDArray[np.float32]) -> None:
        self._rows = rows
        self._answers = answers

    def __call__(self, module: nn.Module) -> float:
        """Return it, -1 to 1."""
        total = 0.0
        for batch in self._rows.batches_by_length(_EVALUATION_ROWS):
            teacher = torch.from_numpy(np.asarray(self._answers[batch.rows]))
            total += float(functional.cosine_similarity(module(batch.tokens), teacher).sum())
        return total / len(self._rows)


class HintedStudent(nn.Module):
    """A student whose layers' states can be compared with the teacher's: projected where these are wider.

    Hints are from Romero et al., 2015 (arXiv:1412.6550); a learned projection for states of another size and one
    teacher's layer for each of the student's as in TinyBERT (Jiao et al., 2020, arXiv:1909.10351).
    """

    def __init__(self, student: nn.Module, hidden_size: int, teacher_hidden_size: int, layers: int) -> None:
        super().__init__()
        self.student = student
        self.projections = nn.ModuleList(
            nn.Identity() if hidden_size == teacher_hidden_size else nn.Linear(hidden_size, teacher_hidden_size)
            for _ in range(layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Answer as the student does."""
        answer: Tensor = self.student(tokens)
        return answer


class HintLoss:
    """Another loss of the student's answers, and hint_weight times the distance of its states from the teacher's.

    The distance is the mean square over layers, words and hidden sizes. `teacher_layers` says which of the teacher's
    layers each of the student's is to be like.
    """

    def __init__(
        self,
        answers_loss: SoftAndHardLoss | VectorLoss,
        student: HintedStudent,
        teacher: nn.Module,
        teacher_layers: Sequence[int],
        padding_id: int,
        hint_weight: float,
    ) -> None:
        self._answers_loss = answers_loss
        self._teacher = teacher.eval().requires_grad_(False)
        self._padding_id = padding_id
        self._hint_weight = hint_weight
        self._student_states: dict[int, Tensor] = {}
        self._teacher_states: dict[int, Tensor] = {}
        for index, teacher_index in enumerate(teacher_layers):
            _keep(layers_of(student.student)[index], self._student_states, index)
            _keep(layers_of(teacher)[teacher_index], self._teacher_states, index)

    def __call__(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean of the batch. `module` is the HintedStudent."""
        assert isinstance(module, HintedStudent)
        loss = self._answers_loss(module, batch)
        with torch.no_grad():
            self._teacher(batch.tokens)
        is_word = batch.tokens != self._padding_id
        distances = [
            functional.mse_loss(projection(self._student_states[index][is_word]), self._teacher_states[index][is_word])
            for index, projection in enumerate(module.projections)
        ]
        return loss + self._hint_weight * torch.stack(distances).mean()


def layers_of(module: nn.Module) -> nn.ModuleList:
    """Return the layers of a network of BERT's kind."""
    layers = module.get_submodule("encoder.layers")
    assert isinstance(layers, nn.ModuleList)
    return layers


def _keep(layer: nn.Module, states: dict[int, Tensor], index: int) -> None:
    """Have the layer leave its output, float32 [N, T, H], whenever it computes one."""

    def leave(module: nn.Module, inputs: object, output: Tensor) -> None:
        del module, inputs
        states[index] = output

    layer.register_forward_hook(leave)
