"""Any model is judged by one number, on the same rows as its source."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow
import pyarrow.parquet
import pytest
from onnx import TensorProto, helper, numpy_helper

from maas_compression.measuring.judging import Judge, RowsDoNotFit, SourceAnswersInvalid, metric_of
from maas_compression.measuring.paired import mcnemar_p, paired_difference
from maas_engine.predictor import Predictor, open_predictor, predicted_classes
from maas_engine.quality import wilson_interval
from maas_jobs.labelled_rows import LabelsInvalid, open_labelled_split, open_text_split
from maas_package.manifest import TENSORS, Manifest, Servable, TensorSpec, TextInput
from maas_package.package import Package, read_package, write_package
from maas_package.tensors import Array
from maas_package.text import build_word_tokenizer

WORDS = [f"w{number}" for number in range(30)]
ROWS = 100


class Closing:
    """Predictors that are closed when a test ends."""

    def __init__(self) -> None:
        self._open: list[Predictor] = []

    def __call__(self, package: Package) -> Predictor:
        self._open.append(open_predictor(package))
        return self._open[-1]

    def close(self) -> None:
        for predictor in self._open:
            predictor.close()


@pytest.fixture
def opened() -> Iterator[Closing]:
    closing = Closing()
    yield closing
    closing.close()


def texts() -> list[str]:
    generator = np.random.default_rng(4)
    return [" ".join(generator.choice(WORDS, int(generator.integers(1, 12)))) for _ in range(ROWS)]


def write_rows(folder: Path, **columns: list[Any]) -> Path:
    path = folder / "test.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def bag_package(folder: Path, vectors: Array, task: str = TENSORS, labels: tuple[str, ...] = ()) -> Package:
    """Write a model that gives a text the sum of its words' vectors; padding, word 0, adds nothing."""
    vectors = vectors * (np.arange(len(vectors)) > 0)[:, None].astype(np.float32)
    name = "logits" if labels else "vector"
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["vectors", "tokens"], ["words"]),
            helper.make_node("ReduceSum", ["words", "axis"], [name], keepdims=0),
        ],
        "bag",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", vectors.shape[1]])],
        [numpy_helper.from_array(vectors, "vectors"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    return _package(
        folder,
        graph,
        Manifest(
            task=task,
            inputs=(TensorSpec("tokens", "INT64", (-1, -1)),),
            outputs=(TensorSpec(name, "FP32", (-1, vectors.shape[1])),),
            labels=labels,
            text=TextInput("text", "tokens", "tokenizer.json", 32),
            servables=(Servable("onnxruntime", "fp32", "model.onnx"),),
        ),
    )


def matrix_package(folder: Path, weights: Array, dtype: int = TensorProto.FLOAT) -> Package:
    """Write a model without texts: y = x W, and which y is the largest."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weights"], ["y"]),
            helper.make_node("ArgMax", ["y"], ["place"], axis=1, keepdims=0),
        ],
        "matrix",
        [helper.make_tensor_value_info("x", dtype, ["n", weights.shape[0]])],
        [
            helper.make_tensor_value_info("y", dtype, ["n", weights.shape[1]]),
            helper.make_tensor_value_info("place", TensorProto.INT64, ["n"]),
        ],
        [numpy_helper.from_array(weights, "weights")],
    )
    manifest = Manifest(
        task=TENSORS,
        inputs=(TensorSpec("x", "FP32", (-1, weights.shape[0])),),
        outputs=(TensorSpec("y", "FP32", (-1, weights.shape[1])), TensorSpec("place", "INT64", (-1,))),
        servables=(Servable("onnxruntime", "fp32", "model.onnx"),),
    )
    return _package(folder, graph, manifest)


def _package(folder: Path, graph: onnx.GraphProto, manifest: Manifest) -> Package:
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(folder / "model.onnx"))
    if manifest.text is not None:
        build_word_tokenizer([" ".join(WORDS)], vocabulary_size=40).save(folder / "tokenizer.json")
    return write_package(folder, manifest)


def judge(source: Package, rows: Any, folder: Path, most_rows: int | None = None) -> Judge:
    return Judge(source, source.manifest.servables[0], rows, folder, most_rows=most_rows)


def vectors(seed: int, width: int = 2, scale: float = 1.0) -> Array:
    return (np.random.default_rng(seed).standard_normal((40, width)) * scale).astype(np.float32)


def classifier(folder: Path, weights: Array) -> Package:
    return bag_package(folder, weights, "text-classification", ("bad", "good"))


def test_a_classifier_is_judged_by_its_accuracy_beside_its_sources(tmp_path: Path, opened: Closing) -> None:
    source = classifier(tmp_path / "a", vectors(0))
    made = classifier(tmp_path / "b", vectors(0) + vectors(1, scale=0.5))
    labels = np.random.default_rng(2).integers(0, 2, ROWS)
    rows = open_labelled_split(write_rows(tmp_path, text=texts(), label=labels.tolist()))
    found = judge(source, rows, tmp_path).judge(opened(made))

    old, new = (predicted_classes(opened(one).predict_texts(texts()).outputs["logits"]) for one in (source, made))
    right_before, right_after = old == labels, new == labels
    gained, lost = int((right_after & ~right_before).sum()), int((right_before & ~right_after).sum())
    assert min(gained, lost) > 0, "the test's models differ"
    assert (found.metric, found.rows) == ("accuracy", ROWS)
    assert (found.before.value, found.after.value) == (right_before.mean(), right_after.mean())
    assert (found.after.low, found.after.high) == wilson_interval(int(right_after.sum()), ROWS)
    assert found.difference == paired_difference(gained, lost, ROWS)
    assert found.loss == pytest.approx((lost - gained) / ROWS)
    assert found.mcnemar_p == mcnemar_p(gained, lost)
    assert found.agreement == (old == new).mean()
    of_class = {one.name: one for one in found.slices if one.kind == "class"}
    assert set(of_class) == {"bad", "good"}
    for index, name in enumerate(("bad", "good")):
        mask = labels == index
        assert (of_class[name].rows, of_class[name].before, of_class[name].after) == (
            mask.sum(),
            right_before[mask].mean(),
            right_after[mask].mean(),
        )


def test_the_slices_of_length_hold_each_row_once(tmp_path: Path, opened: Closing) -> None:
    source = classifier(tmp_path / "a", vectors(0))
    rows = open_labelled_split(write_rows(tmp_path, text=texts(), label=[0, 1] * (ROWS // 2)))
    found = judge(source, rows, tmp_path).judge(opened(source))
    of_length = [one for one in found.slices if one.kind == "length"]
    assert len(of_length) == 4
    assert sum(one.rows for one in of_length) == ROWS
    assert (found.agreement, found.loss, found.mcnemar_p) == (1.0, 0.0, 1.0)


def test_columns_with_few_values_are_slices_too(tmp_path: Path, opened: Closing) -> None:
    source = classifier(tmp_path / "a", vectors(0))
    columns: dict[str, list[Any]] = {"origin": ["shop", "web", None, "web"] * (ROWS // 4), "number": list(range(ROWS))}
    path = write_rows(tmp_path, text=texts(), label=[0, 1] * (ROWS // 2), **columns)
    found = judge(source, open_labelled_split(path), tmp_path).judge(opened(source))
    assert [(one.kind, one.name, one.rows) for one in found.slices if one.kind not in ("class", "length")] == [
        ("origin", "none", 25),
        ("origin", "shop", 25),
        ("origin", "web", 50),
    ]


def test_the_source_is_asked_once_and_the_next_process_finds_its_answers(tmp_path: Path, opened: Closing) -> None:
    source = classifier(tmp_path / "a", vectors(0))
    made = classifier(tmp_path / "b", vectors(5))
    rows = open_labelled_split(write_rows(tmp_path, text=texts(), label=[0, 1] * (ROWS // 2)))
    first = judge(source, rows, tmp_path / "kept").judge(opened(made))
    source.path("model.onnx").unlink()
    again = judge(source, rows, tmp_path / "kept").judge(opened(made))
    assert replace(again, seconds=0.0) == replace(first, seconds=0.0)
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_some_rows_are_taken_from_all_over_the_file(tmp_path: Path, opened: Closing) -> None:
    source = classifier(tmp_path / "a", vectors(0))
    rows = open_labelled_split(write_rows(tmp_path, text=texts(), label=[0] * 50 + [1] * 50))
    found = judge(source, rows, tmp_path, most_rows=40).judge(opened(source))
    assert [(one.name, one.rows) for one in found.slices if one.kind == "class"] == [("bad", 20), ("good", 20)]


def test_answers_that_are_no_numbers_are_wrong(tmp_path: Path, opened: Closing) -> None:
    broken = vectors(0)
    broken[:] = np.nan
    source, made = classifier(tmp_path / "a", vectors(0)), classifier(tmp_path / "b", broken)
    rows = open_labelled_split(write_rows(tmp_path, text=texts(), label=[0] * ROWS))
    found = judge(source, rows, tmp_path).judge(opened(made))
    assert (found.after.value, found.agreement, found.error) == (0.0, 0.0, np.inf)
    with pytest.raises(SourceAnswersInvalid, match="NaN"):
        judge(made, rows, tmp_path / "other").judge(opened(source))


def test_an_encoder_is_judged_by_the_cosine_to_its_sources_vectors(tmp_path: Path, opened: Closing) -> None:
    source = bag_package(tmp_path / "a", vectors(0, 8))
    made = bag_package(tmp_path / "b", vectors(0, 8) + vectors(1, 8, 0.1))
    rows = open_text_split(write_rows(tmp_path, text=texts()))
    found = judge(source, rows, tmp_path).judge(opened(made))
    old, new = (opened(one).predict_texts(texts()).outputs["vector"].astype(np.float64) for one in (source, made))
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(old, new, strict=True)]
    assert (found.metric, found.rows, found.before.value, found.mcnemar_p) == ("cosine", ROWS, 1.0, None)
    assert found.after.value == pytest.approx(np.mean(cosines))
    assert found.after.low < found.after.value < found.after.high < 1
    assert found.loss == pytest.approx(1 - np.mean(cosines))
    same = [nearest(old, row) == nearest(new, row) for row in range(ROWS)]
    assert found.agreement == pytest.approx(np.mean(same))


def nearest(vectors: Array, row: int) -> int:
    cosines = [float(vectors[row] @ other / np.linalg.norm(other)) for other in vectors]
    return max((other for other in range(ROWS) if other != row), key=lambda other: cosines[other])


def test_an_encoder_that_did_not_change_has_the_whole_cosine(tmp_path: Path, opened: Closing) -> None:
    source = bag_package(tmp_path / "a", vectors(0, 8))
    found = judge(source, open_text_split(write_rows(tmp_path, text=texts())), tmp_path).judge(opened(source))
    assert found.after.value == pytest.approx(1.0)
    assert found.agreement == 1.0


def test_tensors_are_judged_by_their_relative_error_on_made_up_inputs(tmp_path: Path, opened: Closing) -> None:
    weights = vectors(0, 5)
    source = matrix_package(tmp_path / "a", weights)
    found = judge(source, None, tmp_path).judge(opened(matrix_package(tmp_path / "b", weights * np.float32(0.9))))
    assert (found.metric, found.before.value, found.agreement) == ("fidelity", 1.0, 1.0)
    assert found.error == pytest.approx(0.1, abs=1e-6)
    assert found.after.value == pytest.approx(0.9, abs=1e-6), "each row is a tenth shorter; the places are the same"
    other = judge(source, None, tmp_path).judge(opened(matrix_package(tmp_path / "c", -weights)))
    assert (other.after.value, other.agreement) == (0.0, 0.0)
    assert other.slices == ()


def test_what_an_output_says_in_whole_numbers_is_equal_or_not(tmp_path: Path, opened: Closing) -> None:
    weights = vectors(0, 5)
    swapped = weights.copy()
    swapped[:, [0, 1]] = weights[:, [1, 0]]
    source = matrix_package(tmp_path / "a", weights)
    found = judge(source, None, tmp_path).judge(opened(matrix_package(tmp_path / "b", swapped)))
    assert found.after.value < 0.7
    assert 0.3 < found.agreement < 0.9


def test_rows_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path, text=texts(), label=[2] * ROWS)
    text_classifier, tensors = classifier(tmp_path / "a", vectors(0)), matrix_package(tmp_path / "b", vectors(0))
    encoder = bag_package(tmp_path / "c", vectors(0, 8))
    with pytest.raises(LabelsInvalid, match="label 2"):
        judge(text_classifier, open_labelled_split(path), tmp_path)
    with pytest.raises(RowsDoNotFit, match="label"):
        judge(text_classifier, open_text_split(path), tmp_path)
    with pytest.raises(RowsDoNotFit, match="takes no texts"):
        judge(tensors, open_text_split(path), tmp_path)
    for source in (text_classifier, encoder):
        with pytest.raises(RowsDoNotFit, match="name a dataset"):
            judge(source, None, tmp_path)


def test_the_metric_follows_from_what_a_model_takes_and_gives(tiny_package_folder: Path) -> None:
    manifest = read_package(tiny_package_folder).manifest
    assert metric_of(manifest) == "accuracy"
    words = replace(manifest, task=TENSORS, outputs=(TensorSpec("words", "FP32", (-1, -1, 8)),))
    assert metric_of(words) == "fidelity"
    assert metric_of(replace(words, outputs=(TensorSpec("vector", "FP32", (-1, 8)),))) == "cosine"
    assert metric_of(replace(words, text=None)) == "fidelity"
