"""The Open Inference Protocol's datatypes: element sizes, and raw bytes to Python values and back.

Raw form: row-major, little-endian; a BYTES element is preceded by its length in 4 bytes.
"""

import math
import struct
from array import array
from collections.abc import Iterable, Sequence

ELEMENT_SIZES = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
}
"""Bytes of one element; BYTES has none."""

BYTES = "BYTES"

_ARRAY_CODES = {
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}


def split_elements(raw: bytes | memoryview, at_most: int | None = None) -> list[bytes]:
    """Return the elements of a raw BYTES tensor. Raises ValueError when the lengths do not add up, or it has more."""
    view = memoryview(raw)
    elements: list[bytes] = []
    position, end = 0, len(view)
    while position < end:
        if len(elements) == at_most:
            raise ValueError(f"more than {at_most} elements")
        if end - position < 4:
            raise ValueError("the last length is cut off")
        begin = position + 4
        position = begin + int.from_bytes(view[position:begin], "little")
        if position > end:
            raise ValueError("an element is longer than the tensor")
        elements.append(bytes(view[begin:position]))
    return elements


def join_elements(elements: Iterable[bytes]) -> bytes:
    """Return the raw form of a BYTES tensor."""
    return b"".join(part for element in elements for part in (len(element).to_bytes(4, "little"), element))


def pack(datatype: str, values: Sequence[object]) -> bytes:
    """Return the raw form of numbers or booleans. Raises ValueError when one does not fit the datatype."""
    try:
        if datatype == "BOOL":
            if not all(value is True or value is False for value in values):
                raise ValueError("BOOL takes true and false")
            return bytes(values)  # type: ignore[arg-type]  # checked right above
        if datatype == "FP16":
            return struct.pack(f"<{len(values)}e", *values)
        if datatype == "BF16":
            return _bf16_of_fp32(pack("FP32", values))
        numbers: array[int] = array(_ARRAY_CODES[datatype], values)  # type: ignore[arg-type]  # refuses what is none
        if datatype == "FP32" and (math.inf in numbers or -math.inf in numbers):
            struct.pack(f"<{len(values)}f", *values)  # unlike array, it refuses a number that only became infinite
        return numbers.tobytes()
    except (TypeError, OverflowError, struct.error) as error:
        raise ValueError(f"an element is no {datatype}: {error}") from error


def unpack(datatype: str, raw: bytes | memoryview) -> list[bool] | list[int] | list[float]:
    """Return the elements of a raw tensor that is not BYTES. Raises ValueError when its length does not fit."""
    if datatype == "BOOL":
        return [byte != 0 for byte in raw]
    if datatype == "FP16":
        return [value for (value,) in struct.iter_unpack("<e", raw)]
    if datatype == "BF16":
        # A BF16 is the upper half of the FP32 of the same value.
        return unpack("FP32", b"".join([b"\0\0" + raw[at : at + 2] for at in range(0, len(raw), 2)]))
    elements: array[int] = array(_ARRAY_CODES[datatype])
    elements.frombytes(raw)
    return elements.tolist()


def _bf16_of_fp32(raw: bytes) -> bytes:
    """Return the nearest BF16 of each FP32, the even one of two that are equally near."""
    return array("H", [bits + 0x7FFF + (bits >> 16 & 1) >> 16 & 0xFFFF for bits in array("I", raw)]).tobytes()
