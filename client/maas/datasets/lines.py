"""The lines of a text file, plain or packed, one at a time."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow

from maas.datasets.failures import DataFileInvalid, EncodingInvalid, RowInvalid

MAX_LINE_BYTES = 16 * 2**20

_PACKINGS = (".gz", ".zst")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def unpacked_suffix(path: Path) -> str:
    """Return `.csv` for `reviews.csv` and for `reviews.csv.gz`."""
    suffixes = path.suffixes
    return (suffixes[-2] if len(suffixes) > 1 else "") if path.suffix in _PACKINGS else path.suffix


class Lines:
    """The lines of a file, with their ends; `number` is that of the last one given, from 1. Iterate once."""

    def __init__(self, path: Path, raw: BinaryIO, unpacked: BinaryIO) -> None:
        self._path = path
        self._raw = raw
        self._unpacked = unpacked
        self._told_bytes = 0
        self.number = 0

    def take_read_bytes(self) -> int:
        """Return how much of the file, as it lies on disk, was read since the last time."""
        read_bytes = self._raw.tell()
        self._told_bytes, since = read_bytes, read_bytes - self._told_bytes
        return since

    def __iter__(self) -> Iterator[str]:
        while line := self._next():
            self.number += 1
            if self.number == 1:
                if line.startswith(_UTF_16_MARKS):
                    raise EncodingInvalid(f"{self._path} is UTF-16: save it as UTF-8 ({_conversion('UTF-16')})")
                line = line.removeprefix(_BYTE_ORDER_MARK)
            if len(line) > MAX_LINE_BYTES:
                raise RowInvalid(
                    self._path, f"line {self.number:,}", "", f"is longer than {MAX_LINE_BYTES:,} bytes: split it"
                )
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise EncodingInvalid(
                    f"{self._path}, line {self.number:,}: byte {line[error.start]:#04x} at place {error.start + 1} is "
                    f"not UTF-8: save the file as UTF-8 ({_conversion('ISO-8859-1')}, if that is what it is)"
                ) from error

    def _next(self) -> bytes:
        try:
            return self._unpacked.readline(MAX_LINE_BYTES + 1)
        except (OSError, EOFError, zlib.error, pyarrow.ArrowException) as error:
            raise DataFileInvalid(
                f"{self._path} cannot be unpacked behind line {self.number:,}: {error}; it may be cut short"
            ) from error


@contextmanager
def open_lines(path: Path) -> Iterator[Lines]:
    """Give the lines of a .csv, .jsonl, ... or of one packed as .gz or .zst. Raises DataFileInvalid."""
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            yield Lines(path, raw, cast(BinaryIO, gzip.GzipFile(fileobj=raw)))
        elif path.suffix == ".zst":
            yield Lines(path, raw, cast(BinaryIO, io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))))
        else:
            yield Lines(path, raw, raw)


def _conversion(encoding: str) -> str:
    return f"iconv -f {encoding} -t UTF-8"
