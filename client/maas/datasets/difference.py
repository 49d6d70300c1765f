"""What is different in two versions of a dataset, by what the registry knows of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from maas.registry.v1.dataset_pb2 import ColumnStatistics, DatasetVersion, Split


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same; `split` and `column` are empty where it is about all of them."""

    split: str
    column: str
    what: str
    before: str
    after: str


def differences(before: DatasetVersion, after: DatasetVersion) -> Iterator[Difference]:
    """Yield what is different: columns first, then split by split. Splits with the same bytes are passed over."""
    yield from _column_differences(before, after)
    old, new = ({split.split_id: split for split in version.splits} for version in (before, after))
    for split_id in dict.fromkeys([*old, *new]):
        if split_id not in new:
            yield Difference(split_id, "", "split", "there", "")
        elif split_id not in old:
            yield Difference(split_id, "", "split", "", "there")
        elif old[split_id].file.blob != new[split_id].file.blob:
            yield from _split_differences(old[split_id], new[split_id])


def _column_differences(before: DatasetVersion, after: DatasetVersion) -> Iterator[Difference]:
    old, new = ({column.name: column for column in version.columns} for version in (before, after))
    for name in dict.fromkeys([*old, *new]):
        types = tuple(columns[name].type if name in columns else "" for columns in (old, new))
        if types[0] != types[1]:
            yield Difference("", name, "type", *types)
    if list(old) != list(new) and set(old) == set(new):
        yield Difference("", "", "order", ", ".join(old), ", ".join(new))


def _split_differences(before: Split, after: Split) -> Iterator[Difference]:
    split_id = before.split_id
    yield Difference(split_id, "", "rows", str(before.row_count), str(after.row_count))
    old, new = ({one.column: one for one in split.statistics} for split in (before, after))
    for name in old:
        if name in new:
            for what, *values in _statistics(old[name], new[name]):
                if values[0] != values[1]:
                    yield Difference(split_id, name, what, *values)


def _statistics(before: ColumnStatistics, after: ColumnStatistics) -> Iterator[tuple[str, str, str]]:
    yield "missing", str(before.null_count), str(after.null_count)
    yield "distinct", str(before.distinct_count), str(after.distinct_count)
    if before.HasField("numbers") and after.HasField("numbers"):
        yield "mean", f"{before.numbers.mean:.6g}", f"{after.numbers.mean:.6g}"
        yield "minimum", f"{before.numbers.minimum:.6g}", f"{after.numbers.minimum:.6g}"
        yield "maximum", f"{before.numbers.maximum:.6g}", f"{after.numbers.maximum:.6g}"
    if before.HasField("texts") and after.HasField("texts"):
        yield "mean length", f"{before.texts.mean_length:.6g}", f"{after.texts.mean_length:.6g}"
    old, new = ({count.value: count.row_count for count in one.values} for one in (before, after))
    if old and new:
        for value in dict.fromkeys([*old, *new]):
            yield f"rows with {value}", str(old.get(value, 0)), str(new.get(value, 0))
