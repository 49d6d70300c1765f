"""ModelInfer over gRPC: frames, messages and trailers."""

import base64
import zlib
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from google.protobuf.message import DecodeError

from maas.oip.v2.grpc_service_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from maas_inference.datatypes import BYTES, join_elements, pack, split_elements, unpack
from maas_inference.front.failures import (
    ContentsWrong,
    EncodingUnsupported,
    FrameInvalid,
    MessageTooLarge,
    rpc_status,
    status_of,
)
from maas_inference.front.inputs import CheckedInputs, SentTensor, check_outputs, check_tensors
from maas_inference.front.question import Answer
from maas_inference.table import ServedVersion
from maas_runtime.failures import Failure, FieldViolation

METHOD_PATH: Final = "/inference.GRPCInferenceService/ModelInfer"
MAX_MESSAGE_BYTES: Final = 64 << 20
"""Bytes of a message, uncompressed."""
MAX_TIMEOUT_SECONDS: Final = 3600.0

Wanted: TypeAlias = tuple[int, ...]
"""Indices of the outputs that were asked for, in that order; empty for all."""

_CONTENTS_FIELDS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_TIMEOUT_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_RAW_OUTPUT_TAG: Final = b"\x32"  # field 6 (raw_output_contents), length-delimited
_ID_TAG: Final = b"\x1a"  # field 3 (id), length-delimited

OK_START: Final[dict[str, Any]] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/grpc")],
    "trailers": True,
}
OK_TRAILERS: Final[dict[str, Any]] = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}


def parse_timeout(value: bytes) -> float:
    """Return the seconds of a `grpc-timeout` header. Raises FrameInvalid."""
    unit = _TIMEOUT_UNITS.get(value[-1:])
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(digits) > 8:
        raise FrameInvalid("grpc-timeout is at most eight digits and one of H, M, S, m, u, n")
    return min(int(digits) * unit, MAX_TIMEOUT_SECONDS)


def decode_request(body: bytes, encoding: bytes) -> ModelInferRequest:
    """Return the one message of a body. Raises FrameInvalid, MessageTooLarge, EncodingUnsupported."""
    if len(body) < 5:
        raise FrameInvalid("the body ends before the gRPC message begins")
    if int.from_bytes(body[1:5], "big") != len(body) - 5:
        raise FrameInvalid("the body is not one whole gRPC message")
    message: bytes | memoryview = memoryview(body)[5:]
    if body[0]:
        message = _decompress(message, encoding)
    try:
        return ModelInferRequest.FromString(message)  # type: ignore[arg-type]  # takes any buffer
    except DecodeError as error:
        raise FrameInvalid("the message is no inference.ModelInferRequest") from error


def read_wanted(served: ServedVersion, request: ModelInferRequest) -> Wanted:
    """Return which outputs are wanted. Raises OutputUnknown."""
    return check_outputs(served, [output.name for output in request.outputs]) if request.outputs else ()


def read_inputs(served: ServedVersion, request: ModelInferRequest) -> CheckedInputs:
    """Return the request's tensors, raw or typed. Raises the InvalidInput that says what does not fit."""
    inputs = request.inputs
    raws = request.raw_input_contents
    if raws:
        if len(raws) != len(inputs):
            raise ContentsWrong(f"{len(raws)} raw_input_contents for {len(inputs)} inputs")
        sent = [
            SentTensor(tensor.name, tensor.datatype, tuple(tensor.shape), raw)
            for tensor, raw in zip(inputs, raws, strict=True)
        ]
    else:
        sent = [
            SentTensor(tensor.name, tensor.datatype, tuple(tensor.shape), _typed_to_raw(tensor)) for tensor in inputs
        ]
    return check_tensors(served, sent)


class ResponseEncoder:
    """Turns answers into gRPC frames. What is the same for all answers with equal shapes is serialized once."""

    _MAX_HEADS = 1024

    def __init__(self) -> None:
        self._heads: dict[tuple[object, ...], bytes] = {}

    def encode(
        self, deployment: str, served: ServedVersion, request: ModelInferRequest, wanted: Wanted, answer: Answer
    ) -> bytes:
        """Return the response, with raw or typed contents as the request has them, in its frame."""
        if not request.raw_input_contents:
            return frame(_typed_response(deployment, served, request, wanted, answer).SerializeToString())
        key = (deployment, served.version, wanted, answer.shapes)
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= self._MAX_HEADS:
                self._heads.clear()
            head = self._heads[key] = _response(deployment, served, wanted, answer).SerializeToString()
        parts = [head]
        if request.id:
            identifier = request.id.encode()
            parts += (_ID_TAG, _varint(len(identifier)), identifier)
        for index in wanted or range(len(answer.raws)):
            raw = answer.raws[index]
            parts += (_RAW_OUTPUT_TAG, _varint(len(raw)), raw)
        return frame(b"".join(parts))


