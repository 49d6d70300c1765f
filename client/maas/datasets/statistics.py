"""Counts what is in a split, block by block, with memory that does not grow with its rows."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray

from maas.registry.v1.dataset_pb2 import ColumnStatistics, NumberStatistics, TextStatistics, ValueCount

LABEL_VALUES = 1000
"""How many different values of the column `label` are counted each; of other columns COUNTED_VALUES."""
COUNTED_VALUES = 20

_MAX_VALUE_CHARACTERS = 200
_MAX_COLUMNS = 1000
_LENGTH_COUNTS = 40
# Different values are counted up to this many, then estimated from the smallest hashes: K. Beyer et al., "On synopses
# for distinct-value estimation under multiset operations", SIGMOD 2007. Its standard error is 1 / sqrt(K - 2): 1.6 %.
_SMALLEST_HASHES = 4096
_HASH_END = 2.0**64

Numbers: TypeAlias = NDArray[np.float64]


class SplitStatistics:
    """What was counted in the blocks given so far."""

    def __init__(self, schema: pyarrow.Schema) -> None:
        self.row_count = 0
        self._columns = [
            _Column(one.name, one.type, LABEL_VALUES if one.name == "label" else COUNTED_VALUES)
            for one in list(schema)[:_MAX_COLUMNS]
        ]

    def add(self, rows: pyarrow.RecordBatch) -> None:
        """Count these rows too."""
        self.row_count += len(rows)
        for column in self._columns:
            column.add(rows.column(column.name))

    def messages(self) -> list[ColumnStatistics]:
        """Return what was counted."""
        return [column.message() for column in self._columns]


class _Column:
    def __init__(self, name: str, kind: pyarrow.DataType, most_values: int) -> None:
        self.name = name
        is_text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
        is_number = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
        self._null_count = 0
        self._value_count = 0
        self._numbers = _Numbers() if is_number else None
        self._texts = _Lengths() if is_text else None
        self._is_counted = is_text or is_number or pyarrow.types.is_boolean(kind)
        self._distinct = _Distinct()
        self._values: Counter[str] | None = None if pyarrow.types.is_floating(kind) else Counter()
        self._most_values = most_values

    def add(self, values: pyarrow.Array) -> None:
        self._null_count += values.null_count
        self._value_count += len(values) - values.null_count
        if not self._is_counted:
            return
        present = values.drop_null()
        if self._numbers is not None:
            self._numbers.add(present)
        if self._texts is not None:
            self._texts.add(present)
        counted = present.value_counts()
        different = [_text(value) for value in counted.field("values").to_pylist()]
        self._distinct.add(different)
        if self._values is not None:
            self._count(different, counted.field("counts").to_pylist())

    def _count(self, different: list[str], counts: list[int]) -> None:
        assert self._values is not None
        if len(different) > self._most_values or any(len(value) > _MAX_VALUE_CHARACTERS for value in different):
            self._values = None
            return
        self._values.update(dict(zip(different, counts, strict=True)))
        if len(self._values) > self._most_values:
            self._values = None

    def message(self) -> ColumnStatistics:
        frequent = sorted((self._values or {}).items(), key=lambda item: (-item[1], item[0]))
        return ColumnStatistics(
            column=self.name,
            null_count=self._null_count,
            # An estimate may be more than there are values.
            distinct_count=min(self._distinct.count, self._value_count),
            distinct_estimated=self._distinct.is_estimate,
            numbers=self._numbers.message() if self._numbers is not None else None,
            texts=self._texts.message() if self._texts is not None else None,
            values=[ValueCount(value=value, row_count=count) for value, count in frequent] if self._is_counted else [],
        )


class _Distinct:
    """How many different values there are: the smallest of their hashes tell."""

    def __init__(self) -> None:
        self._hashes: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._is_full = False

    def add(self, different: Iterable[str]) -> None:
        digests = b"".join(hashlib.blake2b(value.encode(), digest_size=8).digest() for value in different)
        together = np.unique(np.concatenate([self._hashes, np.frombuffer(digests, "<u8")]))
        self._is_full = self._is_full or len(together) > _SMALLEST_HASHES
        self._hashes = together[:_SMALLEST_HASHES]

    @property
    def is_estimate(self) -> bool:
        return self._is_full

    @property
    def count(self) -> int:
        if not self._is_full:
            return len(self._hashes)
        return round((_SMALLEST_HASHES - 1) * _HASH_END / float(self._hashes[-1]))


class _Numbers:
    """Mean and deviation of blocks, put together: T.F. Chan, G.H. Golub, R.J. LeVeque, "Updating formulae and a
    pairwise algorithm for computing sample variances", 1979.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0
        self._low = math.inf
        self._high = -math.inf

    def add(self, values: pyarrow.Array) -> None:
        numbers: Numbers = values.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
        numbers = numbers[np.isfinite(numbers)]
        if not len(numbers):
            return
        mean = float(numbers.mean())
        count, apart = self._count + len(numbers), mean - self._mean
        self._squares += float(np.square(numbers - mean).sum()) + apart**2 * self._count * len(numbers) / count
        self._mean += apart * len(numbers) / count
        self._count = count
        self._low, self._high = min(self._low, float(numbers.min())), max(self._high, float(numbers.max()))

    def message(self) -> NumberStatistics | None:
        deviation = math.sqrt(self._squares / self._count) if self._count else 0.0
        if not self._count or not math.isfinite(deviation):  # squares of numbers near the largest there are
            return None
        return NumberStatistics(minimum=self._low, maximum=self._high, mean=self._mean, standard_deviation=deviation)


class _Lengths:
    def __init__(self) -> None:
        self._count = 0
        self._sum = 0
        self._low = 0
        self._high = 0
        self._counts = np.zeros(_LENGTH_COUNTS, np.int64)

    def add(self, texts: pyarrow.Array) -> None:
        if not len(texts):
            return
        lengths = pyarrow.compute.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
        low, high = int(lengths.min()), int(lengths.max())
        self._low = min(self._low, low) if self._count else low
        self._high = max(self._high, high)
        self._count += len(lengths)
        self._sum += int(lengths.sum())
        # The exponent of a number is the place of its bucket: 0 for 0, 1 for 1, 2 for 2 to 3, 3 for 4 to 7.
        self._counts += np.bincount(np.frexp(lengths)[1], minlength=_LENGTH_COUNTS)[:_LENGTH_COUNTS]

    def message(self) -> TextStatistics | None:
        if not self._count:
            return None
        used = int(np.flatnonzero(self._counts)[-1]) + 1
        return TextStatistics(
            minimum_length=self._low,
            maximum_length=self._high,
            mean_length=self._sum / self._count,
            length_counts=self._counts[:used].tolist(),
        )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
