"""What a dataset has to have so that a job can work with it, as far as the registry knows."""

from collections.abc import Iterable, Sequence

from maas.registry.v1 import dataset_pb2
from maas_runtime.failures import FieldViolation, InvalidInput

TEXT_COLUMN = "text"
LABEL_COLUMN = "label"
LABELLED = (TEXT_COLUMN, LABEL_COLUMN)
"""The columns of a dataset that can be trained on, or that judges a classifier."""


class DatasetSplitMissing(InvalidInput):
    """The dataset lacks a split that the job needs."""

    reason = "DATASET_SPLIT_MISSING"


class DatasetColumnMissing(InvalidInput):
    """A split lacks a column that the job needs."""

    reason = "DATASET_COLUMN_MISSING"


def check_splits(dataset: dataset_pb2.DatasetVersion, wanted: Iterable[str], columns: Sequence[str] = LABELLED) -> None:
    """Raise DatasetSplitMissing or DatasetColumnMissing when the dataset lacks a wanted split or one of `columns`."""
    splits = {split.split_id: split for split in dataset.splits}
    for name in wanted:
        if name not in splits:
            raise DatasetSplitMissing(
                f"{dataset.name} has no split {name}; it has: {', '.join(sorted(splits))}",
                violations=(FieldViolation("dataset_version", f"has no split {name}"),),
            )
    check_columns(dataset.name, [column.name for column in dataset.columns], columns)


def check_columns(what: str, columns: Sequence[str], wanted: Sequence[str] = LABELLED) -> None:
    """Raise DatasetColumnMissing when a wanted column is not there."""
    missing = [column for column in wanted if column not in columns]
    if missing:
        raise DatasetColumnMissing(
            f"{what} has no column {' and no column '.join(missing)}; it has: {', '.join(columns)}",
            violations=tuple(FieldViolation("dataset_version", f"has no column {column}") for column in missing),
        )
