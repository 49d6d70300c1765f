"""What happens around every call of the client: a timeout, retries where they are safe, errors as maas.errors."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import grpc

from maas.actor import ACTOR_HEADER, fit_actor
from maas.errors import from_rpc_error

Metadata: TypeAlias = tuple[tuple[str, str], ...]

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


def guarded(channel: grpc.Channel, timeout: float, retry_seconds: float, actor: str) -> grpc.Channel:
    """Return the channel with everything around its calls, each of which says who asks.

    A call gets `timeout` seconds unless it brings its own, and raises MaasError instead of RpcError. A call that finds
    the cluster UNAVAILABLE is sent again for `retry_seconds` if sending it twice does no harm.
    """
    metadata = ((ACTOR_HEADER, fit_actor(actor)),)
    return grpc.intercept_channel(
        channel, _UnaryCalls(timeout, retry_seconds, metadata), _StreamCalls(timeout, metadata)
    )


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
    def __init__(self, timeout: float, retry_seconds: float, metadata: Metadata) -> None:
        self._timeout = timeout
        self._retry_seconds = retry_seconds
        self._metadata = metadata

    def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Any], Any],
        client_call_details: grpc.ClientCallDetails,
        request: Any,
    ) -> Any:
        details = _Details(client_call_details, self._timeout, self._metadata)
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
    def __init__(self, timeout: float, metadata: Metadata) -> None:
        self._timeout = timeout
        self._metadata = metadata

    def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Any], Any],
        client_call_details: grpc.ClientCallDetails,
        request: Any,
    ) -> Any:
        return _translated(continuation(_Details(client_call_details, self._timeout, self._metadata), request))


def _translated(call: Any) -> Iterator[Any]:
    try:
        yield from call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    finally:
        call.cancel()


class _Details(grpc.ClientCallDetails):
    """Call details with a timeout and more metadata; grpc offers no way to make a changed copy."""

    def __init__(self, details: grpc.ClientCallDetails, timeout: float, metadata: Metadata) -> None:
        self.method = details.method
        self.timeout = timeout if details.timeout is None else details.timeout
        self.metadata = (*(details.metadata or ()), *metadata)
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


def _is_repeatable(method: str | bytes, request: Any) -> bool:
    name = (method.decode() if isinstance(method, bytes) else method).rpartition("/")[2]
    # A create that carries a request id makes one thing however often it is sent.
    return name.startswith(_ALWAYS_REPEATABLE) or bool(getattr(request, "request_id", ""))
