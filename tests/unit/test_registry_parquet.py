"""What the registry reads of a Parquet file, and that no file makes it read or hold more than it should."""

import contextlib
import datetime
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maas_registry.domain.parquet_file import (
    MAX_FOOTER_BYTES,
    MAX_PAGE_BYTES,
    Column,
    ParquetInvalid,
    ParquetShape,
    read_parquet_shape,
)

ROWS = 3000
TABLE = pyarrow.table(
    {
        "text": pyarrow.array([f"text {row}" for row in range(ROWS)]),
        "label": pyarrow.array([row % 3 for row in range(ROWS)], pyarrow.int64()),
        "small": pyarrow.array([1] * ROWS, pyarrow.int8()),
        "number": pyarrow.array([row / 3 for row in range(ROWS)]),
        "yes": [True, None, False] * 1000,
        "day": [datetime.date(2024, 3, 1)] * ROWS,
        "time": pyarrow.array([datetime.datetime(2024, 3, 1)] * ROWS, pyarrow.timestamp("us")),
        "list": [[1, 2], [], None] * 1000,
        "struct": [{"a": 1, "b": "x"}] * ROWS,
        "map": pyarrow.array([[("a", 1)]] * ROWS, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "bytes": [b"x"] * ROWS,
        "word": pyarrow.array(["x"] * ROWS).dictionary_encode(),
    },
    schema=None,
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"data_page_version": "2.0"},
        {"compression": "zstd", "row_group_size": 700},
        {"data_page_size": 500, "write_page_checksum": True, "write_page_index": True},
        {"use_dictionary": False, "compression": "none"},
    ],
)
def test_columns_and_rows_are_read_as_every_writer_writes_them(tmp_path: Path, options: dict[str, Any]) -> None:
    pyarrow.parquet.write_table(TABLE, tmp_path / "a.parquet", **options)
    shape = read_parquet_shape(tmp_path / "a.parquet")
    assert shape.row_count == ROWS
    assert [(column.name, column.type) for column in shape.columns] == [
        ("text", "string"), ("label", "int64"), ("small", "int8"), ("number", "double"), ("yes", "bool"),
        ("day", "date"), ("time", "timestamp"), ("list", "list"), ("struct", "struct"), ("map", "map"),
        ("bytes", "binary"), ("word", "string"),
    ]  # fmt: skip
    assert all(column.nullable for column in shape.columns)


def test_a_file_without_rows_and_columns_that_are_always_there_are_read(tmp_path: Path) -> None:
    schema = pyarrow.schema([pyarrow.field("a", pyarrow.int64(), nullable=False)])
    pyarrow.parquet.write_table(schema.empty_table(), tmp_path / "a.parquet")
    assert read_parquet_shape(tmp_path / "a.parquet") == ParquetShape((Column("a", "int64", nullable=False),), 0)


# ---- files that lie -------------------------------------------------------------------------------------------------


def thrift(value: Any) -> bytes:
    """Encode a struct given as {field number: value} in Thrift's compact form."""
    parts, last = [], 0
    for number, item in sorted(value.items()):
        kind = 6 if isinstance(item, int) else 8 if isinstance(item, str) else 12 if isinstance(item, dict) else 9
        parts.append(bytes([(number - last) << 4 | kind]) + encoded(item))
        last = number
    return b"".join(parts) + b"\0"


def encoded(item: Any) -> bytes:
    if isinstance(item, int):
        return varint(item << 1 if item >= 0 else (-item << 1) - 1)
    if isinstance(item, str):
        return varint(len(item.encode())) + item.encode()
    if isinstance(item, dict):
        return thrift(item)
    return b"\xfc" + varint(len(item)) + b"".join(map(thrift, item))


def varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def page(unpacked: int = 8, packed: int = 8, values: int = 1) -> bytes:
    return thrift({1: 0, 2: unpacked, 3: packed, 5: {1: values, 2: 0, 3: 3, 4: 3}})


def file_of(
    pages: bytes | None = None,
    *,
    rows: int = 1,
    group_rows: int = 1,
    values: int = 1,
    begin: int = 4,
    size_bytes: int | None = None,
    schema: Sequence[dict[int, Any]] | None = None,
    chunk: dict[int, Any] | None = None,
    groups: int = 1,
) -> bytes:
    data = page() + bytes(8) if pages is None else pages
    metadata = {1: 2, 5: values, 6: 8, 7: len(data) if size_bytes is None else size_bytes, 9: begin}
    group = {1: [{2: 4, 3: metadata, **(chunk or {})}], 2: 8, 3: group_rows}
    elements = schema if schema is not None else [{4: "schema", 5: 1}, {1: 2, 3: 0, 4: "a"}]
    return wrapped(data, thrift({1: 2, 2: elements, 3: rows, 4: [group] * groups}))


def wrapped(data: bytes, footer: bytes, footer_bytes: int | None = None) -> bytes:
    length = len(footer) if footer_bytes is None else footer_bytes
    return b"PAR1" + data + footer + struct.pack("<I", length) + b"PAR1"


