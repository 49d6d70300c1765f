"""Reads the Parquet files of a dataset: texts and, where there are, their labels, a part at a time.

A split may be larger than memory: what is held is one part, PART_ROWS rows or PART_BYTES of text.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from maas_jobs.dataset import LABEL_COLUMN, LABELLED, TEXT_COLUMN, check_columns
from maas_runtime.failures import InvalidInput

PART_ROWS = 8192
PART_BYTES = 32 * 2**20

_READ_ROWS = 1024
_READ_BUFFER_BYTES = 2**20


class DatasetUnreadable(InvalidInput):
    """A split is not a Parquet file."""

    reason = "DATASET_UNREADABLE"


class DatasetEmpty(InvalidInput):
    """A split has no rows."""

    reason = "DATASET_EMPTY"


class TextsInvalid(InvalidInput):
    """The column `text` is not text, or a row has none."""

    reason = "TEXTS_INVALID"


class LabelsInvalid(InvalidInput):
    """The column `label` is not whole numbers from 0, or has classes that were not trained on."""

    reason = "LABELS_INVALID"


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Some rows: as many texts as labels, which count from 0."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class TextSplit:
    """One split, every text of which was looked at once; they are read whenever they are asked for."""

    path: Path
    row_count: int

    def __len__(self) -> int:
        return self.row_count

    def text_parts(self) -> Iterator[tuple[str, ...]]:
        """Yield all texts, in the file's order, a part at a time."""
        with _opened(self.path) as file:
            for (texts,) in _parts(file, [TEXT_COLUMN]):
                yield tuple(texts.to_pylist())

    def texts(self) -> Iterator[str]:
        """Yield all texts, in the file's order."""
        for part in self.text_parts():
            yield from part

    def first_texts(self) -> tuple[str, ...]:
        """Return the texts of the first part, to measure with."""
        return next(self.text_parts())


@dataclass(frozen=True, slots=True)
class LabelledSplit(TextSplit):
    """One split whose texts have labels, every row of which was looked at once."""

    label_counts: Mapping[int, int]
    metadata: Mapping[bytes, bytes]
    """The file's own, with the names of the labels if it has them."""

    def parts(self) -> Iterator[LabelledRows]:
        """Yield all rows, in the file's order."""
        with _opened(self.path) as file:
            for texts, labels in _parts(file, [TEXT_COLUMN, LABEL_COLUMN]):
                yield LabelledRows(tuple(texts.to_pylist()), tuple(labels.to_pylist()))

    def rows(self) -> Iterator[tuple[str, int]]:
        """Yield all texts with their labels, in the file's order."""
        for part in self.parts():
            yield from zip(part.texts, part.labels, strict=True)


def open_text_split(path: Path) -> TextSplit:
    """Look at every text of a split, whose labels are not needed.

    Raises DatasetUnreadable, DatasetColumnMissing, DatasetEmpty or TextsInvalid.
    """
    name, rows = path.stem, 0
    with _opened(path) as file:
        check_columns(f"the split {name}", file.schema_arrow.names, [TEXT_COLUMN])
        _check_text_type(file, name)
        for (texts,) in _parts(file, [TEXT_COLUMN]):
            _check_texts(texts, name, rows)
            rows += len(texts)
    if not rows:
        raise DatasetEmpty(f"the split {name} has no rows")
    return TextSplit(path, rows)


def open_labelled_split(path: Path) -> LabelledSplit:
    """Look at every row of a split.

    Raises DatasetUnreadable, DatasetColumnMissing, DatasetEmpty, TextsInvalid or LabelsInvalid.
    """
    name = path.stem
    rows, counts = 0, Counter[int]()
    with _opened(path) as file:
        check_columns(f"the split {name}", file.schema_arrow.names)
        schema = file.schema_arrow
        _check_text_type(file, name)
        label = schema.field(LABEL_COLUMN).type
        if not pyarrow.types.is_integer(label):
            raise LabelsInvalid(f"the column label of the split {name} is {label} instead of whole numbers")
        for texts, labels in _parts(file, [TEXT_COLUMN, LABEL_COLUMN]):
            _check_texts(texts, name, rows)
            _check_labels(labels, name, rows)
            counted = labels.value_counts()
            counts.update(
                dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))
            )
            rows += len(texts)
    if not rows:
        raise DatasetEmpty(f"the split {name} has no rows")
    return LabelledSplit(path, rows, counts, schema.metadata or {})


