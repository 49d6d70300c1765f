"""What a caller of the cluster catches.

    MaasError
      InvalidInputError      INVALID_ARGUMENT     fix the request
      NotFoundError          NOT_FOUND            check the name
      AlreadyExistsError     ALREADY_EXISTS       take the one there is
      ConflictError          ABORTED              read again, then retry
      NotAllowedNowError     FAILED_PRECONDITION  change the state first
      OverloadedError        RESOURCE_EXHAUSTED   wait, then retry
      DataCorruptError       DATA_LOSS            fetch again, then report
      UnavailableError       UNAVAILABLE          retry, with backoff
      DeadlineExceededError  DEADLINE_EXCEEDED    give it more time, or ask for less
      InternalError          INTERNAL and others  report it with its request id

`reason` is a constant of the contract (`MODEL_NOT_FOUND`); the message is for people. The reverse of
maas_runtime/errors.py: a test holds the two tables together.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

ERROR_DOMAIN = "maas"
"""google.rpc.ErrorInfo.domain of every error."""


class MaasError(Exception):
    """A call that failed, with what the cluster said of it."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        reason: str = "",
        metadata: dict[str, str] | None = None,
        resource_name: str = "",
        violations: tuple[tuple[str, str], ...] = (),
        retry_after_seconds: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        """The gRPC status: `NOT_FOUND`."""
        self.reason = reason
        self.metadata = metadata or {}
        self.resource_name = resource_name
        self.violations = violations
        """Wrong fields: (path, what is wrong)."""
        self.retry_after_seconds = retry_after_seconds
        self.request_id = request_id


class InvalidInputError(MaasError):
    """The request is wrong."""


class NotFoundError(MaasError):
    """There is no such thing."""


class AlreadyExistsError(MaasError):
    """The name is taken."""


class ConflictError(MaasError):
    """Somebody else changed it in between."""


class NotAllowedNowError(MaasError):
    """The present state does not allow it."""


class OverloadedError(MaasError):
    """A bound is reached; `retry_after_seconds` says when to come back."""


class DataCorruptError(MaasError):
    """Bytes are not what their hash says."""


class UnavailableError(MaasError):
    """A part of the cluster is away."""


class DeadlineExceededError(MaasError):
    """The answer was not there in time."""


class InternalError(MaasError):
    """A bug in the cluster, or an answer that the client does not understand."""


ERROR_OF_STATUS: dict[str, type[MaasError]] = {
    "INVALID_ARGUMENT": InvalidInputError,
    "NOT_FOUND": NotFoundError,
    "ALREADY_EXISTS": AlreadyExistsError,
    "ABORTED": ConflictError,
    "FAILED_PRECONDITION": NotAllowedNowError,
    "RESOURCE_EXHAUSTED": OverloadedError,
    "DATA_LOSS": DataCorruptError,
    "UNAVAILABLE": UnavailableError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
}


def from_rpc_error(error: "grpc.RpcError") -> MaasError:
    """Return the error that an RpcError stands for. Takes errors of grpc and of grpc.aio."""
    from google.rpc import error_details_pb2, status_pb2

    code = error.code().name
    found: dict[str, Any] = {}
    trailing: Any = error.trailing_metadata() or ()
    details = next((value for key, value in trailing if key == "grpc-status-details-bin"), None)
    if details is not None:
        for detail in status_pb2.Status.FromString(details).details:
            info = error_details_pb2.ErrorInfo()
            request, resource = error_details_pb2.RequestInfo(), error_details_pb2.ResourceInfo()
            bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
            precondition = error_details_pb2.PreconditionFailure()
            if detail.Unpack(info):
                found |= {"reason": info.reason, "metadata": dict(info.metadata)}
            elif detail.Unpack(request):
                found["request_id"] = request.request_id
            elif detail.Unpack(resource):
                found["resource_name"] = resource.resource_name
            elif detail.Unpack(bad):
                found["violations"] = tuple((v.field, v.description) for v in bad.field_violations)
            elif detail.Unpack(retry):
                found["retry_after_seconds"] = retry.retry_delay.ToMilliseconds() / 1000
            elif detail.Unpack(precondition) and precondition.violations:
                found["resource_name"] = precondition.violations[0].subject
    kind = ERROR_OF_STATUS.get(code, InternalError)
    return kind(error.details() or code, code=code, **found)
