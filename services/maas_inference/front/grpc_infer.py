"""Inference over gRPC as bytes: headers, frames, messages and trailers."""

import base64
import gzip
import zlib
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from google.protobuf.message import DecodeError

from maas.oip.v2.grpc_service_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from maas_inference.datatypes import BYTES, join_elements, pack, split_elements, unpack
from maas_inference.front.bodies import MAX_BODY_BYTES, too_large
from maas_inference.front.failures import (
    MAX_MESSAGE_LETTERS,
    CompressedFlagWrong,
    ContentsWrong,
    EncodingUnsupported,
    FrameInvalid,
    MediaTypeWrong,
    QueueTooLong,
    rpc_status,
    status_of,
    too_long,
)
from maas_inference.front.inputs import CheckedInputs, SentTensor, check_tensors
from maas_inference.front.options import grpc_parameters
from maas_inference.front.question import Answer, Group
from maas_inference.front.wanted import ALL_OUTPUTS, Wanted, check_wanted, classified
from maas_inference.table import ServedVersion
from maas_runtime.failures import Failure, FieldViolation

SERVICE_PREFIX: Final = "/inference.GRPCInferenceService/"
METHOD_PATH: Final = f"{SERVICE_PREFIX}ModelInfer"
STREAM_PATH: Final = f"{SERVICE_PREFIX}ModelStreamInfer"
MAX_TIMEOUT_SECONDS: Final = 3600.0
CONTENT_TYPE: Final = (b"content-type", b"application/grpc")

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
_Seen: TypeAlias = tuple[ServedVersion, Group, int, tuple[int, ...], int]
"""A version, and of inputs that fit it: their group, their rows, and where the group's tensors stand among them."""

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

_COMPRESS_BYTES: Final = 1024
"""Answers that are larger are compressed, for callers who compress."""
_COMPRESS_LEVEL: Final = 1

OK_START: Final[dict[str, Any]] = {
    "type": "http.response.start",
    "status": 200,
    "headers": [CONTENT_TYPE],
    "trailers": True,
}
COMPRESSED_START: Final[dict[str, Any]] = {**OK_START, "headers": [CONTENT_TYPE, (b"grpc-encoding", b"gzip")]}
OK_TRAILERS: Final[dict[str, Any]] = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]}


def check_content_type(headers: Headers) -> None:
    """Refuse a request that says it is no gRPC; what it says of the messages' format is not looked at.

    Raises MediaTypeWrong.
    """
    if not any(name == b"content-type" and value.lower().startswith(b"application/grpc") for name, value in headers):
        raise MediaTypeWrong("the path is a gRPC method: send the content-type application/grpc")


def parse_timeout(value: bytes) -> float:
    """Return the seconds of a `grpc-timeout` header. Raises FrameInvalid."""
    unit = _TIMEOUT_UNITS.get(value[-1:])
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(digits) > 8:
        raise FrameInvalid("grpc-timeout is at most eight digits and one of H, M, S, m, u, n")
    return min(int(digits) * unit, MAX_TIMEOUT_SECONDS)


def decode_request(body: bytes, encoding: bytes) -> ModelInferRequest:
    """Return the one message of a body.

    Raises FrameInvalid, MessageTooLarge, EncodingUnsupported, CompressedFlagWrong.
    """
    if len(body) < 5:
        raise FrameInvalid("the body ends before the gRPC message begins")
    if int.from_bytes(body[1:5], "big") != len(body) - 5:
        raise FrameInvalid("the body is not one whole gRPC message")
    message: bytes | memoryview = memoryview(body)[5:]
    if body[0]:
        message = decompressed_message(body[0], message, encoding)
    return parse_request(message)


def parse_request(message: bytes | memoryview) -> ModelInferRequest:
    """Return the request that a message is. Raises FrameInvalid."""
    try:
        return ModelInferRequest.FromString(message)  # type: ignore[arg-type]  # takes any buffer
    except DecodeError as error:
        raise FrameInvalid("the message is no inference.ModelInferRequest") from error


def decompressed_message(flag: int, message: bytes | memoryview, encoding: bytes) -> bytes:
    """Return a message whose frame has a flag that is not 0.

    Raises FrameInvalid, MessageTooLarge, EncodingUnsupported, CompressedFlagWrong.
    """
    if flag != 1:
        raise FrameInvalid(f"a frame begins with 0 or 1, not {flag}")
    if encoding in (b"", b"identity"):
        raise CompressedFlagWrong("a message is marked as compressed, and no grpc-encoding says how")
    if encoding not in (b"gzip", b"deflate"):
        raise EncodingUnsupported(f"grpc-encoding {encoding.decode('latin-1')[:40]!r} is not taken; use gzip or none")
    try:
        content = decompressed(message, is_gzip=encoding == b"gzip", limit=MAX_BODY_BYTES)
    except zlib.error as error:
        raise FrameInvalid(f"the message is not {encoding.decode()}: {error}") from error
    if content is None:
        raise too_large()
    return content


