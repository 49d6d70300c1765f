"""What a dataset must have, as the registry says and as the files say."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from maas.registry.v1 import dataset_pb2
from maas_jobs.dataset import DatasetColumnMissing, DatasetSplitMissing, check_splits
from maas_jobs.labelled_rows import (
    PART_BYTES,
    PART_ROWS,
    DatasetEmpty,
    DatasetUnreadable,
    LabelledRows,
    LabelledSplit,
    LabelsInvalid,
    TextsInvalid,
    check_labels,
    count_classes,
    open_labelled_split,
    open_text_split,
)
from maas_runtime.failures import InvalidInput


def write(folder: Path, **columns: list[Any]) -> Path:
    path = folder / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_rows_come_back_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, rating=[0.5, -0.5], text=["good", "bad"], label=[1, 0])
    split = open_labelled_split(path)
    assert list(split.parts()) == [LabelledRows(("good", "bad"), (1, 0))]
    assert (len(split), split.label_counts, split.first_texts()) == (2, {0: 1, 1: 1}, ("good", "bad"))


def test_texts_need_no_labels_where_none_are_used(tmp_path: Path) -> None:
    split = open_text_split(write(tmp_path, text=["good", "bad"], label=["one", None]))
    assert (len(split), list(split.texts()), split.first_texts()) == (2, ["good", "bad"], ("good", "bad"))


@pytest.mark.parametrize(
    ("columns", "failure"),
    [
        ({"label": [1]}, DatasetColumnMissing),
        ({"text": pyarrow.array([], pyarrow.string())}, DatasetEmpty),
        ({"text": [1]}, TextsInvalid),
        ({"text": ["a", " "]}, TextsInvalid),
    ],
)
def test_texts_that_cannot_be_used_are_refused(
    tmp_path: Path, columns: dict[str, list[Any]], failure: type[InvalidInput]
) -> None:
    with pytest.raises(failure):
        open_text_split(write(tmp_path, **columns))


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
        open_labelled_split(write(tmp_path, **columns))


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 but nothing else")
    with pytest.raises(DatasetUnreadable):
        open_labelled_split(path)


def labelled(folder: Path, *labels: int) -> LabelledSplit:
    return open_labelled_split(write(folder, text=["a"] * len(labels), label=list(labels)))


def test_classes_count_from_0_without_gaps(tmp_path: Path) -> None:
    assert count_classes(labelled(tmp_path, 2, 0, 1)) == 3
    for labels in ((0, 2), (1, 1), (0, 0)):
        with pytest.raises(LabelsInvalid):
            count_classes(labelled(tmp_path, *labels))


def test_labels_of_another_split_must_be_known(tmp_path: Path) -> None:
    check_labels(labelled(tmp_path, 1), 2)
    with pytest.raises(LabelsInvalid):
        check_labels(labelled(tmp_path, 2), 2)


def test_a_split_is_read_in_parts_of_bounded_rows_and_bytes(tmp_path: Path) -> None:
    texts = [f"text {row}" for row in range(2 * PART_ROWS + 5)]
    split = open_labelled_split(write(tmp_path, text=texts, label=[0, *[1] * (len(texts) - 1)]))
    assert [len(part) for part in split.parts()] == [PART_ROWS, PART_ROWS, 5]
    assert list(split.texts()) == texts
    long = ["x" * (PART_BYTES // 1000)] * 3000
    parts = list(open_labelled_split(write(tmp_path, text=long, label=[0, *[1] * 2999])).parts())
    assert [len(part) for part in parts] == [1024, 1024, 952]


def test_the_row_that_is_wrong_is_counted_over_all_parts(tmp_path: Path) -> None:
    texts = [f"text {row}" for row in range(2 * PART_ROWS)]
    texts[PART_ROWS + 7] = "\n"
    with pytest.raises(TextsInvalid, match=f"row {PART_ROWS + 7} of"):
        open_labelled_split(write(tmp_path, text=texts, label=[0] * len(texts)))


def test_a_damaged_page_is_said_to_be(tmp_path: Path) -> None:
    path = write(tmp_path, text=[f"text {row}" for row in range(5000)], label=[1] * 5000)
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)
    with pytest.raises(DatasetUnreadable):
        open_labelled_split(path)


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
    check_splits(dataset, ["train", "test"], ["text"])
