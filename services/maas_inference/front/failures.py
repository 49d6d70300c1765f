"""What a caller of the data path may be told, and the one table from failure to gRPC and HTTP status.

maas_runtime/errors.py has the same table in grpc's types, which are not imported here: grpc does not belong into Envoy.
A test holds the two together.
"""

from dataclasses import dataclass
from typing import Final

from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from maas.errors import ERROR_DOMAIN
from maas_runtime.failures import (
    AlreadyExists,
    Conflict,
    DataCorrupt,
    Failure,
    InvalidInput,
    NotAllowedNow,
    NotFound,
    Overloaded,
    Unavailable,
)

MAX_MESSAGE_LETTERS: Final = 1000
"""How much of a failure's message callers over gRPC get: it stands in headers, which clients bound."""


class ServedModelNotFound(NotFound):
    """No deployment of that name is served."""

    reason = "SERVED_MODEL_NOT_FOUND"


class ServedVersionNotFound(NotFound):
    """The deployment has no such version."""

    reason = "SERVED_VERSION_NOT_FOUND"


class PathNotFound(NotFound):
    """Nothing is served at that path."""

    reason = "PATH_NOT_FOUND"


class MethodNotAllowed(InvalidInput):
    """The path takes other HTTP methods, which `allowed` names as the header Allow does."""

    reason = "METHOD_NOT_ALLOWED"

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class ModelNotNamed(InvalidInput):
    """The request names no deployment, and there is more than one."""

    reason = "MODEL_NOT_NAMED"


class FrameInvalid(InvalidInput):
    """The body is not one gRPC message, or the message is no ModelInferRequest."""

    reason = "FRAME_INVALID"


class MediaTypeWrong(InvalidInput):
    """A gRPC path was sent something that is not application/grpc."""

    reason = "MEDIA_TYPE_WRONG"


class ParameterInvalid(InvalidInput):
    """A parameter that has a meaning has a wrong type or value."""

    reason = "PARAMETER_INVALID"


class TimeoutHeaderInvalid(InvalidInput):
    """The header that says how long a request may take is no number."""

    reason = "TIMEOUT_HEADER_INVALID"


class JsonInvalid(InvalidInput):
    """The body is not the JSON that the path takes."""

    reason = "JSON_INVALID"


class FieldInvalid(InvalidInput):
    """A field of the JSON has a wrong type."""

    reason = "FIELD_INVALID"


class FieldMissing(InvalidInput):
    """A field of the JSON that has to be there is not."""

    reason = "FIELD_MISSING"


class BodyEncodingInvalid(InvalidInput):
    """The body is not compressed in the way that its header says."""

    reason = "BODY_ENCODING_INVALID"


class TextBlank(InvalidInput):
    """A text has nothing but white space."""

    reason = "TEXT_BLANK"


class TextTooLong(InvalidInput):
    """A text is longer than the bound."""

    reason = "TEXT_TOO_LONG"


class TextNotUtf8(InvalidInput):
    """A text is not UTF-8."""

    reason = "TEXT_NOT_UTF8"


class TextNotTaken(InvalidInput):
    """The model takes tensors only."""

    reason = "TEXT_NOT_TAKEN"


class TensorUnknown(InvalidInput):
    """An input is not one of the model's."""

    reason = "TENSOR_UNKNOWN"


class TensorMissing(InvalidInput):
    """An input of the model is not in the request, or is there twice."""

    reason = "TENSOR_MISSING"


class DatatypeWrong(InvalidInput):
    """An input has another datatype than the model's."""

    reason = "DATATYPE_WRONG"


class ShapeWrong(InvalidInput):
    """An input's shape does not fit the model's."""

    reason = "SHAPE_WRONG"


class ContentsWrong(InvalidInput):
    """An input's elements do not fit its datatype and shape."""

    reason = "CONTENTS_WRONG"


class OutputUnknown(InvalidInput):
    """A requested output is not one of the model's."""

    reason = "OUTPUT_UNKNOWN"


class OutputTwice(InvalidInput):
    """An output is asked for twice."""

    reason = "OUTPUT_TWICE"


class TooManyRows(InvalidInput):
    """A request has more rows than one request may have."""

    reason = "TOO_MANY_ROWS"


class InputRefused(InvalidInput):
    """The engine refused the request's elements, such as a word id that the model does not know."""

    reason = "INPUT_REFUSED"


class MessageTooLarge(Overloaded):
    """The message is larger than the bound."""

    reason = "MESSAGE_TOO_LARGE"


class BodiesTooLarge(Overloaded):
    """All bodies that are being received take as much memory as they may."""

    reason = "BODIES_TOO_LARGE"


class QueueFull(Overloaded):
    """As many rows wait for this version as may."""

    reason = "QUEUE_FULL"


