"""How good the answers are: accuracy with its interval, and the agreement of two models."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maas_engine.predictor import Predictor
from maas_runtime.failures import InvalidInput

_BATCH_ROWS = 32
# The standard normal distribution's 0.975 quantile: two-sided 95 %.
_Z_95 = 1.959963984540054


class EvaluationInvalid(InvalidInput):
    """There is nothing to evaluate on: no rows, or not one label for each text."""

    reason = "EVALUATION_INVALID"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A quality measured on `rows` rows, and its 95 % confidence interval."""

    metric: str
    value: float
    low: float
    high: float
    rows: int


def evaluate(predictor: Predictor, parts: Iterable[tuple[Sequence[str], Sequence[int]]]) -> Evaluation:
    """Return the share of texts that get their label, of all parts together. Raises EvaluationInvalid."""
    right, rows = 0, 0
    for texts, labels in parts:
        if len(texts) != len(labels):
            raise EvaluationInvalid(f"{len(texts)} texts and {len(labels)} labels; send as many of each")
        right += int((predict_all(predictor, texts) == np.asarray(labels)).sum())
        rows += len(texts)
    if not rows:
        raise EvaluationInvalid("there are no texts to evaluate on")
    low, high = wilson_interval(right, rows)
    return Evaluation("accuracy", right / rows, low, high, rows)


def agreement(first: Predictor, second: Predictor, parts: Iterable[Sequence[str]]) -> float:
    """Return the share of texts that both put into the same class, of all parts together. Raises EvaluationInvalid."""
    same, rows = 0, 0
    for texts in parts:
        same += int((predict_all(first, texts) == predict_all(second, texts)).sum())
        rows += len(texts)
    if not rows:
        raise EvaluationInvalid("there are no texts to compare answers on")
    return same / rows


def predict_all(predictor: Predictor, texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the class of each text: int64 [N]."""
    classes = np.empty(len(texts), np.int64)
    for indices in length_batches(texts):
        classes[indices] = predictor.predict_texts([texts[index] for index in indices]).predicted
    return classes


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share: E.B. Wilson, "Probable Inference, the Law of Succession, and
    Statistical Inference", Journal of the American Statistical Association 22, 1927.
    """
    share = successes / trials
    z2_n = _Z_95**2 / trials
    centre = (share + z2_n / 2) / (1 + z2_n)
    half = _Z_95 / (1 + z2_n) * math.sqrt(share * (1 - share) / trials + z2_n / (4 * trials))
    # Where all or none succeeded, rounding could leave the share itself outside.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def length_batches(texts: Sequence[str]) -> Iterator[NDArray[np.int64]]:
    """Yield the indices of the texts, a batch at a time.

    Texts of like length go together, so that little is computed on padding. The same texts give the same batches:
    dynamic quantization takes its scale from the whole batch, so an answer depends on what else is in it.
    """
    order = np.array(sorted(range(len(texts)), key=lambda index: len(texts[index])), np.int64)
    for begin in range(0, len(order), _BATCH_ROWS):
        yield order[begin : begin + _BATCH_ROWS]
