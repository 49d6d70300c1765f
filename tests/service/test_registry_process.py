"""The registry as a process of its own, killed in the middle of its work."""

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from maas.blobs import download_blob, upload_blob
from maas.names import BlobName
from maas.registry.v1 import blob_pb2, version_pb2
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_package.manifest import FileEntry, Manifest, Servable, TensorSpec
from maas_runtime.exit_status import EXIT_CANNOT_START

if TYPE_CHECKING:
    from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

CONTENT = random.Random(11).randbytes(24 * 2**20)
CHUNK_BYTES = 2**19
NAME = f"blobs/{hashlib.sha256(CONTENT).hexdigest()}"
ONNX = b"\x0a\x22onnx, as far as the registry looks"
MANIFEST = Manifest(
    task="text-classification",
    inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),),
    outputs=(TensorSpec("logits", "FP32", (-1, 2)),),
    servables=(Servable("onnxruntime", "fp32", "model.onnx"),),
    files=(FileEntry("model.onnx", hashlib.sha256(ONNX).hexdigest(), len(ONNX)),),
).to_json()


def environment_in(folder: Path, database_url: str = "") -> dict[str, str]:
    return os.environ | {
        "MAAS_REGISTRY_DATABASE_URL": database_url,
        "MAAS_HOME": str(folder),
        "MAAS_LISTEN": f"unix:{folder}/r.sock",
        "MAAS_METRICS_LISTEN": f"unix:{folder}/m.sock",
        "MAAS_LOG_LEVEL": "WARNING",
    }


