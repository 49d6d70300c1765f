"""Reads a part of a Parquet file in the registry, without fetching the rest."""

import io
from typing import Any

import grpc
import pyarrow
import pyarrow.parquet

from maas.errors import DataCorruptError, from_rpc_error
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.blob_pb2 import File
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

_CALL_SECONDS = 60.0


def first_rows(channel: grpc.Channel, file: File, rows: int) -> list[dict[str, Any]]:
    """Return the first rows of a stored Parquet file. Raises MaasError."""
    remote = pyarrow.PythonFile(_RemoteFile(channel, file), mode="r")
    try:
        with pyarrow.parquet.ParquetFile(remote, buffer_size=2**18, pre_buffer=False) as parquet:
            batch = next(parquet.iter_batches(batch_size=rows), None)
            return [] if batch is None else list(batch.slice(0, rows).to_pylist())
    except pyarrow.ArrowException as error:
        raise DataCorruptError(f"{file.blob} cannot be read as a Parquet file: {error}", code="DATA_LOSS") from error


class _RemoteFile(io.RawIOBase):
    """A stored blob as a file: a read is a download that is broken off when it has brought enough."""

    def __init__(self, channel: grpc.Channel, file: File) -> None:
        self._registry = RegistryServiceStub(channel)
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size_bytes}[whence]
        self._position = begin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        rest = self._file.size_bytes - self._position
        wanted = rest if size < 0 else min(size, rest)
        content = bytearray()
        request = messages.DownloadBlobRequest(name=self._file.blob, offset=self._position)
        try:
            if wanted > 0:
                call = self._registry.DownloadBlob(request, timeout=_CALL_SECONDS)
                for response in call:
                    content += response.chunk
                    if len(content) >= wanted:
                        break
                call.cancel()
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        self._position += min(len(content), max(wanted, 0))
        return bytes(content[: max(wanted, 0)])
