"""What a step fetches from the registry and stores in it. Synchronous: a step has a process of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from maas.actor import ACTOR_HEADER
from maas.blobs import download_blob, sha256_of, upload_blob
from maas.errors import AlreadyExistsError, from_rpc_error
from maas.names import BlobName, ModelName
from maas.registry.v1 import blob_pb2, version_pb2
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_jobs.dataset import LABELLED, check_splits
from maas_jobs.step import Reporter

CALL_SECONDS = 30.0
"""How long a call waits for the registry, which may be restarting."""


@contextmanager
def registry_channel(address: str) -> Iterator[grpc.Channel]:
    """Give a channel to the registry. Whatever its calls raise inside comes out as MaasError."""
    with grpc.insecure_channel(address) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


def download_files(
    channel: grpc.Channel, files: Sequence[blob_pb2.File], folder: Path, report: Reporter, phase: str
) -> None:
    """Write registered files to their paths under `folder`; those that are there and whole are not fetched again."""
    total_bytes = sum(file.size_bytes for file in files) or 1
    moved = 0

    def count(size_bytes: int) -> None:
        nonlocal moved
        moved += size_bytes
        report.progress(moved / total_bytes, phase)

    for file in files:
        name, path = BlobName.parse(file.blob), folder.joinpath(*file.path.split("/"))
        if path.is_file() and sha256_of(path) == name.sha256:
            count(file.size_bytes)
        else:
            download_blob(channel, name, path, count)


def split_path(folder: Path, split: str) -> Path:
    """Return where `download_splits` puts a split."""
    return folder / "data" / f"{split}.parquet"


def download_splits(
    channel: grpc.Channel,
    dataset_version: str,
    splits: Sequence[str],
    folder: Path,
    report: Reporter,
    *,
    optional: Sequence[str] = (),
    columns: Sequence[str] = LABELLED,
) -> tuple[str, ...]:
    """Fetch splits of a dataset that have these columns, and the optional ones that it has; return which there are.

    Raises DatasetSplitMissing or DatasetColumnMissing.
    """
    request = messages.GetDatasetVersionRequest(name=dataset_version)
    dataset = RegistryServiceStub(channel).GetDatasetVersion(request, timeout=CALL_SECONDS, wait_for_ready=True)
    check_splits(dataset, splits, columns)
    found = [split for split in dataset.splits if split.split_id in {*splits, *optional}]
    files = [
        blob_pb2.File(
            path=split_path(Path(), split.split_id).as_posix(), blob=split.file.blob, size_bytes=split.file.size_bytes
        )
        for split in found
    ]
    download_files(channel, files, folder, report, "fetch")
    report.log(f"{dataset_version}: " + ", ".join(f"{split.row_count:,} rows in {split.split_id}" for split in found))
    return tuple(split.split_id for split in found)


def upload_folder(channel: grpc.Channel, folder: Path, report: Reporter, phase: str) -> list[blob_pb2.File]:
    """Store every file of a folder and return them as members of a version."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    total_bytes = sum(path.stat().st_size for path in paths) or 1
    moved = 0

    def count(size_bytes: int) -> None:
        nonlocal moved
        moved += size_bytes
        report.progress(moved / total_bytes, phase)

    return [
        blob_pb2.File(path=path.relative_to(folder).as_posix(), blob=str(upload_blob(channel, path, count)))
        for path in paths
    ]


def create_version(
    channel: grpc.Channel, model: ModelName, version: version_pb2.Version, request_id: str
) -> version_pb2.Version:
    """Store a version, as made by its job; the same `request_id` gives the same version again."""
    request = messages.CreateVersionRequest(parent=str(model), version=version, request_id=request_id)
    actor = ((ACTOR_HEADER, version.source_job),)
    return RegistryServiceStub(channel).CreateVersion(
        request, timeout=CALL_SECONDS, wait_for_ready=True, metadata=actor
    )


def create_model_if_missing(channel: grpc.Channel, model: ModelName) -> None:
    """Make sure that there is a model of this name."""
    request = messages.CreateModelRequest(model_id=model.model_id)
    try:
        RegistryServiceStub(channel).CreateModel(request, timeout=CALL_SECONDS, wait_for_ready=True)
    except grpc.RpcError as error:
        failure = from_rpc_error(error)
        if not isinstance(failure, AlreadyExistsError):
            raise failure from error
