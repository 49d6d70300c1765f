"""RegistryService as its process wires it, on a real server, called through the stub."""

import asyncio
import hashlib
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from prometheus_client import CollectorRegistry

from maas.errors import MaasError, from_rpc_error
from maas.registry.v1 import blob_pb2, model_pb2, version_pb2
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_package.manifest import ArchitectureRef, FileEntry, Manifest, Servable, TensorSpec, TextInput, Weights
from maas_registry.__main__ import open_registry
from maas_registry.settings import Settings
from maas_runtime.server import build_server

if TYPE_CHECKING:
    from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

CONTENT = bytes(range(256)) * 8192  # 2 MiB
ONNX = b"\x0a\x22onnx, as far as the registry looks"
MAX_BLOB_BYTES = 8 * 2**20


def settings_in(folder: Path) -> Settings:
    return Settings.from_env(
        {
            "MAAS_HOME": str(folder),
            "MAAS_LISTEN": f"unix:{folder}/r.sock",
            "MAAS_METRICS_LISTEN": f"unix:{folder}/m.sock",
            "MAAS_REGISTRY_MAX_BLOB_BYTES": str(MAX_BLOB_BYTES),
        }
    )


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    settings = settings_in(tmp_path)
    metrics = CollectorRegistry()
    async with open_registry(settings, metrics) as service:
        server, _ = build_server([service], metrics)
        server.add_insecure_port(settings.process.listen)
        await server.start()
        try:
            yield settings.process.listen
        finally:
            await server.stop(None)


@pytest.fixture
async def registry(address: str) -> AsyncIterator["RegistryServiceAsyncStub"]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = RegistryServiceStub(channel)
        yield stub


def name_of(content: bytes) -> str:
    return f"blobs/{hashlib.sha256(content).hexdigest()}"


def upload_requests(
    content: bytes, *, name: str = "", size_bytes: int | None = None, offset: int = 0, end: int | None = None
) -> list[messages.UploadBlobRequest]:
    header = messages.UploadHeader(
        name=name or name_of(content), size_bytes=len(content) if size_bytes is None else size_bytes, offset=offset
    )
    part = content[offset:end]
    return [
        messages.UploadBlobRequest(header=header),
        *(
            messages.UploadBlobRequest(chunk=part[start : start + 2**19])
            for start in range(0, len(part), 2**19)
        ),
    ]  # fmt: skip


async def put(address: str, content: bytes) -> str:
    blob = await upload(address, upload_requests(content))
    assert blob.committed
    return blob.name


async def upload(address: str, requests: list[messages.UploadBlobRequest]) -> blob_pb2.Blob:
    """Upload as users do. grpc.aio's client answers INTERNAL when the server ends a call while it is still sending."""

    def send() -> blob_pb2.Blob:
        with grpc.insecure_channel(address) as channel:
            return RegistryServiceStub(channel).UploadBlob(iter(requests), timeout=10)

    return await asyncio.to_thread(send)


async def error_of(call: Any) -> MaasError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def download(registry: "RegistryServiceAsyncStub", name: str, offset: int = 0) -> bytes:
    call = registry.DownloadBlob(messages.DownloadBlobRequest(name=name, offset=offset), timeout=10)
    return b"".join([response.chunk async for response in call])


def manifest_of(files: dict[str, bytes]) -> Manifest:
    return Manifest(
        task="text-classification",
        inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),),
        outputs=(TensorSpec("logits", "FP32", (-1, 2)),),
        labels=("negative", "positive"),
        text=TextInput("text", "input_ids", "tokenizer.json", 200),
        architecture=ArchitectureRef("lstm-text-classifier", {"hidden_size": 8}),
        weights=Weights("weights.dat"),
        servables=(Servable("onnxruntime", "fp32", "servables/model.onnx"),),
        files=tuple(
            FileEntry(path, hashlib.sha256(content).hexdigest(), len(content)) for path, content in files.items()
        ),
    )


