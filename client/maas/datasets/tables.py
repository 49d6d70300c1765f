"""Reads tables from CSV, JSONL and Parquet, block by block, with types that hold for every row.

Types are found in the first block (10,000 rows) of the first file and hold from then on: a later value that does not
fit is an error with its line and column, and never changes a type or becomes a text in silence.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from maas.datasets.failures import ColumnsInvalid, DataFileInvalid, RowInvalid
from maas.datasets.lines import MAX_LINE_BYTES, Lines, open_lines, unpacked_suffix

BLOCK_ROWS = 10_000
_BLOCK_BYTES = 8 * 2**20
_SHOWN_CHARACTERS = 40

TYPES: Mapping[str, pyarrow.DataType] = {
    "bool": pyarrow.bool_(),
    "int64": pyarrow.int64(),
    "double": pyarrow.float64(),
    "string": pyarrow.string(),
}
"""The types that a column of CSV or JSONL can have; in a CSV the first that fits."""

_PATTERNS = {
    "bool": r"^(true|false|True|False|TRUE|FALSE)$",
    # A number with a leading zero is a code (of a post office, say), and would lose it.
    "int64": r"^-?(0|[1-9][0-9]*)$",
    "double": r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$",
}
_WANTED = {"bool": "true or false", "int64": "a whole number", "double": "a number", "string": "a text"}
_LEADING_ZERO = re.compile(r"^[-+]?0[0-9]")
_INT64 = range(-(2**63), 2**63)

Progress: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class TableOptions:
    """How files are read: the character between the fields of a CSV (default: by the name), and types by column."""

    delimiter: str = ""
    types: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows, and where each of them begins: lines of a text file, rows of a Parquet file."""

    path: Path
    rows: pyarrow.RecordBatch
    places: Sequence[int]
    unit: str

    def invalid(self, row: int, column: str, problem: str) -> RowInvalid:
        """Return the failure of one of the rows."""
        return RowInvalid(self.path, f"{self.unit} {self.places[row]:,}", column, problem)


def is_table(path: Path) -> bool:
    """Return whether the name is that of a file that can be read."""
    return unpacked_suffix(path) in _READERS


def read_blocks(
    path: Path, options: TableOptions, schema: pyarrow.Schema | None = None, progress: Progress = lambda _: None
) -> Iterator[Block]:
    """Yield the file's rows; `progress` is told of its bytes as they are read. With a schema, rows have to fit it.

    Raises DataInvalid.
    """
    reader = _READERS.get(unpacked_suffix(path))
    if reader is None:
        raise DataFileInvalid(f"{path} is none of {', '.join(_READERS)} (text files also packed as .gz or .zst)")
    try:
        yield from reader(path, options, schema, progress)
    except FileNotFoundError as error:
        raise DataFileInvalid(f"there is no file {path}") from error
    except (IsADirectoryError, PermissionError) as error:
        raise DataFileInvalid(f"{path} cannot be read: {error.strerror}") from error


# ---- CSV ------------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, options: TableOptions, schema: pyarrow.Schema | None, progress: Progress) -> Iterator[Block]:
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = options.delimiter or ("\t" if unpacked_suffix(path) == ".tsv" else ",")
    with open_lines(path) as lines:
        records = _records(path, lines, delimiter)
        header = next(records, None)
        if header is None:
            raise DataFileInvalid(f"{path} is empty: the first line has to name the columns")
        names = _checked_header(path, header[1], delimiter)
        for places, columns in _csv_blocks(path, names, records):
            progress(lines.take_read_bytes())
            if schema is None:
                schema = _csv_schema(names, columns, options.types)
            _check_names(path, names, schema)
            arrays = [
                _csv_column(path, places, name, columns[names.index(name)], schema.field(name).type)
                for name in schema.names
            ]
            yield Block(path, pyarrow.record_batch(arrays, schema=schema), places, "line")
        progress(lines.take_read_bytes())


