"""Inference over REST: the Open Inference Protocol in JSON, with its binary tensor data extension, and /predict."""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import exp
from typing import Any, Final, TypeVar

import msgspec

from maas_inference.datatypes import BYTES, ELEMENT_SIZES, join_elements, pack, split_elements, unpack
from maas_inference.front.bodies import MAX_BODY_BYTES, too_large
from maas_inference.front.failures import (
    BodyEncodingInvalid,
    ContentsWrong,
    DatatypeWrong,
    EncodingUnsupported,
    FieldInvalid,
    FieldMissing,
    JsonInvalid,
    TextNotTaken,
    TimeoutHeaderInvalid,
)
from maas_inference.front.grpc_infer import MAX_TIMEOUT_SECONDS, decompressed
from maas_inference.front.inputs import CheckedInputs, SentTensor, check_tensors, check_texts
from maas_inference.front.options import boolean_parameter
from maas_inference.front.question import Answer
from maas_inference.front.wanted import ALL_OUTPUTS, Wanted, check_wanted
from maas_inference.table import ServedVersion
from maas_runtime.failures import FieldViolation

BINARY_HEADER: Final = b"inference-header-content-length"
TIMEOUT_HEADER: Final = b"maas-timeout-ms"
"""How long a REST request may take, as `grpc-timeout` says it over gRPC."""
_COMPRESS_BYTES: Final = 1024
"""Answers that are larger are compressed, for callers who take that."""
_COMPRESS_LEVEL: Final = 1
_MAX_LENGTH_DIGITS: Final = 12
TEXT_CLASSIFICATION: Final = "text-classification"
"""The task whose answers /predict can spell out."""


# Clients that write every field they know send null for what is not there.
class _SentTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: Any = None
    parameters: dict[str, Any] | None = None


