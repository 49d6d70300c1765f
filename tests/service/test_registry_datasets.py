"""Datasets in a registry as its process wires it, through the stub, the client and the command."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import grpc
import pyarrow
import pyarrow.parquet
import pytest
from registry_process import running_registry

from maas.blobs import upload_blob
from maas.client import Client
from maas.datasets.prepare import PrepareOptions
from maas.datasets.splitting import Shares
from maas.errors import MaasError, NotFoundError, from_rpc_error
from maas.registry.v1 import blob_pb2, dataset_pb2
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

ROWS = 500


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("r")) as address:
        yield address


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    with Client(endpoint) as client:
        yield client


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    lines = [f"review {row},{('good', 'bad')[row % 2]},{row / 10}" for row in range(ROWS)]
    path.write_text("\n".join(["review,sentiment,rating", *lines]))
    return path


OPTIONS = PrepareOptions("review", "sentiment", Shares(test=0.2, validation=0.1))


def clean_environment() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith("MAAS_")}


class Maas(Protocol):
    def __call__(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def maas(endpoint: str) -> Maas:
    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", "maas.cli", *arguments],
            env=clean_environment() | {"MAAS_ENDPOINT": endpoint},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == status, result.stderr
        return result

    return run


def document(result: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(result.stdout)


def test_a_pushed_table_comes_back_with_schema_splits_and_statistics(client: Client, reviews: Path) -> None:
    version = client.push_dataset("whole", {"train": reviews}, options=OPTIONS, description="films")
    assert [split.split_id for split in version.splits] == ["train", "validation", "test"]
    assert sum(split.row_count for split in version.splits) == ROWS
    assert [(column.name, column.type, column.nullable) for column in version.columns] == [
        ("text", "string", True), ("label", "int64", True), ("rating", "double", True),
    ]  # fmt: skip
    assert client.dataset_version("whole") == version
    text, label, rating = version.splits[0].statistics
    assert (text.column, text.distinct_count, text.texts.maximum_length) == ("text", version.splits[0].row_count, 10)
    assert sum(count.row_count for count in label.values) == version.splits[0].row_count
    assert 0 <= rating.numbers.minimum < rating.numbers.mean < rating.numbers.maximum < 50
    (listed,) = client.dataset_versions("whole")
    assert [len(split.statistics) for split in listed.splits] == [0, 0, 0], "a page of them would be large"
    assert listed.columns == version.columns
    assert client.dataset("whole").description == "films"


def test_the_same_data_again_is_the_same_version(client: Client, reviews: Path) -> None:
    version = client.push_dataset("again", {"train": reviews}, options=OPTIONS)
    assert client.push_dataset("again", {"train": reviews}, options=OPTIONS) == version
    other = client.push_dataset("again", {"train": reviews}, options=PrepareOptions("review"))
    assert other.name == "datasets/again/versions/2"
    assert client.push_dataset("again", {"train": reviews}, options=OPTIONS).name == "datasets/again/versions/3", (
        "what is not the newest is pushed anew, so that the newest is what was pushed last"
    )


def test_the_first_rows_are_read_without_the_rest(client: Client, tmp_path: Path) -> None:
    rows = 200_000
    table = pyarrow.table({"text": [f"{row:0100d}" for row in range(rows)], "label": [row % 2 for row in range(rows)]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet", row_group_size=10_000, compression="none")
    client.push_dataset("large", {"train": tmp_path / "train.parquet"})
    assert client.dataset_rows("large@1", rows=2) == table.slice(0, 2).to_pylist()
    with pytest.raises(NotFoundError, match="it has: train"):
        client.dataset_rows("large", "test")


def test_who_pushed_and_why_is_in_the_log(endpoint: str, client: Client, reviews: Path) -> None:
    client.push_dataset("logged", {"train": reviews}, options=OPTIONS, reason="the first month")
    with grpc.insecure_channel(endpoint) as channel:
        request = messages.ListChangesRequest(resource="datasets/logged")
        found = RegistryServiceStub(channel).ListChanges(request, timeout=5).changes
    assert [(change.resource, change.reason) for change in found] == [
        ("datasets/logged/versions/1", "the first month"),
        ("datasets/logged", "the first month"),
    ]


def put_version(endpoint: str, dataset: str, *splits: tuple[str, Path]) -> dataset_pb2.DatasetVersion:
    with grpc.insecure_channel(endpoint) as channel:
        registry = RegistryServiceStub(channel)
        found = [
            dataset_pb2.Split(
                split_id=split_id, file=blob_pb2.File(path=path.name, blob=str(upload_blob(channel, path))), row_count=9
            )
            for split_id, path in splits
        ]
        try:
            registry.CreateDataset(messages.CreateDatasetRequest(dataset_id=dataset), timeout=5)
            return registry.CreateDatasetVersion(
                messages.CreateDatasetVersionRequest(
                    parent=f"datasets/{dataset}", dataset_version=dataset_pb2.DatasetVersion(splits=found)
                ),
                timeout=10,
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


def test_rows_and_columns_are_those_of_the_file_whatever_is_claimed(endpoint: str, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"a": [1, 2]}), tmp_path / "a.parquet")
    version = put_version(endpoint, "claims", ("train", tmp_path / "a.parquet"))
    assert version.splits[0].row_count == 2
    assert [column.name for column in version.columns] == ["a"]


def test_files_that_lie_are_refused_and_the_registry_goes_on(endpoint: str, client: Client, tmp_path: Path) -> None:
    good = tmp_path / "good.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x" * 1000] * 1000}), good)
    content = good.read_bytes()
    bomb = tmp_path / "bomb.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x" * (65 * 2**20)]}), bomb, compression="zstd")
    hostile = {
        "cut-in-the-middle": content[: len(content) // 2],
        "cut-at-the-end": content[:-1],
        "long-footer": content[:-8] + (2**32 - 1).to_bytes(4, "little") + b"PAR1",
        "longer-than-the-file": content[:-8] + len(content).to_bytes(4, "little") + b"PAR1",
        "hole": b"PAR1" + content[-400:],
        "csv": b"text,label\ngood,1\n",
        "bomb": bomb.read_bytes(),
    }
    for name, damaged in hostile.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(MaasError) as caught:
            put_version(endpoint, name, ("train", tmp_path / name))
        assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "SPLIT_NOT_PARQUET"), name
        assert list(client.dataset_versions(name)) == []
    assert put_version(endpoint, "good", ("train", good)).splits[0].row_count == 1000


def test_splits_with_other_columns_are_refused(endpoint: str, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "a")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1.5]}), tmp_path / "b")
    with pytest.raises(MaasError) as caught:
        put_version(endpoint, "differ", ("train", tmp_path / "a"), ("test", tmp_path / "b"))
    assert caught.value.reason == "SPLITS_DIFFER"


def test_the_command_pushes_and_shows_what_is_there(maas: Maas, reviews: Path, tmp_path: Path) -> None:
    columns = ("--text-column", "review", "--label-column", "sentiment")
    push = ("data", "push", "films", str(reviews), *columns, "--test-share", "0.2", "--validation-share", "0.1")
    assert "stored datasets/films/versions/1" in maas(*push).stderr
    again = maas(*push, "--json")
    assert "nothing is stored: films@1" in again.stderr
    assert document(again)["name"] == "datasets/films/versions/1"
    assert "films@1" in maas("data", "ls", "films").stdout
    shown = maas("data", "show", "films")
    assert "rating" in shown.stdout
    assert document(maas("data", "show", "films", "--json"))["columns"][0] == {
        "name": "text", "type": "string", "nullable": True,
    }  # fmt: skip
    stats = maas("data", "stats", "films@1").stdout
    assert "validation" in stats
    assert "chars" in stats
    assert document(maas("data", "stats", "films", "--json"))[2]["split_id"] == "test"
    head = document(maas("data", "head", "films", "-n", "2", "--split", "test", "--json"))
    assert [sorted(row) for row in head] == [["label", "rating", "text"]] * 2
    assert "TEXT" in maas("data", "head", "films").stdout
    maas("data", "pull", "films", str(tmp_path / "copy"), "--split", "test")
    pulled = pyarrow.parquet.read_table(tmp_path / "copy" / "test.parquet")
    assert pulled.slice(0, 2).to_pylist() == head
    reviews.write_text(reviews.read_text() + "\nnew,good,9.5\n")
    maas(*push)
    assert document(maas("data", "diff", "films@1", "films", "--json"))
    assert "rows" in maas("data", "diff", "films@1", "films@2").stdout
    assert "nothing is different" in maas("data", "diff", "films", "films").stderr


def test_the_command_says_what_is_wrong_with_a_file(maas: Maas, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\ngood,1\n,0\n")
    assert f"{path}, line 3, column text: has no text" in maas("data", "push", "a", str(path), status=1).stderr
    path.write_text("text,label\ngood,1\n")
    for arguments in (["--column", "label"], ["--column", "label=int"], ["--delimiter", "ab"], ["--test-share", "1"]):
        assert maas("data", "push", "a", str(path), *arguments, status=1).stderr.strip()