def test_a_file_written_by_hand_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(file_of())
    assert read_parquet_shape(tmp_path / "a") == ParquetShape((Column("a", "int64", nullable=False),), 1)


DEEP = [{4: "schema", 5: 1}, *({4: "a", 5: 1} for _ in range(5000)), {1: 2, 3: 0, 4: "a"}]
# A field of lists in lists in lists, deeper than Python's stack.
NESTED = bytes([0x19, *([0x19] * 100_000)])
# Half a million structs without a field, in a list that nobody asked for, twice.
CROWDED = (b"\x99\xfc" + varint(500_001) + bytes(500_001)) + (b"\x19\xfc" + varint(500_001) + bytes(500_001))
# A list that claims 2^62 empty structs behind which nothing comes.
ENDLESS = b"\x29\xfc" + varint(2**62)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "begin"),
        (b"PAR1", "begin"),
        (b"PAR1PAR1PAR", "begin"),
        (b"a,b\n1,2\nand more", "begin"),
        (file_of()[:-1], "cut short"),
        (file_of()[:-4] + b"PARE", "encrypted"),
        (wrapped(b"", b"", 10_000), "more than the file has"),
        (wrapped(b"", b"", 2**32 - 1), "footer claims 4,294,967,295 bytes"),
        (wrapped(b"", bytes(MAX_FOOTER_BYTES + 1)), "footer claims"),
        (wrapped(b"", b"\xff" * 100), "damaged"),
        (wrapped(b"", NESTED), "deep"),
        (wrapped(b"", CROWDED), "more than 1,000,000 parts"),
        (wrapped(b"", ENDLESS), "ends in the middle"),
        (wrapped(b"", thrift({1: 2})), "no columns"),
        (file_of(rows=2), "footer claims 2 rows"),
        (file_of(rows=-1, group_rows=-1, values=-1), "each column once"),
        (file_of(values=2), "2 values"),
        (file_of(page(values=2) + bytes(8)), "do not hold"),
        (file_of(begin=40), "outside the file"),
        (file_of(begin=-40), "outside the file"),
        (file_of(size_bytes=2**62), "outside the file"),
        (file_of(size_bytes=5), "does not end"),
        (file_of(page(unpacked=10 * 2**30) + bytes(8)), "10,737,418,240 bytes when unpacked"),
        (file_of(page(unpacked=MAX_PAGE_BYTES + 1) + bytes(8)), "when unpacked"),
        (file_of(page(unpacked=-1) + bytes(8)), "when unpacked"),
        (file_of(page(packed=2**40) + bytes(8)), "do not hold"),
        (file_of(page(packed=-9) + bytes(8)), "negative"),
        (file_of(b"\xff" * 100), "damaged"),
        (file_of(chunk={1: "/etc/passwd"}), "another file"),
        (file_of(chunk={8: {1: {}}}), "encrypted"),
        (file_of(schema=DEEP), "deep"),
        (file_of(schema=[{4: "schema", 5: 3}, {1: 2, 3: 0, 4: "a"}]), "cut short"),
        (file_of(schema=[{4: "schema", 5: 2}, {1: 2, 3: 0, 4: "a"}, {1: 2, 3: 0, 4: "a"}]), "same name"),
        (file_of(schema=[{4: "schema", 5: 1}, {1: 99, 3: 0, 4: "a"}]), "unknown type"),
        (file_of(schema=[{4: "schema", 5: 1}, {1: 2, 3: 0, 4: ""}]), "name"),
        (file_of(schema=[{4: "s", 5: 1001}, *({1: 2, 3: 0, 4: f"c{n}"} for n in range(1001))]), "1,000 columns"),
        (file_of(page(packed=0) * 50_001, values=50_001, group_rows=50_001, rows=50_001), "50,000 pages"),
    ],
)  # fmt: skip
def test_a_file_that_is_damaged_or_lies_is_refused_with_bounded_memory(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "a").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ParquetInvalid, match=said):
            read_parquet_shape(tmp_path / "a")
        assert tracemalloc.get_traced_memory()[1] < MAX_FOOTER_BYTES + 2**22
    finally:
        tracemalloc.stop()


def test_a_bomb_of_one_page_is_refused_by_what_it_claims(tmp_path: Path) -> None:
    text = "x" * (MAX_PAGE_BYTES + 1000)
    pyarrow.parquet.write_table(pyarrow.table({"text": [text]}), tmp_path / "a", compression="zstd")
    assert (tmp_path / "a").stat().st_size < 20_000
    with pytest.raises(ParquetInvalid, match="when unpacked"):
        read_parquet_shape(tmp_path / "a")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_are_changed_a_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(TABLE.slice(0, 20), buffer)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a").write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    with contextlib.suppress(ParquetInvalid):
        assert read_parquet_shape(tmp_path / "a").row_count >= 0