PACKAGE = {"servables/model.onnx": ONNX, "tokenizer.json": b"{}", "weights.dat": b"weights"}


async def files_of(address: str, files: dict[str, bytes]) -> list[blob_pb2.File]:
    members = files | {"manifest.json": manifest_of(files).to_json()}
    return [blob_pb2.File(path=path, blob=await put(address, content)) for path, content in members.items()]


async def create_version(
    registry: "RegistryServiceAsyncStub", address: str, request_id: str = "", **fields: Any
) -> version_pb2.Version:
    files = await files_of(address, PACKAGE)
    return await registry.CreateVersion(
        messages.CreateVersionRequest(
            parent="models/a", version=version_pb2.Version(files=files, **fields), request_id=request_id
        ),
        timeout=10,
    )


async def create_model(registry: "RegistryServiceAsyncStub", model_id: str = "a") -> model_pb2.Model:
    return await registry.CreateModel(
        messages.CreateModelRequest(
            model_id=model_id, model=model_pb2.Model(description="films", tags={"team": "text"})
        ),
        timeout=5,
    )


async def test_a_model_is_stored_read_and_listed(registry: "RegistryServiceAsyncStub") -> None:
    made = await create_model(registry)
    assert (made.name, made.description, dict(made.tags), made.latest_version) == (
        "models/a",
        "films",
        {"team": "text"},
        "",
    )
    assert made.create_time.seconds > 0
    assert await registry.GetModel(messages.GetModelRequest(name="models/a"), timeout=5) == made
    listed = await registry.ListModels(messages.ListModelsRequest(), timeout=5)
    assert list(listed.models) == [made]
    assert (await error_of(create_model(registry))).reason == "MODEL_EXISTS"
    error = await error_of(registry.GetModel(messages.GetModelRequest(name="models/b"), timeout=5))
    assert (error.code, error.reason, error.resource_name) == ("NOT_FOUND", "MODEL_NOT_FOUND", "models/b")


async def test_a_version_comes_back_with_all_that_was_said_and_found(
    registry: "RegistryServiceAsyncStub", address: str
) -> None:
    await create_model(registry)
    parent = await create_version(registry, address)
    evaluation = version_pb2.Evaluation(
        metric="accuracy",
        value=0.75,
        low=0.7,
        high=0.8,
        row_count=2000,
        dataset_version="datasets/reviews/versions/1",
        split="test",
    )
    measurement = version_pb2.Measurement(
        servable_bytes=1, package_bytes=2, parameter_count=3, nonzero_share=0.5, latency_p50_ms=1, latency_p99_ms=2,
        throughput_rows=3, peak_memory_bytes=4, engine="onnxruntime", hardware="2 cores",
    )  # fmt: skip
    difference = version_pb2.QualityDifference(value=-0.01, low=-0.02, high=0.0)
    stated: dict[str, Any] = {
        "parent_version": parent.name,
        "description": "smaller",
        "source_job": "compressionJobs/c1",
        "dataset_version": "datasets/reviews/versions/1",
        "recipe": ["int8"],
        "evaluation": evaluation,
        "compression_report": version_pb2.CompressionReport(
            before=measurement, after=measurement, quality_before=evaluation, quality_after=evaluation,
            agreement=0.99, smaller=True, faster=False, verdict="smaller",
            quality_difference=difference, mcnemar_p=0.5,
            slices=[version_pb2.SliceQuality(kind="class", slice="bad", row_count=7, before=1, after=0.5,
                                             difference=difference)],
            limits=[version_pb2.LimitCheck(limit="max_size_bytes", wanted=2, found=1)],
            work_duration=Duration(seconds=12, nanos=500_000_000),
        ),
    }  # fmt: skip
    made = await create_version(registry, address, **stated)
    assert made.name == "models/a/versions/2"
    read = await registry.GetVersion(messages.GetVersionRequest(name=made.name), timeout=5)
    assert read == made
    for field, value in stated.items():
        assert getattr(read, field) == value
    signature = read.signature
    assert (signature.task, signature.architecture, signature.text_input) == (
        "text-classification",
        "lstm-text-classifier",
        "text",
    )
    assert [(spec.name, spec.datatype, list(spec.shape)) for spec in signature.inputs] == [
        ("input_ids", "INT64", [-1, -1])
    ]
    assert signature.servables[0].size_bytes == len(ONNX)
    assert {file.path: file.size_bytes for file in read.files}["weights.dat"] == 7
    assert read.size_bytes == sum(file.size_bytes for file in read.files)
    model = await registry.GetModel(messages.GetModelRequest(name="models/a"), timeout=5)
    assert (model.latest_version, model.version_count) == (made.name, 2)


