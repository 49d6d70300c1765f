"""How good a candidate is, on the same rows as its source: one number for any model, and where it lost."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maas_compression.measuring.kept_answers import KeptAnswers, keep_answers
from maas_compression.measuring.paired import Interval, mcnemar_p, mean_interval, paired_difference
from maas_engine.examples import Examples
from maas_engine.predictor import Predictor, open_predictor, predicted_classes
from maas_engine.quality import length_batches, wilson_interval
from maas_jobs.labelled_rows import (
    LabelledSplit,
    TextSplit,
    category_columns,
    check_labels,
    open_labelled_split,
    open_text_split,
)
from maas_package.manifest import TEXT_CLASSIFICATION, Manifest, Servable
from maas_package.package import Package
from maas_package.tensors import Array
from maas_runtime.failures import InvalidInput

ACCURACY, COSINE, FIDELITY = "accuracy", "cosine", "fidelity"

MOST_UNLABELLED_ROWS = 2048
"""So many rows judge what has no labels: the interval of a mean cosine is narrow long before."""

_MADE_UP_BATCHES = 16
_MADE_UP_ROWS = 16
_CLOSE = 0.01
"""Single numbers that differ by at most this share are the same answer."""
_LEAST_SLICE_ROWS = 20
_SEED = 0


class RowsDoNotFit(InvalidInput):
    """The rows cannot judge this model: it takes no texts, or there are none, or they have no labels."""

    reason = "ROWS_DO_NOT_FIT"


class SourceAnswersInvalid(InvalidInput):
    """The source itself answers with what is no number, so nothing can be compared with it."""

    reason = "SOURCE_ANSWERS_INVALID"


@dataclass(frozen=True, slots=True)
class SliceQuality:
    """Quality on some of the rows; `kind` says what they have in common (`class`, `length`, a column), `name` which."""

    kind: str
    name: str
    rows: int
    before: float
    after: float
    difference: Interval


@dataclass(frozen=True, slots=True)
class Judgement:
    """Quality of source and candidate on the same rows, each with its 95 % interval.

    `metric` is `accuracy`: share of right classes; `cosine`: mean cosine of a text's vector to the source's; or
    `fidelity`: 1 - |y' - y| / |y| of a row's tensors, of the worst output, at least 0. Of the last two the source has
    1. `difference` is paired, after - before. `agreement`: share of rows with the same answer, which is the class, the
    nearest neighbour among the other rows' vectors, or the place of the largest number. `mcnemar_p`: how probable so
    uneven a change is when neither is better; None without classes. `error`: |y' - y| / |y| of all numbers of all rows
    together, which tells candidates apart that answer alike; infinite when there is one that is no number.
    """

    metric: str
    rows: int
    before: Interval
    after: Interval
    difference: Interval
    agreement: float
    mcnemar_p: float | None
    error: float
    slices: tuple[SliceQuality, ...]
    seconds: float

    @property
    def loss(self) -> float:
        """By how much the candidate is worse; below 0 when it is better."""
        return 0.0 - self.difference.value  # no -0.0


def metric_of(manifest: Manifest) -> str:
    """Return what the quality of such a model is."""
    if manifest.text is None:
        return FIDELITY
    if manifest.task == TEXT_CLASSIFICATION:
        return ACCURACY
    first = manifest.outputs[0]
    return COSINE if len(first.shape) == 2 and first.datatype.startswith("FP") else FIDELITY


def open_rows(manifest: Manifest, path: Path | None) -> TextSplit | None:
    """Return the rows of a split's file that can judge such a model; None for a model without texts, and no file.

    Raises what open_labelled_split or open_text_split raises.
    """
    if path is None:
        return None
    return open_labelled_split(path) if metric_of(manifest) == ACCURACY else open_text_split(path)


class Judge:
    """Judges what is made of one source, on the same rows each time.

    `rows` is None for a source that takes no texts: it is judged on made-up inputs. The source is asked once: its
    answers are kept in `folder`, where the next process finds them. `most_rows` of the rows, evenly spread, are judged;
    None is all of them, though at most MOST_UNLABELLED_ROWS where no labels are used.
    """

    def __init__(
        self,
        source: Package,
        servable: Servable,
        rows: TextSplit | None,
        folder: Path,
        *,
        most_rows: int | None = None,
        threads: int = 1,
    ) -> None:
        """Raises RowsDoNotFit or LabelsInvalid."""
        self.metric = metric_of(source.manifest)
        self._source = source
        self._servable = servable
        self._rows = rows
        self._threads = threads
        _check_rows(source.manifest, self.metric, rows)
        self._indices = None if rows is None else _chosen_rows(len(rows), self.metric, most_rows)
        where = "made-up" if rows is None or self._indices is None else f"{rows.path.stem}-{len(self._indices)}"
        # By content: techniques of one job may share a folder, and each has another source.
        content = next(entry.sha256 for entry in source.manifest.files if entry.path == servable.path)
        self._kept_at = folder / f"answers-{where}-{servable.engine}-{servable.precision}-{content[:16]}.npz"

    def ask_source(self) -> None:
        """Make sure that the source's answers are kept. Raises SourceAnswersInvalid, or what running it raises."""
        if self._kept_at.is_file():
            return
        predictor = open_predictor(self._source, self._servable, self._threads)
        try:
            keep_answers(self._kept_at, (self._checked_answer(predictor, batch) for batch in self._batches(predictor)))
        finally:
            predictor.close()

    def judge(self, candidate: Predictor) -> Judgement:
        """Return how good the candidate is. Rows that it answers with what is no number count as wrong.

        Raises SourceAnswersInvalid, or what running either raises.
        """
        begin = time.perf_counter()
        self.ask_source()
        with KeptAnswers(self._kept_at) as kept:
            parts, error = self._compare(candidate, kept)
        rows = _in_order(parts)
        return Judgement(
            metric=self.metric,
            rows=len(rows.after),
            before=_interval(rows.before),
            after=_interval(rows.after),
            difference=_difference(rows.before, rows.after),
            agreement=float(rows.same.mean()),
            mcnemar_p=mcnemar_p(*_changes(rows.before, rows.after)) if self.metric == ACCURACY else None,
            error=error,
            slices=tuple(self._slices(rows)),
            seconds=time.perf_counter() - begin,
        )

    def _compare(self, candidate: Predictor, kept: KeptAnswers) -> "tuple[list[_Rows], float]":
        """Return the rows of each batch, and the relative error of all of them."""
        compared = []
        squares = np.zeros(2)
        vectors: list[tuple[Array, Array]] = []
        for number, batch in enumerate(self._batches(candidate)):
            old, new = kept[number], self._answer(candidate, batch)
            squares += _squares(old, new)
            match self.metric:
                case "accuracy":
                    compared.append(_compare_classes(batch, *old.values(), *new.values()))
                case "cosine":
                    (expected,), (found,) = old.values(), new.values()
                    vectors.append((expected, found))
                    compared.append(_compare_vectors(batch, expected, found))
                case _:
                    compared.append(_compare_tensors(batch, old, new, joins_rows=self._source.manifest.joins_rows))
        if vectors:
            same = _same_neighbours(*(np.concatenate(side) for side in zip(*vectors, strict=True)))
            ends = np.cumsum([len(one.numbers) for one in compared])[:-1]
            compared = [replace(one, same=part) for one, part in zip(compared, np.split(same, ends), strict=True)]
        return compared, _relative_error(*squares)

    def _checked_answer(self, predictor: Predictor, batch: "_Batch") -> dict[str, Array]:
        outputs = self._answer(predictor, batch)
        for name, tensor in outputs.items():
            if tensor.dtype.kind == "f" and np.isnan(tensor).any():
                raise SourceAnswersInvalid(
                    f"the source's own {name} is NaN (not a number) for row {batch.numbers[0]} or one after it, so "
                    "nothing can be compared with it: its weights may hold NaN; train or import it anew"
                )
        return outputs

    def _answer(self, predictor: Predictor, batch: "_Batch") -> dict[str, Array]:
        """Return the outputs that are compared."""
        given = predictor.run(batch.tensors or predictor.preparer.prepare_texts(batch.texts)).outputs
        names = [spec.name for spec in self._source.manifest.outputs]
        return {name: _storable(given[name]) for name in (names if self.metric == FIDELITY else names[:1])}

    def _batches(self, predictor: Predictor) -> Iterator["_Batch"]:
        """Yield the rows to judge on, the same each time."""
        if self._rows is None or self._indices is None:
            yield from _made_up_batches(predictor)
            return
        begin = 0
        for texts, labels in _parts(self._rows):
            chosen = self._indices[(self._indices >= begin) & (self._indices < begin + len(texts))] - begin
            for places in length_batches([texts[index] for index in chosen]):
                indices = chosen[places]
                yield _Batch(
                    numbers=begin + indices,
                    texts=tuple(texts[index] for index in indices),
                    labels=None if labels is None else labels[indices],
                )
            begin += len(texts)

    def _slices(self, rows: "_Rows") -> Iterator[SliceQuality]:
        for kind, name, mask in self._masks(rows):
            before, after = rows.before[mask], rows.after[mask]
            if len(after) >= _LEAST_SLICE_ROWS:
                difference = _difference(before, after)
                yield SliceQuality(kind, name, len(after), float(before.mean()), float(after.mean()), difference)

    def _masks(self, rows: "_Rows") -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
        """Yield kind, name and rows of each slice: by class, by length of the text, by the dataset's other columns."""
        if self._rows is None:
            return
        if rows.labels is not None:
            names = self._source.manifest.labels
            for label in np.unique(rows.labels):
                yield "class", names[label] if names else str(label), rows.labels == label
        quartiles = np.unique(np.percentile(rows.lengths, (25, 50, 75, 100), method="lower"))
        least = rows.lengths.min()
        for most in quartiles:
            yield "length", f"{least} to {most} characters", (rows.lengths >= least) & (rows.lengths <= most)
            least = most + 1
        for column, values in category_columns(self._rows.path).items():
            of_rows = np.array(values, np.object_)[rows.numbers]
            for value in sorted(set(values)):
                yield column, value, of_rows == value


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows that are asked together: their numbers in the split, and either texts or tensors."""

    numbers: NDArray[np.int64]
    texts: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None
    tensors: Mapping[str, Array] | None = None


@dataclass(frozen=True, slots=True)
class _Rows:
    """One entry a row, [N]: its number and what it is, its quality before and after, and whether the answer stayed.

    A quality is whether the class is right, or a number up to 1.
    """

    numbers: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    before: NDArray[Any]
    after: NDArray[Any]
    same: NDArray[np.bool_]


def _check_rows(manifest: Manifest, metric: str, rows: TextSplit | None) -> None:
    if manifest.text is None:
        if rows is not None:
            raise RowsDoNotFit("this model takes no texts, so no dataset can judge it: leave the dataset out")
    elif rows is None:
        raise RowsDoNotFit("this model takes texts: name a dataset that has them")
    elif metric == ACCURACY:
        if not isinstance(rows, LabelledSplit):
            raise RowsDoNotFit("this model gives classes: name a dataset with the columns text and label")
        classes = len(manifest.labels) or manifest.outputs[0].shape[-1]
        if classes > 0:
            check_labels(rows, classes)


def _chosen_rows(rows: int, metric: str, most_rows: int | None) -> NDArray[np.int64]:
    """Return the numbers of the rows to judge on, evenly spread: a file may be ordered by its classes."""
    most = rows if most_rows is None else min(rows, most_rows)
    if metric != ACCURACY:
        most = min(most, MOST_UNLABELLED_ROWS)
    return np.arange(most, dtype=np.int64) * rows // most


def _parts(rows: TextSplit) -> Iterator[tuple[tuple[str, ...], NDArray[np.int64] | None]]:
    if isinstance(rows, LabelledSplit):
        for part in rows.parts():
            yield part.texts, np.array(part.labels, np.int64)
    else:
        for texts in rows.text_parts():
            yield texts, None


def _made_up_batches(predictor: Predictor) -> Iterator[_Batch]:
    examples = Examples(predictor)
    size = _MADE_UP_ROWS if predictor.package.manifest.joins_rows else 1
    for seed in range(_MADE_UP_BATCHES):
        numbers = np.arange(seed * size, (seed + 1) * size, dtype=np.int64)
        yield _Batch(numbers, tensors=examples.batch(size, seed))


def _squares(old: Mapping[str, Array], new: Mapping[str, Array]) -> NDArray[np.float64]:
    """Return the sums of (y' - y)^2 and of y^2 of all outputs that are fractions."""
    error = expected = 0.0
    for name, tensor in old.items():
        if tensor.dtype.kind == "f":
            expected += float(np.square(tensor, dtype=np.float64).sum())
            error += (
                float(np.square(new[name].astype(np.float64) - tensor).sum())
                if new[name].shape == tensor.shape
                else math.inf
            )
    return np.array([error, expected])


def _relative_error(error: float, expected: float) -> float:
    if error == 0:
        return 0.0
    return math.sqrt(error / expected) if math.isfinite(error) and expected > 0 else math.inf


def _compare_classes(batch: _Batch, old: Array, new: Array) -> _Rows:
    before, after = predicted_classes(old), predicted_classes(new)
    # The largest of numbers of which one is NaN is that one, which would be an answer by chance.
    after[~np.isfinite(new).all(axis=1)] = -1
    return _rows(batch, before == batch.labels, after == batch.labels, before == after)


def _compare_vectors(batch: _Batch, old: Array, new: Array) -> _Rows:
    cosines = (_unit(old) * _unit(new)).sum(axis=1)
    return _rows(batch, np.ones(len(cosines)), cosines, np.ones(len(cosines), np.bool_))


def _same_neighbours(old: Array, new: Array) -> NDArray[np.bool_]:
    """Return whether each vector's nearest other one, by the cosine, is still the same: bool [N]."""
    same: NDArray[np.bool_] = _nearest(old) == _nearest(new)
    return same


def _nearest(vectors: Array) -> NDArray[np.int64]:
    unit = _unit(vectors)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    nearest: NDArray[np.int64] = cosines.argmax(axis=1)
    return nearest


def _unit(vectors: Array) -> NDArray[np.float64]:
    """Return the vectors, [N, D], with length 1; what is no number becomes 0, which is like nothing."""
    values = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0).astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    unit: NDArray[np.float64] = values / np.where(lengths > 0, lengths, 1)
    return unit


