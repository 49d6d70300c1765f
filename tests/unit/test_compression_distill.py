"""distill: the losses against numpy, what students begin with, and that a killed distillation ends the same."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch import nn

from maas_compression.materials import Materials, TrainingDataMissing
from maas_compression.recipe import Distill, RecipeInvalid, check_recipe
from maas_compression.techniques.distill import apply_distill
from maas_compression.techniques.distilling.augmentation import augmented
from maas_compression.techniques.distilling.losses import (
    HintedStudent,
    HintLoss,
    MeanCosine,
    SoftAndHardLoss,
    VectorLoss,
    layers_of,
)
from maas_compression.techniques.distilling.students import make_student, principal_parts, word_vectors
from maas_compression.techniques.distilling.teacher import teacher_answers
from maas_engine.predictor import Predictor, open_predictor, softmax
from maas_jobs.labelled_rows import LabelledSplit, open_labelled_split
from maas_learning.encoded_rows import Batch, store_rows
from maas_package.architectures import load_architecture
from maas_package.manifest import TENSORS, TEXT_CLASSIFICATION
from maas_package.package import Package
from maas_package.text import TextTokenizer, build_word_tokenizer
from maas_package.trainable import load_module, package_trained_model

WORDS = ["great", "moving", "fine", "dull", "awful", "weak", "film", "story", "a", "the"]
TEXTS = [f"{first} {second} {third}" for first in WORDS for second in WORDS[:6] for third in WORDS[6:]]
LABELS = [int(text.split()[1] in WORDS[:3]) for text in TEXTS]
SIZES = {"hidden_size": 16, "layers": 4, "heads": 4, "inner_size": 24, "dropout": 0.0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(3)


def tokenizer() -> TextTokenizer:
    return build_word_tokenizer(TEXTS, 60)


def made(folder: Path, name: str, **sizes: Any) -> Package:
    words = tokenizer()
    architecture = load_architecture(name)
    config = architecture.parse_config({"vocabulary_size": words.vocabulary_size, **sizes})
    is_classifier = "classifier" in name
    module = architecture.build(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(8.0 if parameter.ndim == 2 else 1.0)  # so that it tells texts apart
    return package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=words,
        labels=("bad", "good") if is_classifier else (),
        task=TEXT_CLASSIFICATION if is_classifier else TENSORS,
    )


def bert(folder: Path) -> Package:
    return made(folder, "bert-text-classifier", **SIZES)


def split(folder: Path, name: str, texts: Sequence[str], labels: Sequence[int]) -> LabelledSplit:
    path = folder / f"{name}.parquet"
    table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.string()), "label": pyarrow.array(labels)})
    pyarrow.parquet.write_table(table, path)
    return open_labelled_split(path)


def materials(folder: Path, name: str = "scratch") -> Materials:
    folder.joinpath(name).mkdir()
    return Materials(
        folder / name,
        train=split(folder, "train", TEXTS[::2], LABELS[::2]),
        validation=split(folder, "validation", TEXTS[1::4], LABELS[1::4]),
    )


def batch(tokens: torch.Tensor, labels: Sequence[int]) -> Batch:
    return Batch(tokens, torch.tensor(labels), np.arange(len(labels)))


class Fixed(nn.Module):
    """Answers the same to everything."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.answers = nn.Parameter(answers)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.answers


