"""Upload and download of blobs: hash-checked, resumed where they broke."""

import hashlib
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc

from maas.errors import DataCorruptError, MaasError, NotFoundError, from_rpc_error
from maas.names import BlobName
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

CHUNK_BYTES = 2**20
ATTEMPTS = 8
"""How often a broken transfer is taken up again before its error is raised."""

_STALL_SECONDS = 600.0
_RANGE_BYTES, _RANGES_AT_ONCE = 16 * 2**20, 2
_MAY_PASS = frozenset({"UNAVAILABLE", "ABORTED", "INTERNAL", "CANCELLED"})

Progress = Callable[[int], None]
"""Told of the number of bytes that were just moved."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def upload_blob(channel: grpc.Channel, path: Path, progress: Progress = lambda _: None) -> BlobName:
    """Store a file's bytes under their SHA-256 and return the blob's name.

    A blob that is there already is not sent again; a broken upload goes on where it stopped. Raises MaasError.
    """
    registry = RegistryServiceStub(channel)
    name = BlobName(sha256_of(path))
    size_bytes = path.stat().st_size
    for attempt in range(1, ATTEMPTS + 1):
        try:
            offset = _received(registry, name)
            if offset is None:
                progress(size_bytes)
                return name
            progress(offset if attempt == 1 else 0)
            registry.UploadBlob(_upload(path, name, size_bytes, offset, progress), timeout=_STALL_SECONDS)
            return name
        except grpc.RpcError as error:
            _wait_or_raise(error, attempt)
    raise AssertionError("the last attempt raises")


def download_blob(channel: grpc.Channel, name: BlobName, path: Path, progress: Progress = lambda _: None) -> None:
    """Write a blob's bytes to `path`, which appears only when all are there and have the right SHA-256.

    A large one comes in ranges, some side by side; a broken one goes on where it stopped. Raises MaasError,
    DataCorruptError when the bytes are not the blob's.
    """
    registry = RegistryServiceStub(channel)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        digest = hashlib.sha256()
        with os.fdopen(handle, "r+b", buffering=0) as file:
            for start, end in _fetch(registry, name, file.fileno()):
                for place in range(start, end, CHUNK_BYTES):
                    digest.update(os.pread(file.fileno(), min(CHUNK_BYTES, end - place), place))
                progress(end - start)
            os.fsync(file.fileno())
        if digest.hexdigest() != name.sha256:
            _let_it_be_checked(registry, name)
            raise DataCorruptError(
                f"{name} arrived damaged; try again, and report it if it happens twice",
                code="DATA_LOSS",
                reason="BLOB_CORRUPT",
                resource_name=str(name),
            )
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _fetch(registry: RegistryServiceStub, name: BlobName, file: int) -> Iterator[tuple[int, int]]:
    """Write a blob's bytes to a file, and yield the ranges that are there, in order."""
    end = _fetch_range(registry, name, file, 0)
    yield 0, end
    if end < _RANGE_BYTES:
        return
    starts = range(end, _size_bytes(registry, name), _RANGE_BYTES)
    with ThreadPoolExecutor(_RANGES_AT_ONCE, thread_name_prefix="download") as threads:
        under_way: deque[Future[int]] = deque()
        try:
            for start in starts:
                under_way.append(threads.submit(_fetch_range, registry, name, file, start))
                if len(under_way) > _RANGES_AT_ONCE:
                    yield end, (end := under_way.popleft().result())
            while under_way:
                yield end, (end := under_way.popleft().result())
        finally:
            for waiting in under_way:
                waiting.cancel()


def _size_bytes(registry: RegistryServiceStub, name: BlobName) -> int:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return registry.GetBlob(messages.GetBlobRequest(name=str(name)), timeout=10).size_bytes
        except grpc.RpcError as error:
            _wait_or_raise(error, attempt)
    raise AssertionError("the last attempt raises")


def _fetch_range(registry: RegistryServiceStub, name: BlobName, file: int, start: int) -> int:
    """Write one range to its place and return where it ends. Goes on where it broke."""
    place, end = start, start + _RANGE_BYTES
    for attempt in range(1, ATTEMPTS + 1):
        try:
            request = messages.DownloadBlobRequest(name=str(name), offset=place, length=end - place)
            for response in registry.DownloadBlob(request, timeout=_STALL_SECONDS):
                rest = memoryview(response.chunk)
                while rest:
                    written = os.pwrite(file, rest, place)
                    place += written
                    rest = rest[written:]
            return place
        except grpc.RpcError as error:
            if place == end:
                return place
            _wait_or_raise(error, attempt)
    raise AssertionError("the last attempt raises")


def _let_it_be_checked(registry: RegistryServiceStub, name: BlobName) -> None:
    """Let the registry read all of a blob, so that it finds out if its own bytes are damaged. Raises what it says."""
    try:
        for _ in registry.DownloadBlob(messages.DownloadBlobRequest(name=str(name)), timeout=_STALL_SECONDS):
            pass
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error


def _received(registry: RegistryServiceStub, name: BlobName) -> int | None:
    """Return how many bytes the registry has; None when it has all of them."""
    try:
        blob = registry.GetBlob(messages.GetBlobRequest(name=str(name)), timeout=10)
    except grpc.RpcError as error:
        if isinstance(from_rpc_error(error), NotFoundError):
            return 0
        raise
    return None if blob.committed else blob.received_bytes


def _upload(
    path: Path, name: BlobName, size_bytes: int, offset: int, progress: Progress
) -> Iterator[messages.UploadBlobRequest]:
    yield messages.UploadBlobRequest(header=messages.UploadHeader(name=str(name), size_bytes=size_bytes, offset=offset))
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK_BYTES):
            yield messages.UploadBlobRequest(chunk=chunk)
            progress(len(chunk))


def _wait_or_raise(error: grpc.RpcError, attempt: int) -> None:
    translated: MaasError = from_rpc_error(error)
    # The last of a broken upload's bytes may have arrived after the registry was asked how many there are.
    may_pass = translated.reason == "UPLOAD_OFFSET_MISMATCH"
    if attempt == ATTEMPTS or not (may_pass or translated.code in _MAY_PASS):
        raise translated from error
    time.sleep(min(2.0, 0.2 * 2**attempt))
