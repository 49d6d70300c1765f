"""Reading bodies, with bounds: on each, on all that are being received together, and on the time it takes."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from maas_inference.front.failures import BodiesTooLarge, DeadlineExpired, MessageTooLarge
from maas_inference.front.question import CallerGone, Receive

MAX_BODY_BYTES: Final = 64 << 20
"""Bytes of a message or of a REST body, uncompressed."""
MAX_BODIES_BYTES: Final = 512 << 20
"""Bytes of all bodies that are being received."""
_FRAME_HEAD_BYTES: Final = 5


class Bodies:
    """Reads what callers send. What has arrived in one piece, nearly everything, costs no accounting."""

    def __init__(self, limit: int = MAX_BODIES_BYTES) -> None:
        self._limit = limit
        self._held_bytes = 0

    async def read(self, receive: Receive, deadline: float) -> bytes:
        """Return a whole body. Raises MessageTooLarge, BodiesTooLarge, DeadlineExpired, CallerGone."""
        message = await receive()
        # Envoy hands over a megabyte at most in one piece, so what is whole already is not too large.
        if message.get("more_body", True):
            return await self.read_on(message, receive, deadline)
        body: bytes = message["body"]
        return body

    async def read_on(self, message: Mapping[str, Any], receive: Receive, deadline: float) -> bytes:
        """Return a whole body of which `message` is the first piece, or says that there is none."""
        if message["type"] == "http.disconnect":
            raise CallerGone
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._read_rest(message["body"], receive)
        except TimeoutError as error:
            raise DeadlineExpired("the caller's time was over before the request was there") from error

    async def _read_rest(self, body: bytes, receive: Receive) -> bytes:
        parts = [body]
        held_bytes = 0
        try:
            more = True
            while True:
                self.hold(len(body))
                held_bytes += len(body)
                if held_bytes > MAX_BODY_BYTES + _FRAME_HEAD_BYTES:
                    raise too_large()
                if not more:
                    return b"".join(parts)
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise CallerGone
                body, more = message["body"], message["more_body"]
                parts.append(body)
        finally:
            self.let_go(held_bytes)

    def hold(self, size_bytes: int) -> None:
        """Count bytes that have arrived of something that is not whole. Raises BodiesTooLarge."""
        if self._held_bytes + size_bytes > self._limit:
            raise BodiesTooLarge(
                f"{self._held_bytes} bytes of requests are being received; retry later", retry_after_seconds=1.0
            )
        self._held_bytes += size_bytes

    def let_go(self, size_bytes: int) -> None:
        """Count them no longer."""
        self._held_bytes -= size_bytes


def too_large() -> MessageTooLarge:
    """Return the failure for what is larger than one message may be."""
    return MessageTooLarge(f"the message has more than {MAX_BODY_BYTES} bytes")