def _records(path: Path, lines: Lines, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record and the line on which it begins."""
    reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
    while True:
        begin = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise RowInvalid(
                path, f"line {begin:,}", "", f"is not CSV: {error}; a quotation mark may be without its second"
            ) from error
        if record:
            yield begin, record


def _checked_header(path: Path, names: list[str], delimiter: str) -> list[str]:
    names = [name.strip() for name in names]
    if len(names) == 1 and delimiter == "," and (";" in names[0] or "\t" in names[0]):
        raise ColumnsInvalid(f"{path} has the one column {names[0]!r}: name the character between fields: --delimiter")
    _check_unique(path, names)
    return names


def _csv_blocks(
    path: Path, names: list[str], records: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[list[int], list[tuple[str, ...]]]]:
    """Yield the places and the columns of blocks of rows."""
    places: list[int] = []
    rows: list[list[str]] = []
    size_bytes = 0
    for place, record in records:
        if len(record) != len(names):
            raise RowInvalid(path, f"line {place:,}", "", f"has {len(record)} fields instead of {len(names)}")
        places.append(place)
        rows.append(record)
        size_bytes += sum(map(len, record))
        if len(rows) == BLOCK_ROWS or size_bytes > _BLOCK_BYTES:
            yield places, list(zip(*rows, strict=True))
            places, rows, size_bytes = [], [], 0
    if rows:
        yield places, list(zip(*rows, strict=True))


def _csv_schema(names: list[str], columns: list[tuple[str, ...]], wanted: Mapping[str, str]) -> pyarrow.Schema:
    return pyarrow.schema(
        [(name, TYPES[wanted.get(name) or _csv_type(values)]) for name, values in zip(names, columns, strict=True)]
    )


def _csv_type(values: Sequence[str]) -> str:
    present = [value for value in values if value]
    if not present:
        return "string"
    for name, pattern in _PATTERNS.items():
        matches = re.compile(pattern).match
        if all(map(matches, present)) and not (name != "bool" and any(map(_LEADING_ZERO.match, present))):
            return name
    return "string"


def _csv_column(
    path: Path, places: Sequence[int], name: str, values: Sequence[str], kind: pyarrow.DataType
) -> pyarrow.Array:
    texts = pyarrow.array([value or None for value in values], pyarrow.string())
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return texts.cast(kind)
    pattern = _PATTERNS.get(str(kind))
    if pattern is None:
        raise ColumnsInvalid(f"{path}: column {name} is {kind} in the file before, which a text file cannot hold")
    fits = pyarrow.compute.match_substring_regex(texts, pattern)
    bad = pyarrow.compute.index(fits, False).as_py()
    if bad < 0:
        try:
            return texts.cast(kind)
        except pyarrow.ArrowInvalid:
            bad = next(row for row, value in enumerate(values) if value and int(value) not in _INT64)
    raise RowInvalid(
        path,
        f"line {places[bad]:,}",
        name,
        _not_fitting(values[bad], str(kind), f", or say --column {name}={_wider(values[bad])}"),
    )


# ---- JSONL ----------------------------------------------------------------------------------------------------------


def _read_jsonl(
    path: Path, options: TableOptions, schema: pyarrow.Schema | None, progress: Progress
) -> Iterator[Block]:
    with open_lines(path) as lines:
        for places, rows in _jsonl_blocks(path, lines):
            progress(lines.take_read_bytes())
            if schema is None:
                schema = _jsonl_schema(path, places, rows, options.types)
            known = set(schema.names)
            for place, row in zip(places, rows, strict=True):
                if not known.issuperset(row):
                    new = next(name for name in row if name not in known)
                    raise RowInvalid(
                        path,
                        f"line {place:,}",
                        new,
                        f"the rows before have no such column, but {', '.join(schema.names)}",
                    )
            arrays = [
                _jsonl_column(path, places, one.name, [row.get(one.name) for row in rows], one.type) for one in schema
            ]
            yield Block(path, pyarrow.record_batch(arrays, schema=schema), places, "line")
        progress(lines.take_read_bytes())


def _jsonl_blocks(path: Path, lines: Lines) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    places: list[int] = []
    rows: list[dict[str, Any]] = []
    size_bytes = 0
    for line in lines:
        if not line.strip():
            continue
        rows.append(_jsonl_row(path, lines.number, line))
        places.append(lines.number)
        size_bytes += len(line)
        if len(rows) == BLOCK_ROWS or size_bytes > _BLOCK_BYTES:
            yield places, rows
            places, rows, size_bytes = [], [], 0
    if rows:
        yield places, rows


def _jsonl_row(path: Path, place: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_unique_pairs, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RowInvalid(path, f"line {place:,}", "", f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RowInvalid(path, f"line {place:,}", "", 'is no JSON object, like {"text": "good", "label": 1}')
    return value


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a name is there twice")
    return row


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _jsonl_schema(
    path: Path, places: Sequence[int], rows: Sequence[dict[str, Any]], wanted: Mapping[str, str]
) -> pyarrow.Schema:
    kinds: dict[str, set[type]] = {}
    for place, row in zip(places, rows, strict=True):
        for name, value in row.items():
            if isinstance(value, dict | list):
                raise RowInvalid(
                    path, f"line {place:,}", name, "has parts; only texts, numbers, true, false and null are taken"
                )
            seen = kinds.setdefault(name, set())
            if value is not None:
                seen.add(type(value))
    _check_unique(path, list(kinds))
    return pyarrow.schema([(name, TYPES[wanted.get(name) or _jsonl_type(seen)]) for name, seen in kinds.items()])


def _jsonl_type(seen: set[type]) -> str:
    if seen == {bool}:
        return "bool"
    if seen == {int}:
        return "int64"
    # Of mixed types the first value that is no text is then named as not fitting.
    return "double" if seen and seen <= {int, float} else "string"


def _jsonl_column(
    path: Path, places: Sequence[int], name: str, values: Sequence[Any], kind: pyarrow.DataType
) -> pyarrow.Array:
    fits = _JSON_FITS.get(str(kind))
    if fits is None:
        raise ColumnsInvalid(f"{path}: column {name} is {kind} in the file before, which a text file cannot hold")
    for place, value in zip(places, values, strict=True):
        if value is not None and not fits(value):
            wider = f", or say --column {name}=double" if type(value) is float else ""
            raise RowInvalid(path, f"line {place:,}", name, _not_fitting(json.dumps(value), str(kind), wider))
    try:
        return pyarrow.array(values, kind)
    except UnicodeEncodeError:
        bad = next(row for row, value in enumerate(values) if value is not None and not _is_unicode(value))
        raise RowInvalid(path, f"line {places[bad]:,}", name, "is not Unicode (a lone surrogate)") from None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_JSON_FITS: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: value is True or value is False,
    "int64": lambda value: type(value) is int and value in _INT64,
    "double": lambda value: type(value) is float or (type(value) is int and abs(value) <= 2**53),
    "string": lambda value: type(value) is str,
}


# ---- Parquet --------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, _: TableOptions, schema: pyarrow.Schema | None, progress: Progress) -> Iterator[Block]:
    size_bytes = path.stat().st_size
    try:
        with open_parquet(path) as file:
            own = file.schema_arrow
            if schema is not None and not own.equals(schema):
                raise ColumnsInvalid(f"{path} has the columns {own.to_string()}, the file before {schema.to_string()}")
            done = 0
            for rows in file.iter_batches(batch_size=BLOCK_ROWS):
                yield Block(path, rows, range(done + 1, done + 1 + len(rows)), "row")
                progress(size_bytes * (done + len(rows)) // file.metadata.num_rows
                         - size_bytes * done // file.metadata.num_rows)  # fmt: skip
                done += len(rows)
    except pyarrow.ArrowException as error:
        raise DataFileInvalid(f"{path} cannot be read as a Parquet file: {error}") from error


def open_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    """Open a file so that pages are read as they are needed, and not a row group at once."""
    return pyarrow.parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False)


# ---- all ------------------------------------------------------------------------------------------------------------


def _check_unique(path: Path, names: Sequence[str]) -> None:
    for place, name in enumerate(names, 1):
        if not name:
            raise ColumnsInvalid(f"{path}: column {place} has no name")
        if name in names[: place - 1]:
            raise ColumnsInvalid(f"{path}: the column {name} is there twice")


def _check_names(path: Path, names: Sequence[str], schema: pyarrow.Schema) -> None:
    if set(names) != set(schema.names):
        raise ColumnsInvalid(f"{path} has the columns {', '.join(names)}, the file before {', '.join(schema.names)}")


def _not_fitting(value: str, kind: str, remedy: str) -> str:
    shown = value if len(value) <= _SHOWN_CHARACTERS else value[:_SHOWN_CHARACTERS] + "..."
    return f"{shown!r} is not {_WANTED[kind]}, as the values before are: mend it{remedy}"


def _wider(value: str) -> str:
    return "double" if re.match(_PATTERNS["double"], value) else "string"


_READERS: dict[str, Callable[[Path, TableOptions, pyarrow.Schema | None, Progress], Iterator[Block]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
