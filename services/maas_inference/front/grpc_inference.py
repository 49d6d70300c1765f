"""Inference over gRPC: from a request's bytes to its answer's, for one call and for each message of a stream."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from maas.oip.v2.grpc_service_pb2 import ModelInferRequest
from maas_inference.front import grpc_infer
from maas_inference.front.bodies import Bodies
from maas_inference.front.computing import DEFAULT_TIMEOUT_SECONDS, described, put
from maas_inference.front.failures import InternalError, status_of, too_long
from maas_inference.front.metrics import FrontMetrics
from maas_inference.front.options import NO_OPTIONS, grpc_parameters, read_options
from maas_inference.front.question import Answer, Asker, CallerGone, Receive, Send
from maas_inference.front.serving import Serving
from maas_inference.front.wanted import Wanted
from maas_inference.table import ServedVersion
from maas_runtime.failures import Failure

logger = logging.getLogger(__name__)


class Asked(NamedTuple):
    """A request that waits for its answer: what the answer has to be written for."""

    request: ModelInferRequest
    deployment: str
    served: ServedVersion
    wanted: Wanted


class GrpcInference:
    """What unary calls and streams have in common."""

    def __init__(self, serving: Serving, metrics: FrontMetrics, bodies: Bodies) -> None:
        self.bodies = bodies
        self.serving = serving
        self._metrics = metrics
        self._reader = grpc_infer.InputReader()
        self._encoder = grpc_infer.ResponseEncoder()

    def ask(
        self, request: ModelInferRequest, receive: Receive, arrived: float, deadline: float, answer: Asker
    ) -> Asked:
        """Check a request and let it wait for its batch. Raises a Failure.

        A cache may give `answer` its answer before this returns.
        """
        deployment = self.serving.deployment(request.model_name)
        queue = deployment.choose(request.model_version)
        served = described(queue)
        wanted = grpc_infer.read_wanted(served, request)
        inputs = self._reader.read(served, request)
        options = read_options(grpc_parameters(request.parameters)) if request.parameters else NO_OPTIONS
        put(queue, inputs, receive, arrived, deadline, options, answer)
        return Asked(request, deployment.name, served, wanted)

    def encode(self, asked: Asked, answer: Answer) -> bytes:
        """Return the response's message."""
        return self._encoder.encode(asked.deployment, asked.served, asked.request, asked.wanted, answer)

    def count_refused(self, failure: Failure) -> None:
        """Count a request that reached no version."""
        self._metrics.count_refused(status_of(failure).name, failure.reason)


class UnaryCall:
    """One ModelInfer, from its headers to its trailers, by callbacks: a task and two futures less for each request.

    It is the asker of its own question, so an answer goes out while its batch's reply is taken apart, and Envoy is
    woken once for many answers rather than twice for each. docs/decisions/0004-front-in-envoy.md has the figures.
    """

    __slots__ = ("_arrived", "_asked", "_deadline", "_early", "_encoding", "_headers", "_inference", "_is_done",
                 "_receive", "_refuse", "_send", "_takes_gzip")  # fmt: skip

    def __init__(
        self,
        inference: GrpcInference,
        headers: grpc_infer.Headers,
        receive: Receive,
        send: Send,
        refuse: Callable[[Failure], None],
    ) -> None:
        self._inference = inference
        self._headers = headers
        self._receive = receive
        self._send = send
        self._refuse = refuse
        self._arrived = self._deadline = 0.0
        self._encoding = b""
        self._asked: Asked | None = None
        self._early: Answer | None = None
        self._takes_gzip = False
        self._is_done = False

    def begin(self) -> None:
        """Read the headers and ask for the body; everything after comes by callbacks."""
        self._arrived = time.monotonic()
        timeout = b""
        for name, value in self._headers:
            if name == b"grpc-timeout":
                timeout = value
            elif name == b"grpc-encoding":
                self._encoding = value
        try:
            seconds = grpc_infer.parse_timeout(timeout) if timeout else DEFAULT_TIMEOUT_SECONDS
        except Failure as failure:
            self.set_exception(failure)
            return
        self._deadline = self._arrived + seconds
        if self._inference.serving.sheds(self._arrived, self._deadline):
            self.set_exception(too_long())
            return
        asyncio.ensure_future(self._receive()).add_done_callback(self._received)

    def done(self) -> bool:
        """Say whether it is answered."""
        return self._is_done

    def set_result(self, answer: Answer, /) -> None:
        """Send the answer."""
        if self._asked is None:  # out of the cache, while it is being asked for
            self._early = answer
            return
        self._is_done = True
        try:
            response = self._inference.encode(self._asked, answer)
            if self._takes_gzip and grpc_infer.is_worth_compressing(response):
                start, framed = grpc_infer.COMPRESSED_START, grpc_infer.compressed_frame(response)
            else:
                start, framed = grpc_infer.OK_START, grpc_infer.frame(response)
        except Exception as error:  # a bug, which must not reach the others of the batch
            self.set_exception(error)
            return
        self._put(start, {"type": "http.response.body", "body": framed}, grpc_infer.OK_TRAILERS)

    def set_exception(self, failure: BaseException, /) -> None:
        """Send the failure; to nobody when the caller has hung up."""
        self._is_done = True
        if isinstance(failure, CallerGone | OSError):
            return
        if not isinstance(failure, Failure):
            request_id = dict(self._headers).get(b"x-request-id", b"").decode("latin-1") or "unknown"
            logger.error("a request failed", exc_info=failure, extra={"request_id": request_id})
            failure = InternalError(f"internal error; request id {request_id}")
        self._refuse(failure)

    def _put(self, *messages: dict[str, Any]) -> None:
        # What `send` returns need not be waited for: a body that is whole is taken at once.
        try:
            for message in messages:
                self._send(message)
        except OSError:
            return  # the caller has hung up

    def _received(self, received: "asyncio.Future[dict[str, Any]]") -> None:
        try:
            message = received.result()
            if message.get("more_body", True):
                reading = self._inference.bodies.read_on(message, self._receive, self._deadline)
                asyncio.ensure_future(reading).add_done_callback(self._read)
            else:
                self._ask(message["body"])
        except Exception as error:
            self.set_exception(error)

    def _read(self, reading: "asyncio.Future[bytes]") -> None:
        try:
            self._ask(reading.result())
        except Exception as error:
            self.set_exception(error)

    def _ask(self, body: bytes) -> None:
        request = grpc_infer.decode_request(body, self._encoding)
        self._takes_gzip = bool(body[0]) and grpc_infer.takes_gzip(self._headers)
        self._asked = self._inference.ask(request, self._receive, self._arrived, self._deadline, self)
        if self._early is not None:
            self.set_result(self._early)
