"""From CSV, JSONL and Parquet to rows with types: what is taken, and where a bad row is said to be."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from maas.datasets.failures import ColumnsInvalid, DataFileInvalid, DataInvalid, EncodingInvalid, RowInvalid
from maas.datasets.tables import BLOCK_ROWS, TableOptions, read_blocks


def table(path: Path, **options: Any) -> pyarrow.Table:
    return pyarrow.Table.from_batches([block.rows for block in read_blocks(path, TableOptions(**options))])


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def types(found: pyarrow.Table) -> dict[str, str]:
    return {field.name: str(field.type) for field in found.schema}


def test_a_csv_gets_the_first_type_that_fits_all_values(tmp_path: Path) -> None:
    content = 'text,n,x,yes,zip,none\ngood,1,2.5,true,01234,\n"a, b\nc",-2,1e3,False,99999,\n,,,,,\n'
    found = table(written(tmp_path, "a.csv", content))
    assert types(found) == {
        "text": "string", "n": "int64", "x": "double", "yes": "bool", "zip": "string", "none": "string",
    }  # fmt: skip
    assert found.to_pylist() == [
        {"text": "good", "n": 1, "x": 2.5, "yes": True, "zip": "01234", "none": None},
        {"text": "a, b\nc", "n": -2, "x": 1000.0, "yes": False, "zip": "99999", "none": None},
        {"text": None, "n": None, "x": None, "yes": None, "zip": None, "none": None},
    ]


def test_a_jsonl_keeps_the_types_that_it_says(tmp_path: Path) -> None:
    found = table(written(tmp_path, "a.jsonl", '{"text": "", "n": 1, "x": 1}\n\n{"x": 2.5, "b": true, "text": null}\n'))
    assert types(found) == {"text": "string", "n": "int64", "x": "double", "b": "bool"}
    assert found.to_pylist() == [
        {"text": "", "n": 1, "x": 1.0, "b": None},
        {"text": None, "n": None, "x": 2.5, "b": True},
    ]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_packed_files_read_like_plain_ones(tmp_path: Path, suffix: str) -> None:
    content = b"text,label\ngood,1\nbad,0\n"
    path = tmp_path / f"a.csv{suffix}"
    if suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    else:
        path.write_bytes(pyarrow.compress(content, "zstd", asbytes=True))
    assert table(path) == table(written(tmp_path, "a.csv", content))
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataFileInvalid, match="unpacked"):
        table(path)


def test_tabs_marks_and_other_delimiters_are_read(tmp_path: Path) -> None:
    wanted = [{"a": 1, "b": "x"}]
    assert table(written(tmp_path, "a.tsv", "a\tb\r\n1\tx\r\n")).to_pylist() == wanted
    assert table(written(tmp_path, "b.csv", b"\xef\xbb\xbfa,b\n1,x")).to_pylist() == wanted
    semicolons = written(tmp_path, "c.csv", "a;b\n1;x\n")
    assert table(semicolons, delimiter=";").to_pylist() == wanted
    with pytest.raises(ColumnsInvalid, match="--delimiter"):
        table(semicolons)


def test_a_type_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "zip,x\n10115,1\n20095,2\n")
    assert types(table(path, types={"zip": "string", "x": "double"})) == {"zip": "string", "x": "double"}


@pytest.mark.parametrize(
    ("name", "content", "failure", "said"),
    [
        ("a.csv", "a,b\n" + "1,x\n" * BLOCK_ROWS + "n/a,x\n", RowInvalid, "line 10,002, column a: 'n/a' is not"),
        ("a.csv", "a,b\n" + "1,x\n" * BLOCK_ROWS + "2.5,x\n", RowInvalid, "--column a=double"),
        ("a.csv", "a\n" + "1\n" * BLOCK_ROWS + f"{2**64}\n", RowInvalid, "line 10,002, column a"),
        ("a.csv", "a,b\n1,\"x\ny\"\n2\n", RowInvalid, "line 4: has 1 fields instead of 2"),
        ("a.csv", 'a,b\n1,"x\n2,y\n', RowInvalid, "line 2: is not CSV"),
        ("a.csv", b"a,b\n1,caf\xe9\n", EncodingInvalid, "line 2: byte 0xe9 at place 6 is not UTF-8"),
        ("a.csv", "a,b\n1,x\n".encode("utf-16"), EncodingInvalid, "UTF-16"),
        ("a.csv", "", DataFileInvalid, "is empty"),
        ("a.csv", "a,a\n1,2\n", ColumnsInvalid, "column a is there twice"),
        ("a.csv", "a,\n1,2\n", ColumnsInvalid, "column 2 has no name"),
        ("a.jsonl", '{"a": 1}\n{"a": 1,}\n', RowInvalid, "line 2: is not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', RowInvalid, "line 2: is no JSON object"),
        ("a.jsonl", '{"a": 1, "a": 2}\n', RowInvalid, "line 1: is not JSON: a name is there twice"),
        ("a.jsonl", '{"a": NaN}\n', RowInvalid, "line 1: is not JSON: NaN"),
        ("a.jsonl", '{"a": [1]}\n', RowInvalid, "line 1, column a: has parts"),
        ("a.jsonl", '{"a": "x"}\n{"a": 1}\n', RowInvalid, "line 2, column a: '1' is not a text"),
        ("a.jsonl", '{"a": "\\ud800"}\n', RowInvalid, "line 1, column a: is not Unicode"),
        ("a.jsonl", '{"a": 1}\n' * BLOCK_ROWS + '{"b": 1}\n', RowInvalid, "line 10,001, column b: the rows before"),
        ("a.jsonl", '{"a": ' * 100_000, RowInvalid, "line 1: is not JSON"),
        ("a.parquet", b"PAR1 no PAR1", DataFileInvalid, "Parquet"),
        ("a.xlsx", b"", DataFileInvalid, "none of .csv"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_its_line_and_column(
    tmp_path: Path, name: str, content: str | bytes, failure: type[DataInvalid], said: str
) -> None:
    with pytest.raises(failure) as caught:
        table(written(tmp_path, name, content))
    assert said in caught.value.message
    assert name in caught.value.message


def test_a_second_file_has_to_fit_the_first(tmp_path: Path) -> None:
    first = table(written(tmp_path, "a.csv", "a,b\n1,x\n")).schema
    swapped = written(tmp_path, "b.csv", "b,a\ny,2\n")
    (block,) = read_blocks(swapped, TableOptions(), first)
    assert block.rows.to_pylist() == [{"a": 2, "b": "y"}]
    for content, failure in (("a,c\n1,x\n", ColumnsInvalid), ("a,b\nx,x\n", RowInvalid)):
        with pytest.raises(failure):
            list(read_blocks(written(tmp_path, "c.csv", content), TableOptions(), first))


def test_bytes_are_told_as_they_are_read(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"a": list(range(BLOCK_ROWS * 2 + 5))}), tmp_path / "a.parquet")
    written(tmp_path, "a.csv", "a,b\n" + "1,x\n" * (BLOCK_ROWS * 2))
    written(tmp_path, "a.jsonl", '{"a": 1}\n' * BLOCK_ROWS)
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        told: list[int] = []
        for _ in read_blocks(tmp_path / name, TableOptions(), progress=told.append):
            pass
        assert sum(told) == (tmp_path / name).stat().st_size
