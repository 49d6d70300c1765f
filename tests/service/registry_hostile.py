"""What nobody may store: packages and uploads that lie, reach outside, unfold hugely or run code, with their refusals.

`attack` sends them all to a registry and says what it answered; `watched` tells what its process held meanwhile.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy
import onnx
import onnx.helper
import pyarrow

from maas.errors import MaasError, from_rpc_error
from maas.registry.v1 import blob_pb2, version_pb2
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_package.manifest import FileEntry, Manifest, Servable, TensorSpec

ONNX_PATH = "servables/onnxruntime/model.onnx"
MODEL = "hostile"
CHUNK_BYTES = 512 * 1024
ZEROS = bytes(10 * 2**20)

Members: TypeAlias = Sequence[tuple[str, bytes]]


class Runs:
    """What an attacker's pickle is: reading it calls a function."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch the-registry-ran-a-pickle",))


@dataclass(frozen=True, slots=True)
class Hostile:
    """Something that has to be refused, with a reason that names the member."""

    row: str
    name: str
    send: Callable[["RegistryServiceStub"], Any]
    member: str
    reasons: frozenset[str]
    statuses: frozenset[str] = frozenset({"INVALID_ARGUMENT"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What the registry said to one of them."""

    hostile: Hostile
    error: MaasError | None

    @property
    def is_right(self) -> bool:
        """Whether it is the refusal that it has to be."""
        return (
            self.error is not None
            and self.error.code in self.hostile.statuses
            and self.error.reason in self.hostile.reasons
            and self.hostile.member in (self.error.metadata.get("path", ""), self.error.resource_name, "")
        )


@dataclass
class Memory:
    """Resident bytes of a process: before, at most meanwhile, and after."""

    before: int = 0
    peak: int = 0
    after: int = 0


def attack(endpoint: str) -> list[Answer]:
    """Send everything hostile to a registry, one after the other."""
    with grpc.insecure_channel(endpoint) as channel:
        registry = RegistryServiceStub(channel)
        registry.CreateModel(messages.CreateModelRequest(model_id=MODEL), timeout=30)
        return [Answer(hostile, _error_of(partial(hostile.send, registry))) for hostile in ALL]


@contextmanager
def watched(pid: int) -> Iterator[Memory]:
    """Give what the process holds; `peak` and `after` are filled in when the context ends."""
    memory = Memory(before=_status_bytes(pid, "VmRSS"))
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    yield memory
    memory.peak, memory.after = _status_bytes(pid, "VmHWM"), _status_bytes(pid, "VmRSS")


def blob_name(content: bytes) -> str:
    return f"blobs/{hashlib.sha256(content).hexdigest()}"


def upload(registry: RegistryServiceStub, content: bytes, *, name: str = "", size_bytes: int = -1) -> str:
    name = name or blob_name(content)
    header = messages.UploadHeader(name=name, size_bytes=len(content) if size_bytes < 0 else size_bytes)
    requests = [messages.UploadBlobRequest(header=header)]
    requests += [
        messages.UploadBlobRequest(chunk=content[start : start + CHUNK_BYTES])
        for start in range(0, len(content), CHUNK_BYTES)
    ]
    registry.UploadBlob(iter(requests), timeout=120)
    return name


def plain_manifest(members: Members) -> bytes:
    """A manifest that lists the members as they are, whatever they are."""
    return Manifest(
        task="tensors",
        inputs=(TensorSpec("x", "FP32", (-1, 3)),),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        servables=(Servable("onnxruntime", "fp32", ONNX_PATH),),
        files=tuple(FileEntry(path, hashlib.sha256(content).hexdigest(), len(content)) for path, content in members),
    ).to_json()


def register(
    registry: RegistryServiceStub, make: Callable[[], Members], manifest: Callable[[Members], bytes] = plain_manifest
) -> None:
    """Upload members and a manifest of them, and ask for a version of it."""
    members = make()
    files = [blob_pb2.File(path=path, blob=upload(registry, content)) for path, content in members]
    files.append(blob_pb2.File(path="manifest.json", blob=upload(registry, manifest(members))))
    registry.CreateVersion(
        messages.CreateVersionRequest(parent=f"models/{MODEL}", version=version_pb2.Version(files=files)), timeout=120
    )


def plain_model() -> onnx.ModelProto:
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    return onnx.helper.make_model(onnx.helper.make_graph([node], "graph", values[:1], values[1:]))


PLAIN: Members = ((ONNX_PATH, plain_model().SerializeToString()),)


def _package(row: str, name: str, path: str, content: Callable[[], bytes] | bytes, *reasons: str) -> Hostile:
    """A package that is as it should be but for one member."""

    def members() -> Members:
        found = content() if callable(content) else content
        return [(path, found)] if path == ONNX_PATH else [*PLAIN, (path, found)]

    return Hostile(row, name, lambda registry: register(registry, members), path, frozenset(reasons))


def _pickled(protocol: int) -> bytes:
    return pickle.dumps(Runs(), protocol)


def _saved(save: Callable[[io.BytesIO], object]) -> bytes:
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def _zip_of(name: str, content: bytes) -> bytes:
    def save(stream: io.BytesIO) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content)

    return _saved(save)


def _tar_of(name: str, content: bytes) -> bytes:
    def save(stream: io.BytesIO) -> None:
        with tarfile.open(fileobj=stream, mode="w") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

    return _saved(save)


def _zip_of_many(count: int, name: str, content: bytes) -> bytes:
    """A zip archive whose directory names the same member many times."""
    archive = _zip_of(name, content)
    end = archive.rfind(b"PK\x05\x06")
    begin = struct.unpack("<I", archive[end + 16 : end + 20])[0]
    entry = archive[begin:end]
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, count * len(entry), begin, 0)
    return archive[:begin] + entry * count + tail


def _numpy_objects() -> bytes:
    return _saved(lambda stream: numpy.save(stream, numpy.array([Runs()], object), allow_pickle=True))


def _numpy_archive() -> bytes:
    return _saved(lambda stream: numpy.savez(stream, weights=numpy.array([Runs()], object)))


def _safetensors(header: bytes, data: bytes = b"", *, header_bytes: int = -1) -> bytes:
    return (len(header) if header_bytes < 0 else header_bytes).to_bytes(8, "little") + header + data


def _tensor_header(**tensors: tuple[list[int], int, int]) -> bytes:
    return json.dumps(
        {
            name: {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
            for name, (shape, begin, end) in tensors.items()
        }
    ).encode()


def _model_with(change: Callable[[onnx.GraphProto], object]) -> bytes:
    model = plain_model()
    change(model.graph)
    return bytes(model.SerializeToString())


def _kept_at(location: str) -> bytes:
    def change(graph: onnx.GraphProto) -> None:
        tensor = graph.initializer.add(name="w", dims=[4], data_type=onnx.TensorProto.FLOAT)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return _model_with(change)


def _kept_by_an_attribute(location: str) -> bytes:
    def change(graph: onnx.GraphProto) -> None:
        attribute = graph.node[0].attribute.add(name="body", type=onnx.AttributeProto.GRAPH)
        inner = attribute.g.node.add(op_type="Constant").attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
        inner.t.data_location = onnx.TensorProto.EXTERNAL
        inner.t.external_data.add(key="location", value=location)

    return _model_with(change)


def _of_dims(*dims: int) -> bytes:
    return _model_with(
        lambda graph: graph.initializer.add(name="w", dims=dims, data_type=onnx.TensorProto.FLOAT, raw_data=b"1234")
    )


def _nested_onnx(depth: int) -> bytes:
    content = b""
    for field_number in (6, 5, 1) * depth:  # Attribute.g, Node.attribute, Graph.node
        content = bytes([field_number << 3 | 2]) + _varint(len(content)) + content
    return b"\x3a" + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    found = b""
    while number >= 0x80:
        found += bytes([number & 0x7F | 0x80])
        number >>= 7
    return found + bytes([number])


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _named(name: str, path: str, *reasons: str) -> Hostile:
    """A package with one more member, of this path."""
    return _package("paths", name, path, b"{}", *reasons)


def _beside(name: str, first: str, second: str) -> Hostile:
    members = [*PLAIN, (first, b"{}"), (second, b"{}")]
    return Hostile(
        "paths", name, lambda registry: register(registry, lambda: members), "", frozenset({"PACKAGE_FILE_REPEATED"})
    )


def _manifest(row: str, name: str, content: Callable[[], bytes]) -> Hostile:
    return Hostile(
        row,
        name,
        lambda registry: register(registry, lambda: PLAIN, lambda _: content()),
        "",
        frozenset({"MANIFEST_INVALID"}),
    )


def _listed_otherwise(name: str, **changes: Any) -> Hostile:
    """A manifest that says something else of a member than what was uploaded."""

    def manifest(members: Members) -> bytes:
        said = json.loads(plain_manifest(members))
        said["files"][0] |= changes
        return json.dumps(said).encode()

    return Hostile(
        "damaged",
        name,
        lambda registry: register(registry, lambda: PLAIN, manifest),
        ONNX_PATH,
        frozenset({"PACKAGE_FILE_DAMAGED"}),
    )


def _uploaded(name: str, send: Callable[[RegistryServiceStub], Any], reason: str, status: str) -> Hostile:
    return Hostile("damaged", name, send, "", frozenset({reason}), frozenset({status}))


def _unfolding_request(registry: RegistryServiceStub) -> None:
    """Ask with a message of 60 MB that is 60 kB on the wire."""
    version = version_pb2.Version(description="x" * 60 * 2**20)
    registry.CreateVersion(
        messages.CreateVersionRequest(parent=f"models/{MODEL}", version=version),
        timeout=60,
        compression=grpc.Compression.Gzip,
    )


def _error_of(send: Callable[[], Any]) -> MaasError | None:
    try:
        send()
    except grpc.RpcError as error:
        return from_rpc_error(error)
    return None


def _status_bytes(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


_PICKLE, _ARCHIVE, _JSON = "PACKAGE_HOLDS_PICKLE", "PACKAGE_HOLDS_ARCHIVE", "PACKAGE_FILE_DAMAGED"
_TENSORS, _GRAPH, _PATH = "SAFETENSORS_INVALID", "ONNX_INVALID", "PACKAGE_PATH_INVALID"

PICKLES = [
    _package("pickles", "named .safetensors", "model.safetensors", _pickled(4), _TENSORS),
    *(_package("pickles", f"named .onnx, protocol {protocol}", ONNX_PATH, partial(_pickled, protocol), _PICKLE)
      for protocol in range(6)),
    _package("pickles", "with bytes behind the call", ONNX_PATH, lambda: _pickled(0)[:-1] + bytes(100), _PICKLE),
    _package("pickles", "named tokenizer.json", "tokenizer.json", _pickled(2), _JSON),
    _package("pickles", "named .pt", "model.pt", _pickled(2), _PICKLE),
    _package("pickles", "named .bin", "pytorch_model.bin", _pickled(2), _PICKLE),
    _package("pickles", "in a zip", "data.zip", lambda: _zip_of("data", _pickled(4)), _ARCHIVE),
    _package("pickles", "in a zip named .onnx", ONNX_PATH, lambda: _zip_of("archive/data.pkl", _pickled(4)), _ARCHIVE),
    _package("pickles", "in a zip behind a model", ONNX_PATH,
             lambda: PLAIN[0][1] + _zip_of("archive/data.pkl", _pickled(4)), _ARCHIVE),
    _package("pickles", "in a tar", "weights.dat", lambda: _tar_of("data", _pickled(4)), _ARCHIVE),
    _package("pickles", "an array of objects", "table.npy", _numpy_objects, _PICKLE),
    _package("pickles", "an archive of arrays of objects", "table.npz", _numpy_archive, _ARCHIVE),
    _package("pickles", "of joblib, with zlib", "model.dat", lambda: zlib.compress(_pickled(4)), _ARCHIVE),
    _package("pickles", "with gzip", "model.dat", lambda: gzip.compress(_pickled(4)), _ARCHIVE),
    _package("pickles", "with bzip2", "model.dat", lambda: bz2.compress(_pickled(4)), _ARCHIVE),
    _package("pickles", "with xz", "model.dat", lambda: lzma.compress(_pickled(4)), _ARCHIVE),
    _package("pickles", "with lzma", "model.dat",
             lambda: lzma.compress(_pickled(4), lzma.FORMAT_ALONE), _ARCHIVE),
]  # fmt: skip

PATHS = [
    *(_named(name, path, _PATH)
      for name, path in {
          "up": "../outside.json", "up within": "a/../../outside.json", "absolute": "/etc/outside.json",
          "backslash": "..\\outside.json", "drive": "C:outside.json", "zero byte": "a\x00.json",
          "empty part": "a//b.json", "here": "./a.json", "only dots": "..", "last dot": "a./b.json",
          "last space": "a /b.json", "line feed": "a\n.json", "wide dots": "．．/outside.json",
          "wide slash": "..／outside.json", "one dot leader": "․․/outside.json", "direction": "a\u202egpj.json",
          "zero width": "a\u200b.json", "letter in parts": "e\u0301.json", "surrogate pair": "a\ufffe.json",
      }.items()),
    _beside("case", "a.json", "A.json"),
    _beside("wide letter", "a.json", "ａ.json"),
    _beside("sharp s", "straße.json", "STRASSE.json"),
    _beside("twice", "a.json", "a.json"),
    _beside("file and folder", "a", "a/b.json"),
    _beside("manifest again", "Manifest.json", "b.json"),
]  # fmt: skip

BOMBS = [
    _package("bombs", "10 GB of zeros with gzip", "data.gz", lambda: gzip.compress(ZEROS) * 1000, _ARCHIVE),
    _package("bombs", "100 GB in a zip of one member named often", "data.zip",
             lambda: _zip_of_many(10_000, "zeros", ZEROS), _ARCHIVE),
    _package("bombs", "a zip of 65,535 long names", ONNX_PATH, lambda: _zip_of_many(65_535, "n" * 200, b""), _ARCHIVE),
    _package("bombs", "zeros with zstd", "data.zst",
             lambda: pyarrow.Codec("zstd").compress(ZEROS, asbytes=True) * 1000, _ARCHIVE),
    _package("bombs", "zeros with bzip2", "data.dat", lambda: bz2.compress(ZEROS) * 1000, _ARCHIVE),
    _package("bombs", "JSON 5,000,000 deep", "tokenizer.json", lambda: b"[" * 5_000_000, _JSON),
    _manifest("bombs", "a manifest 100,000 deep", lambda: b'{"a":' * 100_000),
    _manifest("bombs", "a manifest of a million lists", lambda: b"[" + b"[]," * 1_000_000 + b"[]]"),
    _manifest("bombs", "a manifest with a number of a million digits",
              lambda: b'{"schema_version": ' + b"9" * 10**6 + b"}"),
    _manifest("bombs", "a manifest of 8 MB", lambda: b" " * 8 * 2**20),
    _package("bombs", "a header of 10 GB", "model.safetensors",
             lambda: _safetensors(b"{}", header_bytes=10**10), _TENSORS),
    _package("bombs", "a header of 32 MB", "model.safetensors",
             lambda: _safetensors(b'{"a":[' + b"[]," * 10_000_000 + b"[]]}"), _TENSORS),
    _package("bombs", "a header of a million values", "model.safetensors",
             lambda: _safetensors(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}"), _TENSORS),
    _package("bombs", "a header 100,000 deep", "model.safetensors", lambda: _safetensors(b'{"a":' * 100_000), _TENSORS),
    _package("bombs", "a tensor of a million dimensions", "model.safetensors",
             lambda: _safetensors(_tensor_header(w=([2**62] * 200_000, 0, 0))), _TENSORS),
    _package("bombs", "a tensor of 2^62 elements without bytes", "model.safetensors",
             lambda: _safetensors(_tensor_header(w=([2**31, 2**31], 0, 0))), _TENSORS),
    _package("bombs", "an initializer of 2^40 elements", ONNX_PATH, lambda: _of_dims(2**40), _GRAPH),
    _package("bombs", "an initializer of 2^126 elements", ONNX_PATH, lambda: _of_dims(2**63 - 1, 2**63 - 1), _GRAPH),
    _package("bombs", "an initializer of -1 elements", ONNX_PATH, lambda: _of_dims(-1), _GRAPH),
    _package("bombs", "an initializer of 1,000 dimensions", ONNX_PATH, lambda: _of_dims(*[1] * 1000), _GRAPH),
    _package("bombs", "graphs in graphs, 1,000 deep", ONNX_PATH, lambda: _nested_onnx(1000), _GRAPH),
    _package("bombs", "a model of 10 million empty parts", ONNX_PATH, lambda: b"\x0a\x00" * 10_000_000, _GRAPH),
    Hostile("bombs", "a request that unfolds to 60 MB", _unfolding_request, "", frozenset({""}),
            frozenset({"RESOURCE_EXHAUSTED"})),
]  # fmt: skip

OUTSIDE = [
    *(_package("paths", f"a tensor at {location}", ONNX_PATH, partial(_kept_at, location), _GRAPH)
      for location in ("../../../etc/passwd", "/etc/passwd", "..\\outside", "missing.data", "", "．．/outside")),
    _package("paths", "a tensor of an inner graph outside", ONNX_PATH,
             lambda: _kept_by_an_attribute("/etc/passwd"), _GRAPH),
]  # fmt: skip

DAMAGED = [
    _package("damaged", "half of a model", ONNX_PATH, lambda: _half(_of_dims(1)), _GRAPH),
    _package("damaged", "no model at all", ONNX_PATH, b"not a model", _GRAPH),
    _package("damaged", "half of safetensors", "model.safetensors",
             lambda: _half(_safetensors(_tensor_header(w=([1000], 0, 4000)), bytes(4000))), _TENSORS),
    _package("damaged", "empty safetensors", "model.safetensors", b"", _TENSORS),
    _package("damaged", "tensors that overlap", "model.safetensors",
             lambda: _safetensors(_tensor_header(v=([2], 0, 8), w=([2], 4, 12)), bytes(12)), _TENSORS),
    _package("damaged", "bytes behind the last tensor", "model.safetensors",
             lambda: _safetensors(_tensor_header(w=([1], 0, 4)), bytes(8)), _TENSORS),
    _package("damaged", "half of a JSON file", "tokenizer.json", b'{"model": {"vocab": {', _JSON),
    _package("damaged", "an empty JSON file", "tokenizer.json", b"", _JSON),
    _manifest("damaged", "half of a manifest", lambda: _half(plain_manifest(PLAIN))),
    _listed_otherwise("another hash than the manifest's", sha256="0" * 64),
    _listed_otherwise("another size than the manifest's", size_bytes=1),
    _uploaded("bytes of another hash", lambda registry: upload(registry, b"one", name=blob_name(b"two")),
              "BLOB_CORRUPT", "DATA_LOSS"),
    _uploaded("an upload that ends early", lambda registry: upload(registry, b"early", size_bytes=100),
              "UPLOAD_INCOMPLETE", "INVALID_ARGUMENT"),
    _uploaded("an upload that does not end", lambda registry: upload(registry, b"much" * 10**6, size_bytes=100),
              "UPLOAD_TOO_LONG", "INVALID_ARGUMENT"),
    _uploaded("an upload of 10 TB", lambda registry: upload(registry, b"large", size_bytes=10**13), "BLOB_TOO_LARGE",
              "RESOURCE_EXHAUSTED"),
]  # fmt: skip

ALL: list[Hostile] = [*PICKLES, *PATHS, *OUTSIDE, *BOMBS, *DAMAGED]
