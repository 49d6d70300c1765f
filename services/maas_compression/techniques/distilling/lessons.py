"""How a network learns from a package's answers: which texts it sees, how good it is, and how long it takes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from maas_compression.materials import Materials
from maas_compression.techniques.distilling.augmentation import augmented
from maas_compression.techniques.distilling.losses import HintLoss, MeanCosine, SoftAndHardLoss, VectorLoss
from maas_compression.techniques.distilling.teacher import teacher_answers
from maas_engine.engine import choose_servable
from maas_engine.predictor import Predictor, open_predictor
from maas_jobs.labelled_rows import LabelledSplit, TextSplit, check_labels
from maas_learning.checkpoint import Checkpoints
from maas_learning.encoded_rows import UNLABELLED, encode_rows
from maas_learning.loop import EpochMoment, LearningSettings, Watcher, learn
from maas_learning.objectives import Accuracy, Score
from maas_package.manifest import TEXT_CLASSIFICATION
from maas_package.package import Package
from maas_package.text import TextEmpty, TextTokenizer

LEARNED = 0.97
"""Share of a technique's work that is done when learning is."""
SEED = 0

_ASKED = 0.3  # share that is done when the teacher has answered all
_MOST_OWN_VALIDATION = 1000
_WARM_UP, _WEIGHT_DECAY = 0.1, 0.01

AnswersLoss: TypeAlias = SoftAndHardLoss | VectorLoss


@dataclass(frozen=True, slots=True)
class Lesson:
    """How long, in what steps, and how much is learned from the teacher."""

    epochs: int
    learning_rate: float
    batch_size: int
    temperature: float
    soft_weight: float
    augmented_copies: int = 0


def take_lesson(
    pupil: nn.Module,
    lesson: Lesson,
    teacher: Package,
    tokenizer: TextTokenizer,
    materials: Materials,
    objective: Callable[[AnswersLoss], AnswersLoss | HintLoss] = lambda loss: loss,
) -> None:
    """Leave the pupil with the weights of its best epoch on `validation`, or without one on some of what it learned.

    A classifier learns from logits and labels, an encoder from vectors. `objective` makes of the loss of the answers
    the one that is learned. A run that was killed goes on where it was. Raises TrainingDataMissing, LabelsInvalid or
    LossNotFinite.
    """
    require_data(teacher, materials)
    is_classifier = teacher.manifest.task == TEXT_CLASSIFICATION
    for split in (materials.train, materials.validation):
        if split is not None and is_classifier:
            check_labels(split, len(teacher.manifest.labels))
    torch.set_num_threads(materials.threads)

    def rows() -> Iterator[tuple[str, int]]:
        return _rows(tokenizer, materials.train, lesson.augmented_copies, materials.unlabelled)

    def validation() -> Iterator[tuple[str, int]]:
        return materials.validation.rows() if materials.validation else islice(rows(), _MOST_OWN_VALIDATION)

    with (
        encode_rows(materials.scratch / "train.ids", tokenizer, rows()) as train_rows,
        encode_rows(materials.scratch / "validation.ids", tokenizer, validation()) as validation_rows,
    ):
        asked = _Asked(teacher, materials, len(train_rows) + (0 if is_classifier else len(validation_rows)))
        try:
            answers = asked.answers((text for text, _ in rows()), "train")
            score: Score = Accuracy(validation_rows)
            if not is_classifier:
                score = MeanCosine(validation_rows, asked.answers((text for text, _ in validation()), "validation"))
        finally:
            asked.close()
        loss = (
            SoftAndHardLoss(answers, lesson.temperature, lesson.soft_weight) if is_classifier else VectorLoss(answers)
        )
        settings = LearningSettings(
            epochs=lesson.epochs,
            batch_size=lesson.batch_size,
            learning_rate=lesson.learning_rate,
            patience=lesson.epochs,
            seed=SEED,
            weight_decay=_WEIGHT_DECAY,
            warm_up=_WARM_UP,
        )
        checkpoints = Checkpoints(materials.scratch / "checkpoints")
        learn(pupil, train_rows, objective(loss), score, settings, checkpoints, _narrator(materials))


def require_data(teacher: Package, materials: Materials) -> None:
    """Raise TrainingDataMissing when there is nothing to learn from: labelled rows, for an encoder any texts."""
    if teacher.manifest.task == TEXT_CLASSIFICATION or materials.texts is None:
        materials.require_train()


class _Asked:
    """The teacher, and how many texts it has answered."""

    def __init__(self, teacher: Package, materials: Materials, texts: int) -> None:
        self._predictor: Predictor = open_predictor(teacher, choose_servable(teacher), materials.threads)
        self._materials = materials
        self._texts = texts
        self._before = 0

    def answers(self, texts: Iterator[str], name: str) -> NDArray[np.float32]:
        path: Path = self._materials.scratch / f"{name}.answers"
        answers = teacher_answers(self._predictor, texts, path, self._advance)
        self._before += len(answers)
        return answers

    def close(self) -> None:
        self._predictor.close()

    def _advance(self, done: int) -> None:
        self._materials.progress(_ASKED * (self._before + done) / self._texts, "ask the teacher")


def _rows(
    tokenizer: TextTokenizer, train: LabelledSplit | None, copies: int, unlabelled: TextSplit | None
) -> Iterator[tuple[str, int]]:
    """Yield what is learned from, always the same: the rows, texts without labels, changed copies of either."""
    if train is not None:
        yield from train.rows()
    own = train or unlabelled
    others = chain(unlabelled.texts() if unlabelled else (), augmented(own.texts() if own else (), copies, SEED))
    yield from ((text, UNLABELLED) for text in others if _has_words(tokenizer, text))


def _has_words(tokenizer: TextTokenizer, text: str) -> bool:
    try:
        tokenizer.encode([text])
    except TextEmpty:
        return False
    return True


def _narrator(materials: Materials) -> Watcher:
    def narrate(moment: EpochMoment) -> None:
        materials.progress(_ASKED + (LEARNED - _ASKED) * moment.done, "learn")
        if moment.score is not None:
            materials.log(
                f"epoch {moment.epoch} of {moment.epochs}: loss {moment.loss:.4f}, validation {moment.score:.4f}, "
                f"{moment.rows_per_second:,.0f} rows/s"
            )

    return narrate
