"""What a Parquet file says of itself, read without pyarrow and without trust.

The file ends with its footer (Thrift), the footer's length and a mark. The footer names the columns, and for each row
group where each column's pages lie; each page begins with a header that says how large it is, packed and unpacked. All
of these are looked at and none is unpacked, so that memory is bounded by the footer and time by the number of pages.
A reader allocates what a page header asks for: a page that claims more than MAX_PAGE_BYTES is refused here.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maas_registry.domain.thrift_compact import CompactReader, ThriftCutShort, ThriftInvalid

MAX_FOOTER_BYTES = 16 * 2**20
MAX_PAGE_BYTES = 64 * 2**20
MAX_PAGES = 50_000
MAX_COLUMNS = 1000

_MARK = b"PAR1"
_ENCRYPTED_MARK = b"PARE"
_MAX_SCHEMA_ELEMENTS = 10_000
_MAX_NESTING = 32
_MAX_NAME_CHARACTERS = 1000
# Most page headers take less than 100 bytes; one with long statistics more.
_HEADER_BYTES = (512, 64 * 1024)
_REPEATED, _OPTIONAL = 2, 1
_DATA_PAGE, _DATA_PAGE_V2 = 0, 3

_PHYSICAL_TYPES = ("bool", "int32", "int64", "timestamp", "float", "double", "binary", "fixed_size_binary")
# parquet.thrift's ConvertedType; what stands beside a physical type in every file, old ones too.
_CONVERTED_TYPES = {
    0: "string", 1: "map", 2: "map", 3: "list", 4: "string", 5: "decimal", 6: "date", 7: "time", 8: "time",
    9: "timestamp", 10: "timestamp", 11: "uint8", 12: "uint16", 13: "uint32", 14: "uint64", 15: "int8", 16: "int16",
    17: "int32", 18: "int64", 19: "json", 20: "bson", 21: "interval",
}  # fmt: skip
# The union LogicalType, where no ConvertedType says the same (times without a zone, and newer types).
_LOGICAL_TYPES = {1: "string", 2: "map", 3: "list", 5: "decimal", 6: "date", 7: "time", 8: "timestamp", 11: "null",
                  14: "uuid", 15: "float16"}  # fmt: skip


class ParquetInvalid(ValueError):
    """A file is not Parquet, damaged, or asks for more than a reader should give."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its name, what its values are in Arrow's words, and whether one may be missing."""

    name: str
    type: str
    nullable: bool


@dataclass(frozen=True, slots=True)
class ParquetShape:
    """Columns and number of rows."""

    columns: tuple[Column, ...]
    row_count: int


