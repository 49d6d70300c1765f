"""Tensors of the Open Inference Protocol in raw form: little-endian, row-major, a BYTES element behind its length."""

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maas.errors import InternalError, InvalidInputError
from maas.oip.v2 import grpc_service_pb2 as oip

if TYPE_CHECKING:
    import numpy

# By the kind and size of numpy's dtypes, so that both byte orders and all spellings are found.
_DATATYPES = {
    "b1": "BOOL",
    "u1": "UINT8",
    "u2": "UINT16",
    "u4": "UINT32",
    "u8": "UINT64",
    "i1": "INT8",
    "i2": "INT16",
    "i4": "INT32",
    "i8": "INT64",
    "f2": "FP16",
    "f4": "FP32",
    "f8": "FP64",
}
_FLOAT_FORMATS = {"FP16": "e", "FP32": "f", "FP64": "d"}


def add_texts(request: oip.ModelInferRequest, name: str, texts: Sequence[str]) -> None:
    """Add a BYTES tensor with one text a row. Raises InvalidInputError for a text that has no UTF-8 form."""
    _add_elements(request, name, [len(texts)], map(_encoded, texts))


def add_arrays(request: oip.ModelInferRequest, arrays: Mapping[str, Any]) -> None:
    """Add arrays, or what numpy makes an array of. Raises InvalidInputError for elements that have no datatype."""
    import numpy as np

    for name, given in arrays.items():
        array = np.asarray(given)
        datatype = _DATATYPES.get(f"{array.dtype.kind}{array.dtype.itemsize}")
        if array.dtype.kind in "USO":  # texts, bytes, or objects that are either
            _add_elements(request, name, array.shape, map(_encoded, array.ravel()))
        elif datatype is None:
            raise InvalidInputError(
                f"{name} has elements of {array.dtype}, which no tensor can hold",
                code="INVALID_ARGUMENT",
                reason="DATATYPE_UNKNOWN",
            )
        else:
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(array.astype(array.dtype.newbyteorder("<")).tobytes())


def read_arrays(response: oip.ModelInferResponse) -> "dict[str, numpy.ndarray[Any, Any]]":
    """Return the outputs by name; BYTES become arrays of `bytes` objects."""
    import numpy as np

    formats = {datatype: f"<{code}" for code, datatype in _DATATYPES.items()}
    arrays: dict[str, numpy.ndarray[Any, Any]] = {}
    for output, raw in _raw_outputs(response):
        if output.datatype == "BYTES":
            arrays[output.name] = np.array(list(_elements(raw)), dtype=object).reshape(output.shape)
        elif output.datatype in formats:
            arrays[output.name] = np.frombuffer(raw, formats[output.datatype]).reshape(output.shape)
        else:
            raise InternalError(f"the cluster answered with the unknown datatype {output.datatype}", code="INTERNAL")
    return arrays


def read_rows_of_numbers(response: oip.ModelInferResponse) -> list[tuple[float, ...]]:
    """Return the first output, of floating-point numbers [N, C], as N rows; needs no numpy."""
    output, raw = next(_raw_outputs(response))
    code = _FLOAT_FORMATS.get(output.datatype)
    if code is None or len(output.shape) != 2:
        raise InternalError(
            f"{output.name} is {output.datatype} {list(output.shape)}, no table of numbers; use infer()",
            code="INTERNAL",
        )
    rows, columns = output.shape
    values = struct.unpack(f"<{rows * columns}{code}", raw)
    return [values[begin : begin + columns] for begin in range(0, len(values), columns)]


def softmax(logits: Sequence[float]) -> tuple[float, ...]:
    """Return probabilities that add up to 1."""
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    total = sum(powers)
    return tuple(power / total for power in powers)


def _raw_outputs(
    response: oip.ModelInferResponse,
) -> Iterator[tuple[oip.ModelInferResponse.InferOutputTensor, bytes]]:
    if not response.outputs or len(response.raw_output_contents) != len(response.outputs):
        raise InternalError("the cluster answered without raw outputs", code="INTERNAL")
    yield from zip(response.outputs, response.raw_output_contents, strict=True)


def _elements(raw: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(raw):
        (length,) = struct.unpack_from("<I", raw, position)
        yield raw[position + 4 : position + 4 + length]
        position += 4 + length


def _add_elements(request: oip.ModelInferRequest, name: str, shape: Sequence[int], elements: Iterable[bytes]) -> None:
    request.inputs.add(name=name, datatype="BYTES", shape=shape)
    request.raw_input_contents.append(
        b"".join(part for element in elements for part in (struct.pack("<I", len(element)), element))
    )


def _encoded(element: object) -> bytes:
    if isinstance(element, bytes):
        return element
    try:
        return str(element).encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"a text cannot be sent as UTF-8: {error}", code="INVALID_ARGUMENT", reason="TEXT_NOT_UNICODE"
        ) from error