class _WantedOutput(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """The JSON of an inference request."""

    inputs: list[_SentTensor]
    id: str | None = None
    outputs: list[_WantedOutput] | None = None
    parameters: dict[str, Any] | None = None


class PredictRequest(msgspec.Struct):
    """The JSON of /predict: `text` is one text or a list, `texts` a list."""

    text: str | list[str] | None = None
    texts: list[str] | None = None


class IndexRequest(msgspec.Struct):
    """The JSON of a request for the repository's index."""

    ready: bool = False


_T = TypeVar("_T", InferRequest, PredictRequest, IndexRequest)
_infer_decoder: Final = msgspec.json.Decoder(InferRequest)
_predict_decoder: Final = msgspec.json.Decoder(PredictRequest)
_index_decoder: Final = msgspec.json.Decoder(IndexRequest)
encode_json: Final = msgspec.json.Encoder().encode


def unpacked_body(body: bytes, encoding: bytes) -> bytes:
    """Return the body without its content-encoding. Raises BodyEncodingInvalid, EncodingUnsupported."""
    encoding = encoding.strip().lower()
    if encoding in (b"", b"identity"):
        return body
    if encoding not in (b"gzip", b"deflate"):
        raise EncodingUnsupported(f"content-encoding {encoding.decode('latin-1')[:40]!r} is not taken; use gzip")
    try:
        content = decompressed(body, is_gzip=encoding == b"gzip", limit=MAX_BODY_BYTES)
    except zlib.error as error:
        raise BodyEncodingInvalid(f"the body is not {encoding.decode()}: {error}") from error
    if content is None:
        raise too_large()
    return content


def packed_body(body: bytes, accepted: bytes) -> tuple[bytes, bytes]:
    """Return a body and its content-encoding, empty when it stays as it is: it is small, or nothing else is taken."""
    if len(body) > _COMPRESS_BYTES:
        words = [word.replace(b" ", b"").partition(b";q=") for word in accepted.lower().split(b",")]
        taken = {name for name, _, weight in words if weight.strip(b"0.") or not weight}
        if b"gzip" in taken:
            return gzip.compress(body, _COMPRESS_LEVEL), b"gzip"
        if b"deflate" in taken:
            return zlib.compress(body, _COMPRESS_LEVEL), b"deflate"
    return body, b""


def parse_timeout(value: bytes) -> float:
    """Return the seconds of a `maas-timeout-ms` header. Raises TimeoutHeaderInvalid."""
    if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
        raise TimeoutHeaderInvalid(f"{TIMEOUT_HEADER.decode()} is a whole number of milliseconds")
    return min(int(value) / 1000, MAX_TIMEOUT_SECONDS)


def decode_infer(body: bytes, json_length: bytes) -> tuple[InferRequest, memoryview]:
    """Return the request and the binary data behind its JSON, which ends after `json_length` bytes if that is given."""
    view = memoryview(body)
    if not json_length:
        return _decoded(_infer_decoder, view), view[len(view) :]
    if not json_length.isdigit() or len(json_length) > _MAX_LENGTH_DIGITS or int(json_length) > len(body):
        raise JsonInvalid("Inference-Header-Content-Length is not a length within the body")
    return _decoded(_infer_decoder, view[: int(json_length)]), view[int(json_length) :]


def read_inputs(served: ServedVersion, request: InferRequest, binary: memoryview) -> CheckedInputs:
    """Return the request's tensors. Raises the InvalidInput that says what does not fit."""
    sent = []
    for tensor in request.inputs:
        size_bytes = tensor.parameters.get("binary_data_size") if tensor.parameters else None
        if size_bytes is None:
            raw: bytes | memoryview = _json_to_raw(tensor)
        elif tensor.data is not None:
            raise ContentsWrong(f"{tensor.name[:80]} has data and binary_data_size; send one of them")
        elif type(size_bytes) is not int or not 0 <= size_bytes <= len(binary):
            raise ContentsWrong(f"{tensor.name[:80]}: binary_data_size is not a length within the body")
        else:
            raw, binary = binary[:size_bytes], binary[size_bytes:]
        sent.append(SentTensor(tensor.name, tensor.datatype, tuple(tensor.shape), raw))
    if len(binary):
        raise ContentsWrong(f"{len(binary)} bytes of binary data belong to no input")
    return check_tensors(served, sent)


def read_wanted(served: ServedVersion, request: InferRequest) -> Wanted:
    """Return which outputs are wanted. Raises OutputUnknown, OutputTwice, ParameterInvalid."""
    if not request.outputs:
        return ALL_OUTPUTS
    return check_wanted(served, [(output.name, output.parameters or {}) for output in request.outputs])


def read_binary(request: InferRequest) -> list[bool]:
    """Return, for each output that is asked for, whether it is wanted in binary; one value when none is named.

    Raises ParameterInvalid.
    """
    all_binary = boolean_parameter(request.parameters or {}, "binary_data_output", default=False)
    if not request.outputs:
        return [all_binary]
    return [boolean_parameter(output.parameters or {}, "binary_data", all_binary) for output in request.outputs]


def encode_infer(
    deployment: str,
    served: ServedVersion,
    request: InferRequest,
    wanted: Wanted,
    are_binary: Sequence[bool],
    answer: Answer,
) -> tuple[bytes, int | None]:
    """Return the body, and the length of its JSON when binary data stands behind it."""
    outputs = []
    binary = []
    indices: Sequence[int] = wanted.indices or range(len(answer.raws))
    for position, index in enumerate(indices):
        tensor, raw = answer.tensors[index], answer.raws[index]
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": answer.shapes[index]}
        if are_binary[position if wanted.indices else 0]:
            output["parameters"] = {"binary_data_size": len(raw)}
            binary.append(raw)
        else:
            output["data"] = _raw_to_json(tensor.datatype, raw)
        outputs.append(output)
    response: dict[str, Any] = {"model_name": deployment, "model_version": served.version, "outputs": outputs}
    if request.id:
        response["id"] = request.id
    header = encode_json(response)
    return (header + b"".join(binary), len(header)) if binary else (header, None)


def decode_index(body: bytes) -> bool:
    """Return whether only what is ready is wanted. Raises JsonInvalid, FieldInvalid."""
    return _decoded(_index_decoder, body).ready


def decode_predict(body: bytes) -> tuple[list[str], bool]:
    """Return the texts, and whether they came as a list. Raises JsonInvalid, FieldInvalid, FieldMissing."""
    request = _decoded(_predict_decoder, body)
    texts = request.texts if request.text is None else request.text
    if texts is None:
        raise FieldMissing(
            'send {"text": "..."} or {"texts": ["...", "..."]}', violations=(FieldViolation("text", "is missing"),)
        )
    return ([texts], False) if isinstance(texts, str) else (texts, True)


def read_texts(served: ServedVersion, texts: Sequence[str]) -> CheckedInputs:
    """Return texts as inputs. Raises the InvalidInput that says what does not fit."""
    if served.text_input and served.task != TEXT_CLASSIFICATION:
        raise TextNotTaken("this model is no classifier; use /v2/models/NAME/infer")
    return check_texts(served, texts)


def encode_predictions(deployment: str, served: ServedVersion, answer: Answer, *, as_list: bool) -> bytes:
    """Return class, label and probabilities of each text; the version's first output holds its logits [N, C]."""
    tensor, raw = answer.tensors[0], answer.raws[0]
    logits = unpack(tensor.datatype, raw)
    classes = answer.shapes[0][1]
    predictions = [
        _prediction(deployment, served, logits[begin : begin + classes]) for begin in range(0, len(logits), classes)
    ]
    return encode_json(predictions if as_list else predictions[0])


def _prediction(deployment: str, served: ServedVersion, logits: Sequence[float]) -> Mapping[str, object]:
    probabilities = softmax(logits)
    predicted = max(range(len(logits)), key=probabilities.__getitem__)
    return {
        "predicted": predicted,
        "label": served.labels[predicted] if predicted < len(served.labels) else str(predicted),
        "probabilities": [round(probability, 6) for probability in probabilities],
        "model": deployment,
        "version": served.version,
    }


def softmax(logits: Sequence[float]) -> list[float]:
    """Return probabilities that add up to 1."""
    largest = max(logits)
    powers = [exp(logit - largest) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def _decoded(decoder: "msgspec.json.Decoder[_T]", body: bytes | memoryview) -> _T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        if "missing required field" in str(error):
            raise FieldMissing(f"the JSON does not fit: {error}") from error
        raise FieldInvalid(f"the JSON does not fit: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JsonInvalid(f"the body is not JSON: {error}") from error


def _json_to_raw(tensor: _SentTensor) -> bytes:
    if tensor.datatype != BYTES and tensor.datatype not in ELEMENT_SIZES:
        raise DatatypeWrong(f"{tensor.name[:80]} has datatype {tensor.datatype[:20]!r}, which is not known")
    if not isinstance(tensor.data, list):
        raise FieldMissing(
            f"{tensor.name[:80]} has no data", violations=(FieldViolation("inputs.data", "must be a list"),)
        )
    values = list(_flat(tensor.data)) if list in map(type, tensor.data) else tensor.data
    try:
        if tensor.datatype == BYTES:
            if not all(isinstance(value, str) for value in values):
                raise ValueError("BYTES takes strings")
            return join_elements([value.encode() for value in values])
        if tensor.datatype != "BOOL" and bool in map(type, values):
            raise ValueError(f"an element is no {tensor.datatype}: true and false are BOOL")
        return pack(tensor.datatype, values)
    except ValueError as error:
        raise ContentsWrong(
            f"{tensor.name[:80]}: {error}", violations=(FieldViolation("inputs.data", str(error)),)
        ) from error


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    stack = [iter(values)]
    while stack:
        for value in stack[-1]:
            if isinstance(value, list):
                stack.append(iter(value))
                break
            yield value
        else:
            stack.pop()


def _raw_to_json(datatype: str, raw: bytes) -> list[Any]:
    if datatype == BYTES:
        return [element.decode("utf-8", "replace") for element in split_elements(raw)]
    return unpack(datatype, raw)
