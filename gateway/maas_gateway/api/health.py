"""grpc.health.v1 for the whole cluster: each question goes to the process that knows."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maas_gateway.domain.health import HealthTable, Prober, ServiceUnknown

Context = grpc.aio.ServicerContext[Any, Any]

_TIMEOUT_SECONDS = 1.0
# A process that has just come back is not to be called away for long.
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_WATCH_SECONDS = 1.0


class ChannelProber:
    """Asks over gRPC, by one channel for each address."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def serving(self, address: str, service: str) -> bool:
        """Return whether the process says so within a second; one that is away does not."""
        channel = self._channels.setdefault(address, grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS))
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=_TIMEOUT_SECONDS, wait_for_ready=True
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Close all channels."""
        for channel in self._channels.values():
            await channel.close()


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Health, answered by the processes that are asked for."""

    def __init__(self, table: HealthTable, prober: Prober) -> None:
        self._table = table
        self._prober = prober

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Answer for one service, or for all when none is named."""
        try:
            return health_pb2.HealthCheckResponse(status=await self._status(request.service))
        except ServiceUnknown as unknown:
            await context.abort(grpc.StatusCode.NOT_FOUND, unknown.message)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, _: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Answer now and after each change; changes are seen within two seconds."""
        last = None
        while True:
            try:
                status = await self._status(request.service)
            except ServiceUnknown:
                status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            await asyncio.sleep(_WATCH_SECONDS)

    async def _status(self, service: str) -> int:
        questions = self._table.questions(service)
        answers = await asyncio.gather(*(self._prober.serving(*question) for question in questions.items()))
        response = health_pb2.HealthCheckResponse
        return int(response.SERVING if all(answers) else response.NOT_SERVING)
