"""What happens around every call of the client: a timeout, retries where they are safe, errors as maas.errors."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from maas.errors import from_rpc_error

_OPTIONS = (
    ("grpc.max_receive_message_length", 256 * 2**20),
    ("grpc.max_send_message_length", 256 * 2**20),
    # A cluster may be restarting: look again soon, and often.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.primary_user_agent", "maas-client"),
)

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 1.0

_ALWAYS_REPEATABLE = ("Get", "List", "SetAlias", "Cancel", "Model", "Server", "Check")
"""Beginnings of the methods that may be sent twice: they change nothing, or the same thing again."""


def open_channel(endpoint: str) -> grpc.Channel:
    """Return a channel to the cluster that raises RpcError, as grpc does. Connects with the first call."""
    return grpc.insecure_channel(endpoint, options=_OPTIONS)


def guarded(channel: grpc.Channel, timeout: float, retry_seconds: float) -> grpc.Channel:
    """Return the channel with everything around its calls.

    A call gets `timeout` seconds unless it brings its own, and raises MaasError instead of RpcError. A call that finds
    the cluster UNAVAILABLE is sent again for `retry_seconds` if sending it twice does no harm.
    """
    return grpc.intercept_channel(channel, _UnaryCalls(timeout, retry_seconds), _StreamCalls(timeout))


class Pauses:
    """How long to wait before each further attempt, until `seconds` have passed since the first failure."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._pause = _FIRST_PAUSE_SECONDS

    def wait(self) -> bool:
        """Wait a little and return True; return False at once when the time is over."""
        if time.monotonic() + self._pause > self._end:
            return False
        # Not all at the same moment, when many callers lost the same server.
        time.sleep(self._pause * random.uniform(0.7, 1.0))
        self._pause = min(_LONGEST_PAUSE_SECONDS, self._pause * 2)
        return True


class _UnaryCalls(grpc.UnaryUnaryClientInterceptor):
    def __init__(self, timeout: float, retry_seconds: float) -> None:
        self._timeout = timeout
        self._retry_seconds = retry_seconds

    def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Any], Any],
        client_call_details: grpc.ClientCallDetails,
        request: Any,
    ) -> Any:
        details = _with_timeout(client_call_details, self._timeout)
        pauses: Pauses | None = None
        while True:
            outcome = continuation(details, request)
            try:
                outcome.result()
                return outcome
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or not _is_repeatable(details.method, request):
                    raise from_rpc_error(error) from error
                pauses = pauses or Pauses(self._retry_seconds)
                if not pauses.wait():
                    raise from_rpc_error(error) from error


class _StreamCalls(grpc.UnaryStreamClientInterceptor):
    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Any], Any],
        client_call_details: grpc.ClientCallDetails,
        request: Any,
    ) -> Any:
        return _translated(continuation(_with_timeout(client_call_details, self._timeout), request))


def _translated(call: Any) -> Iterator[Any]:
    try:
        yield from call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    finally:
        call.cancel()


def _with_timeout(details: grpc.ClientCallDetails, timeout: float) -> grpc.ClientCallDetails:
    if details.timeout is not None:
        return details
    return _Details(details, timeout)


class _Details(grpc.ClientCallDetails):
    """Call details with another timeout; grpc offers no way to make a changed copy."""

    def __init__(self, details: grpc.ClientCallDetails, timeout: float) -> None:
        self.method = details.method
        self.timeout = timeout
        self.metadata = details.metadata
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


def _is_repeatable(method: str | bytes, request: Any) -> bool:
    name = (method.decode() if isinstance(method, bytes) else method).rpartition("/")[2]
    # A create that carries a request id makes one thing however often it is sent.
    return name.startswith(_ALWAYS_REPEATABLE) or bool(getattr(request, "request_id", ""))