def _compare_tensors(batch: _Batch, old: Mapping[str, Array], new: Mapping[str, Array], *, joins_rows: bool) -> _Rows:
    count = len(batch.numbers)
    pairs = [_row_pairs(tensor, new[name], count if joins_rows else 1) for name, tensor in old.items()]
    fidelity = np.min([_fidelity(*pair) for pair in pairs], axis=0)
    same = _same_place(*pairs[0])
    return _rows(batch, np.ones(len(fidelity)), fidelity, same)


def _row_pairs(old: Array, new: Array, rows: int) -> tuple[Array, Array]:
    """Return both as [rows, values]; a result of another shape is as wrong as can be."""
    if old.shape != new.shape:
        new = np.full_like(old, np.nan) if old.dtype.kind == "f" else np.full(old.shape, None, np.object_)
    return old.reshape(rows, -1), new.reshape(rows, -1)


def _fidelity(old: Array, new: Array) -> NDArray[np.float64]:
    """Return 1 - |new - old| / |old| of each row, or the share of equal values where they are no fractions: [N]."""
    if old.dtype.kind != "f":
        equal: NDArray[np.float64] = (old == new).mean(axis=1)
        return equal
    expected, found = old.astype(np.float64), new.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    # 0 / 0: nothing was expected, and nothing came.
    error[(found == expected).all(axis=1)] = 0.0
    fidelity: NDArray[np.float64] = 1 - np.minimum(np.nan_to_num(error, nan=1.0), 1.0)
    return fidelity


