"""ModelStreamInfer: many requests over one stream, computed beside each other and answered as they are done.

One task reads, one writes. A stream holds at most MAX_IN_FLIGHT requests that are not answered yet, and no more bytes
of them than one message may have; then it is not read, and HTTP/2's flow control stops the caller.
"""

import asyncio
import logging
import time
from collections import deque
from functools import partial
from typing import Any, Final

from maas.oip.v2.grpc_service_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from maas_inference.front import grpc_infer
from maas_inference.front.bodies import MAX_BODY_BYTES, Bodies, too_large
from maas_inference.front.computing import DEFAULT_TIMEOUT_SECONDS
from maas_inference.front.failures import DeadlineExpired, FrameInvalid, InternalError, status_of
from maas_inference.front.grpc_inference import Asked, GrpcInference
from maas_inference.front.question import Answer, CallerGone, Receive, Send
from maas_runtime.failures import Failure

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT: Final = 64
"""Requests of one stream that are not answered yet."""
_HEAD_BYTES: Final = 5
_RESPONSE_TAG: Final = b"\x12"  # field 2 (infer_response), length-delimited
_FINAL: Final = ModelInferResponse()
_FINAL.parameters["triton_final_response"].bool_param = True
_FINAL_BYTES: Final = _FINAL.SerializeToString()
"""Stands at the end of each response: nothing more comes for its request."""


