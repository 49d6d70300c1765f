"""How many weights a package has, and how many of them are not zero; read without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maas_package.package import Package
from maas_package.safetensors_header import StoredTensor, read_safetensors_header

_NUMPY_TYPES = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
# numpy has no such types; their bits without the sign say whether a number is zero.
_BITS_WITHOUT_SIGN = {"BF16": ("<u2", 0x7FFF), "F8_E4M3": ("|u1", 0x7F), "F8_E5M2": ("|u1", 0x7F)}


@dataclass(frozen=True, slots=True)
class WeightStatistics:
    """Of all tensors of the trainable form, in the numbers that are stored."""

    parameters: int
    non_zero: int

    @property
    def non_zero_share(self) -> float:
        """0 to 1; 1 for a model without weights."""
        return self.non_zero / self.parameters if self.parameters else 1.0


def weight_statistics(package: Package) -> WeightStatistics | None:
    """Count the package's weights; None when it has no trainable form. Raises SafetensorsInvalid."""
    weights = package.manifest.weights
    if weights is None:
        return None
    location = package.path(weights.path)
    tensors = read_safetensors_header(location)
    return WeightStatistics(
        parameters=sum(tensor.elements for tensor in tensors),
        non_zero=sum(_count_non_zero(location, tensor) for tensor in tensors),
    )


def _count_non_zero(location: Path, tensor: StoredTensor) -> int:
    if tensor.elements == 0:
        return 0
    if tensor.dtype in _NUMPY_TYPES:
        return int(np.count_nonzero(_map(location, tensor, _NUMPY_TYPES[tensor.dtype])))
    dtype, mask = _BITS_WITHOUT_SIGN[tensor.dtype]
    return int(np.count_nonzero(_map(location, tensor, dtype) & mask))


def _map(location: Path, tensor: StoredTensor, dtype: str) -> NDArray[Any]:
    return np.memmap(location, dtype=dtype, mode="r", offset=tensor.begin_bytes, shape=(tensor.elements,))
