"""The header of a safetensors file, read and checked without loading a tensor.

The format: 8 bytes with the header's length, little-endian; the header, JSON of name -> dtype, shape, and begin and
end in what follows; then the tensors' bytes without a gap.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

import msgspec

from maas_runtime.failures import InvalidInput

_MAX_HEADER_BYTES = 8 * 2**20
"""Of 100,000 tensors and more. What a header says takes some ten times its length in memory."""
_MAX_DIMENSIONS = 64
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}


class SafetensorsInvalid(InvalidInput):
    """A file is not safetensors, or cut short."""

    reason = "SAFETENSORS_INVALID"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of the file: the format's name of its type, its shape, and where in the file its bytes begin."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin_bytes: int

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


class _Entry(msgspec.Struct):
    """What the header says of a tensor. Its free texts (`__metadata__`) have none of these fields."""

    dtype: str = ""
    shape: list[int] = []
    data_offsets: tuple[int, int] = (0, 0)


def read_safetensors_header(location: Path, path: str = "") -> tuple[StoredTensor, ...]:
    """Return the tensors of a file, which is called `path` where it comes from. Raises SafetensorsInvalid."""
    path = path or location.name
    size_bytes = location.stat().st_size
    with location.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if size_bytes < 8 or header_bytes > size_bytes - 8:
            raise SafetensorsInvalid(f"{path} is cut short or not safetensors", path=path)
        if header_bytes > _MAX_HEADER_BYTES:
            raise SafetensorsInvalid(f"{path} has a header of more than {_MAX_HEADER_BYTES} bytes", path=path)
        content = stream.read(header_bytes)
    data_begin = 8 + header_bytes
    try:
        header = msgspec.json.decode(content, type=dict[str, _Entry])
        spans = sorted(
            (_read_span(name, entry, data_begin) for name, entry in header.items() if name != "__metadata__"),
            key=lambda span: (span[0].begin_bytes, span[1]),
        )
    except (ValueError, RecursionError) as error:
        raise SafetensorsInvalid(f"{path} has a broken header: {error}", path=path) from error
    position = data_begin
    for tensor, end in spans:
        if tensor.begin_bytes != position or (end - position) * 8 != tensor.elements * _BITS[tensor.dtype]:
            raise SafetensorsInvalid(f"{path}: tensor {tensor.name} does not lie where it should", path=path)
        position = end
    if position != size_bytes:
        raise SafetensorsInvalid(f"{path} has more or fewer bytes than its header says", path=path)
    return tuple(tensor for tensor, _ in spans)


def _read_span(name: str, entry: _Entry, data_begin: int) -> tuple[StoredTensor, int]:
    """Return the tensor and where in the file it ends. Raises ValueError."""
    begin, end = entry.data_offsets
    if entry.dtype not in _BITS:
        raise ValueError(f"{name} has the unknown type {entry.dtype!r}")
    if len(entry.shape) > _MAX_DIMENSIONS or min(begin, end, *entry.shape) < 0:
        raise ValueError(f"{name} has negative sizes, or more than {_MAX_DIMENSIONS} dimensions")
    return StoredTensor(name, entry.dtype, tuple(entry.shape), data_begin + begin), data_begin + end