async def test_an_alias_is_set_resolved_listed_and_removed(registry: "RegistryServiceAsyncStub", address: str) -> None:
    await create_model(registry)
    version = await create_version(registry, address)
    name = "models/a/aliases/best"
    alias = await registry.SetAlias(messages.SetAliasRequest(name=name, version=version.name), timeout=5)
    assert (alias.name, alias.version) == (name, version.name)
    assert await registry.GetVersion(messages.GetVersionRequest(name=name), timeout=5) == version
    listed = await registry.ListAliases(messages.ListAliasesRequest(parent="models/a"), timeout=5)
    assert list(listed.aliases) == [alias]
    await registry.DeleteAlias(messages.DeleteAliasRequest(name=name), timeout=5)
    error = await error_of(registry.GetVersion(messages.GetVersionRequest(name=name), timeout=5))
    assert (error.code, error.reason) == ("NOT_FOUND", "ALIAS_NOT_FOUND")


async def test_versions_are_listed_page_by_page(registry: "RegistryServiceAsyncStub", address: str) -> None:
    for model_id in ("a", "b"):
        await create_model(registry, model_id)
    made = [await create_version(registry, address) for _ in range(5)]
    names, token = [], ""
    while True:
        page = await registry.ListVersions(
            messages.ListVersionsRequest(parent="models/a", page_size=2, page_token=token), timeout=5
        )
        names += [version.name for version in page.versions]
        token = page.next_page_token
        if not token:
            break
        other = messages.ListVersionsRequest(parent="models/b", page_token=token)
        assert (await error_of(registry.ListVersions(other, timeout=5))).reason == "PAGE_TOKEN_INVALID"
    assert names == [version.name for version in reversed(made)]


async def test_fifty_clients_at_once_get_fifty_versions_and_a_retry_gets_its_own(
    registry: "RegistryServiceAsyncStub",
    address: str,
) -> None:
    await create_model(registry)
    version = version_pb2.Version(files=await files_of(address, PACKAGE))

    async def create(request_id: str) -> version_pb2.Version:
        request = messages.CreateVersionRequest(parent="models/a", version=version, request_id=request_id)
        return await registry.CreateVersion(request, timeout=30)

    made = await asyncio.gather(*(create("") for _ in range(50)))
    assert {version.name for version in made} == {f"models/a/versions/{number}" for number in range(1, 51)}
    retried = await asyncio.gather(*(create(f"request-{n % 25}") for n in range(50)))
    assert {version.name for version in retried} == {f"models/a/versions/{number}" for number in range(51, 76)}
    assert retried[:25] == retried[25:]


async def test_a_package_with_a_pickle_is_refused(registry: "RegistryServiceAsyncStub", address: str) -> None:
    await create_model(registry)
    files = await files_of(address, PACKAGE | {"weights.dat": pickle.dumps([1], protocol=4)})
    request = messages.CreateVersionRequest(parent="models/a", version=version_pb2.Version(files=files))
    error = await error_of(registry.CreateVersion(request, timeout=5))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "PACKAGE_HOLDS_PICKLE")


