"""Small packages for registrations by the thousand."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from maas.registry.v1 import blob_pb2, version_pb2
from maas.registry.v1 import registry_service_pb2 as messages
from maas_package.manifest import FileEntry, Manifest, Servable, TensorSpec

CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class SmallPackage:
    """Members of a package by their paths."""

    members: dict[str, bytes]

    def version(self, description: str = "") -> version_pb2.Version:
        """What is sent to register it."""
        files = [blob_pb2.File(path=path, blob=blob_name(content)) for path, content in self.members.items()]
        return version_pb2.Version(files=files, description=description)


def small_package(content: bytes) -> SmallPackage:
    """A package whose ONNX file holds these bytes; as far as the registry looks, it is one."""
    model = b"\x12" + _length(content) + content  # onnx.ModelProto.producer_name
    manifest = Manifest(
        task="text-classification",
        inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),),
        outputs=(TensorSpec("logits", "FP32", (-1, 2)),),
        servables=(Servable("onnxruntime", "fp32", "model.onnx"),),
        files=(FileEntry("model.onnx", hashlib.sha256(model).hexdigest(), len(model)),),
    )
    return SmallPackage({"model.onnx": model, "manifest.json": manifest.to_json()})


def _length(content: bytes) -> bytes:
    """A length as Protocol Buffers write it: seven bits a byte, lowest first."""
    length, written = len(content), b""
    while length > 0x7F:
        written += bytes([length & 0x7F | 0x80])
        length >>= 7
    return written + bytes([length])


def blob_name(content: bytes) -> str:
    """The blob's resource name."""
    return f"blobs/{hashlib.sha256(content).hexdigest()}"


def upload_requests(content: bytes, offset: int = 0) -> Iterator[messages.UploadBlobRequest]:
    """The messages of an upload that goes on at `offset`."""
    yield messages.UploadBlobRequest(
        header=messages.UploadHeader(name=blob_name(content), size_bytes=len(content), offset=offset)
    )  # fmt: skip
    for start in range(offset, len(content), CHUNK_BYTES):
        yield messages.UploadBlobRequest(chunk=content[start : start + CHUNK_BYTES])
