"""The one table from kind of failure to gRPC status, with google.rpc details.

A failure's class decides by its ancestry, so a subclass needs no entry. client/maas/errors.py holds the reverse table.
"""

from dataclasses import dataclass

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

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

DETAILS_KEY = "grpc-status-details-bin"

# Failures quote what a caller sent, which may be long, and all of it travels in trailers, of which clients take 8 KiB.
_MESSAGE_BYTES = 800
_TEXT_BYTES = 160
_VIOLATIONS = 8

STATUS_OF_KIND: dict[type[Failure], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    Conflict: grpc.StatusCode.ABORTED,
    NotAllowedNow: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DataCorrupt: grpc.StatusCode.DATA_LOSS,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class WireError:
    """What a caller gets instead of an answer."""

    code: grpc.StatusCode
    message: str
    status: status_pb2.Status

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """Return the status with its details, as gRPC sends it."""
        return ((DETAILS_KEY, self.status.SerializeToString()),)


def wire_error(failure: Failure, request_id: str) -> WireError:
    """Translate a failure. Raises TypeError for a kind without an entry, which a test keeps from happening."""
    code = next((STATUS_OF_KIND[kind] for kind in type(failure).__mro__ if kind in STATUS_OF_KIND), None)
    if code is None:
        raise TypeError(f"{type(failure).__name__} is of no kind that has a status")
    return _wire_error(code, failure.message, failure.reason, failure.metadata, request_id, _detail(failure))


def internal_error(request_id: str) -> WireError:
    """Return what a caller may know of a bug: where to find it in the log."""
    return _wire_error(
        grpc.StatusCode.INTERNAL, f"internal error; request id {request_id}", "INTERNAL", {}, request_id, None
    )


def rpc_status(failure: Failure) -> status_pb2.Status:
    """Return a failure as a google.rpc.Status, for resources that hold one."""
    return wire_error(failure, request_id="").status


def _wire_error(
    code: grpc.StatusCode,
    message: str,
    reason: str,
    metadata: dict[str, str],
    request_id: str,
    detail: Message | None,
) -> WireError:
    message = _shortened(message, _MESSAGE_BYTES)
    status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=message)
    metadata = {key: _shortened(value, _TEXT_BYTES) for key, value in metadata.items()}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=metadata))
    if request_id:
        status.details.add().Pack(error_details_pb2.RequestInfo(request_id=request_id))
    if detail is not None:
        status.details.add().Pack(detail)
    return WireError(code, message, status)


def _shortened(text: str, most_bytes: int) -> str:
    encoded = text.encode()
    if len(encoded) <= most_bytes:
        return text
    return encoded[: most_bytes - 3].decode(errors="ignore") + "…"


def _detail(failure: Failure) -> Message | None:
    detail: Message | None = None
    description = _shortened(failure.message, _TEXT_BYTES)
    match failure:
        case InvalidInput(violations=violations) if violations:
            detail = error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=_shortened(v.field, _TEXT_BYTES), description=_shortened(v.description, _TEXT_BYTES)
                    )
                    for v in violations[:_VIOLATIONS]
                ]
            )
        case NotFound(name=name) | AlreadyExists(name=name) | DataCorrupt(name=name):
            detail = error_details_pb2.ResourceInfo(
                resource_name=_shortened(name, _TEXT_BYTES), description=description
            )
        case NotAllowedNow(name=name):
            detail = error_details_pb2.PreconditionFailure(
                violations=[
                    error_details_pb2.PreconditionFailure.Violation(
                        type=failure.reason, subject=_shortened(name, _TEXT_BYTES), description=description
                    )
                ]
            )
        case Overloaded(retry_after_seconds=seconds) | Unavailable(retry_after_seconds=seconds):
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(int(seconds * 1000))
            detail = error_details_pb2.RetryInfo(retry_delay=delay)
    return detail
