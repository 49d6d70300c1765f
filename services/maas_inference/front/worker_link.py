"""The connection from a front to one engine worker."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import msgspec

from maas_inference.wire import GREETING, Batch, FrameMalformed, FrameReader, Reply, decode_reply, frame_head

logger = logging.getLogger(__name__)


class BatchSender(Protocol):
    """Takes batches for a worker."""

    def send(self, batch: Batch, parts: Sequence[bytes | memoryview]) -> None:
        """Send a batch; `parts` are its payload, in order."""

    def close(self) -> None:
        """Hang up."""


class WorkerLink(asyncio.Protocol):
    """Sends batches, hands over replies, and says when the worker is lost."""

    def __init__(self, on_reply: Callable[[Reply, memoryview], None], on_lost: Callable[["WorkerLink"], None]) -> None:
        self._on_reply = on_reply
        self._on_lost = on_lost
        self._frames = FrameReader()
        self._transport: asyncio.WriteTransport | None = None
        self._greeting: bytes | None = b""
        self.greeted = asyncio.Event()
        self.lost = asyncio.Event()

    def send(self, batch: Batch, parts: Sequence[bytes | memoryview]) -> None:
        """Send a batch; `parts` are its payload, in order."""
        assert self._transport is not None
        self._transport.writelines([frame_head(batch), *parts])

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand over the replies that are complete."""
        try:
            if self._greeting is not None:
                data = self._greet(self._greeting + data)
            for header, payload in self._frames.feed(data):
                self._on_reply(decode_reply(header), payload)
        except (FrameMalformed, msgspec.DecodeError) as error:
            logger.error("a worker sends what is no reply", extra={"error": str(error)})
            self.close()

    def _greet(self, received: bytes) -> bytes:
        """Take the worker's greeting and return what is behind it."""
        if len(received) < len(GREETING):
            self._greeting = received
            return b""
        if not received.startswith(GREETING):
            raise FrameMalformed("the other side is no worker of this version")
        self._greeting = None
        self.greeted.set()
        return received[len(GREETING) :]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the reason changes nothing
        """Tell that nothing more will come."""
        self.lost.set()
        self.greeted.set()
        self._on_lost(self)