async def test_a_version_of_blobs_that_are_not_there_is_not_found(registry: "RegistryServiceAsyncStub") -> None:
    await create_model(registry)
    files = [blob_pb2.File(path="manifest.json", blob=name_of(b"nobody sent this"))]
    request = messages.CreateVersionRequest(parent="models/a", version=version_pb2.Version(files=files))
    error = await error_of(registry.CreateVersion(request, timeout=5))
    assert (error.code, error.reason) == ("NOT_FOUND", "BLOB_NOT_FOUND")


@pytest.mark.parametrize(
    "fields",
    [
        {"parent_version": "models/a"},
        {"source_job": "jobs/x"},
        {"dataset_version": "reviews"},
        {"evaluation": version_pb2.Evaluation(metric="accuracy", row_count=1, dataset_version="reviews")},
    ],
)
async def test_a_reference_that_is_no_name_is_refused(
    registry: "RegistryServiceAsyncStub", address: str, fields: dict[str, Any]
) -> None:
    await create_model(registry)
    error = await error_of(create_version(registry, address, **fields))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "RESOURCE_NAME_INVALID")


async def test_a_blob_is_uploaded_and_downloaded_from_any_offset(
    registry: "RegistryServiceAsyncStub", address: str
) -> None:
    name = await put(address, CONTENT)
    assert await download(registry, name) == CONTENT
    assert await download(registry, name, 2**20 + 3) == CONTENT[2**20 + 3 :]
    assert await download(registry, name, len(CONTENT)) == b""
    blob = await registry.GetBlob(messages.GetBlobRequest(name=name), timeout=5)
    assert (blob.size_bytes, blob.committed, blob.received_bytes) == (len(CONTENT), True, 0)
    # A second upload is answered at once.
    assert await put(address, CONTENT) == name


async def test_an_upload_whose_connection_breaks_goes_on_where_it_broke(
    registry: "RegistryServiceAsyncStub", address: str
) -> None:
    name = name_of(CONTENT)
    call = registry.UploadBlob(timeout=10)
    for request in upload_requests(CONTENT, end=2**20):
        await call.write(request)

    async def received() -> int:
        try:
            blob = await registry.GetBlob(messages.GetBlobRequest(name=name), timeout=5)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.NOT_FOUND
            return 0
        assert not blob.committed
        return blob.received_bytes

    async with asyncio.timeout(10):
        while await received() < 2**20:
            pass
    # While it runs, nobody else may write to it.
    error = await error_of(upload(address, upload_requests(CONTENT)))
    assert (error.code, error.reason) == ("ABORTED", "UPLOAD_IN_PROGRESS")
    call.cancel()
    async with asyncio.timeout(10):
        while True:
            try:
                blob = await upload(address, upload_requests(CONTENT, offset=2**20))
                break
            except grpc.RpcError as refused:
                assert from_rpc_error(refused).reason == "UPLOAD_IN_PROGRESS"
    assert blob.committed
    assert await download(registry, name) == CONTENT


@pytest.mark.parametrize(
    ("requests", "code", "reason"),
    [
        ([], "INVALID_ARGUMENT", "UPLOAD_HEADER_MISPLACED"),
        (upload_requests(CONTENT)[1:], "INVALID_ARGUMENT", "UPLOAD_HEADER_MISPLACED"),
        (upload_requests(CONTENT)[:1] * 2, "INVALID_ARGUMENT", "UPLOAD_HEADER_MISPLACED"),
        (upload_requests(CONTENT, size_bytes=100), "INVALID_ARGUMENT", "UPLOAD_TOO_LONG"),
        (upload_requests(CONTENT, end=100), "INVALID_ARGUMENT", "UPLOAD_INCOMPLETE"),
        (upload_requests(CONTENT, offset=5), "FAILED_PRECONDITION", "UPLOAD_OFFSET_MISMATCH"),
        (upload_requests(CONTENT, name=name_of(b"other")), "DATA_LOSS", "BLOB_CORRUPT"),
        (upload_requests(CONTENT, size_bytes=MAX_BLOB_BYTES + 1), "RESOURCE_EXHAUSTED", "BLOB_TOO_LARGE"),
        (upload_requests(CONTENT, name="blobs/x"), "INVALID_ARGUMENT", "REQUEST_INVALID"),
    ],
)
async def test_an_upload_that_is_wrong_says_how(
    registry: "RegistryServiceAsyncStub",
    address: str,
    requests: list[messages.UploadBlobRequest],
    code: str,
    reason: str,
) -> None:
    error = await error_of(upload(address, requests))
    assert (error.code, error.reason) == (code, reason)


