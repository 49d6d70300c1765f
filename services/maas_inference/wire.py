"""How a front and an engine worker talk: frames on a unix socket.

A frame is two little-endian 32-bit lengths (header, payload), the header in MessagePack, and the payload: the raw
tensors of the header, one after the other, in the Open Inference Protocol's raw form. Nothing is escaped or copied:
the rows of several callers become one tensor by standing one after the other.

A worker sends GREETING first: a connection that a dying worker's kernel still took never gets so far, so nothing is
sent into it. It answers each Batch with one Reply, or, when some requests of it were refused and all had to be
computed apart, with one for each. docs/decisions/0005-worker-protocol.md says why.
"""

import struct
from collections.abc import Iterator

import msgspec

GREETING = b"maas-worker/1\n"
"""The first bytes that a worker sends: what it is, and the version of the protocol."""

MAX_FRAME_BYTES = 1 << 30
_LENGTHS = struct.Struct("<II")
LENGTHS_BYTES = _LENGTHS.size


class FrameMalformed(ConnectionError):
    """The other side sent something that is no frame; the connection is of no more use."""


class TensorHeader(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One tensor of the payload; its bytes follow those of the tensor before it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size_bytes: int


class Batch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Rows of one or more requests to be computed together; `rows` says how many each request has.

    Batches of one lane are computed one after the other, in any order; those of different lanes side by side.
    """

    batch: int
    rows: tuple[int, ...]
    tensors: tuple[TensorHeader, ...]
    lane: int = 0


class Refusal(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Why requests of a batch have no answer; `invalid` when it is their own fault."""

    invalid: bool
    reason: str
    message: str


class Reply(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The answer to the requests [first, first + count) of a batch: their rows in order, or why there are none."""

    batch: int
    first: int
    count: int
    compute_seconds: float
    tensors: tuple[TensorHeader, ...] = ()
    refusal: Refusal | None = None


_encode = msgspec.msgpack.Encoder().encode
decode_batch = msgspec.msgpack.Decoder(Batch).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


def frame_head(header: Batch | Reply) -> bytes:
    """Return what stands before the payload."""
    encoded = _encode(header)
    payload_bytes = sum([tensor.size_bytes for tensor in header.tensors])
    return _LENGTHS.pack(len(encoded), payload_bytes) + encoded


class FrameReader:
    """Cuts a stream of received bytes into frames. Bytes are joined once a frame is whole, not at each arrival."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._needed_bytes = 0

    def feed(self, received: bytes) -> Iterator[tuple[bytes, memoryview]]:
        """Yield (header, payload) of each frame that is complete. Raises FrameMalformed."""
        if self._parts:
            self._parts.append(received)
            self._held_bytes += len(received)
            if self._held_bytes < self._needed_bytes:
                return
            received = b"".join(self._parts)
            self._parts.clear()
        view = memoryview(received)
        position, end, needed_bytes = 0, len(received), LENGTHS_BYTES
        while end - position >= LENGTHS_BYTES:
            begin, stop = frame_bounds(received, position)
            if stop > end:
                needed_bytes = stop - position
                break
            header_stop = begin + _LENGTHS.unpack_from(received, position)[0]
            yield received[begin:header_stop], view[header_stop:stop]
            position = stop
        if position < end:
            self._parts.append(received[position:])
            self._held_bytes, self._needed_bytes = end - position, needed_bytes


def frame_bounds(received: bytes | bytearray | memoryview, position: int) -> tuple[int, int]:
    """Return where the header of the frame at `position` begins and where the frame ends. Raises FrameMalformed."""
    header_bytes, payload_bytes = _LENGTHS.unpack_from(received, position)
    if header_bytes + payload_bytes > MAX_FRAME_BYTES:
        raise FrameMalformed(f"a frame of {header_bytes + payload_bytes} bytes")
    begin = position + LENGTHS_BYTES
    return begin, begin + header_bytes + payload_bytes