def read_wanted(served: ServedVersion, request: ModelInferRequest) -> Wanted:
    """Return which outputs are wanted. Raises OutputUnknown, OutputTwice, ParameterInvalid."""
    outputs = request.outputs
    if not outputs:
        return ALL_OUTPUTS
    return check_wanted(served, [(output.name, grpc_parameters(output.parameters)) for output in outputs])


class InputReader:
    """Takes the tensors out of requests. Raw tensors of shapes that were seen before are not looked at again."""

    _MAX_SHAPES = 1024

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], _Seen] = {}

    def read(self, served: ServedVersion, request: ModelInferRequest) -> CheckedInputs:
        """Return a request's tensors, raw or typed. Raises the InvalidInput that says what does not fit."""
        raws = request.raw_input_contents
        if not raws:
            return check_tensors(served, _typed_tensors(request))
        inputs = request.inputs
        if len(raws) != len(inputs):
            raise ContentsWrong(f"{len(raws)} raw_input_contents for {len(inputs)} inputs{_hint(inputs)}")
        sizes_and_shapes: list[object] = []
        for tensor, raw in zip(inputs, raws, strict=True):
            if tensor.HasField("contents") and tensor.contents.ListFields():
                raise ContentsWrong(f"{tensor.name[:80]} has contents and raw_input_contents; send one of them")
            sizes_and_shapes += (tensor.name, tensor.datatype, len(raw), *tensor.shape)
        key = (id(served), *sizes_and_shapes)
        seen = self._seen.get(key)
        if seen is not None and seen[0] is served:
            _, group, rows, order, width = seen
            return CheckedInputs(group, rows, [raws[index] for index in order], width)
        sent = [
            SentTensor(tensor.name, tensor.datatype, tuple(tensor.shape), raw)
            for tensor, raw in zip(inputs, raws, strict=True)
        ]
        checked = check_tensors(served, sent)
        if all(tensor.datatype != BYTES for tensor in sent):
            if len(self._seen) >= self._MAX_SHAPES:
                self._seen.clear()
            names = [tensor.name for tensor in sent]
            order = tuple([names.index(name) for name, _, _ in checked.group])
            self._seen[key] = (served, checked.group, checked.rows, order, checked.width)
        return checked


class ResponseEncoder:
    """Turns answers into gRPC frames. What is the same for all answers with equal shapes is serialized once."""

    _MAX_HEADS = 1024

    def __init__(self) -> None:
        self._heads: dict[tuple[object, ...], bytes] = {}

    def encode(
        self, deployment: str, served: ServedVersion, request: ModelInferRequest, wanted: Wanted, answer: Answer
    ) -> bytes:
        """Return the response's message, with raw or typed contents as the request has them."""
        if wanted.classes:
            answer = classified(served, wanted, answer)
        if not request.raw_input_contents and _has_typed_contents(answer):
            return _typed_response(deployment, served, request, wanted, answer).SerializeToString()
        key = (deployment, served.version, wanted, answer.shapes)
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= self._MAX_HEADS:
                self._heads.clear()
            head = self._heads[key] = _response(deployment, served, wanted, answer).SerializeToString()
        parts = [head]
        if request.id:
            identifier = request.id.encode()
            parts += (_ID_TAG, varint(len(identifier)), identifier)
        for index in wanted.indices or range(len(answer.raws)):
            raw = answer.raws[index]
            parts += (_RAW_OUTPUT_TAG, varint(len(raw)), raw)
        return b"".join(parts)


def takes_gzip(headers: Headers) -> bool:
    """Say whether a caller can read messages that are compressed with gzip."""
    return any(
        name == b"grpc-accept-encoding" and b"gzip" in [word.strip() for word in value.split(b",")]
        for name, value in headers
    )


def is_worth_compressing(message: bytes) -> bool:
    """Say whether compressing a message can save anything."""
    return len(message) > _COMPRESS_BYTES


def compressed_frame(message: bytes) -> bytes:
    """Return a message in its frame, compressed."""
    content = gzip.compress(message, _COMPRESS_LEVEL)
    return b"\1" + len(content).to_bytes(4, "big") + content