@dataclass(frozen=True, slots=True)
class _Element:
    name: str
    type: str
    repetition: int
    children: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Where the pages of one column in one row group lie."""

    begin: int
    size_bytes: int
    value_count: int


def read_parquet_shape(location: Path) -> ParquetShape:
    """Return columns and rows, after a look at each page. Raises ParquetInvalid."""
    with location.open("rb") as file:
        descriptor = file.fileno()
        footer, data_end = _read_footer(descriptor, os.fstat(descriptor).st_size)
        try:
            return _Inspection(descriptor, data_end).shape(CompactReader(footer))
        except ThriftInvalid as error:
            raise ParquetInvalid(f"its footer is damaged: {error}") from error


def _read_footer(descriptor: int, size_bytes: int) -> tuple[bytes, int]:
    """Return the footer, and where it begins."""
    # The shortest file: a mark, a footer's length and a mark.
    if size_bytes < 12 or os.pread(descriptor, 4, 0) != _MARK:
        raise ParquetInvalid("it does not begin like a Parquet file")
    tail = os.pread(descriptor, 8, size_bytes - 8)
    if tail[4:] == _ENCRYPTED_MARK:
        raise ParquetInvalid("it is encrypted; store it without encryption")
    if tail[4:] != _MARK:
        raise ParquetInvalid("it does not end like a Parquet file; it may be cut short")
    footer_bytes = int.from_bytes(tail[:4], "little")
    if footer_bytes > MAX_FOOTER_BYTES:
        raise ParquetInvalid(
            f"its footer claims {footer_bytes:,} bytes, more than the {MAX_FOOTER_BYTES:,} that are read; write fewer "
            "or larger row groups"
        )
    begin = size_bytes - 8 - footer_bytes
    if begin < 4:
        raise ParquetInvalid(f"its footer claims {footer_bytes:,} bytes, more than the file has")
    return os.pread(descriptor, footer_bytes, begin), begin


class _Inspection:
    """One look at a file: its footer, and the header of each page that the footer leads to."""

    def __init__(self, descriptor: int, data_end: int) -> None:
        self._descriptor = descriptor
        self._data_end = data_end
        self._pages = 0

    def shape(self, footer: CompactReader) -> ParquetShape:
        elements: list[_Element] = []
        row_count, group_rows = -1, 0
        leaves: list[bool] = []
        columns: tuple[Column, ...] = ()
        for number, kind in footer.fields():
            if number == 2:
                elements = _read_elements(footer, kind)
                columns, leaves = _arrange(elements)
            elif number == 3:
                row_count = footer.integer(kind)
            elif number == 4:
                for _ in footer.structs(kind):
                    group_rows += self._row_group(footer, leaves)
            else:
                footer.skip(kind)
        if not columns:
            raise ParquetInvalid("it has no columns")
        if row_count != group_rows:
            raise ParquetInvalid(f"its footer claims {row_count:,} rows, and its row groups {group_rows:,}")
        return ParquetShape(columns, row_count)

    def _row_group(self, footer: CompactReader, leaves: list[bool]) -> int:
        """Look at all pages of a row group and return its rows."""
        chunks: list[_Chunk] = []
        rows = -1
        for number, kind in footer.fields():
            if number == 1:
                for _ in footer.structs(kind):
                    chunks.append(_read_chunk(footer))
                    if len(chunks) > len(leaves):
                        break
            elif number == 3:
                rows = footer.integer(kind)
            else:
                footer.skip(kind)
        if rows < 0 or len(chunks) != len(leaves):
            raise ParquetInvalid("a row group has not each column once")
        for chunk, repeated in zip(chunks, leaves, strict=True):
            if not repeated and chunk.value_count != rows:
                raise ParquetInvalid(f"a row group has {rows:,} rows, but a column of it {chunk.value_count:,} values")
            self._check_pages(chunk)
        return rows

    def _check_pages(self, chunk: _Chunk) -> None:
        if chunk.value_count == chunk.size_bytes == 0:  # a file without rows
            return
        position, end = chunk.begin, chunk.begin + chunk.size_bytes
        if chunk.begin < 4 or chunk.size_bytes < 0 or end > self._data_end:
            raise ParquetInvalid("a column's pages lie outside the file; it may be cut short")
        values = 0
        while position < end:
            self._pages += 1
            if self._pages > MAX_PAGES:
                raise ParquetInvalid(f"it has more than {MAX_PAGES:,} pages; write larger ones")
            header_bytes, packed_bytes, page_values = self._page_header(position, end)
            position += header_bytes + packed_bytes
            values += page_values
        if position != end or values != chunk.value_count:
            raise ParquetInvalid("a column's pages do not hold what the footer says")

    def _page_header(self, position: int, end: int) -> tuple[int, int, int]:
        """Return the bytes of a page's header, those behind it, and its rows' values."""
        for window in _HEADER_BYTES:
            reader = CompactReader(os.pread(self._descriptor, min(window, end - position), position))
            try:
                packed_bytes, values = _read_page_header(reader)
            except ThriftCutShort:
                continue
            except ThriftInvalid as error:
                raise ParquetInvalid(f"a page's header is damaged: {error}") from error
            return reader.position, packed_bytes, values
        raise ParquetInvalid("a page's header does not end")


def _read_elements(footer: CompactReader, kind: int) -> list[_Element]:
    elements: list[_Element] = []
    for _ in footer.structs(kind):
        elements.append(_read_element(footer))
        if len(elements) > _MAX_SCHEMA_ELEMENTS:
            raise ParquetInvalid(f"its schema has more than {_MAX_SCHEMA_ELEMENTS:,} parts")
    return elements


def _read_element(footer: CompactReader) -> _Element:
    name, physical, repetition, children = "", None, 0, 0
    converted, logical = "", ""
    for number, kind in footer.fields():
        if number == 1:
            physical = footer.integer(kind)
        elif number == 3:
            repetition = footer.integer(kind)
        elif number == 4:
            name = footer.text(kind)
        elif number == 5:
            children = footer.integer(kind)
        elif number == 6:
            converted = _CONVERTED_TYPES.get(footer.integer(kind), "")
        elif number == 10:
            footer.expect_struct(kind)
            for choice, inner in footer.fields():
                logical = _LOGICAL_TYPES.get(choice, "")
                footer.skip(inner)
        else:
            footer.skip(kind)
    if not 0 < len(name) <= _MAX_NAME_CHARACTERS:
        raise ParquetInvalid(f"a column's name has not 1 to {_MAX_NAME_CHARACTERS:,} characters")
    if physical is None:
        own = "struct"
    elif 0 <= physical < len(_PHYSICAL_TYPES):
        own = _PHYSICAL_TYPES[physical]
    else:
        raise ParquetInvalid(f"the column {name} has values of an unknown type")
    return _Element(name, converted or logical or own, repetition, children)


def _arrange(elements: list[_Element]) -> tuple[tuple[Column, ...], list[bool]]:
    """Return the outermost columns, and for each that holds values whether a row may have several of them."""
    if not elements:
        raise ParquetInvalid("it has no columns")
    columns: list[Column] = []
    leaves: list[bool] = []
    rest = iter(elements[1:])
    for _ in range(elements[0].children):
        element = next(rest, None)
        if element is None:
            raise ParquetInvalid("its schema is cut short")
        kind = "list" if element.repetition == _REPEATED else element.type
        columns.append(Column(element.name, kind, element.repetition == _OPTIONAL))
        leaves.extend(_leaves(element, rest, repeated=False, depth=0))
        if len(columns) > MAX_COLUMNS:
            raise ParquetInvalid(f"it has more than {MAX_COLUMNS:,} columns")
    if next(rest, None) is not None:
        raise ParquetInvalid("its schema has parts that belong to no column")
    names = [column.name for column in columns]
    if len(set(names)) != len(names):
        raise ParquetInvalid("two columns have the same name")
    return tuple(columns), leaves


def _leaves(element: _Element, rest: Iterator[_Element], *, repeated: bool, depth: int) -> Iterator[bool]:
    if depth > _MAX_NESTING:
        raise ParquetInvalid(f"columns stand in one another more than {_MAX_NESTING} deep")
    repeated = repeated or element.repetition == _REPEATED
    if not element.children:
        yield repeated
    for _ in range(element.children):
        child = next(rest, None)
        if child is None:
            raise ParquetInvalid("its schema is cut short")
        yield from _leaves(child, rest, repeated=repeated, depth=depth + 1)


def _read_chunk(footer: CompactReader) -> _Chunk:
    chunk: _Chunk | None = None
    for number, kind in footer.fields():
        if number == 1:
            raise ParquetInvalid("a column's values lie in another file")
        if number == 3:
            footer.expect_struct(kind)
            chunk = _read_chunk_metadata(footer)
        elif number in (8, 9):
            raise ParquetInvalid("a column is encrypted; store it without encryption")
        else:
            footer.skip(kind)
    if chunk is None:
        raise ParquetInvalid("the footer does not say where a column's values lie")
    return chunk


def _read_chunk_metadata(footer: CompactReader) -> _Chunk:
    values, size_bytes, data_begin, dictionary_begin = -1, -1, 0, 0
    for number, kind in footer.fields():
        if number == 5:
            values = footer.integer(kind)
        elif number == 7:
            size_bytes = footer.integer(kind)
        elif number == 9:
            data_begin = footer.integer(kind)
        elif number == 11:
            dictionary_begin = footer.integer(kind)
        else:
            footer.skip(kind)
    # 0 stands for none: of a dictionary, and, without rows, of data.
    begins = [begin for begin in (dictionary_begin, data_begin) if begin]
    return _Chunk(min(begins, default=0), size_bytes, values)


def _read_page_header(reader: CompactReader) -> tuple[int, int]:
    """Return the bytes behind the header and the values of a data page."""
    page, unpacked_bytes, packed_bytes, values = -1, -1, -1, -1
    for number, kind in reader.fields():
        if number == 1:
            page = reader.integer(kind)
        elif number == 2:
            unpacked_bytes = reader.integer(kind)
        elif number == 3:
            packed_bytes = reader.integer(kind)
        elif number in (5, 8):
            reader.expect_struct(kind)
            values = _read_value_count(reader)
        else:
            reader.skip(kind)
    if not 0 <= unpacked_bytes <= MAX_PAGE_BYTES:
        raise ParquetInvalid(
            f"a page claims {unpacked_bytes:,} bytes when unpacked, more than the {MAX_PAGE_BYTES:,} that a reader "
            "should give; write smaller pages"
        )
    if packed_bytes < 0:
        raise ParquetInvalid("a page claims a negative size")
    if page not in (_DATA_PAGE, _DATA_PAGE_V2):
        return packed_bytes, 0
    if values < 0:
        raise ParquetInvalid("a page does not say how many values it has")
    return packed_bytes, values


def _read_value_count(reader: CompactReader) -> int:
    values = -1
    for number, kind in reader.fields():
        if number == 1:
            values = reader.integer(kind)
        else:
            reader.skip(kind)
    return values
