"""Rows as word ids in a file, so that a training can draw them in any order without holding them.

The file has the ids of all rows behind one another, int32, without padding. Where each begins, how long it is and its
class are in memory: 16 bytes a row. Shapes: N rows of a batch, T tokens.
"""

import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maas_package.text import TextTokenizer

UNLABELLED = -1
"""The class of a row that has none."""

_ID_BYTES = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows: tokens int64 [N, T], right-padded; labels int64 [N]; and which rows they are, int64 [N]."""

    tokens: Tensor
    labels: Tensor
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


class EncodedRows:
    """The rows of a file that store_rows wrote. `padding_id` fills up the shorter rows of a batch."""

    def __init__(self, path: Path, lengths: NDArray[np.int32], labels: NDArray[np.int32], padding_id: int) -> None:
        self.lengths = lengths
        self.labels = labels
        self.padding_id = padding_id
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

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """Return these rows."""
        chosen = [self.tokens(row) for row in rows]
        tokens = np.full((len(chosen), max(map(len, chosen))), self.padding_id, np.int64)
        for padded, ids in zip(tokens, chosen, strict=True):
            padded[: len(ids)] = ids
        return Batch(torch.from_numpy(tokens), torch.from_numpy(self.labels[rows].astype(np.int64)), rows)

    def batches_by_length(self, batch_size: int) -> Iterator[Batch]:
        """Yield every row once, the shortest first, so that there is little padding."""
        by_length = np.argsort(self.lengths, kind="stable")
        for begin in range(0, len(self), batch_size):
            yield self.batch(by_length[begin : begin + batch_size])


def encode_rows(path: Path, tokenizer: TextTokenizer, rows: Iterable[tuple[str, int]]) -> EncodedRows:
    """Write the word ids of each text, and give them back with the texts' classes."""
    return store_rows(path, ((tokenizer.encode([text])[0], label) for text, label in rows), tokenizer.padding_id)


def store_rows(path: Path, rows: Iterable[tuple[NDArray[np.int64], int]], padding_id: int) -> EncodedRows:
    """Write the ids of each row, int64 [T], and give them back with the rows' classes."""
    # Arrays of numbers, which take 4 bytes each and grow; a list would take 36.
    lengths, labels = array("i"), array("i")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for ids, label in rows:
            file.write(ids.astype(np.int32).tobytes())
            lengths.append(len(ids))
            labels.append(label)
    return EncodedRows(path, np.frombuffer(lengths, np.int32), np.frombuffer(labels, np.int32), padding_id)