def _same_place(old: Array, new: Array) -> NDArray[np.bool_]:
    """Return whether each row's largest value is where it was; a single number, whether it is nearly the same: [N]."""
    if old.dtype.kind == "f" and old.shape[1] > 1:
        same: NDArray[np.bool_] = (old.argmax(axis=1) == new.argmax(axis=1)) & np.isfinite(new).all(axis=1)
        return same
    return _fidelity(old, new) >= 1 - (_CLOSE if old.dtype.kind == "f" else 0.0)


def _rows(batch: _Batch, before: NDArray[Any], after: NDArray[Any], same: NDArray[np.bool_]) -> _Rows:
    lengths = np.array([len(text) for text in batch.texts] or [0] * len(after), np.int64)
    return _Rows(batch.numbers[: len(after)], lengths, batch.labels, before, after, same)


def _in_order(parts: Sequence[_Rows]) -> _Rows:
    """Put the rows back into the order of the file."""
    order = np.argsort(np.concatenate([part.numbers for part in parts]))

    def joined(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        together: NDArray[Any] = np.concatenate(values)[order]
        return together

    labels = [part.labels for part in parts if part.labels is not None]
    return _Rows(
        numbers=joined([part.numbers for part in parts]),
        lengths=joined([part.lengths for part in parts]),
        labels=joined(labels) if labels else None,
        before=joined([part.before for part in parts]),
        after=joined([part.after for part in parts]),
        same=joined([part.same for part in parts]),
    )


def _storable(tensor: Array) -> Array:
    """Return texts as bytes, which a file without pickles can hold."""
    if tensor.dtype.kind not in "OU":
        return tensor
    texts = [value if isinstance(value, bytes) else str(value).encode() for value in tensor.ravel()]
    return np.array(texts, np.bytes_).reshape(tensor.shape)


def _changes(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[int, int]:
    """Return how many rows are right only after, and how many were right only before."""
    return int((after & ~before).sum()), int((before & ~after).sum())


def _interval(quality: NDArray[Any]) -> Interval:
    if quality.dtype == np.bool_:
        right = int(quality.sum())
        return Interval(right / len(quality), *wilson_interval(right, len(quality)))
    return mean_interval(quality, np.random.default_rng(_SEED))


def _difference(before: NDArray[Any], after: NDArray[Any]) -> Interval:
    if before.dtype == np.bool_:
        return paired_difference(*_changes(before, after), len(before))
    return mean_interval(after - before, np.random.default_rng(_SEED))
