"""Quick trials: a recipe applied for real, timed against its source in turns, asked the same rows as the source."""

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from maas_compression.advice.candidates import Candidate
from maas_compression.advice.untrained import untrained_student
from maas_compression.materials import Materials
from maas_compression.recipe import Distill, Prune, Qat, Recipe
from maas_compression.techniques import apply_technique
from maas_engine.engine import choose_servable
from maas_engine.examples import Examples
from maas_engine.measure import Speed, compare_speed
from maas_engine.predictor import Prediction, Predictor, open_predictor
from maas_engine.quality import predict_all
from maas_jobs.labelled_rows import LabelledSplit
from maas_package.package import Package
from maas_package.tensors import Array

THREADS = 1
_SPEED_ROUNDS = 5
_SPEED_CALLS = 10
_SPEED_SECONDS = 1.5
_ANSWER_SECONDS = 2.5
"""For the source's answers to a sample of rows: a slow model gets a small sample."""
_LEAST_ROWS, _MOST_ROWS = 64, 2000
_BATCH_ROWS = 32
_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Answers:
    """How the answers to `rows` rows compare with the source's.

    `agreement`: a classifier's share of rows with the same class; else the mean cosine of the rows' vectors. `loss`:
    how far the quality fell (accuracy where there are labels, else 1 - agreement); it is `margin` more at most, by a
    95 % interval of the paired difference.
    """

    rows: int
    agreement: float
    loss: float
    margin: float
    metric: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What one recipe came to. `before` is the source's speed in the same turns. `answers`: None without training."""

    candidate: Candidate
    servable_bytes: int
    engine: str
    before: Speed
    after: Speed
    answers: Answers | None

    @property
    def latency_gain(self) -> float:
        """How many times faster one row alone is answered."""
        return self.before.p50_seconds / self.after.p50_seconds

    @property
    def throughput_gain(self) -> float:
        """How many times more rows a second there are."""
        return self.after.rows_per_second / self.before.rows_per_second


class Bench:
    """A source to try recipes on; its answers to the sample are found once."""

    def __init__(self, source: Package, predictor: Predictor, sample: LabelledSplit | None) -> None:
        self.source = source
        self.source_bytes = source.servable_bytes(choose_servable(source))
        self._predictor = predictor
        self._texts: tuple[str, ...] = ()
        self._labels: NDArray[np.int64] | None = None
        self._examples = None if sample else Examples(predictor)
        if sample is not None:
            rows = _sample_size(predictor, sample)
            part = list(islice(sample.rows(), rows))
            self._texts = tuple(text for text, _ in part)
            self._labels = np.array([label for _, label in part], np.int64)
        self._answers = self._answers_of(predictor)

    def try_candidate(self, candidate: Candidate, folder: Path, materials: Materials) -> Trial:
        """Apply the recipe, without what trains, and measure. `folder` is used and removed. Raises Failure."""
        try:
            package = _apply(self.source, candidate.recipe, folder, materials)
            with _opened(package) as predictor:
                before, after = compare_speed(
                    (self._predictor, predictor),
                    self._texts[:_MOST_ROWS],
                    rounds=_SPEED_ROUNDS,
                    calls_per_round=_SPEED_CALLS,
                    seconds=_SPEED_SECONDS,
                )
                answers = None if candidate.trains else self._compare(self._answers_of(predictor))
            servable = choose_servable(package)
            size = package.servable_bytes(servable)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Trial(candidate, size, servable.engine, before, after, answers)

    def _answers_of(self, predictor: Predictor) -> NDArray[np.generic]:
        """Return a classifier's classes [N], else vectors [N, D]."""
        if self._texts and predictor.package.manifest.labels:
            return predict_all(predictor, self._texts)
        return np.concatenate([_vectors(prediction) for prediction in self._predictions(predictor)])

    def _predictions(self, predictor: Predictor) -> Iterator[Prediction]:
        if self._examples is None:
            for begin in range(0, len(self._texts), _BATCH_ROWS):
                yield predictor.predict_texts(self._texts[begin : begin + _BATCH_ROWS])
        else:
            for seed in range(_LEAST_ROWS // 8):
                yield predictor.run(self._examples.batch(8, seed))

    def _compare(self, answers: NDArray[np.generic]) -> Answers:
        if answers.ndim == 1:
            return compare_classes(self._answers.astype(np.int64), answers.astype(np.int64), self._labels)
        return _compare_vectors(self._answers.astype(np.float64), answers.astype(np.float64))


def compare_classes(before: NDArray[np.int64], after: NDArray[np.int64], labels: NDArray[np.int64] | None) -> Answers:
    """Compare the classes that two models give the same rows; `labels` are the right ones."""
    rows = len(before)
    agreement = float(np.mean(before == after))
    if labels is None:
        return Answers(rows, agreement, 1 - agreement, 3 / rows, "agreement")
    lost = int(np.sum((before == labels) & (after != labels)))
    won = int(np.sum((before != labels) & (after == labels)))
    # The variance of a paired difference of shares; 3 / n is the upper 95 % bound of a share that was never seen.
    variance = max(lost + won - (lost - won) ** 2 / rows, 0.0)
    return Answers(rows, agreement, (lost - won) / rows, max(_Z_95 * math.sqrt(variance), 3) / rows, "accuracy")


def _compare_vectors(before: NDArray[np.float64], after: NDArray[np.float64]) -> Answers:
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosines = np.sum(before * after, axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    agreement = float(np.mean(cosines))
    margin = _Z_95 * float(np.std(cosines)) / math.sqrt(len(cosines))
    return Answers(len(cosines), agreement, 1 - agreement, margin, "cosine")


def _vectors(prediction: Prediction) -> NDArray[np.generic]:
    """Return the rows of all outputs of numbers as vectors [N, D]."""
    outputs: Mapping[str, Array] = prediction.outputs
    return np.concatenate(
        [tensor.reshape(len(tensor), -1) for tensor in outputs.values() if tensor.dtype.kind in "fiub"], axis=1
    )


def _sample_size(predictor: Predictor, sample: LabelledSplit) -> int:
    texts = sample.first_texts()[:_BATCH_ROWS]
    predictor.predict_texts(texts)
    begin = time.perf_counter()
    predictor.predict_texts(texts)
    rate = len(texts) / (time.perf_counter() - begin)
    return int(min(max(rate * _ANSWER_SECONDS, _LEAST_ROWS), _MOST_ROWS))


def _apply(source: Package, recipe: Recipe, folder: Path, materials: Materials) -> Package:
    package = source
    for index, technique in enumerate(recipe):
        step = folder / str(index)
        match technique:
            case Qat():
                continue
            case Distill():
                package = untrained_student(package, technique, step)
            case Prune():
                package = apply_technique(package, replace(technique, recovery_epochs=0), step, materials)
            case _:
                package = apply_technique(package, technique, step, materials)
    return package


@contextmanager
def _opened(package: Package) -> Iterator[Predictor]:
    predictor = open_predictor(package, choose_servable(package), THREADS)
    try:
        yield predictor
    finally:
        predictor.close()