def category_columns(path: Path, most_values: int = 10) -> dict[str, list[str]]:
    """Return the columns beside text and label that tell rows apart by 2 to `most_values` words or whole numbers.

    Each has as many values as the split has rows; where a row has none it is "none".
    """
    found: dict[str, list[str]] = {}
    with _opened(path) as file:
        kinds = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_boolean,
                 pyarrow.types.is_integer)  # fmt: skip
        for field in file.schema_arrow:
            if field.name in LABELLED or not any(fits(field.type) for fits in kinds):
                continue
            values: list[str] = []
            different: set[str] = set()
            for (part,) in _parts(file, [field.name]):
                words = ["none" if value is None else str(value) for value in part.to_pylist()]
                different.update(words)
                if len(different) > most_values:
                    break
                values += words
            if 2 <= len(different) <= most_values:
                found[field.name] = values
    return found


def count_classes(train: LabelledSplit) -> int:
    """Return how many classes there are. Raises LabelsInvalid when one has no example, or there is only one."""
    classes = max(train.label_counts) + 1
    unused = next((label for label in range(classes) if label not in train.label_counts), None)
    if unused is not None:
        raise LabelsInvalid(f"labels go up to {classes - 1}, but no row of the split train has the label {unused}")
    if classes < 2:
        raise LabelsInvalid("all rows of the split train have the same label; there is nothing to learn")
    return classes


def check_labels(split: LabelledSplit, classes: int) -> None:
    """Raise LabelsInvalid when a label is none of the classes 0 to `classes` - 1."""
    largest = max(split.label_counts)
    if largest >= classes:
        raise LabelsInvalid(
            f"the split {split.path.stem} has the label {largest}, but the model knows 0 to {classes - 1}"
        )


@contextmanager
def _opened(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Give the file, whose pages are read as they are needed. Raises DatasetUnreadable, also when a page is damaged."""
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetUnreadable(f"the split {path.stem} is not a Parquet file that can be read: {error}") from error


def _parts(file: pyarrow.parquet.ParquetFile, columns: Sequence[str]) -> Iterator[list[pyarrow.Array]]:
    """Yield the columns of at most PART_ROWS rows, fewer where they have more than PART_BYTES."""
    waiting: list[pyarrow.RecordBatch] = []
    for batch in file.iter_batches(_READ_ROWS, columns=list(columns)):
        waiting.append(batch)
        rows, size_bytes = sum(map(len, waiting)), sum(one.nbytes for one in waiting)
        if rows + _READ_ROWS > PART_ROWS or size_bytes >= PART_BYTES:
            yield _joined(waiting, columns)
            waiting = []
    if waiting:
        yield _joined(waiting, columns)


def _joined(batches: list[pyarrow.RecordBatch], columns: Sequence[str]) -> list[pyarrow.Array]:
    return [pyarrow.concat_arrays([batch.column(name) for batch in batches]) for name in columns]


def _check_text_type(file: pyarrow.parquet.ParquetFile, name: str) -> None:
    text = file.schema_arrow.field(TEXT_COLUMN).type
    if not pyarrow.types.is_string(text) and not pyarrow.types.is_large_string(text):
        raise TextsInvalid(f"the column text of the split {name} is {text} instead of string")


def _check_texts(texts: pyarrow.Array, name: str, before: int) -> None:
    empty = pyarrow.compute.equal(pyarrow.compute.utf8_trim_whitespace(texts), "")
    row = pyarrow.compute.index(empty.fill_null(True), True).as_py()
    if row >= 0:
        raise TextsInvalid(f"row {before + row} of the split {name} has no text")


def _check_labels(labels: pyarrow.Array, name: str, before: int) -> None:
    wrong = pyarrow.compute.less(labels, 0)
    row = pyarrow.compute.index(wrong.fill_null(True), True).as_py()
    if row >= 0:
        raise LabelsInvalid(
            f"row {before + row} of the split {name} has the label {labels[row].as_py()}; labels count from 0"
        )
