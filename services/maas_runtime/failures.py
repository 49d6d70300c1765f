"""The kinds of failure that a caller may be told of.

    Failure
      InvalidInput     the request is wrong            -> fix the request
      NotFound         there is no such thing          -> check the name
      AlreadyExists    the name is taken               -> take the one there is
      Conflict         somebody else changed it        -> read again, then retry
      NotAllowedNow    the state does not allow it     -> change the state first
      Overloaded       a bound is reached              -> wait, then retry
      DataCorrupt      stored bytes are damaged        -> fetch again, then report
      Unavailable      a part is away for the moment   -> retry, with backoff

A kind knows nothing of gRPC; maas_runtime/errors.py is the one table from kind to status. The domain raises a
subclass whose `reason` is part of the contract: UPPER_SNAKE, at most 63 characters, unique over the project.
Anything that is not a Failure is a bug and reaches the caller as INTERNAL with the request id only.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in the request (`target.weight`) and what is wrong with it."""

    field: str
    description: str


class Failure(Exception):
    """A failure that is not a bug; `message` is one sentence that says what to do."""

    reason = "FAILURE"

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class InvalidInput(Failure):
    """The request is wrong, whatever the state of the system."""

    reason = "INVALID_INPUT"

    def __init__(self, message: str, *, violations: tuple[FieldViolation, ...] = (), **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.violations = violations


class NotFound(Failure):
    """There is no such thing."""

    reason = "NOT_FOUND"

    def __init__(self, message: str, *, name: str, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.name = name


class AlreadyExists(Failure):
    """The name is taken."""

    reason = "ALREADY_EXISTS"

    def __init__(self, message: str, *, name: str, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.name = name


class Conflict(Failure):
    """Somebody else changed it in between."""

    reason = "CONFLICT"


class NotAllowedNow(Failure):
    """The present state of `name` does not allow it."""

    reason = "NOT_ALLOWED_NOW"

    def __init__(self, message: str, *, name: str, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.name = name


class Overloaded(Failure):
    """A bound is reached: a queue, a disk, a limit."""

    reason = "OVERLOADED"

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after_seconds = retry_after_seconds


class DataCorrupt(Failure):
    """Stored or received bytes are not what their hash says."""

    reason = "DATA_CORRUPT"

    def __init__(self, message: str, *, name: str, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.name = name


class Unavailable(Failure):
    """A part that is needed is away for the moment."""

    reason = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0, **metadata: str) -> None:
        super().__init__(message, **metadata)
        self.retry_after_seconds = retry_after_seconds
