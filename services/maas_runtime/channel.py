"""Calls from one service to another: request id, deadline and who asks go along, failures come back as failures."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from maas import errors as client_errors
from maas.actor import ACTOR_HEADER
from maas_runtime import failures
from maas_runtime.context import CURRENT_CALL, REQUEST_ID_HEADER

DEFAULT_TIMEOUT_SECONDS = 10.0

_OPTIONS = (
    ("grpc.max_receive_message_length", 8 * 2**20),
    # The other process may be restarting: ask again soon, and often.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

KIND_OF_ERROR: dict[type[client_errors.MaasError], type[failures.Failure]] = {
    client_errors.InvalidInputError: failures.InvalidInput,
    client_errors.NotFoundError: failures.NotFound,
    client_errors.AlreadyExistsError: failures.AlreadyExists,
    client_errors.ConflictError: failures.Conflict,
    client_errors.NotAllowedNowError: failures.NotAllowedNow,
    client_errors.OverloadedError: failures.Overloaded,
    client_errors.DataCorruptError: failures.DataCorrupt,
    client_errors.UnavailableError: failures.Unavailable,
    client_errors.DeadlineExceededError: failures.Unavailable,
}


def open_channel(address: str) -> grpc.aio.Channel:
    """Return a channel to another service. Unary calls get a timeout of 10 s or what the caller has left.

    A unary call raises the Failure that the other service raised, with its reason; streams are wrapped in
    `translated_failures` where they are read. A call that finds the other process restarting waits for it within its
    timeout.
    """
    return grpc.aio.insecure_channel(address, options=_OPTIONS, interceptors=[_UnaryCalls(), _StreamCalls()])


@contextmanager
def translated_failures() -> Iterator[None]:
    """Turn an RpcError from another service into the Failure that it stands for."""
    try:
        yield
    except grpc.RpcError as error:
        raise failure_of(client_errors.from_rpc_error(error)) from error


def failure_of(error: client_errors.MaasError) -> failures.Failure:
    """Return the failure that another service raised, of the same kind, reason and message."""
    kind = next((KIND_OF_ERROR[base] for base in type(error).__mro__ if base in KIND_OF_ERROR), failures.Unavailable)
    failure: failures.Failure
    if issubclass(kind, failures.NotFound | failures.AlreadyExists | failures.NotAllowedNow | failures.DataCorrupt):
        failure = kind(error.message, name=error.resource_name)
    elif issubclass(kind, failures.Overloaded | failures.Unavailable):
        failure = kind(error.message, retry_after_seconds=error.retry_after_seconds or 1.0)
    else:
        failure = kind(error.message)
    failure.reason = error.reason
    return failure


def _with_context(details: grpc.aio.ClientCallDetails, timeout: float | None) -> grpc.aio.ClientCallDetails:
    call = CURRENT_CALL.get()
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    if call is not None:
        metadata.add(REQUEST_ID_HEADER, call.request_id)
        if metadata.get(ACTOR_HEADER) is None:
            metadata.add(ACTOR_HEADER, call.actor)
    return grpc.aio.ClientCallDetails(
        method=details.method,
        timeout=timeout,
        metadata=metadata,
        credentials=details.credentials,
        wait_for_ready=True if details.wait_for_ready is None else details.wait_for_ready,
    )


class _UnaryCalls(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        timeout = client_call_details.timeout or DEFAULT_TIMEOUT_SECONDS
        call = CURRENT_CALL.get()
        remaining = call.remaining_seconds() if call else None
        with translated_failures():
            return await (
                await continuation(
                    _with_context(client_call_details, timeout if remaining is None else min(timeout, remaining)),
                    request,
                )
            )


class _StreamCalls(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(_with_context(client_call_details, client_call_details.timeout), request)