def frame(message: bytes) -> bytes:
    """Return a message as it stands in the body of an answer."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def error_headers(failure: Failure, request_id: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers of a trailers-only answer."""
    status = status_of(failure)
    details = base64.b64encode(rpc_status(failure).SerializeToString()).rstrip(b"=")
    headers = [
        (b"content-type", b"application/grpc"),
        (b"grpc-status", str(status.code).encode()),
        (b"grpc-message", quote(failure.message, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~").encode()),
        (b"grpc-status-details-bin", details),
    ]
    if isinstance(failure, EncodingUnsupported):
        headers.append((b"grpc-accept-encoding", b"identity,gzip,deflate"))
    if request_id:
        headers.append((b"x-request-id", request_id))
    return headers


def decompressed(data: bytes | memoryview, *, is_gzip: bool, limit: int) -> bytes | None:
    """Return the bytes, or None when there would be more than `limit`. Raises zlib.error."""
    decompressor = zlib.decompressobj(31 if is_gzip else 15)
    content = decompressor.decompress(data, limit + 1)
    if len(content) > limit:
        return None
    if not decompressor.eof:
        raise zlib.error("the end is missing")
    return content


def _decompress(message: bytes | memoryview, encoding: bytes) -> bytes:
    if encoding not in (b"gzip", b"deflate"):
        raise EncodingUnsupported(f"grpc-encoding {encoding.decode('latin-1')[:40]!r} is not taken; use gzip or none")
    try:
        content = decompressed(message, is_gzip=encoding == b"gzip", limit=MAX_MESSAGE_BYTES)
    except zlib.error as error:
        raise FrameInvalid(f"the message is not {encoding.decode()}: {error}") from error
    if content is None:
        raise MessageTooLarge(f"the message has more than {MAX_MESSAGE_BYTES} bytes")
    return content


def _typed_to_raw(tensor: ModelInferRequest.InferInputTensor) -> bytes:
    field = _CONTENTS_FIELDS.get(tensor.datatype)
    if field is None:
        raise ContentsWrong(
            f"{tensor.name[:80]} has datatype {tensor.datatype[:20]!r}, which has no typed contents; "
            "send raw_input_contents",
            violations=(FieldViolation("inputs", "no typed contents for the datatype"),),
        )
    values = getattr(tensor.contents, field)
    if tensor.datatype == BYTES:
        return join_elements(values)
    try:
        return pack(tensor.datatype, values)
    except ValueError as error:
        raise ContentsWrong(f"{tensor.name[:80]}: {error}") from error


def _raw_to_typed(datatype: str, raw: bytes, contents: InferTensorContents) -> None:
    if datatype == BYTES:
        contents.bytes_contents.extend(split_elements(raw))
        return
    field = _CONTENTS_FIELDS.get(datatype, "fp32_contents")  # FP16 has no field of its own
    getattr(contents, field).extend(unpack(datatype, raw))


def _response(deployment: str, served: ServedVersion, wanted: Wanted, answer: Answer) -> ModelInferResponse:
    response = ModelInferResponse(model_name=deployment, model_version=served.version)
    for index in wanted or range(len(answer.tensors)):
        tensor = answer.tensors[index]
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=answer.shapes[index])
    return response


def _typed_response(
    deployment: str, served: ServedVersion, request: ModelInferRequest, wanted: Wanted, answer: Answer
) -> ModelInferResponse:
    response = _response(deployment, served, wanted, answer)
    response.id = request.id
    for tensor, index in zip(response.outputs, wanted or range(len(answer.raws)), strict=True):
        _raw_to_typed(tensor.datatype, answer.raws[index], tensor.contents)
    return response


def _varint(number: int) -> bytes:
    if number < 128:
        return number.to_bytes(1, "little")
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
