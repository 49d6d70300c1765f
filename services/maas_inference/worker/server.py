"""Serves batches over a unix socket: a thread for each front reads and answers, one batch computes at a time."""

import contextlib
import logging
import os
import socket
import threading
import time
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


class Computation(Protocol):
    """Computes one batch of tensors; a BYTES tensor is an array of bytes objects."""

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the outputs. Raises InvalidInput when the rows cannot be computed."""


class WorkerServer:
    """Answers batches with a computation."""

    def __init__(self, compute: Computation, output_datatypes: Mapping[str, str]) -> None:
        self._compute = compute
        self._output_datatypes = output_datatypes
        # The engine takes one batch at a time: a second front's waits here, not in the engine.
        self._turn = threading.Lock()
        self._connections: set[threading.Thread] = set()

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
                thread = threading.Thread(target=self._serve_front, args=(connection,), daemon=True)
                self._connections.add(thread)
                thread.start()
        finally:
            path = listener.getsockname()
            listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            deadline = time.monotonic() + _DRAIN_SECONDS
            for thread in list(self._connections):
                thread.join(max(0.0, deadline - time.monotonic()))

    def _serve_front(self, connection: socket.socket) -> None:
        frames = FrameReader()
        try:
            with connection:
                connection.sendall(GREETING)
                while received := connection.recv(_RECEIVE_BYTES):
                    for header, payload in frames.feed(received):
                        batch = decode_batch(header)
                        for part in self._answer(batch, payload):
                            connection.sendall(part)
        except OSError as error:
            logger.info("a front hung up", extra={"error": str(error)})
        finally:
            self._connections.discard(threading.current_thread())

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
        with self._turn:
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