class QueueTooLong(Overloaded):
    """What waits already takes longer than the caller's time."""

    reason = "QUEUE_TOO_LONG"


def too_long() -> QueueTooLong:
    """Return the failure for who would wait for nothing. Always the same, so that it is serialized once."""
    return QueueTooLong(
        "what waits already takes longer than the caller's time; retry later or allow more time",
        retry_after_seconds=0.5,
    )


class FrontNotReady(Unavailable):
    """The front has just started and was not told yet what is served."""

    reason = "FRONT_NOT_READY"


class VersionNotReady(Unavailable):
    """The version is being loaded or could not be loaded."""

    reason = "VERSION_NOT_READY"


class NoRoomToLoad(Unavailable):
    """The version is loaded on demand, and there is no memory for it now."""

    reason = "NO_ROOM_TO_LOAD"


class ModelUnloaded(Unavailable):
    """Somebody unloaded the deployment; it answers when it is loaded again."""

    reason = "MODEL_UNLOADED"


class WorkerLost(Unavailable):
    """The engine worker ended while the request was with it, or none came back in time."""

    reason = "WORKER_LOST"


class ComputeFailed(Unavailable):
    """The engine failed at a request that is not at fault."""

    reason = "COMPUTE_FAILED"


class DeadlineExpired(Failure):
    """The caller's time was over before there was an answer."""

    reason = "DEADLINE_EXPIRED"


class EncodingUnsupported(Failure):
    """The message is compressed in a way that is not taken."""

    reason = "ENCODING_UNSUPPORTED"


class MethodNotImplemented(Failure):
    """The protocol has the method, or has not, and this server does not offer it."""

    reason = "METHOD_NOT_IMPLEMENTED"


class CompressedFlagWrong(Failure):
    """A message says that it is compressed, and no header says how. gRPC wants INTERNAL for it."""

    reason = "COMPRESSED_FLAG_WRONG"


class InternalError(Failure):
    """A bug; the caller learns the request's id only."""

    reason = "INTERNAL"


_MAX_VIOLATIONS: Final = 8


@dataclass(frozen=True, slots=True)
class Status:
    """A gRPC status and the HTTP status that stands for it."""

    code: int
    name: str
    http: int


STATUS_OF_KIND: dict[type[Failure], Status] = {
    # Exceptions to their kind's row.
    MethodNotAllowed: Status(3, "INVALID_ARGUMENT", 405),
    MediaTypeWrong: Status(3, "INVALID_ARGUMENT", 415),
    MessageTooLarge: Status(8, "RESOURCE_EXHAUSTED", 413),
    # The kinds.
    InvalidInput: Status(3, "INVALID_ARGUMENT", 400),
    NotFound: Status(5, "NOT_FOUND", 404),
    AlreadyExists: Status(6, "ALREADY_EXISTS", 409),
    Conflict: Status(10, "ABORTED", 409),
    NotAllowedNow: Status(9, "FAILED_PRECONDITION", 400),
    Overloaded: Status(8, "RESOURCE_EXHAUSTED", 429),
    DataCorrupt: Status(15, "DATA_LOSS", 500),
    Unavailable: Status(14, "UNAVAILABLE", 503),
    # What only the data path has.
    DeadlineExpired: Status(4, "DEADLINE_EXCEEDED", 504),
    EncodingUnsupported: Status(12, "UNIMPLEMENTED", 415),
    MethodNotImplemented: Status(12, "UNIMPLEMENTED", 501),
    CompressedFlagWrong: Status(13, "INTERNAL", 400),
    InternalError: Status(13, "INTERNAL", 500),
}


def status_of(failure: Failure) -> Status:
    """Return the status of a failure's class or of its nearest ancestor."""
    return next(STATUS_OF_KIND[kind] for kind in type(failure).__mro__ if kind in STATUS_OF_KIND)


def rpc_status(failure: Failure) -> status_pb2.Status:
    """Return a failure as the google.rpc.Status that goes into `grpc-status-details-bin`."""
    status = status_pb2.Status(code=status_of(failure).code, message=failure.message[:MAX_MESSAGE_LETTERS])
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=failure.reason, domain=ERROR_DOMAIN, metadata=failure.metadata)
    )
    match failure:
        case InvalidInput(violations=violations) if violations:
            status.details.add().Pack(
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field=v.field[:MAX_MESSAGE_LETTERS], description=v.description[:MAX_MESSAGE_LETTERS]
                        )
                        for v in violations[:_MAX_VIOLATIONS]
                    ]
                )
            )
        case NotFound(name=name):
            status.details.add().Pack(error_details_pb2.ResourceInfo(resource_name=name))
        case Overloaded(retry_after_seconds=seconds) | Unavailable(retry_after_seconds=seconds):
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(int(seconds * 1000))
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status
