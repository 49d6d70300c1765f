"""What a dataset must have, as the registry says and as the files say."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from maas.registry.v1 import dataset_pb2
from maas_jobs.dataset import DatasetColumnMissing, DatasetSplitMissing, check_splits
from maas_jobs.labelled_rows import (
    DatasetEmpty,
    DatasetUnreadable,
    LabelledRows,
    LabelsInvalid,
    TextsInvalid,
    check_labels,
    count_classes,
    read_labelled_rows,
)
from maas_runtime.failures import InvalidInput


def write(folder: Path, **columns: list[Any]) -> Path:
    path = folder / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, rating=[0.5, -0.5], text=["good", "bad"], label=[1, 0])
    assert read_labelled_rows(path) == LabelledRows(("good", "bad"), (1, 0))


@pytest.mark.parametrize(
    ("columns", "failure"),
    [
        ({"text": ["a"]}, DatasetColumnMissing),
        ({"label": [1]}, DatasetColumnMissing),
        ({"text": pyarrow.array([], pyarrow.string()), "label": pyarrow.array([], pyarrow.int64())}, DatasetEmpty),
        ({"text": [1], "label": [1]}, TextsInvalid),
        ({"text": [" \t"], "label": [1]}, TextsInvalid),
        ({"text": ["a", None], "label": [0, 1]}, TextsInvalid),
        ({"text": ["a"], "label": ["positive"]}, LabelsInvalid),
        ({"text": ["a"], "label": [-1]}, LabelsInvalid),
        ({"text": ["a", "b"], "label": [0, None]}, LabelsInvalid),
    ],
)
def test_rows_that_cannot_be_used_are_refused(
    tmp_path: Path, columns: dict[str, list[Any]], failure: type[InvalidInput]
) -> None:
    with pytest.raises(failure):
        read_labelled_rows(write(tmp_path, **columns))


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 but nothing else")
    with pytest.raises(DatasetUnreadable):
        read_labelled_rows(path)


def test_classes_count_from_0_without_gaps() -> None:
    assert count_classes(LabelledRows(("a", "b", "c"), (2, 0, 1))) == 3
    for labels in ((0, 2), (1, 1), (0, 0)):
        with pytest.raises(LabelsInvalid):
            count_classes(LabelledRows(("a", "b"), labels))


def test_labels_of_another_split_must_be_known() -> None:
    check_labels(LabelledRows(("a",), (1,)), "test", 2)
    with pytest.raises(LabelsInvalid):
        check_labels(LabelledRows(("a",), (2,)), "test", 2)


def test_a_missing_split_or_column_is_named() -> None:
    dataset = dataset_pb2.DatasetVersion(
        name="datasets/d/versions/1",
        splits=[
            dataset_pb2.Split(split_id="train"),
            dataset_pb2.Split(split_id="test"),
        ],
        columns=[dataset_pb2.Column(name="text"), dataset_pb2.Column(name="label")],
    )
    check_splits(dataset, ["train", "test"])
    with pytest.raises(DatasetSplitMissing, match="validation"):
        check_splits(dataset, ["train", "validation"])
    del dataset.columns[1]
    with pytest.raises(DatasetColumnMissing, match="label"):
        check_splits(dataset, ["train", "test"])