def test_the_loss_is_hintons_formula() -> None:
    generator = np.random.default_rng(1)
    teacher, student = (generator.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
    labels, temperature, weight = [2, 0, -1, 1, -1], 3.0, 0.7
    module = Fixed(torch.from_numpy(student))
    loss = SoftAndHardLoss(teacher, temperature, weight)(module, batch(torch.zeros(5, 1), labels))
    wanted, given = softmax(teacher / temperature), softmax(student / temperature)
    soft = temperature**2 * (wanted * (np.log(wanted) - np.log(given))).sum(axis=1)
    hard = [0.0 if label < 0 else -np.log(softmax(student)[row, label]) for row, label in enumerate(labels)]
    assert loss.item() == pytest.approx(np.mean(weight * soft + (1 - weight) * np.array(hard)), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    # The derivative of the soft part of a row without a label: w * T * (given - wanted) / rows.
    expected = weight * temperature * (given - wanted)[2] / 5
    np.testing.assert_allclose(module.answers.grad[2].numpy(), expected, rtol=1e-4, atol=1e-7)  # type: ignore[index]


def test_without_temperature_and_labels_the_teachers_own_answers_cost_nothing() -> None:
    logits = torch.randn(4, 2)
    loss = SoftAndHardLoss(logits.numpy().copy(), 1.0, 1.0)(Fixed(logits), batch(torch.zeros(4, 1), [0, 1, 0, 1]))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_the_loss_of_vectors_is_their_cosine_and_distance(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    teacher, student = (generator.normal(size=(3, 6)).astype(np.float32) for _ in range(2))
    module = Fixed(torch.from_numpy(student))
    loss = VectorLoss(teacher)(module, batch(torch.zeros(3, 1), [-1] * 3))
    lengths = np.linalg.norm(teacher, axis=1) * np.linalg.norm(student, axis=1)
    cosine = (teacher * student).sum(axis=1) / lengths
    assert loss.item() == pytest.approx(np.mean(1 - cosine) + np.mean((teacher - student) ** 2), rel=1e-5)
    with store_rows(tmp_path / "a.ids", [(np.array([2]), -1)] * 3, 0) as rows, torch.inference_mode():
        assert MeanCosine(rows, teacher)(module) == pytest.approx(cosine.mean(), rel=1e-5)


@pytest.mark.parametrize("hidden_size", [16, 8])
def test_hints_are_the_mean_distance_of_the_layers_states_without_padding(tmp_path: Path, hidden_size: int) -> None:
    package = bert(tmp_path / "teacher")
    teacher = load_module(package)
    assert package.manifest.architecture is not None
    technique = Distill(layers=2, hidden_size=hidden_size)
    student = make_student(
        technique, "bert-text-classifier", package.manifest.architecture.config, teacher, tokenizer()
    )
    assert student.teacher_layers == (1, 3)
    hinted = HintedStudent(student.module.eval(), hidden_size, 16, 2)
    answers = np.zeros((2, 2), np.float32)
    plain = SoftAndHardLoss(answers, 2.0, 0.5)
    rows = batch(torch.tensor([[2, 3, 4], [5, 0, 0]]), [0, 1])
    loss = HintLoss(plain, hinted, teacher, student.teacher_layers, 0, 10.0)(hinted, rows)
    distances = []
    for own, other in enumerate(student.teacher_layers):
        states = [states_of(student.module, own, rows.tokens), states_of(teacher, other, rows.tokens)]
        projected = hinted.projections[own](states[0])
        difference = (projected - states[1]).detach().numpy()[[0, 0, 0, 1], [0, 1, 2, 0]]
        distances.append(np.mean(difference**2))
    assert loss.item() == pytest.approx(plain(hinted, rows).item() + 10 * np.mean(distances), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in hinted.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def states_of(module: nn.Module, layer: int, tokens: torch.Tensor) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    handle = layers_of(module)[layer].register_forward_hook(lambda _, __, output: kept.append(output))
    module(tokens)
    handle.remove()
    return kept[0]


def test_a_student_of_all_layers_and_sizes_is_its_teacher(tmp_path: Path) -> None:
    package = bert(tmp_path / "teacher")
    teacher = load_module(package)
    assert package.manifest.architecture is not None
    technique = Distill(layers=4, hidden_size=16, inner_size=24)
    student = make_student(
        technique, "bert-text-classifier", package.manifest.architecture.config, teacher, tokenizer()
    )
    tokens = torch.tensor([[2, 3, 4], [5, 6, 0]])
    torch.testing.assert_close(student.module.eval()(tokens), teacher(tokens))


def test_a_student_without_the_channels_and_heads_that_do_nothing_answers_as_its_teacher(tmp_path: Path) -> None:
    package = bert(tmp_path / "teacher")
    teacher = load_module(package)
    with torch.no_grad():
        for layer in layers_of(teacher):
            layer.get_parameter("inner_output.weight")[:, ::2] = 0
    assert package.manifest.architecture is not None
    config = package.manifest.architecture.config
    technique = Distill(layers=4, inner_size=12)
    student = make_student(technique, "bert-text-classifier", config, teacher, tokenizer())
    tokens = torch.tensor([[2, 3, 4], [5, 6, 0]])
    torch.testing.assert_close(student.module.eval()(tokens), teacher(tokens))


def test_a_student_is_not_larger_than_its_teacher_nor_of_another_kind(tmp_path: Path) -> None:
    teacher = nn.Module()
    for technique in (Distill(layers=5), Distill(hidden_size=32), Distill(student="perceptron")):
        with pytest.raises(RecipeInvalid):
            make_student(technique, "bert-text-classifier", SIZES, teacher, tokenizer())
    with pytest.raises(RecipeInvalid, match="vectors keep their 16 numbers"):
        make_student(Distill(hidden_size=8), "bert-sentence-encoder", SIZES, teacher, tokenizer())


def test_an_lstms_word_vectors_are_the_principal_parts_of_what_the_teacher_makes_of_words(tmp_path: Path) -> None:
    package = bert(tmp_path / "teacher")
    teacher = load_module(package)
    words = tokenizer()
    vectors = word_vectors(teacher, words)
    assert vectors.shape == (words.vocabulary_size, 16)
    alone = torch.tensor([[5]])
    torch.testing.assert_close(torch.from_numpy(vectors[5]), states_of(teacher, 3, alone)[0, 0])
    parts = principal_parts(vectors, 3)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :3] * values[:3]
    np.testing.assert_allclose(np.abs(parts), np.abs(expected) / expected.std(), atol=1e-4)


def test_the_teacher_is_asked_once_and_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maas_compression.techniques.distilling.teacher._PART_TEXTS", 8)
    teacher = open_predictor(bert(tmp_path / "teacher"))
    path = tmp_path / "answers"
    try:
        expected = teacher.predict_texts(TEXTS[:30]).outputs["logits"]

        class Killed(Exception):
            pass

        def kill(done: int) -> None:
            if done >= 16:
                raise Killed

        with pytest.raises(Killed):
            teacher_answers(teacher, TEXTS[:30], path, kill)
        path.write_bytes(path.read_bytes() + b"half a row")
        counted: list[int] = []
        answers = teacher_answers(teacher, TEXTS[:30], path, counted.append)
        assert counted == [24, 30]
        np.testing.assert_allclose(answers, expected, atol=1e-5)
        np.testing.assert_allclose(teacher_answers(teacher, TEXTS[:30], path, counted.append), expected, atol=1e-5)
        assert counted == [24, 30, 30]
    finally:
        teacher.close()


def test_augmented_texts_are_the_same_for_the_same_seed_and_have_the_words_of_the_texts() -> None:
    first = list(augmented(TEXTS, 3, seed=1))
    assert first == list(augmented(TEXTS, 3, seed=1))
    assert first != list(augmented(TEXTS, 3, seed=2))
    assert len(first) == 3 * len(TEXTS)
    assert all(text.split() for text in first)
    assert {word for text in first for word in text.split()} == set(WORDS)
    assert len(set(first)) > len(TEXTS)


@pytest.mark.parametrize(
    "technique",
    [
        Distill(layers=2, epochs=2, hint_weight=1.0, augmented_copies=1),
        Distill(layers=1, hidden_size=8, inner_size=12, epochs=2, hint_weight=1.0),
        Distill(student="lstm-text-classifier", hidden_size=8, epochs=2),
    ],
    ids=["layers", "narrow", "lstm"],
)
def test_a_killed_distillation_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path, technique: Distill) -> None:
    source = bert(tmp_path / "teacher")
    unbroken = materials(tmp_path, "unbroken")
    expected = load_module(apply_distill(source, technique, tmp_path / "a", unbroken)).state_dict()

    class Killed(Exception):
        pass

    def kill_after_an_epoch(text: str) -> None:
        if text.startswith("epoch 1"):
            raise Killed

    broken = materials(tmp_path, "broken")
    with pytest.raises(Killed):
        apply_distill(source, technique, tmp_path / "b", replace(broken, log=kill_after_an_epoch))
    lines: list[str] = []
    result = apply_distill(source, technique, tmp_path / "c", replace(broken, log=lines.append))
    assert [line[:7] for line in lines if line.startswith("epoch")] == ["epoch 2"]
    found = load_module(result).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert result.manifest.labels == ("bad", "good")
    assert result.total_bytes < source.total_bytes


def agreement(teacher: Predictor, student: Predictor) -> float:
    return float((teacher.predict_texts(TEXTS).predicted == student.predict_texts(TEXTS).predicted).mean())


def with_predictors(source: Package, result: Package, judge: Callable[[Predictor, Predictor], float]) -> float:
    teacher, student = open_predictor(source), open_predictor(result)
    try:
        return judge(teacher, student)
    finally:
        teacher.close()
        student.close()


def test_a_student_learns_to_answer_as_its_teacher_also_without_labels(tmp_path: Path) -> None:
    source = bert(tmp_path / "teacher")
    technique = Distill(layers=2, epochs=8, soft_weight=1.0, learning_rate=3e-3, batch_size=8)
    given = materials(tmp_path)
    unlabelled = split(tmp_path, "unlabelled", TEXTS[1::2], [0] * len(TEXTS[1::2]))
    result = apply_distill(source, technique, tmp_path / "a", replace(given, unlabelled=unlabelled))
    assert with_predictors(source, result, agreement) > 0.85


def test_an_encoders_student_gives_vectors_like_its_teachers_from_texts_without_labels(tmp_path: Path) -> None:
    source = made(tmp_path / "teacher", "bert-sentence-encoder", **SIZES)

    def student(name: str, technique: Distill) -> Package:
        given = replace(materials(tmp_path, name), train=None, validation=None)
        texts = split(tmp_path, "texts", TEXTS, [0] * len(TEXTS))
        return apply_distill(source, technique, tmp_path / f"{name}-result", replace(given, unlabelled=texts))

    before = student("before", Distill(layers=2, epochs=1, learning_rate=1e-9))
    after = student("after", Distill(layers=2, epochs=4, learning_rate=3e-3))

    def cosine(teacher: Predictor, student: Predictor) -> float:
        first, second = (one.predict_texts(TEXTS).outputs["sentence_embedding"] for one in (teacher, student))
        return float((first * second).sum(axis=1).mean())

    assert with_predictors(source, after, cosine) > max(0.95, with_predictors(source, before, cosine))
    assert after.manifest.task == source.manifest.task


def test_an_lstms_student_has_fewer_hidden_units_and_the_teachers_words(tmp_path: Path) -> None:
    source = made(tmp_path / "teacher", "lstm-text-classifier", embedding_size=6, hidden_size=16)
    result = apply_distill(source, Distill(hidden_size=4, epochs=1), tmp_path / "a", materials(tmp_path))
    assert result.manifest.architecture is not None
    config = result.manifest.architecture.config
    assert (config["hidden_size"], config["embedding_size"]) == (4, 6)
    assert load_module(result).get_parameter("lstm.weight_hh_l0").shape == (16, 4)


def test_what_cannot_be_distilled_is_refused(tmp_path: Path) -> None:
    source = bert(tmp_path / "teacher")
    with pytest.raises(TrainingDataMissing):
        apply_distill(source, Distill(), tmp_path / "a", Materials(tmp_path))
    with pytest.raises(RecipeInvalid, match="leave hint_weight out"):
        technique = Distill(student="lstm-text-classifier", hint_weight=1.0)
        apply_distill(source, technique, tmp_path / "b", materials(tmp_path))
    with pytest.raises(RecipeInvalid, match="leave hint_weight out"):
        check_recipe((technique,), has_trainable_form=True)