def frame(message: bytes) -> bytes:
    """Return a message as it stands in the body of an answer."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def error_headers(failure: Failure, request_headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer that has no message."""
    return [CONTENT_TYPE, *_status_headers(failure, request_headers)]


def error_trailers(failure: Failure, request_headers: Headers) -> dict[str, Any]:
    """Return the end of an answer that has begun well."""
    return {"type": "http.response.trailers", "headers": _status_headers(failure, request_headers)}


def _status_headers(failure: Failure, request_headers: Headers) -> list[tuple[bytes, bytes]]:
    headers = list(_too_long_headers()) if isinstance(failure, QueueTooLong) else _written_headers(failure)
    headers += [header for header in request_headers if header[0] == b"x-request-id"]
    return headers


@cache
def _too_long_headers() -> tuple[tuple[bytes, bytes], ...]:
    """Written once: under overload most answers are these."""
    return tuple(_written_headers(too_long()))


def _written_headers(failure: Failure) -> list[tuple[bytes, bytes]]:
    details = base64.b64encode(rpc_status(failure).SerializeToString()).rstrip(b"=")
    message = quote(failure.message[:MAX_MESSAGE_LETTERS], safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")
    headers = [
        (b"grpc-status", str(status_of(failure).code).encode()),
        (b"grpc-message", message.encode()),
        (b"grpc-status-details-bin", details),
    ]
    if isinstance(failure, EncodingUnsupported):
        headers.append((b"grpc-accept-encoding", b"identity,deflate,gzip"))
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


def _hint(inputs: Sequence[ModelInferRequest.InferInputTensor]) -> str:
    if any("shared_memory_region" in tensor.parameters for tensor in inputs):
        return "; shared memory is not offered, send tensors in the request"
    return ""


def _typed_tensors(request: ModelInferRequest) -> list[SentTensor]:
    return [
        SentTensor(tensor.name, tensor.datatype, tuple(tensor.shape), _typed_to_raw(tensor))
        for tensor in request.inputs
    ]


def _typed_to_raw(tensor: ModelInferRequest.InferInputTensor) -> bytes:
    field = _CONTENTS_FIELDS.get(tensor.datatype)
    if field is None:
        raise ContentsWrong(
            f"{tensor.name[:80]} has datatype {tensor.datatype[:20]!r}, which has no typed contents; "
            "send raw_input_contents",
            violations=(FieldViolation("inputs", "no typed contents for the datatype"),),
        )
    for other, _ in tensor.contents.ListFields():
        if other.name != field:
            raise ContentsWrong(
                f"{tensor.name[:80]} is {tensor.datatype} and has {other.name}; its elements belong into {field}",
                violations=(FieldViolation("inputs.contents", f"{other.name} is not for {tensor.datatype}"),),
            )
    values = getattr(tensor.contents, field)
    if tensor.datatype == BYTES:
        return join_elements(values)
    try:
        return pack(tensor.datatype, values)
    except ValueError as error:
        raise ContentsWrong(f"{tensor.name[:80]}: {error}") from error


def _has_typed_contents(answer: Answer) -> bool:
    """Say whether all outputs can be typed: 16-bit floats have no field, and either all outputs are raw or none is."""
    return all(tensor.datatype in _CONTENTS_FIELDS for tensor in answer.tensors)


def _raw_to_typed(datatype: str, raw: bytes, contents: InferTensorContents) -> None:
    if datatype == BYTES:
        contents.bytes_contents.extend(split_elements(raw))
    else:
        getattr(contents, _CONTENTS_FIELDS[datatype]).extend(unpack(datatype, raw))


def _response(deployment: str, served: ServedVersion, wanted: Wanted, answer: Answer) -> ModelInferResponse:
    response = ModelInferResponse(model_name=deployment, model_version=served.version)
    for index in wanted.indices or range(len(answer.tensors)):
        tensor = answer.tensors[index]
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=answer.shapes[index])
    return response


def _typed_response(
    deployment: str, served: ServedVersion, request: ModelInferRequest, wanted: Wanted, answer: Answer
) -> ModelInferResponse:
    response = _response(deployment, served, wanted, answer)
    response.id = request.id
    for tensor, index in zip(response.outputs, wanted.indices or range(len(answer.raws)), strict=True):
        _raw_to_typed(tensor.datatype, answer.raws[index], tensor.contents)
    return response


def varint(number: int) -> bytes:
    """Return a number as Protobuf has it before what is length-delimited."""
    if number < 128:
        return number.to_bytes(1, "little")
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