@contextmanager
def process_in(folder: Path, database_url: str = "") -> Iterator["subprocess.Popen[bytes]"]:
    environment = environment_in(folder, database_url)
    with subprocess.Popen([sys.executable, "-m", "maas_registry"], env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def stub_in(folder: Path) -> AsyncIterator["RegistryServiceAsyncStub"]:
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    options.append(("grpc.use_local_subchannel_pool", 1))  # not the connection of a process that was killed
    async with grpc.aio.insecure_channel(f"unix:{folder}/r.sock", options=options) as channel:
        stub = RegistryServiceStub(channel)
        await stub.ListModels(messages.ListModelsRequest(), timeout=30, wait_for_ready=True)
        yield stub


def upload_requests(content: bytes, offset: int = 0) -> Iterator[messages.UploadBlobRequest]:
    name = f"blobs/{hashlib.sha256(content).hexdigest()}"
    yield messages.UploadBlobRequest(
        header=messages.UploadHeader(name=name, size_bytes=len(content), offset=offset)
    )  # fmt: skip
    for start in range(offset, len(content), CHUNK_BYTES):
        yield messages.UploadBlobRequest(chunk=content[start : start + CHUNK_BYTES])


async def upload_half(registry: "RegistryServiceAsyncStub") -> int:
    """Send half of the content, leave the stream open, and return how much the registry says it has."""
    call = registry.UploadBlob(timeout=30)
    for number, request in enumerate(upload_requests(CONTENT)):
        if number * CHUNK_BYTES > len(CONTENT) // 2:
            break
        await call.write(request)
    while True:
        try:
            blob = await registry.GetBlob(messages.GetBlobRequest(name=NAME), timeout=5)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND
            continue
        if blob.received_bytes > len(CONTENT) // 3:
            return blob.received_bytes


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """What the registry is told; nothing means its own file."""
    if request.param == "sqlite":
        return ""
    url: str = request.getfixturevalue("postgresql").new_database()
    return url


async def test_all_that_was_acknowledged_before_a_kill_is_there_afterwards(tmp_path: Path, database_url: str) -> None:
    acknowledged: dict[str, version_pb2.Version] = {}
    enough = asyncio.Event()

    with process_in(tmp_path, database_url) as process:
        async with stub_in(tmp_path) as registry:
            await registry.CreateModel(messages.CreateModelRequest(model_id="a"), timeout=5)
            for content in (ONNX, MANIFEST):
                await registry.UploadBlob(upload_requests(content), timeout=5)
            version = version_pb2.Version(
                files=[
                    blob_pb2.File(path=path, blob=f"blobs/{hashlib.sha256(content).hexdigest()}")
                    for path, content in (("model.onnx", ONNX), ("manifest.json", MANIFEST))
                ]
            )

            async def create_versions(client: int) -> None:
                for number in range(10_000):
                    request_id = f"{client}-{number}"
                    request = messages.CreateVersionRequest(parent="models/a", version=version, request_id=request_id)
                    try:
                        acknowledged[request_id] = await registry.CreateVersion(request, timeout=30)
                    except grpc.aio.AioRpcError as error:
                        assert error.code() is grpc.StatusCode.UNAVAILABLE
                        return
                    if len(acknowledged) == 20:
                        enough.set()

            clients = [asyncio.create_task(create_versions(client)) for client in range(8)]
            async with asyncio.timeout(30):
                received_bytes = await upload_half(registry)
                await enough.wait()
            process.send_signal(signal.SIGKILL)
            await asyncio.gather(*clients)

    with process_in(tmp_path, database_url) as process:
        async with stub_in(tmp_path) as registry:
            model = await registry.GetModel(messages.GetModelRequest(name="models/a"), timeout=5)
            names = [made.name for made in acknowledged.values()]
            assert len(set(names)) == len(names) <= model.version_count
            for request_id, made in acknowledged.items():
                assert await registry.GetVersion(messages.GetVersionRequest(name=made.name), timeout=5) == made
                again = messages.CreateVersionRequest(parent="models/a", version=version, request_id=request_id)
                assert await registry.CreateVersion(again, timeout=5) == made

            blob = await registry.GetBlob(messages.GetBlobRequest(name=NAME), timeout=5)
            assert not blob.committed
            assert blob.received_bytes >= received_bytes
            blob = await registry.UploadBlob(upload_requests(CONTENT, blob.received_bytes), timeout=30)
            assert blob.committed
            call = registry.DownloadBlob(messages.DownloadBlobRequest(name=NAME), timeout=30)
            assert b"".join([response.chunk async for response in call]) == CONTENT
        verified = verify(tmp_path, database_url)
        assert verified.returncode == 0, verified.stdout
        process.terminate()
        assert process.wait(timeout=30) == 0


def verify(folder: Path, database_url: str) -> "subprocess.CompletedProcess[str]":
    """`maas registry verify --hash`, beside the registry."""
    return subprocess.run(
        [sys.executable, "-m", "maas.cli", "registry", "verify", "--hash", "--json"],
        env=environment_in(folder, database_url),
        capture_output=True,
        text=True,
        timeout=60,
    )


async def test_verify_names_what_is_wrong_and_ends_with_status_1(tmp_path: Path) -> None:
    with process_in(tmp_path):
        async with stub_in(tmp_path) as registry:
            await registry.CreateModel(messages.CreateModelRequest(model_id="a"), timeout=5)
            for content in (ONNX, MANIFEST):
                await registry.UploadBlob(upload_requests(content), timeout=5)
            files = [
                blob_pb2.File(path=path, blob=f"blobs/{hashlib.sha256(content).hexdigest()}")
                for path, content in (("model.onnx", ONNX), ("manifest.json", MANIFEST))
            ]
            request = messages.CreateVersionRequest(parent="models/a", version=version_pb2.Version(files=files))
            await registry.CreateVersion(request, timeout=5)
    sha256 = hashlib.sha256(ONNX).hexdigest()
    (tmp_path / "registry" / "blobs" / sha256[:2] / sha256).unlink()
    verified = verify(tmp_path, "")
    assert verified.returncode == 1
    assert json.loads(verified.stdout)["problems"] == [
        {"name": "models/a/versions/1", "problem": f"needs blobs/{sha256}, which is not there"}
    ]


def test_verify_makes_no_registry_where_there_is_none(tmp_path: Path) -> None:
    verified = verify(tmp_path, "")
    assert verified.returncode == 1
    assert "there is no registry" in verified.stderr


def test_a_database_that_is_away_is_one_sentence_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql://ann:secret@localhost/registry?host={tmp_path}"
    finished = subprocess.run(
        [sys.executable, "-m", "maas_registry"], env=environment_in(tmp_path, url), capture_output=True, timeout=60
    )
    assert finished.returncode == EXIT_CANNOT_START, finished.stderr
    assert b"does not answer" in finished.stderr
    assert b"secret" not in finished.stderr + finished.stdout


async def test_an_upload_by_the_client_goes_on_after_the_registry_was_killed_and_started_again(tmp_path: Path) -> None:
    file = tmp_path / "content"
    file.write_bytes(CONTENT)
    sent = 0
    loop, half_sent = asyncio.get_running_loop(), asyncio.Event()

    def progress(size_bytes: int) -> None:
        nonlocal sent
        sent += size_bytes
        if sent > len(CONTENT) // 2:
            loop.call_soon_threadsafe(half_sent.set)

    def upload() -> BlobName:
        with grpc.insecure_channel(f"unix:{tmp_path}/r.sock") as channel:
            return upload_blob(channel, file, progress)

    with process_in(tmp_path) as process:
        async with stub_in(tmp_path):
            uploading = asyncio.create_task(asyncio.to_thread(upload))
            await asyncio.wait_for(half_sent.wait(), timeout=30)
        process.send_signal(signal.SIGKILL)
    with process_in(tmp_path):
        assert str(await asyncio.wait_for(uploading, timeout=60)) == NAME
        async with stub_in(tmp_path) as registry:
            assert (await registry.GetBlob(messages.GetBlobRequest(name=NAME), timeout=5)).committed


async def test_a_large_blob_comes_in_ranges_also_when_the_registry_is_killed_meanwhile(tmp_path: Path) -> None:
    content = CONTENT * 3
    (tmp_path / "content").write_bytes(content)
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def download(name: BlobName) -> None:
        with grpc.insecure_channel(f"unix:{tmp_path}/r.sock") as channel:
            download_blob(channel, name, tmp_path / "out", lambda _: loop.call_soon_threadsafe(arrived.set))

    def upload() -> BlobName:
        with grpc.insecure_channel(f"unix:{tmp_path}/r.sock") as channel:
            return upload_blob(channel, tmp_path / "content")

    with process_in(tmp_path) as process:
        async with stub_in(tmp_path):
            name = await asyncio.to_thread(upload)
            downloading = asyncio.create_task(asyncio.to_thread(download, name))
            await asyncio.wait_for(arrived.wait(), timeout=30)
        process.send_signal(signal.SIGKILL)
    with process_in(tmp_path):
        await asyncio.wait_for(downloading, timeout=60)
    assert (tmp_path / "out").read_bytes() == content


def test_a_folder_that_cannot_be_made_is_one_sentence_and_its_own_exit_status(tmp_path: Path) -> None:
    (tmp_path / "registry").write_text("a file where the folder should be")
    finished = subprocess.run(
        [sys.executable, "-m", "maas_registry"], env=environment_in(tmp_path), capture_output=True, timeout=60
    )
    assert finished.returncode == EXIT_CANNOT_START, finished.stderr
    assert b"Traceback" not in finished.stderr


@pytest.mark.parametrize(
    "name", ["MAAS_REGISTRY_MAX_BLOB_BYTES", "MAAS_REGISTRY_DISK_THREADS", "MAAS_REGISTRY_DATABASE_URL"]
)
def test_a_setting_that_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "maas_registry"],
        env=environment_in(tmp_path) | {name: "many"},
        capture_output=True,
        timeout=60,
    )
    assert finished.returncode == EXIT_CANNOT_START
    assert name.encode() in finished.stderr
