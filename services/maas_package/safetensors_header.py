"""The header of a safetensors file, read and checked without loading a tensor.

The format: 8 bytes with the header's length, little-endian; the header, JSON of name -> dtype, shape, and begin and
end in what follows; then the tensors' bytes without a gap.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from maas_runtime.failures import InvalidInput

_MAX_HEADER_BYTES = 100_000_000
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


def read_safetensors_header(location: Path) -> tuple[StoredTensor, ...]:
    """Return the file's tensors. Raises SafetensorsInvalid."""
    size_bytes = location.stat().st_size
    with location.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if size_bytes < 8 or header_bytes > min(size_bytes - 8, _MAX_HEADER_BYTES):
            raise SafetensorsInvalid(f"{location.name} is cut short or not safetensors", path=location.name)
        content = stream.read(header_bytes)
    data_begin = 8 + header_bytes
    try:
        header = json.loads(content)
        spans = sorted(
            (_read_span(name, entry, data_begin) for name, entry in header.items() if name != "__metadata__"),
            key=lambda span: (span[0].begin_bytes, span[1]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SafetensorsInvalid(f"{location.name} has a broken header: {error}", path=location.name) from error
    position = data_begin
    for tensor, end in spans:
        if tensor.begin_bytes != position or (end - position) * 8 != tensor.elements * _BITS[tensor.dtype]:
            raise SafetensorsInvalid(
                f"{location.name}: tensor {tensor.name} does not lie where it should", path=location.name
            )
        position = end
    if position != size_bytes:
        raise SafetensorsInvalid(f"{location.name} has more or fewer bytes than its header says", path=location.name)
    return tuple(tensor for tensor, _ in spans)


def _read_span(name: str, entry: dict[str, Any], data_begin: int) -> tuple[StoredTensor, int]:
    """Return the tensor and where in the file it ends."""
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    dtype = entry["dtype"]
    if dtype not in _BITS:
        raise ValueError(f"{name} has the unknown type {dtype!r}")
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError(f"{name} has sizes that are not whole numbers")
    return StoredTensor(name, dtype, shape, data_begin + begin), data_begin + end
