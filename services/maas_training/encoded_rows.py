"""Rows as word ids in a file, so that a training can draw them in any order without holding them.

The file has the ids of all rows behind one another, int32, without padding. Where each begins, how long it is and its
class are in memory: 16 bytes a row.
"""

import os
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

_ID_BYTES = 4


class EncodedRows:
    """The rows of a file that store_rows wrote."""

    def __init__(self, path: Path, lengths: NDArray[np.int32], labels: NDArray[np.int32]) -> None:
        self.lengths = lengths
        self.labels = labels
        self._begins = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)])
        self._descriptor = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.lengths)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def tokens(self, row: int) -> NDArray[np.int32]:
        """Return the ids of a row: int32 [T]."""
        size_bytes = int(self.lengths[row]) * _ID_BYTES
        return np.frombuffer(os.pread(self._descriptor, size_bytes, int(self._begins[row]) * _ID_BYTES), np.int32)


def store_rows(path: Path, rows: Iterable[tuple[NDArray[np.int64], int]]) -> EncodedRows:
    """Write the ids of each row, int64 [T], and give them back with the rows' classes."""
    # Arrays of numbers, which take 4 bytes each and grow; a list would take 36.
    lengths, labels = array("i"), array("i")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for ids, label in rows:
            file.write(ids.astype(np.int32).tobytes())
            lengths.append(len(ids))
            labels.append(label)
    return EncodedRows(path, np.frombuffer(lengths, np.int32), np.frombuffer(labels, np.int32))
