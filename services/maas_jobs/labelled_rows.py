"""Reads the Parquet files of a dataset: texts and their labels."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow
import pyarrow.parquet

from maas_jobs.dataset import LABEL_COLUMN, TEXT_COLUMN, check_columns
from maas_runtime.failures import InvalidInput


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
    """One split: as many texts as labels, which count from 0."""

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    metadata: Mapping[bytes, bytes] = field(default_factory=dict)
    """The file's own, with the names of the labels if it has them."""

    def __len__(self) -> int:
        return len(self.texts)


def read_labelled_rows(path: Path) -> LabelledRows:
    """Read one split. Raises DatasetUnreadable, DatasetColumnMissing, DatasetEmpty, TextsInvalid or LabelsInvalid."""
    name = path.stem
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            check_columns(f"the split {name}", file.schema_arrow.names)
            table = file.read(columns=[TEXT_COLUMN, LABEL_COLUMN])
    except pyarrow.ArrowException as error:
        raise DatasetUnreadable(f"the split {name} is not a Parquet file that can be read: {error}") from error
    text, label = table.column(TEXT_COLUMN), table.column(LABEL_COLUMN)
    if not pyarrow.types.is_string(text.type) and not pyarrow.types.is_large_string(text.type):
        raise TextsInvalid(f"the column text of the split {name} is {text.type} instead of string")
    if not pyarrow.types.is_integer(label.type):
        raise LabelsInvalid(f"the column label of the split {name} is {label.type} instead of whole numbers")
    if table.num_rows == 0:
        raise DatasetEmpty(f"the split {name} has no rows")
    texts, labels = text.to_pylist(), label.to_pylist()
    for row, (value, number) in enumerate(zip(texts, labels, strict=True)):
        if value is None or not value.strip():
            raise TextsInvalid(f"row {row} of the split {name} has no text")
        if number is None or number < 0:
            raise LabelsInvalid(f"row {row} of the split {name} has the label {number}; labels count from 0")
    return LabelledRows(tuple(texts), tuple(labels), table.schema.metadata or {})


def count_classes(train: LabelledRows) -> int:
    """Return how many classes there are. Raises LabelsInvalid when one has no example, or there is only one."""
    counts = Counter(train.labels)
    classes = max(counts) + 1
    unused = next((label for label in range(classes) if label not in counts), None)
    if unused is not None:
        raise LabelsInvalid(f"labels go up to {classes - 1}, but no row of the split train has the label {unused}")
    if classes < 2:
        raise LabelsInvalid("all rows of the split train have the same label; there is nothing to learn")
    return classes


def check_labels(rows: LabelledRows, split: str, classes: int) -> None:
    """Raise LabelsInvalid when a label is none of the classes 0 to `classes` - 1."""
    largest = max(rows.labels)
    if largest >= classes:
        raise LabelsInvalid(f"the split {split} has the label {largest}, but the model knows 0 to {classes - 1}")
