"""An open loop of gRPC requests with a deadline: they are sent when they are due, whatever has been answered.

HTTP/2 by hand, with as little work a request as Python can do, since the generator shares the server's cores: one
constant header block, and of an answer only whether it has a message. A request's time begins when it was due, so a
generator that is late makes the server look worse, never better.
"""

import asyncio
import gc
import itertools
import struct
import time
from dataclasses import dataclass, field

import uvloop
from load import METHOD

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_LARGEST_WINDOW = 2**31 - 1
_TICK_SECONDS = 0.002
_GRACE_SECONDS = 1.0


@dataclass(slots=True)
class OpenLoad:
    """What was offered and what came of it; `good` are answers within the deadline."""

    seconds: float = 0.0
    offered: int = 0
    answered_ms: list[float] = field(default_factory=list)
    """Of each answer with a message, in the order in which they came."""
    late: int = 0
    refused: int = 0
    unanswered: int = 0
    generator_cores: float = 0.0

    @property
    def goodput(self) -> float:
        """Answers within the deadline, a second."""
        return (len(self.answered_ms) - self.late) / self.seconds

    def percentile_ms(self, share: float) -> float:
        """Return a percentile of the answers' times."""
        ordered = sorted(self.answered_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def offer(port: int, message: bytes, rate: float, seconds: float, deadline: float, connections: int = 64) -> OpenLoad:
    """Send `rate` requests a second; each has the deadline in seconds as its grpc-timeout."""
    gc.disable()
    begun, used = time.perf_counter(), time.process_time()
    try:
        load = uvloop.run(_offer(port, message, rate, seconds, deadline, connections))
    finally:
        gc.enable()
    load.generator_cores = (time.process_time() - used) / (time.perf_counter() - begun)
    return load


async def _offer(port: int, message: bytes, rate: float, seconds: float, deadline: float, connections: int) -> OpenLoad:
    load = OpenLoad(seconds=seconds)
    loop = asyncio.get_running_loop()
    request = _Request(port, message, deadline)
    pool = [
        (await loop.create_connection(lambda: _Connection(request, load, deadline), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    turn = itertools.cycle(pool)
    begun = time.monotonic()
    while (now := time.monotonic()) - begun < seconds:  # a clock, not a condition
        due_until = min(round((now - begun) * rate), round(seconds * rate))
        for number in range(load.offered, due_until):
            next(turn).queue(begun + number / rate)
        load.offered = max(load.offered, due_until)
        for connection in pool:
            connection.flush()
        await asyncio.sleep(_TICK_SECONDS)
    end = time.monotonic() + deadline + _GRACE_SECONDS
    while any(connection.due for connection in pool) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    for connection in pool:
        load.unanswered += len(connection.due)
        connection.close()
    return load


class _Request:
    """The frames of one request, with room for the stream's number."""

    def __init__(self, port: int, message: bytes, deadline: float) -> None:
        # Indices of HPACK's static table: 3 POST, 6 http, 4 :path, 1 :authority, 31 content-type.
        block = b"\x83\x86" + b"\x04" + _text(METHOD) + b"\x01" + _text(f"127.0.0.1:{port}")
        block += b"\x0f\x10" + _text("application/grpc") + b"\x00" + _text("te") + _text("trailers")
        block += b"\x00" + _text("grpc-timeout") + _text(f"{round(deadline * 1000)}m")
        body = b"\0" + struct.pack(">I", len(message)) + message
        self._head = struct.pack(">I", len(block))[1:] + bytes([_HEADERS, _END_HEADERS])
        self._middle = block + struct.pack(">I", len(body))[1:] + bytes([_DATA, _END_STREAM])
        self._body = body

    def frames(self, stream: int) -> tuple[bytes, ...]:
        """Return the frames for a stream."""
        number = stream.to_bytes(4, "big")
        return (self._head, number, self._middle, number, self._body)


class _Connection(asyncio.Protocol):
    def __init__(self, request: _Request, load: OpenLoad, deadline: float) -> None:
        self._request = request
        self._load = load
        self._deadline_ms = deadline * 1000
        self._next_stream = 1
        self._unsent: list[bytes] = []
        self._received = b""
        self._with_message: set[int] = set()
        self.due: dict[int, float] = {}

    def queue(self, due: float) -> None:
        """Send a request at the next flush."""
        self._unsent += self._request.frames(self._next_stream)
        self.due[self._next_stream] = due
        self._next_stream += 2

    def flush(self) -> None:
        """Send what is queued."""
        if self._unsent and not self._transport.is_closing():
            self._transport.write(b"".join(self._unsent))
            self._unsent.clear()

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        grow = _frame(_WINDOW_UPDATE, 0, (_LARGEST_WINDOW - 65_535).to_bytes(4, "big"))
        self._transport.write(_PREFACE + _frame(_SETTINGS, 0, b"") + grow)

    def data_received(self, data: bytes) -> None:
        data = self._received + data if self._received else data
        position, size = 0, len(data)
        while position + 9 <= size:
            end = position + 9 + (data[position] << 16 | data[position + 1] << 8 | data[position + 2])
            if end > size:
                break
            kind, flags = data[position + 3], data[position + 4]
            stream = int.from_bytes(data[position + 5 : position + 9], "big")
            if kind == _DATA:
                self._with_message.add(stream)
            if kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                self._ended(stream)
            elif kind == _SETTINGS and not flags & _ACK:
                self._transport.write(_frame(_SETTINGS, _ACK, b""))
            elif kind == _PING and not flags & _ACK:
                self._transport.write(_frame(_PING, _ACK, data[position + 9 : end]))
            elif kind == _GO_AWAY:
                self._transport.close()
            position = end
        self._received = data[position:]

    def _ended(self, stream: int) -> None:
        due = self.due.pop(stream, None)
        if due is None:
            return
        if stream in self._with_message:
            self._with_message.discard(stream)
            spent = (time.monotonic() - due) * 1000
            self._load.answered_ms.append(spent)
            self._load.late += spent > self._deadline_ms
        else:
            self._load.refused += 1


def _frame(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + b"\0\0\0\0" + payload


def _text(text: str) -> bytes:
    raw = text.encode()
    assert len(raw) < 127
    return bytes([len(raw)]) + raw
