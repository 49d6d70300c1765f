"""What happens around every call of every service: request id, deadline, validation, failures, metrics, log."""

from __future__ import annotations  # grpc's classes take type arguments in its stubs only

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from maas.actor import ACTOR_HEADER, actor_or_unknown
from maas.names import NameInvalid
from maas_runtime.context import CURRENT_CALL, REQUEST_ID_HEADER, CallContext, request_id_or_new
from maas_runtime.errors import WireError, internal_error, wire_error
from maas_runtime.failures import Failure, InvalidInput
from maas_runtime.metrics import CallMetrics
from maas_runtime.validation import RequestValidator

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_UNCHECKED = ("/grpc.health.v1.", "/grpc.reflection.")


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps unary and streaming handlers alike, so that a servicer needs no try and no check of its own."""

    def __init__(self, validator: RequestValidator, metrics: CallMetrics) -> None:
        self._validator = validator
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler with everything around it."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_UNCHECKED):
            return handler
        make = getattr(
            grpc,
            f"{'stream' if handler.request_streaming else 'unary'}_"
            f"{'stream' if handler.response_streaming else 'unary'}_rpc_method_handler",
        )
        inner: Any = (
            handler.stream_stream
            if handler.request_streaming and handler.response_streaming
            else handler.stream_unary
            if handler.request_streaming
            else handler.unary_stream
            if handler.response_streaming
            else handler.unary_unary
        )
        wrapped = self._streaming(inner, method) if handler.response_streaming else self._unary(inner, method)
        return make(  # type: ignore[no-any-return]
            wrapped,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _unary(self, inner: Callable[..., Any], method: str) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> Any:
            with self._around(method, context) as ended:
                try:
                    return await inner(self._checked(request), context)
                except Exception as error:
                    await ended(error)

        return call

    def _streaming(self, inner: Callable[..., Any], method: str) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._around(method, context) as ended:
                try:
                    async for response in inner(self._checked(request), context):
                        yield response
                except Exception as error:
                    await ended(error)

        return call

    def _checked(self, request: Any) -> Any:
        if isinstance(request, Message):
            self._validator.check(request)
            return request
        return self._checked_stream(request)

    async def _checked_stream(self, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        async for request in requests:
            self._validator.check(request)
            yield request

    @contextmanager
    def _around(self, method: str, context: Context) -> Iterator[Callable[[Exception], Awaitable[None]]]:
        """Set the call's context, count it, and give what ends it after an exception."""
        sent = dict(context.invocation_metadata() or ())
        remaining = context.time_remaining()
        call = CallContext(
            request_id_or_new(_text(sent.get(REQUEST_ID_HEADER))),
            None if remaining is None else time.monotonic() + remaining,
            actor_or_unknown(_text(sent.get(ACTOR_HEADER))),
        )
        CURRENT_CALL.set(call)  # each call runs in a task of its own, so there is nothing to put back
        started = time.monotonic()
        status, reason = "OK", ""
        self._metrics.running.inc()

        async def ended(error: Exception) -> None:
            nonlocal status, reason
            if isinstance(error, grpc.aio.AbortError | NotImplementedError):
                status = "UNIMPLEMENTED" if isinstance(error, NotImplementedError) else "ABORTED_BY_SERVICER"
                raise error
            wire, reason = _translated(error, method, call.request_id)
            status = wire.code.name
            await context.abort(wire.code, wire.message, wire.trailing_metadata())

        try:
            yield ended
        except (asyncio.CancelledError, GeneratorExit):
            status = "CANCELLED"
            raise
        finally:
            self._metrics.running.dec()
            self._metrics.finished.labels(method, status, reason).inc()
            self._metrics.seconds.labels(method).observe(time.monotonic() - started)


def _text(value: str | bytes | None) -> str | None:
    return value if isinstance(value, str) else None


class ResourceNameInvalid(InvalidInput):
    """A text is not a resource name of the wanted kind."""

    reason = "RESOURCE_NAME_INVALID"


def _translated(error: Exception, method: str, request_id: str) -> tuple[WireError, str]:
    if isinstance(error, NameInvalid):
        error = ResourceNameInvalid(str(error))
    if isinstance(error, Failure):
        logger.debug("call failed", extra={"method": method, "reason": error.reason, "detail": error.message})
        return wire_error(error, request_id), error.reason
    logger.error("bug in a call", exc_info=error, extra={"method": method})
    return internal_error(request_id), "INTERNAL"
