import errno
import hashlib
import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from maas.example_data import (
    SOURCE_REQUIREMENT,
    ExampleDataDamaged,
    ExampleDataError,
    ExampleDataNotWritten,
    ExampleDataset,
    ExampleDataUnreachable,
    Sentence,
    parse_sentences,
    prepare_example,
    split_sentences,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ExampleDataset:
    """The real data, where pip can get it."""
    try:
        return prepare_example(tmp_path_factory.mktemp("example"), domains=["tweets", "movies"])
    except ExampleDataUnreachable as failure:
        pytest.skip(str(failure))


def read(dataset: ExampleDataset, name: str) -> dict[str, list[Any]]:
    import pyarrow.parquet

    columns: dict[str, list[Any]] = pyarrow.parquet.read_table(dataset.file(name).path).to_pydict()
    return columns


def test_the_reviews_are_split_into_the_same_parts_for_ever(dataset: ExampleDataset) -> None:
    assert {file.name: file.rows for file in dataset.files} == {
        "train": 7_605,
        "validation": 1_000,
        "test": 2_000,
        "tweets": 4_200,
    }
    digests = {}
    for name in ("train", "validation", "test"):
        lines = "\n".join(read(dataset, name)["text"])
        digests[name] = hashlib.sha256(lines.encode()).hexdigest()[:16]
    assert digests == {
        "train": "f10ff24c9ea7b2f3",
        "validation": "62123f0d0f3127f3",
        "test": "7479d9bbb8b87021",
    }


def test_a_label_says_whether_the_rating_is_positive(dataset: ExampleDataset) -> None:
    labels: list[int] = []
    for name in ("train", "validation", "test"):
        columns = read(dataset, name)
        assert columns["label"] == [int(rating > 0) for rating in columns["rating"]]
        assert all(text.strip() for text in columns["text"])
        labels += columns["label"]
    assert len(labels) == 10_605
    assert sum(labels) / len(labels) == pytest.approx(0.494, abs=0.0005)


def test_no_text_is_in_two_parts(dataset: ExampleDataset) -> None:
    parts = [set(read(dataset, name)["text"]) for name in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(set().union(*parts))


def test_a_second_call_takes_what_is_there_and_makes_again_what_was_changed(
    dataset: ExampleDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = dataset.files[0].path.parent
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/does/not/exist")
        again = prepare_example(folder, domains=["tweets"])
        assert again.reused
        assert again.files == dataset.files
    test_file = dataset.file("test").path
    whole = test_file.read_bytes()
    test_file.write_bytes(whole[:-1])
    repaired = prepare_example(folder)
    assert not repaired.reused
    assert test_file.read_bytes() == whole


def test_lines_are_read_as_rating_and_text() -> None:
    content = "1_1\t-0.9\tcut at\x85no odd\u2028place\ttab\r\n2\t2.5\tgood \r\n3\t0\tneither"
    assert parse_sentences(content.encode()) == [
        Sentence("cut at\x85no odd\u2028place\ttab", -0.9),
        Sentence("good", 2.5),
        Sentence("neither", 0.0),
    ]
    assert [sentence.label for sentence in parse_sentences(content.encode())] == [0, 1, 0]


@pytest.mark.parametrize("content", [b"1\t2.0", b"1\tgood\tgood", b"1\t2.0\t\xff"])
def test_a_file_of_another_form_is_refused(content: bytes) -> None:
    with pytest.raises(ExampleDataDamaged):
        parse_sentences(content)


def test_the_split_does_not_depend_on_the_order_of_the_sentences() -> None:
    sentences = [Sentence(f"sentence {number}", number % 5 - 2.0) for number in range(3_500)]
    assert split_sentences(sentences) == split_sentences(sentences[::-1])
    assert {name: len(part) for name, part in split_sentences(sentences).items()} == {
        "train": 500,
        "validation": 1_000,
        "test": 2_000,
    }


def test_an_unknown_domain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExampleDataError, match="books"):
        prepare_example(tmp_path, domains=["books"])


def test_a_folder_that_cannot_be_made_is_a_clear_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExampleDataNotWritten, match="name another folder"):
        prepare_example(tmp_path / "file" / "data")


def test_a_full_disk_is_a_clear_failure_and_leaves_no_half_file(
    dataset: ExampleDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet

    def write_half(table: Any, path: Path, **_: object) -> None:
        path.write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", write_half)
    with pytest.raises(ExampleDataNotWritten, match="No space left"):
        prepare_example(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def fake_pip(folder: Path, lines: Sequence[str]) -> str:
    """Return a program to run in place of Python with pip."""
    program = folder / "python"
    program.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    program.chmod(0o755)
    return str(program)


def test_a_pip_that_finds_nothing_is_a_clear_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", fake_pip(tmp_path, ["echo no such host >&2", "exit 1"]))
    with pytest.raises(ExampleDataUnreachable, match="no such host"):
        prepare_example(tmp_path / "data")


def test_a_pip_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", fake_pip(tmp_path, ["sleep 60"]))
    with pytest.raises(ExampleDataUnreachable, match=r"within 0\.2 s"):
        prepare_example(tmp_path / "data", timeout_seconds=0.2)


def test_another_file_than_the_one_meant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("hutto_ICWSM_2014.tar.gz"), io.BytesIO())
    # The folder is the last word of pip's command line.
    lines = ['while [ "$1" != --dest ]; do shift; done', f'cp "{archive}" "$2"']
    monkeypatch.setattr(sys, "executable", fake_pip(tmp_path, lines))
    with pytest.raises(ExampleDataDamaged, match=SOURCE_REQUIREMENT):
        prepare_example(tmp_path / "data")