async def test_a_full_disk_is_resource_exhausted_and_says_what_to_do(
    registry: "RegistryServiceAsyncStub", address: str, tmp_path: Path
) -> None:
    # A device that is always full: the kernel's own ENOSPC.
    part = tmp_path / "registry" / "uploads" / f"{name_of(CONTENT).removeprefix('blobs/')}.part"
    part.symlink_to("/dev/full")
    error = await error_of(upload(address, upload_requests(CONTENT)))
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "STORAGE_FULL")
    assert f"free space under {tmp_path}" in error.message
    part.unlink()
    assert await put(address, CONTENT) == name_of(CONTENT)


async def test_stored_bytes_that_were_damaged_are_data_loss_until_they_are_uploaded_again(
    registry: "RegistryServiceAsyncStub", address: str, tmp_path: Path
) -> None:
    name = await put(address, CONTENT)
    sha256 = name.removeprefix("blobs/")
    (tmp_path / "registry" / "blobs" / sha256[:2] / sha256).write_bytes(b"?" + CONTENT[1:])
    for _ in range(2):
        error = await error_of(download(registry, name))
        assert (error.code, error.reason, error.resource_name) == ("DATA_LOSS", "BLOB_CORRUPT", name)
    await put(address, CONTENT)
    assert await download(registry, name) == CONTENT


@pytest.mark.parametrize(
    ("offset", "name", "code", "reason"),
    [
        (len(CONTENT) + 1, name_of(CONTENT), "INVALID_ARGUMENT", "DOWNLOAD_OFFSET_PAST_END"),
        (0, name_of(b"nobody sent this"), "NOT_FOUND", "BLOB_NOT_FOUND"),
        (0, "blobs/../../etc/passwd", "INVALID_ARGUMENT", "RESOURCE_NAME_INVALID"),
    ],
)
async def test_a_download_that_is_wrong_says_how(
    registry: "RegistryServiceAsyncStub", address: str, offset: int, name: str, code: str, reason: str
) -> None:
    await put(address, CONTENT)
    error = await error_of(download(registry, name, offset))
    assert (error.code, error.reason) == (code, reason)


@pytest.mark.parametrize("name", ["models/" + "a" * 2**20, "ü" * 2**18, "\x00\n" * 2**16])
async def test_a_name_however_long_is_answered_with_status_and_reason(
    registry: "RegistryServiceAsyncStub", name: str
) -> None:
    error = await error_of(registry.GetModel(messages.GetModelRequest(name=name), timeout=5))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "RESOURCE_NAME_INVALID")
    request = messages.CreateModelRequest(model_id=name, model=model_pb2.Model(tags={name: name}))
    error = await error_of(registry.CreateModel(request, timeout=5))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "REQUEST_INVALID")


async def test_a_download_may_be_of_a_range(address: str, registry: "RegistryServiceAsyncStub") -> None:
    name = await put(address, CONTENT)
    for offset, length in ((0, 1), (5, 2**20 + 7), (len(CONTENT) - 3, 100)):
        request = messages.DownloadBlobRequest(name=name, offset=offset, length=length)
        received = b"".join([response.chunk async for response in registry.DownloadBlob(request, timeout=10)])
        assert received == CONTENT[offset : offset + length]
