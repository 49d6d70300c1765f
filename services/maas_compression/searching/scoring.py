"""How well a package answers, row by row, beside its source: one number a row for any model.

A classifier's row scores 1 when it gets its label, else 0. An encoder's scores the cosine of its vector to the
source's. Where there are no texts, rows are made up, and a row scores 1 less the relative error of its outputs.
Rows are the same for all, so a loss is the mean of paired differences, and is known far better than either quality.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from maas_engine.examples import Examples
from maas_engine.predictor import Predictor
from maas_jobs.labelled_rows import LabelledSplit
from maas_package.manifest import TEXT_CLASSIFICATION
from maas_package.tensors import Array

MOST_ROWS = 2000
"""Of the split that is searched on. More rows take time from further trials."""
FIRST_ROWS = 256
"""What a hopeless trial is told by."""

_BATCH_ROWS = 32
_MADE_UP_BATCHES = 8
_HOPELESS_DEVIATIONS = 3.0

Answers = NDArray[np.float64]
"""One row for each text: the class [N, 1] or the vector [N, H]; of made-up rows all outputs, flat [N, K]."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What all packages are asked: texts with their labels, or nothing where a model takes no texts."""

    texts: tuple[str, ...] = ()
    labels: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def of(cls, split: LabelledSplit | None) -> "Rows":
        """Read at most MOST_ROWS rows."""
        if split is None:
            return cls()
        texts: list[str] = []
        labels: list[int] = []
        for part in split.parts():
            texts += part.texts
            labels += part.labels
            if len(texts) >= MOST_ROWS:
                break
        return cls(tuple(texts[:MOST_ROWS]), np.array(labels[:MOST_ROWS], np.int64))

    def parts(self) -> Iterator["Rows"]:
        """Yield the first rows, and then the others."""
        for part in (slice(0, FIRST_ROWS), slice(FIRST_ROWS, None)):
            if self.texts[part] or not self.texts:
                yield Rows(self.texts[part], self.labels[part])
            if not self.texts:
                return


def answers(predictor: Predictor, rows: Rows) -> Answers:
    """Return what the package answers: float64 [N, K]."""
    if not rows.texts:
        examples = Examples(predictor)
        return np.concatenate(
            [_flat(predictor.run(examples.batch(4, seed)).outputs) for seed in range(_MADE_UP_BATCHES)]
        )
    is_classifier = predictor.package.manifest.task == TEXT_CLASSIFICATION
    # Texts of like length go together, so that little is computed on padding.
    order = sorted(range(len(rows.texts)), key=lambda index: len(rows.texts[index]))
    found: list[Answers] = [np.empty(0)] * len(order)
    for begin in range(0, len(order), _BATCH_ROWS):
        indices = order[begin : begin + _BATCH_ROWS]
        prediction = predictor.predict_texts([rows.texts[index] for index in indices])
        batch = prediction.predicted[:, None].astype(np.float64) if is_classifier else _flat(prediction.outputs)
        for index, answer in zip(indices, batch, strict=True):
            found[index] = answer
    return np.stack(found)


def scores(predictor: Predictor, rows: Rows, found: Answers, source: Answers) -> NDArray[np.float64]:
    """Return each row's score, 0 to 1, of what a package answered beside what its source did: float64 [N]."""
    if rows.texts and predictor.package.manifest.task == TEXT_CLASSIFICATION:
        return (found[:, 0] == rows.labels).astype(np.float64)
    if found.shape != source.shape:
        return np.zeros(len(source))
    sizes = np.linalg.norm(source, axis=1)
    if rows.texts:
        return (found * source).sum(axis=1) / np.maximum(np.linalg.norm(found, axis=1) * sizes, 1e-12)
    return np.maximum(0.0, 1 - np.linalg.norm(found - source, axis=1) / np.maximum(sizes, 1e-12))


def is_hopeless(losses: NDArray[np.float64], limit: float | None) -> bool:
    """Return whether the mean loss is surely more than the limit: by three standard errors of these rows' mean."""
    if limit is None:
        return False
    error = float(losses.std()) / math.sqrt(len(losses))
    return not float(losses.mean()) - _HOPELESS_DEVIATIONS * error <= limit  # which NaN is not


def _flat(outputs: Mapping[str, Array]) -> Answers:
    parts: Sequence[Answers] = [
        tensor.reshape(len(tensor), -1).astype(np.float64)
        for _, tensor in sorted(outputs.items())
        if tensor.dtype.kind in "fiub"
    ]
    return np.concatenate(parts, axis=1)
