"""The record through the client and the command, against a registry in a process of its own; and the page about it."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import grpc
import pytest
from registry_process import running_registry

from maas.client import Client
from maas.errors import ConflictError, InvalidInputError, NotAllowedNowError, NotFoundError
from maas.registry.v1 import change_pb2, version_pb2
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_package.manifest import FileEntry, Manifest, Servable, TensorSpec

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "which-version-answered.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)
ONNX = b"\x0a\x22onnx, as far as the registry looks"
EVALUATION = version_pb2.Evaluation(
    metric="f1", value=0.5, low=0.4, high=0.6, row_count=9, dataset_version="datasets/d/versions/1", split="test"
)


def package(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(content)
    manifest = Manifest(
        task="text-classification",
        inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),),
        outputs=(TensorSpec("logits", "FP32", (-1, 2)),),
        servables=(Servable("onnxruntime", "fp32", "model.onnx"),),
        files=(FileEntry("model.onnx", hashlib.sha256(content).hexdigest(), len(content)),),
    )
    (folder / "manifest.json").write_bytes(manifest.to_json())
    return folder


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("r")) as address:
        yield address


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    with Client(endpoint, actor="ann") as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return package(tmp_path / "package", ONNX)


class Maas(Protocol):
    def __call__(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]: ...


def environment_with(endpoint: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAAS_")}
    return kept | {"MAAS_ENDPOINT": endpoint, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture
def maas(endpoint: str) -> Maas:
    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "maas.cli", *arguments]
        result = subprocess.run(
            command, env=environment_with(endpoint), capture_output=True, text=True, timeout=60, check=False
        )
        assert result.returncode == status, result.stderr
        return result

    return run


def document(result: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(result.stdout)


def now() -> datetime:
    return datetime.now(UTC)


def test_history_says_who_when_from_to_and_why(client: Client, folder: Path) -> None:
    for _ in range(2):
        client.push_package(folder, "moved")
    client.set_alias("moved@1", "production", reason="first")
    between = now()
    client.set_alias("moved@2", "production", expected="moved@1", reason="better")
    with pytest.raises(ConflictError) as caught:
        client.set_alias("moved@1", "production", expected="none")
    assert caught.value.reason == "RECORD_CHANGED"
    client.delete_alias("moved", "production", reason="enough")
    found = list(client.history("moved@production"))
    assert [(one.actor, one.previous_version[-1:], one.alias.version[-1:], one.reason) for one in found] == [
        ("ann", "2", "", "enough"),
        ("ann", "1", "2", "better"),
        ("ann", "", "1", "first"),
    ]
    assert client.version("moved@production", at=between).name == "models/moved/versions/1"
    assert [one.version for one in client.aliases("moved", at=between)] == ["models/moved/versions/1"]
    assert list(client.history("moved@production", at=between)) == found[2:]
    with pytest.raises(NotFoundError):
        client.version("moved@production")
    with pytest.raises(InvalidInputError) as refused:
        client.version("moved@1", at=datetime(9000, 1, 1, tzinfo=UTC))
    assert refused.value.reason == "READ_TIME_IN_FUTURE"
    assert [one.resource for one in client.history("moved")][-1] == "models/moved"


def test_what_is_said_of_a_version_changes_and_what_it_is_does_not(client: Client, folder: Path) -> None:
    made = client.push_package(folder, "said", description="first")
    changed = client.update_version(
        "said@1", description="second", tags={"team": "nlp"}, state=version_pb2.VERSION_STATE_ARCHIVED, etag=made.etag
    )
    assert (changed.description, dict(changed.tags), changed.state) == ("second", {"team": "nlp"}, 3)
    assert changed.files == made.files
    with pytest.raises(ConflictError):
        client.update_version("said@1", description="third", etag=made.etag)
    client.update_version("said@1", state=version_pb2.VERSION_STATE_READY)
    assert client.version("said@1").description == "second"
    found = client.add_evaluation("said@1", EVALUATION)
    assert found.evaluations[0].create_time.seconds > 0
    assert [one.name for one in client.versions("said", where="metrics.f1 < 0.6 AND tags.team = nlp")] == [made.name]
    assert not list(client.versions("said", where="metrics.f1 > 0.6"))
    with pytest.raises(InvalidInputError, match="at character 1"):
        list(client.versions("said", where="colour = red"))
    model = client.update_model("said", tags={"owner": "ann"})
    assert client.update_model("said", description="films", etag=model.etag).tags["owner"] == "ann"
    assert [one.name for one in client.models(where="tags.owner = ann", order_by="create_time desc")] == ["models/said"]


def test_an_update_that_names_what_cannot_change_is_refused(endpoint: str, client: Client, folder: Path) -> None:
    client.push_package(folder, "masked")
    with grpc.insecure_channel(endpoint) as channel:
        request = messages.UpdateVersionRequest(version=version_pb2.Version(name="models/masked/versions/1"))
        request.update_mask.paths.append("size_bytes")
        with pytest.raises(grpc.RpcError) as caught:
            RegistryServiceStub(channel).UpdateVersion(request, timeout=5)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        # Nobody said who asks.
        request = messages.UpdateVersionRequest(
            version=version_pb2.Version(name="models/masked/versions/1", description="x")
        )
        RegistryServiceStub(channel).UpdateVersion(request, timeout=5)
    assert next(client.history("masked@1")).actor == "unknown"


def test_a_page_token_of_another_query_is_refused(endpoint: str, client: Client, folder: Path) -> None:
    for _ in range(3):
        client.push_package(folder, "paged")
    with grpc.insecure_channel(endpoint) as channel:
        registry = RegistryServiceStub(channel)
        request = messages.ListVersionsRequest(parent="models/paged", page_size=1, filter="number < 3")
        for order_by in ("", "size_bytes desc"):
            request.order_by, request.page_token = order_by, ""
            first = registry.ListVersions(request, timeout=5)
            request.page_token = first.next_page_token
            second = registry.ListVersions(request, timeout=5)
            assert {first.versions[0].name[-1], second.versions[0].name[-1]} == {"1", "2"}
            assert not second.next_page_token
            for other in (
                messages.ListVersionsRequest(parent="models/paged", filter="number < 4"),
                messages.ListVersionsRequest(parent="models/paged", filter="number < 3", order_by="update_time"),
                messages.ListVersionsRequest(parent="models/paged", filter="number < 3", show_deleted=True),
            ):
                other.page_token = first.next_page_token
                with pytest.raises(grpc.RpcError) as caught:
                    registry.ListVersions(other, timeout=5)
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_is_deleted_comes_back_and_what_is_used_is_not_deleted(client: Client, folder: Path) -> None:
    client.push_package(folder, "gone")
    client.set_alias("gone@1", "best")
    for refused in ("gone@1", "gone"):
        with pytest.raises(NotAllowedNowError) as caught:
            client.delete(refused)
        assert (caught.value.reason, "best" in caught.value.message) == ("VERSION_IN_USE", True)
    client.delete_alias("gone", "best")
    client.delete("gone@1", reason="mistake")
    assert client.version("gone@1").HasField("delete_time")
    assert not list(client.versions("gone"))
    assert len(list(client.versions("gone", show_deleted=True))) == 1
    client.restore("gone@1")
    client.delete("gone")
    assert "models/gone" not in [model.name for model in client.models()]
    client.restore("gone")
    kinds = [change_pb2.ChangeKind.Name(one.kind) for one in client.history("gone")]
    assert kinds[:3] == ["CHANGE_KIND_UNDELETED", "CHANGE_KIND_DELETED", "CHANGE_KIND_UNDELETED"]


def test_a_watcher_misses_nothing_and_goes_on_where_it_was(endpoint: str, client: Client, folder: Path) -> None:
    client.push_package(folder, "watched")
    seen: list[change_pb2.Change] = []
    started = threading.Event()
    token = ""

    def watch() -> None:
        nonlocal token
        with Client(endpoint) as watcher:
            for news in watcher.watch_registry("watched", timeout=30):
                started.set()
                seen.extend(news.changes)
                token = news.resume_token
                if len(seen) >= 5:
                    return

    thread = threading.Thread(target=watch)
    thread.start()
    assert started.wait(30)
    for number in range(20):
        client.update_model("watched", description=str(number))
        client.update_version("watched@1", description="other") if number == 10 else None
    thread.join(30)
    for news in client.watch_registry("watched", resume_token=token, timeout=30):
        seen.extend(news.changes)
        if seen[-1].model.description == "19":
            break
    assert [one.model.description for one in seen if one.HasField("model")] == [str(number) for number in range(20)]
    numbers = [int(one.name.partition("/")[2]) for one in seen]
    assert numbers == sorted(numbers)
    with pytest.raises(InvalidInputError) as caught:
        next(iter(client.watch_registry(resume_token="999999", timeout=30)))
    assert caught.value.reason == "RESUME_TOKEN_INVALID"


def test_commands_change_and_show_the_record(maas: Maas, folder: Path) -> None:
    maas("models", "push", "told", str(folder))
    maas("models", "tag", "told", "team=nlp", "owner=ann")
    maas("models", "tag", "told", "owner-")
    assert document(maas("models", "ls", "--filter", "tags.team = nlp", "--json"))[0]["tags"] == {"team": "nlp"}
    assert "no tag" in maas("models", "tag", "told", "what", status=1).stderr
    maas("models", "describe", "told@1", "new words", "--reason", "clearer")
    assert document(maas("models", "archive", "told@1", "--json"))["state"] == "VERSION_STATE_ARCHIVED"
    maas("models", "ready", "told@1")
    assert "new words" in maas("models", "show", "told@1").stdout
    maas("models", "rm", "told@1")
    assert "told@1" not in maas("models", "ls", "told").stdout
    assert "deleted" in maas("models", "ls", "told", "--deleted").stdout
    maas("models", "restore", "told@1")
    shown = maas("models", "history", "told").stdout
    assert "clearer" in shown
    assert "undeleted: ready" in shown
    assert len(document(maas("models", "history", "told@1", "--limit", "2", "--json"))) == 2
    assert "is no time" in maas("models", "show", "told", "--at", "yesterday", status=2).stderr
    assert maas("models", "show", "told", "--at", "2001-01-01", status=1).stderr.startswith("maas: there is no models")


def test_every_code_block_of_the_page_works_as_it_stands(endpoint: str, tmp_path: Path) -> None:
    assert len(BLOCKS) == 7
    for number, name in enumerate(("first", "second")):
        package(tmp_path / name, ONNX[:-1] + bytes([number]))
    printed = []
    for number, (language, text) in enumerate(BLOCKS):
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "bash" else [sys.executable, "-c", text]
        result = subprocess.run(
            command,
            env=environment_with(endpoint),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"
        printed.append(result.stdout)
        if number == 0:
            hold_as_rollout_does(endpoint, "models/reviews/versions/2")
    assert "models/reviews/versions/1" in printed[1]
    assert "from reviews@1 to reviews@2" in printed[3]
    assert "two points better" in printed[4]


def hold_as_rollout_does(endpoint: str, version: str) -> None:
    with grpc.insecure_channel(endpoint) as channel:
        request = messages.SetHoldsRequest(holder="deployments/reviews", versions=[version])
        RegistryServiceStub(channel).SetHolds(request, timeout=5)
