"""Splits, labels and statistics of a dataset that is made from files."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from maas.blobs import sha256_of
from maas.datasets.difference import Difference, differences
from maas.datasets.failures import ColumnsInvalid, DataFileInvalid, LabelsInvalid, RowInvalid, SharesInvalid
from maas.datasets.prepare import PreparedSplit, PrepareOptions, count_parquet, prepare_splits, prepared_splits
from maas.datasets.splitting import Shares
from maas.datasets.statistics import SplitStatistics
from maas.label_names import label_names
from maas.registry.v1.blob_pb2 import File
from maas.registry.v1.dataset_pb2 import Column, DatasetVersion, Split


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return csv(tmp_path, [(f"review {number}", ("good", "bad", "fair")[number % 3]) for number in range(3000)])


def csv(folder: Path, rows: list[tuple[str, str]], header: str = "review,sentiment") -> Path:
    path = folder / "reviews.csv"
    path.write_text("".join(f"{line}\n" for line in [header, *(f"{text},{label}" for text, label in rows)]))
    return path


def prepare(folder: Path, source: Path, **options: Any) -> dict[str, PreparedSplit]:
    folder.mkdir(exist_ok=True)
    return prepare_splits({"train": [source]}, folder, PrepareOptions(**options))


def texts(splits: Mapping[str, PreparedSplit]) -> dict[str, set[str]]:
    return {
        split_id: set(pyarrow.parquet.read_table(split.path).column("text").to_pylist())
        for split_id, split in splits.items()
    }


COLUMNS = {"text_column": "review", "label_column": "sentiment"}


def test_columns_are_renamed_and_named_labels_become_numbers_in_the_order_of_their_names(
    tmp_path: Path, reviews: Path
) -> None:
    (split,) = prepare(tmp_path / "out", reviews, **COLUMNS).values()
    found = pyarrow.parquet.read_table(split.path)
    assert found.slice(0, 3).to_pylist() == [
        {"text": "review 0", "label": 2}, {"text": "review 1", "label": 0}, {"text": "review 2", "label": 1},
    ]  # fmt: skip
    assert label_names(found.schema.metadata, 3) == ("bad", "fair", "good")


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (("0", "1"), [0, 1], None),
        (("5", "1"), [1, 0], ("1", "5")),
        (("true", "false"), [1, 0], ("false", "true")),
        (("10", "9"), [1, 0], ("9", "10")),
    ],
)
def test_labels_that_do_not_count_from_zero_are_numbered(
    tmp_path: Path, labels: tuple[str, str], numbers: list[int], names: tuple[str, ...] | None
) -> None:
    source = csv(tmp_path, [("a", labels[0]), ("b", labels[1])], "text,label")
    (split,) = prepare(tmp_path / "out", source).values()
    found = pyarrow.parquet.read_table(split.path)
    assert found.column("label").to_pylist() == numbers
    assert label_names(found.schema.metadata, 2) == (names or ("0", "1"))


def test_the_same_row_lands_in_the_same_split_whatever_stands_around_it(tmp_path: Path, reviews: Path) -> None:
    shares = Shares(test=0.2, validation=0.1)
    whole = texts(prepare(tmp_path / "whole", reviews, shares=shares, **COLUMNS))
    assert list(whole) == ["train", "validation", "test"]
    assert [len(rows) for rows in whole.values()] == pytest.approx([2100, 300, 600], rel=0.15)
    rows = [(f"review {number}", "other") for number in reversed(range(1000, 4000))]
    later = texts(prepare(tmp_path / "later", csv(tmp_path, rows), shares=shares, **COLUMNS))
    shared = {f"review {number}" for number in range(1000, 3000)}
    assert {split: found & shared for split, found in later.items()} == {
        split: found & shared for split, found in whole.items()
    }


def test_a_larger_test_share_takes_in_the_smaller_one_and_another_seed_divides_anew() -> None:
    keys = [str(number) for number in range(2000)]

    def chosen(**shares: Any) -> set[str]:
        return {key for key in keys if Shares(**shares).split_of(key) == "test"}

    assert chosen(test=0.1) < chosen(test=0.3)
    assert 0 < len(chosen(test=0.2) & chosen(test=0.2, seed=1)) < 200
    assert Shares(test=0.5).split_of("a gripping, beautiful film") == "train", "the rule holds for ever"


@pytest.mark.parametrize("shares", [{"test": 1.0}, {"test": -0.1}, {"test": 0.6, "validation": 0.4}])
def test_shares_that_leave_nothing_to_train_on_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(SharesInvalid):
        Shares(**shares)


def test_the_same_files_give_the_same_bytes(tmp_path: Path, reviews: Path) -> None:
    once, again = (prepare(tmp_path / name, reviews, shares=Shares(test=0.2), **COLUMNS) for name in ("a", "b"))
    assert [sha256_of(split.path) for split in once.values()] == [sha256_of(split.path) for split in again.values()]


def test_parquet_that_needs_no_change_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [0, 1]}), path)
    with prepared_splits({"train": [path]}, PrepareOptions()) as splits:
        assert splits == {"train": count_parquet(path)}
        assert (splits["train"].path, splits["train"].row_count) == (path, 2)


def test_files_together_are_one_table(tmp_path: Path) -> None:
    paths = [tmp_path / "a.csv", tmp_path / "b.jsonl"]
    paths[0].write_text("text,label\na,1\n")
    paths[1].write_text('{"label": 0, "text": "b"}\n')
    splits = prepare_splits({"train": paths}, tmp_path, PrepareOptions())
    assert pyarrow.parquet.read_table(splits["train"].path).to_pylist() == [
        {"text": "a", "label": 1},
        {"text": "b", "label": 0},
    ]


@pytest.mark.parametrize(
    ("rows", "options", "failure"),
    [
        ([("a", "x"), (" ", "y")], COLUMNS, RowInvalid),
        ([("a", "x"), ("b", "")], COLUMNS, RowInvalid),
        ([("a", "x")], {"text_column": "body"}, ColumnsInvalid),
        ([("a", "x")], {"label_column": "class"}, ColumnsInvalid),
        ([(str(number), str(number / 2)) for number in range(2500)], COLUMNS, LabelsInvalid),
        ([("a", "x")], {"shares": Shares(test=0.5)}, DataFileInvalid),
        ([], COLUMNS, DataFileInvalid),
    ],
)
def test_tables_that_cannot_be_learned_from_are_refused(
    tmp_path: Path, rows: list[tuple[str, str]], options: dict[str, Any], failure: type[Exception]
) -> None:
    with pytest.raises(failure):
        prepare(tmp_path / "out", csv(tmp_path, rows), **options)


def counted(**columns: list[Any]) -> dict[str, Any]:
    rows = pyarrow.table(columns).combine_chunks().to_batches()[0]
    statistics = SplitStatistics(rows.schema)
    half = len(rows) // 2
    statistics.add(rows.slice(0, half))
    statistics.add(rows.slice(half))
    return {one.column: one for one in statistics.messages()}


def test_numbers_are_counted_over_blocks_as_over_the_whole() -> None:
    one = counted(x=[1.0, 2.0, None, 4.0, 9.0, math.nan, math.inf])["x"]
    assert (one.null_count, one.distinct_count, one.distinct_estimated) == (1, 6, False)
    assert (one.numbers.minimum, one.numbers.maximum, one.numbers.mean) == (1.0, 9.0, 4.0)
    assert one.numbers.standard_deviation == pytest.approx(math.sqrt(9.5))
    assert not one.values, "numbers with fractions are no classes"


def test_texts_are_counted_by_length() -> None:
    one = counted(text=["", "a", "äö", "abc", "abcd", "abcdefgh", None])["text"]
    assert (one.texts.minimum_length, one.texts.maximum_length, one.texts.mean_length) == (0, 8, 3.0)
    assert list(one.texts.length_counts) == [1, 1, 2, 1, 1]


def test_labels_are_counted_each_and_what_has_many_values_is_not() -> None:
    found = counted(label=[1, 0, 1, 1], many=[str(number) for number in range(4)], yes=[True, True, False, None])
    assert [(count.value, count.row_count) for count in found["label"].values] == [("1", 3), ("0", 1)]
    assert [(count.value, count.row_count) for count in found["yes"].values] == [("true", 2), ("false", 1)]
    assert not counted(many=[str(number) for number in range(50)])["many"].values


def test_many_different_values_are_estimated_within_a_few_percent() -> None:
    one = counted(text=[f"text {number % 50_000}" for number in range(100_000)])["text"]
    assert one.distinct_estimated
    assert one.distinct_count == pytest.approx(50_000, rel=0.05)


def test_no_estimate_is_more_than_there_are_values() -> None:
    for rows in range(4500, 5500, 50):
        assert counted(text=[f"text {row}" for row in range(rows)])["text"].distinct_count <= rows


def test_bytes_are_told_once_however_often_files_are_read(tmp_path: Path, reviews: Path) -> None:
    for options in (COLUMNS, {"text_column": "review"}):
        told: list[int] = []
        prepare_splits({"train": [reviews]}, tmp_path, PrepareOptions(**options), told.append)
        assert sum(told) == pytest.approx(reviews.stat().st_size, abs=10)


def test_what_is_different_in_two_versions_is_listed() -> None:
    def version(blob: str, extra: list[Column], labels: list[int]) -> DatasetVersion:
        statistics = counted(label=labels).values()
        splits = [Split(split_id="train", file=File(blob=blob), row_count=len(labels), statistics=statistics)]
        return DatasetVersion(splits=splits, columns=[Column(name="label", type="int64"), *extra])

    before = version("a", [], [0, 1, 1])
    assert list(differences(before, before)) == []
    after = version("b", [Column(name="x", type="string")], [0, 1, 1, 1])
    assert list(differences(before, after)) == [
        Difference("", "x", "type", "", "string"),
        Difference("train", "", "rows", "3", "4"),
        Difference("train", "label", "mean", "0.666667", "0.75"),
        Difference("train", "label", "rows with 1", "2", "3"),
    ]