class InferStream:
    """One call of ModelStreamInfer."""

    def __init__(
        self, inference: GrpcInference, bodies: Bodies, headers: grpc_infer.Headers, receive: Receive, send: Send
    ) -> None:
        self._inference = inference
        self._bodies = bodies
        self._headers = headers
        self._receive = receive
        self._send = send
        self._encoding = b""
        self._buffer = bytearray()
        self._held_bytes = 0
        self._in_flight: dict[asyncio.Future[Answer], int] = {}
        self._in_flight_bytes = 0
        self._answers: deque[bytes] = deque()
        self._unsent = 0
        self._has_started = False
        self._compresses = False
        self._half_closed = False
        self._end: Failure | CallerGone | None = None
        self._room = asyncio.Event()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Answer until the caller has sent all and got all, or has hung up.

        Raises the Failure that ends a stream which got no answer yet.
        """
        timeout = b""
        for name, value in self._headers:
            if name == b"grpc-timeout":
                timeout = value
            elif name == b"grpc-encoding":
                self._encoding = value
        self._compresses = self._encoding not in (b"", b"identity") and grpc_infer.takes_gzip(self._headers)
        loop = asyncio.get_running_loop()
        expiry = None
        if timeout:
            expired = DeadlineExpired("the stream's time was over")
            expiry = loop.call_later(grpc_infer.parse_timeout(timeout), self._finish, expired)
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read())
                await self._write()
                reading.cancel()
            if not self._has_started and isinstance(self._end, Failure):
                raise self._end
        finally:
            if expiry is not None:
                expiry.cancel()
            for answer in self._in_flight:
                answer.cancel()
            self._bodies.let_go(self._held_bytes)

    async def _read(self) -> None:
        try:
            more = True
            while more:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise CallerGone
                more = message["more_body"]
                self._buffer += message["body"]
                self._account()
                await self._take_frames()
            if self._buffer:
                raise FrameInvalid("the stream ends within a message")
            self._half_closed = True
            self._wake.set()
        except (Failure, CallerGone) as end:
            self._finish(end)

    async def _take_frames(self) -> None:
        buffer = self._buffer
        while len(buffer) >= _HEAD_BYTES:
            size_bytes = int.from_bytes(buffer[1:_HEAD_BYTES], "big")
            if size_bytes > MAX_BODY_BYTES:
                raise too_large()
            stop = _HEAD_BYTES + size_bytes
            if len(buffer) < stop:
                break
            flag, message = buffer[0], bytes(buffer[_HEAD_BYTES:stop])
            if flag:
                message = grpc_infer.decompressed_message(flag, message, self._encoding)
            while self._is_full(len(message)):
                self._room.clear()
                await self._room.wait()
            del buffer[:stop]
            self._account()
            self._ask(message)

    def _account(self) -> None:
        change = len(self._buffer) - self._held_bytes
        if change > 0:
            self._bodies.hold(change)
        else:
            self._bodies.let_go(-change)
        self._held_bytes += change

    def _is_full(self, size_bytes: int) -> bool:
        waiting = len(self._in_flight) + self._unsent
        return waiting >= MAX_IN_FLIGHT or (waiting > 0 and self._in_flight_bytes + size_bytes > MAX_BODY_BYTES)

    def _ask(self, message: bytes) -> None:
        request = None
        try:
            request = grpc_infer.parse_request(message)
            arrived = time.monotonic()
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            deadline = arrived + DEFAULT_TIMEOUT_SECONDS
            asked = self._inference.ask(request, self._is_there, arrived, deadline, answer)
        except Failure as failure:
            self._inference.count_refused(failure)
            self._refuse(request, failure)
            return
        except Exception:
            logger.exception("a request of a stream failed")
            self._refuse(request, InternalError("internal error"))
            return
        self._in_flight[answer] = len(message)
        self._in_flight_bytes += len(message)
        answer.add_done_callback(partial(self._answered, asked))

    async def _is_there(self) -> dict[str, Any]:
        """Tell the queue whether the caller is there: nobody else may read what comes while the reader does."""
        if isinstance(self._end, CallerGone):
            return {"type": "http.disconnect"}
        return await self._receive() if self._half_closed else {"type": "http.request"}

    def _answered(self, asked: Asked, answer: "asyncio.Future[Answer]") -> None:
        if self._end is not None or answer.cancelled():
            return
        self._in_flight_bytes -= self._in_flight.pop(answer)
        failure = answer.exception()
        if failure is None:
            try:
                response = self._inference.encode(asked, answer.result()) + _FINAL_BYTES
            except Exception:
                logger.exception("an answer of a stream failed")
                self._refuse(asked.request, InternalError("internal error"))
                return
            self._put(b"".join((_RESPONSE_TAG, grpc_infer.varint(len(response)), response)))
        elif isinstance(failure, CallerGone):
            self._finish(failure)
        elif isinstance(failure, Failure):
            self._refuse(asked.request, failure)
        else:
            logger.error("a request of a stream failed", exc_info=failure)
            self._refuse(asked.request, InternalError("internal error"))

    def _refuse(self, request: ModelInferRequest | None, failure: Failure) -> None:
        response = ModelStreamInferResponse(error_message=failure.message)
        response.infer_response.id = request.id if request is not None else ""
        response.infer_response.parameters["reason"].string_param = failure.reason
        response.infer_response.parameters["code"].string_param = status_of(failure).name
        response.infer_response.MergeFrom(_FINAL)
        self._put(response.SerializeToString())

    def _put(self, message: bytes) -> None:
        frame = grpc_infer.frame
        if self._compresses and grpc_infer.is_worth_compressing(message):
            frame = grpc_infer.compressed_frame
        self._answers.append(frame(message))
        self._unsent += 1
        self._wake.set()

    def _finish(self, end: Failure | CallerGone) -> None:
        if self._end is None:
            self._end = end
            self._wake.set()

    async def _write(self) -> None:
        try:
            while self._end is None and not (self._half_closed and not self._in_flight and not self._answers):
                if self._answers:
                    answers, count = b"".join(self._answers), len(self._answers)
                    self._answers.clear()
                    await self._start()
                    await self._send({"type": "http.response.body", "body": answers, "more_body": True})
                    self._unsent -= count
                    self._room.set()
                else:
                    self._wake.clear()
                    await self._wake.wait()
            await self._write_end()
        except OSError:  # ASGI's `send` raises it once the caller has hung up
            self._finish(CallerGone())

    async def _start(self) -> None:
        if not self._has_started:
            self._has_started = True
            await self._send(grpc_infer.COMPRESSED_START if self._compresses else grpc_infer.OK_START)

    async def _write_end(self) -> None:
        if isinstance(self._end, CallerGone) or (self._end is not None and not self._has_started):
            return
        await self._start()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        await self._send(
            grpc_infer.OK_TRAILERS if self._end is None else grpc_infer.error_trailers(self._end, self._headers)
        )
