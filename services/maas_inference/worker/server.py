"""Serves batches over a unix socket: threads for each front read, compute and answer, one batch a lane at a time."""

import contextlib
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from maas_inference.datatypes import BYTES, join_elements, split_elements
from maas_inference.wire import GREETING, Batch, FrameReader, Refusal, Reply, TensorHeader, decode_batch, frame_head
from maas_package.tensors import Array, numpy_type
from maas_runtime.failures import Failure, InvalidInput

logger = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 18
_DRAIN_SECONDS = 30.0
_THREADS_PER_LANE = 2
"""One computes; the other reads the next batch of the lane meanwhile, so that it is ready when the first is done."""


class Computation(Protocol):
    """Computes one batch of tensors; a BYTES tensor is an array of bytes objects. Several threads call it at once."""

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the outputs. Raises InvalidInput when the rows cannot be computed."""


class WorkerServer:
    """Answers batches with a computation; at most `lanes` are computed side by side."""

    def __init__(self, compute: Computation, output_datatypes: Mapping[str, str], lanes: int = 1) -> None:
        self._compute = compute
        self._output_datatypes = output_datatypes
        # Of all fronts: what a second front sends waits here, not in the engine.
        self._lanes = [threading.Lock() for _ in range(lanes)]
        self._threads: set[threading.Thread] = set()

    def listen(self, path: Path) -> socket.socket:
        """Return a socket that listens at `path`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.bind(str(path))
        listener.listen()
        return listener

    def serve(self, listener: socket.socket) -> None:
        """Accept fronts until SystemExit, then answer what they still send until they have hung up."""
        try:
            while True:
                connection, _ = listener.accept()
                threads = _THREADS_PER_LANE * len(self._lanes)
                front = _Front(connection, threads)
                for _ in range(threads):
                    thread = threading.Thread(target=self._serve_front, args=(front,), daemon=True)
                    self._threads.add(thread)
                    thread.start()
        finally:
            path = listener.getsockname()
            listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            deadline = time.monotonic() + _DRAIN_SECONDS
            for thread in list(self._threads):
                thread.join(max(0.0, deadline - time.monotonic()))

    def _serve_front(self, front: "_Front") -> None:
        """Take batches in turn with the front's other threads, until it hangs up."""
        try:
            while (received := front.next_batch()) is not None:
                for reply in self._answer(*received):
                    front.send(reply)
        except OSError as error:
            logger.info("a front hung up", extra={"error": str(error)})
            front.hang_up()
        finally:
            front.leave()
            self._threads.discard(threading.current_thread())

    def _answer(self, batch: Batch, payload: memoryview) -> Iterator[bytes]:
        inputs = dict(_arrays(batch.tensors, payload))
        if len(batch.rows) == 1:
            yield self._reply_or_refusal(batch, 0, inputs)
            return
        try:
            yield self._reply(batch, 0, len(batch.rows), inputs)
        except Exception as error:
            # Somebody's rows are bad: each request by itself, so that only theirs fail.
            logger.debug("a batch is computed apart", extra={"error": str(error)})
            begin = 0
            for index, rows in enumerate(batch.rows):
                own = {name: tensor[begin : begin + rows] for name, tensor in inputs.items()}
                begin += rows
                yield self._reply_or_refusal(batch, index, own)

    def _reply_or_refusal(self, batch: Batch, index: int, inputs: Mapping[str, Array]) -> bytes:
        try:
            return self._reply(batch, index, 1, inputs)
        except Failure as failure:
            return _refusal(batch, index, failure.reason, failure.message, invalid=isinstance(failure, InvalidInput))
        except Exception:
            logger.exception("a request could not be computed")
            return _refusal(batch, index, "", "the engine failed at this request", invalid=False)

    def _reply(self, batch: Batch, first: int, count: int, inputs: Mapping[str, Array]) -> bytes:
        with self._lanes[batch.lane % len(self._lanes)]:
            started = time.perf_counter()
            outputs = self._compute(inputs)
            compute_seconds = time.perf_counter() - started
        tensors = []
        raws = []
        for name, datatype in self._output_datatypes.items():
            tensor = outputs[name]
            raw = join_elements(tensor.ravel().tolist()) if datatype == BYTES else tensor.tobytes()
            tensors.append(TensorHeader(name, datatype, tensor.shape, len(raw)))
            raws.append(raw)
        return b"".join([frame_head(Reply(batch.batch, first, count, compute_seconds, tuple(tensors))), *raws])


class _Front:
    """One front's connection, shared by the threads that serve it: one reads at a time, and one writes."""

    def __init__(self, connection: socket.socket, threads: int) -> None:
        self._connection = connection
        self._threads = threads
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._frames = FrameReader()
        self._received: deque[tuple[bytes, memoryview]] = deque()
        self._has_greeted = False

    def next_batch(self) -> tuple[Batch, memoryview] | None:
        """Wait for the next batch; None when the front has hung up. Raises OSError."""
        with self._reading:
            if not self._has_greeted:
                self.send(GREETING)
                self._has_greeted = True
            while not self._received:
                received = self._connection.recv(_RECEIVE_BYTES)
                if not received:
                    return None
                self._received += self._frames.feed(received)
            header, payload = self._received.popleft()
        return decode_batch(header), payload

    def send(self, frame: bytes) -> None:
        """Send a whole frame. Raises OSError."""
        with self._writing:
            self._connection.sendall(frame)

    def hang_up(self) -> None:
        """Let the other threads, and the front, see the end of the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        """Count a thread that serves the front no more; the last one closes the connection."""
        with self._writing:
            self._threads -= 1
            if not self._threads:
                self._connection.close()


def _arrays(headers: Sequence[TensorHeader], payload: memoryview) -> Iterator[tuple[str, Array]]:
    """Yield the tensors of a payload; all but BYTES are views of it."""
    position = 0
    for header in headers:
        raw = payload[position : position + header.size_bytes]
        position += header.size_bytes
        if header.datatype == BYTES:
            tensor: Array = np.array(split_elements(raw), dtype=np.object_)
        else:
            tensor = np.frombuffer(raw, numpy_type(header.datatype))
        yield header.name, tensor.reshape(header.shape)


def _refusal(batch: Batch, index: int, reason: str, message: str, *, invalid: bool) -> bytes:
    return frame_head(Reply(batch.batch, index, 1, 0.0, (), Refusal(invalid, reason, message)))
