"""Ways to ask a process whether it is ready."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeAlias

Probe: TypeAlias = Callable[[], Awaitable[bool]]

_TIMEOUT_SECONDS = 2.0


def grpc_health(address: str) -> Probe:
    """Return a probe that asks grpc.health.v1 at an address for the process as a whole."""

    async def is_serving() -> bool:
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        async with grpc.aio.insecure_channel(address) as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS
                )
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return is_serving


def http_ok(host: str, port: int, path: str) -> Probe:
    """Return a probe that wants status 200 from an HTTP server."""

    async def is_ok() -> bool:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                    status_line = await reader.readline()
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError):
            return False
        return status_line.split()[1:2] == [b"200"]

    return is_ok
