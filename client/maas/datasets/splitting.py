"""Which split a row belongs to, by the row alone.

The rule: the SHA-256 of `<seed>` and a line feed and the row's text, its first 8 bytes as a big-endian number, divided
by 2^64, is the row's place between 0 and 1. Rows below the test share are `test`, those behind it and below the two
shares together `validation`, the rest `train`. So a row lands in the same split in every version, whatever stands
around it; two rows with the same text are never on both sides; and a larger test share takes in the test rows of a
smaller one.

A table without a column `text` goes by the JSON list of its values, columns in order of their names.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow

from maas.datasets.failures import SharesInvalid

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclass(frozen=True, slots=True)
class Shares:
    """How much of a table becomes `test` and `validation`; what is left is `train`."""

    test: float = 0.0
    validation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.test < 1 and 0 <= self.validation < 1 and self.test + self.validation < 1):
            raise SharesInvalid("the shares of test and validation are 0 to 1, and together less than 1")

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that rows go to."""
        return (TRAIN, *([VALIDATION] if self.validation else []), *([TEST] if self.test else []))

    def split_of(self, key: str) -> str:
        """Return where the row with this key belongs."""
        digest = hashlib.sha256(f"{self.seed}\n{key}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        if place < self.test:
            return TEST
        return VALIDATION if place < self.test + self.validation else TRAIN


def row_keys(rows: pyarrow.RecordBatch) -> Iterator[str]:
    """Yield what each row is known by."""
    if "text" in rows.schema.names:
        yield from (str(text) for text in rows.column("text").to_pylist())
        return
    names = sorted(rows.schema.names)
    for values in zip(*(rows.column(name).to_pylist() for name in names), strict=True):
        yield json.dumps(values, ensure_ascii=False, default=str)
