"""distill: a smaller network learns to answer as the source does."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from maas_compression.materials import Materials
from maas_compression.recipe import Distill, RecipeInvalid
from maas_compression.techniques.distilling.augmentation import augmented
from maas_compression.techniques.distilling.losses import (
    HintedStudent,
    HintLoss,
    MeanCosine,
    SoftAndHardLoss,
    VectorLoss,
)
from maas_compression.techniques.distilling.students import Student, is_bert, make_student
from maas_compression.techniques.distilling.teacher import teacher_answers
from maas_engine.engine import choose_servable
from maas_engine.predictor import Predictor, open_predictor
from maas_jobs.labelled_rows import LabelledSplit, TextSplit
from maas_learning.checkpoint import Checkpoints
from maas_learning.encoded_rows import UNLABELLED, encode_rows
from maas_learning.loop import EpochMoment, LearningSettings, Watcher, learn
from maas_learning.objectives import Accuracy, Score
from maas_package.architectures.lstm_text_classifier import PADDING_ID
from maas_package.manifest import TEXT_CLASSIFICATION
from maas_package.package import Package
from maas_package.text import TextEmpty, TextTokenizer
from maas_package.trainable import TrainableFormMissing, load_module, package_trained_model

# Where the parts begin, as shares of the whole.
_LEARN, _PACKAGE = 0.3, 0.97
_TRANSFORMER_STEP, _LSTM_STEP = 2e-4, 2e-3
_SEED = 0


def apply_distill(source: Package, technique: Distill, folder: Path, materials: Materials) -> Package:
    """Write the student's package to `folder`, which must be new or empty.

    It has the source's tokenizer, labels and task. It learns from the rows of `train`, from changed copies of them and
    from texts without labels where there are some; the best epoch on `validation` stays. A run that was killed goes
    on where it was. Raises TrainableFormMissing, TrainingDataMissing, RecipeInvalid or LossNotFinite.
    """
    train = materials.require_train()
    manifest = source.manifest
    if manifest.architecture is None or manifest.text is None:
        raise TrainableFormMissing("this version has no trainable form; take the version that it was made from")
    torch.set_num_threads(materials.threads)
    tokenizer = TextTokenizer.from_file(source.path(manifest.text.tokenizer), manifest.text.max_tokens)
    teacher = load_module(source)
    torch.manual_seed(_SEED)
    student = make_student(technique, manifest.architecture.name, manifest.architecture.config, teacher, tokenizer)
    _check(technique, student, tokenizer)
    materials.log(f"student: {_size(student.module):,} weights, teacher: {_size(teacher):,}")
    _learn(source, technique, teacher, student, tokenizer, train, materials)
    materials.progress(_PACKAGE, "package")
    return package_trained_model(
        folder,
        architecture=student.architecture,
        config=student.config,
        module=student.module,
        tokenizer=tokenizer,
        labels=manifest.labels,
        task=manifest.task,
    )


def _check(technique: Distill, student: Student, tokenizer: TextTokenizer) -> None:
    name = student.architecture.name
    if technique.hint_weight and not is_bert(name):
        raise RecipeInvalid(f"a {name} has no layers that could be like the teacher's: leave hint_weight out")
    if not is_bert(name) and tokenizer.padding_id != PADDING_ID:
        raise RecipeInvalid(f"a {name} cannot read this tokenizer's words: its padding is not {PADDING_ID}")


def _learn(
    source: Package,
    technique: Distill,
    teacher: nn.Module,
    student: Student,
    tokenizer: TextTokenizer,
    train: LabelledSplit,
    materials: Materials,
) -> None:
    """Leave the student's module trained."""
    scratch, is_classifier = materials.scratch, source.manifest.task == TEXT_CLASSIFICATION
    validation = materials.validation or train

    def rows() -> Iterator[tuple[str, int]]:
        return _rows(tokenizer, train, technique.augmented_copies, materials.unlabelled)

    with (
        encode_rows(scratch / "train.ids", tokenizer, rows()) as train_rows,
        encode_rows(scratch / "validation.ids", tokenizer, validation.rows()) as validation_rows,
    ):
        predictor = open_predictor(source, choose_servable(source), materials.threads)
        try:
            total = len(train_rows) + len(validation_rows)
            answers = _answers(predictor, rows, scratch / "train.answers", materials, 0, total)
            answers_loss = (
                SoftAndHardLoss(answers, technique.temperature, technique.soft_weight)
                if is_classifier
                else VectorLoss(answers)
            )
            score: Score = Accuracy(validation_rows)
            if not is_classifier:
                path = scratch / "validation.answers"
                score = MeanCosine(
                    validation_rows, _answers(predictor, validation.rows, path, materials, len(train_rows), total)
                )
        finally:
            predictor.close()
        learned, loss = student.module, _loss(technique, answers_loss, teacher, student, tokenizer.padding_id)
        if isinstance(loss, HintLoss):
            learned = loss.student
        step = _TRANSFORMER_STEP if is_bert(student.architecture.name) else _LSTM_STEP
        settings = LearningSettings(
            epochs=technique.epochs,
            batch_size=technique.batch_size,
            learning_rate=technique.learning_rate or step,
            patience=technique.epochs,
            seed=_SEED,
            weight_decay=0.01,
            warm_up=0.1,
        )
        learn(learned, train_rows, loss, score, settings, Checkpoints(scratch / "checkpoints"), _narrator(materials))


def _loss(
    technique: Distill,
    answers_loss: SoftAndHardLoss | VectorLoss,
    teacher: nn.Module,
    student: Student,
    padding_id: int,
) -> SoftAndHardLoss | VectorLoss | HintLoss:
    """Return the loss, with hints where the technique wants them."""
    if not technique.hint_weight:
        return answers_loss
    teacher_size = teacher.get_parameter("encoder.word.weight").shape[1]
    hinted = HintedStudent(student.module, student.config["hidden_size"], teacher_size, len(student.teacher_layers))
    return HintLoss(answers_loss, hinted, teacher, student.teacher_layers, padding_id, technique.hint_weight)


def _rows(
    tokenizer: TextTokenizer, train: LabelledSplit, copies: int, unlabelled: TextSplit | None
) -> Iterator[tuple[str, int]]:
    """Yield what the student learns from, always the same: the rows, changed copies of them, texts without labels."""
    yield from train.rows()
    others = chain(augmented(train.texts(), copies, _SEED), unlabelled.texts() if unlabelled else ())
    yield from ((text, UNLABELLED) for text in others if _has_words(tokenizer, text))


def _has_words(tokenizer: TextTokenizer, text: str) -> bool:
    try:
        tokenizer.encode([text])
    except TextEmpty:
        return False
    return True


def _answers(
    teacher: Predictor,
    rows: Callable[[], Iterator[tuple[str, int]]],
    path: Path,
    materials: Materials,
    before: int,
    total: int,
) -> NDArray[np.float32]:
    def advance(done: int) -> None:
        materials.progress(_LEARN * (before + done) / total, "ask the teacher")

    return teacher_answers(teacher, (text for text, _ in rows()), path, advance)


def _narrator(materials: Materials) -> Watcher:
    def narrate(moment: EpochMoment) -> None:
        materials.progress(_LEARN + (_PACKAGE - _LEARN) * moment.done, "learn")
        if moment.score is not None:
            materials.log(
                f"epoch {moment.epoch} of {moment.epochs}: loss {moment.loss:.4f}, validation {moment.score:.4f}, "
                f"{moment.rows_per_second:,.0f} rows/s"
            )

    return narrate


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
