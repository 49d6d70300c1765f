"""The Open Inference Protocol's datatypes and numpy's."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

# What type its numbers have is said by the manifest, at run time.
Array: TypeAlias = NDArray[Any]

_NUMPY_TYPES: dict[str, DTypeLike] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}


def numpy_type(datatype: str) -> "np.dtype[np.generic]":
    """Return numpy's type for an OIP datatype of a manifest; BYTES is an array of objects."""
    return np.dtype(_NUMPY_TYPES[datatype])
