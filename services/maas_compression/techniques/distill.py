"""distill: a smaller network learns to answer as the source does."""

from pathlib import Path

import torch
from torch import nn

from maas_compression.materials import Materials
from maas_compression.recipe import Distill, RecipeInvalid
from maas_compression.techniques.distilling.lessons import LEARNED, SEED, AnswersLoss, Lesson, require_data, take_lesson
from maas_compression.techniques.distilling.losses import HintedStudent, HintLoss
from maas_compression.techniques.distilling.students import Student, is_bert, make_student
from maas_package.architectures.lstm_text_classifier import PADDING_ID
from maas_package.package import Package
from maas_package.text import TextTokenizer
from maas_package.trainable import TrainableFormMissing, load_module, package_trained_model

_TRANSFORMER_STEP, _LSTM_STEP = 2e-4, 2e-3


def apply_distill(source: Package, technique: Distill, folder: Path, materials: Materials) -> Package:
    """Write the student's package to `folder`, which must be new or empty.

    It has the source's tokenizer, labels and task. It learns from the rows of `train`, from changed copies of them and
    from texts without labels where there are some; the best epoch on `validation` stays. A run that was killed goes
    on where it was. Raises TrainableFormMissing, TrainingDataMissing, RecipeInvalid, LabelsInvalid or LossNotFinite.
    """
    require_data(source, materials)
    manifest = source.manifest
    if manifest.architecture is None or manifest.text is None:
        raise TrainableFormMissing("this version has no trainable form; take the version that it was made from")
    tokenizer = TextTokenizer.from_file(source.path(manifest.text.tokenizer), manifest.text.max_tokens)
    teacher = load_module(source)
    torch.set_num_threads(materials.threads)
    torch.manual_seed(SEED)
    student = make_student(technique, manifest.architecture.name, manifest.architecture.config, teacher, tokenizer)
    _check(technique, student, tokenizer)
    materials.log(f"student: {_size(student.module):,} weights, teacher: {_size(teacher):,}")
    lesson = Lesson(
        technique.epochs,
        technique.learning_rate or (_TRANSFORMER_STEP if student.teacher_layers else _LSTM_STEP),
        technique.batch_size,
        technique.temperature,
        technique.soft_weight,
        technique.augmented_copies,
    )
    if technique.hint_weight:
        teacher_size = teacher.get_parameter("encoder.word.weight").shape[1]
        hinted = HintedStudent(student.module, student.config["hidden_size"], teacher_size, len(student.teacher_layers))

        def with_hints(loss: AnswersLoss) -> HintLoss:
            layers = student.teacher_layers
            return HintLoss(loss, hinted, teacher, layers, tokenizer.padding_id, technique.hint_weight)

        take_lesson(hinted, lesson, source, tokenizer, materials, with_hints)
    else:
        take_lesson(student.module, lesson, source, tokenizer, materials)
    materials.progress(LEARNED, "package")
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


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
