"""Lets Envoy answer what it has before it is stopped."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

Drain: TypeAlias = Callable[[], Awaitable[None]]

_CALL_SECONDS = 1.0
_DRAIN_SECONDS = 3.0
_LOOK_AGAIN_SECONDS = 0.05
_ACTIVE = "http.public.downstream_rq_active: "


def envoy_drain(admin_socket: Path) -> Drain:
    """Return what makes an Envoy take no new connections, and waits up to 3 s until no request is being answered."""

    async def drain() -> None:
        # Without an admin socket, or with an Envoy that hangs, there is nothing to wait for.
        with contextlib.suppress(OSError, TimeoutError, ValueError):
            await _call(admin_socket, "POST", "/healthcheck/fail")  # answers say that their connection ends
            await _call(admin_socket, "POST", "/drain_listeners")
            async with asyncio.timeout(_DRAIN_SECONDS):
                while await _active_requests(admin_socket):  # noqa: ASYNC110 - Envoy sets no event
                    await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    return drain


async def _active_requests(admin_socket: Path) -> int:
    content = await _call(admin_socket, "GET", "/stats?filter=downstream_rq_active")
    return int(content.rpartition(_ACTIVE)[2].split()[0])


async def _call(admin_socket: Path, method: str, path: str) -> str:
    async with asyncio.timeout(_CALL_SECONDS):
        reader, writer = await asyncio.open_unix_connection(admin_socket)
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: envoy\r\nConnection: close\r\n\r\n".encode())
            return (await reader.read()).decode()
        finally:
            writer.close()
