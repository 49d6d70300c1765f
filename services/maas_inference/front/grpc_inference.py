"""Inference over gRPC: from a request's bytes to its answer's, for one call and for each message of a stream."""

import asyncio
import time
from typing import TypeAlias

from maas.oip.v2.grpc_service_pb2 import ModelInferRequest
from maas_inference.front import grpc_infer
from maas_inference.front.bodies import Bodies
from maas_inference.front.computing import DEFAULT_TIMEOUT_SECONDS, compute, described
from maas_inference.front.failures import status_of
from maas_inference.front.metrics import FrontMetrics
from maas_inference.front.options import NO_OPTIONS, grpc_parameters, read_options
from maas_inference.front.question import Answer, Receive, Send
from maas_inference.front.serving import Serving
from maas_inference.front.wanted import Wanted
from maas_inference.table import ServedVersion
from maas_runtime.failures import Failure

Asked: TypeAlias = tuple[str, ServedVersion, Wanted, "asyncio.Future[Answer]"]
"""A request that waits for its answer: the deployment, the version, the outputs that are wanted, and the answer."""


class GrpcInference:
    """What unary calls and streams have in common, and the unary call."""

    def __init__(self, serving: Serving, metrics: FrontMetrics, bodies: Bodies) -> None:
        self._serving = serving
        self._metrics = metrics
        self._bodies = bodies
        self._reader = grpc_infer.InputReader()
        self._encoder = grpc_infer.ResponseEncoder()

    async def infer(self, headers: grpc_infer.Headers, receive: Receive, send: Send) -> None:
        """Answer ModelInfer. Raises a Failure before anything is sent, CallerGone, OSError."""
        arrived = time.monotonic()
        timeout = encoding = b""
        for name, value in headers:
            if name == b"grpc-timeout":
                timeout = value
            elif name == b"grpc-encoding":
                encoding = value
        deadline = arrived + (grpc_infer.parse_timeout(timeout) if timeout else DEFAULT_TIMEOUT_SECONDS)
        message = await receive()
        if message.get("more_body", True):
            body = await self._bodies.read_on(message, receive, deadline)
        else:
            body = message["body"]
        request = grpc_infer.decode_request(body, encoding)
        deployment, served, wanted, answer = self.ask(request, receive, arrived, deadline)
        response = self._encoder.encode(deployment, served, request, wanted, await answer)
        if body[0] and grpc_infer.is_worth_compressing(response) and grpc_infer.takes_gzip(headers):
            start, framed = grpc_infer.COMPRESSED_START, grpc_infer.compressed_frame(response)
        else:
            start, framed = grpc_infer.OK_START, grpc_infer.frame(response)
        await send(start)
        await send({"type": "http.response.body", "body": framed})
        await send(grpc_infer.OK_TRAILERS)

    def ask(self, request: ModelInferRequest, receive: Receive, arrived: float, deadline: float) -> Asked:
        """Check a request and let it wait for its batch. Raises a Failure."""
        deployment = self._serving.deployment(request.model_name)
        queue = deployment.choose(request.model_version)
        served = described(queue)
        wanted = grpc_infer.read_wanted(served, request)
        inputs = self._reader.read(served, request)
        options = read_options(grpc_parameters(request.parameters)) if request.parameters else NO_OPTIONS
        return deployment.name, served, wanted, compute(queue, inputs, receive, arrived, deadline, options)

    def encode(self, request: ModelInferRequest, asked: Asked, answer: Answer) -> bytes:
        """Return the response's message."""
        deployment, served, wanted, _ = asked
        return self._encoder.encode(deployment, served, request, wanted, answer)

    def count_refused(self, failure: Failure) -> None:
        """Count a request that reached no version."""
        self._metrics.count_refused(status_of(failure).name, failure.reason)
