"""The ASGI application that Envoy runs. Its settings come from the environment that Envoy was started with."""

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final, TypeAlias

from prometheus_client import CollectorRegistry

from maas_inference.front import grpc_infer, rest_infer
from maas_inference.front.failures import (
    InternalError,
    MessageTooLarge,
    MethodNotAllowed,
    PathNotFound,
    VersionNotReady,
    status_of,
)
from maas_inference.front.inputs import CheckedInputs
from maas_inference.front.link import keep_link
from maas_inference.front.metrics import FrontMetrics
from maas_inference.front.question import Answer, CallerGone, Question, Receive
from maas_inference.front.serving import Serving
from maas_inference.front.version_queue import VersionQueue
from maas_inference.table import FRONT_SOCKET, ServedVersion
from maas_runtime.failures import Failure, Overloaded, Unavailable
from maas_runtime.logs import configure_logging

logger = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]

DEFAULT_TIMEOUT_SECONDS: Final = 30.0
"""How long a request without a deadline of its own may take."""
_GARBAGE_THRESHOLD: Final = 20_000
EXTENSIONS: Final = ("binary_tensor_data",)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request, or be the application from its start to its end."""
    if scope["type"] == "http":
        await scope["state"]["front"].answer(scope, receive, send)
    elif scope["type"] == "lifespan":
        await _live(scope["state"], receive, send)


async def _live(state: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    configure_logging("maas_inference.front", os.environ.get("MAAS_LOG_LEVEL", "INFO"))
    try:
        async with asyncio.TaskGroup() as tasks:
            registry = CollectorRegistry()
            metrics = FrontMetrics(registry)
            serving = Serving(metrics, tasks)
            state["front"] = Front(serving, metrics)
            background = [
                tasks.create_task(serving.sweep()),
                tasks.create_task(keep_link(os.path.join(os.environ["MAAS_RUN_DIR"], FRONT_SOCKET), serving, registry)),
            ]
            # What was imported stays; and requests leave next to no cycles behind, so looking for them can be rare.
            gc.freeze()
            gc.set_threshold(_GARBAGE_THRESHOLD, 20, 20)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            for task in background:
                task.cancel()
            serving.close()
    except Exception:
        # Without these tasks the front would answer from an old table for ever; the supervisor starts a new one.
        logger.exception("the inference front failed and ends its process")
        os.kill(os.getpid(), signal.SIGTERM)
        raise
    await send({"type": "lifespan.shutdown.complete"})


class Front:
    """Routes requests, and carries each from its bytes to its answer."""

    def __init__(self, serving: Serving, metrics: FrontMetrics) -> None:
        self._serving = serving
        self._metrics = metrics
        self._encoder = grpc_infer.ResponseEncoder()
        self._loop = asyncio.get_running_loop()

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever it is."""
        is_grpc = False
        try:
            if scope["path"] == grpc_infer.METHOD_PATH:
                is_grpc = True
                await self._infer_grpc(scope, receive, send)
            else:
                await self._answer_rest(scope, receive, send)
        except (CallerGone, OSError):
            return  # ASGI's `send` raises OSError once the caller has hung up
        except Failure as failure:
            await self._refuse(failure, scope, send, is_grpc=is_grpc)
        except Exception:
            request_id = _header(scope, b"x-request-id").decode("latin-1")
            logger.exception("a request failed", extra={"path": scope["path"], "request_id": request_id})
            bug = InternalError(f"internal error; request id {request_id or 'unknown'}")
            await self._refuse(bug, scope, send, is_grpc=is_grpc)

    async def _infer_grpc(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = time.monotonic()
        timeout = encoding = b""
        for name, value in scope["headers"]:
            if name == b"grpc-timeout":
                timeout = value
            elif name == b"grpc-encoding":
                encoding = value
        deadline = arrived + (grpc_infer.parse_timeout(timeout) if timeout else DEFAULT_TIMEOUT_SECONDS)
        body = await _read_body(receive, grpc_infer.MAX_MESSAGE_BYTES)
        request = grpc_infer.decode_request(body, encoding)
        deployment = self._serving.deployment(request.model_name)
        queue = deployment.choose(request.model_version)
        served = _described(queue)
        wanted = grpc_infer.read_wanted(served, request)
        answer = await self._compute(queue, grpc_infer.read_inputs(served, request), receive, arrived, deadline)
        response = self._encoder.encode(deployment.name, served, request, wanted, answer)
        await send(grpc_infer.OK_START)
        await send({"type": "http.response.body", "body": response})
        await send(grpc_infer.OK_TRAILERS)

    def _compute(
        self, queue: VersionQueue, inputs: CheckedInputs, receive: Receive, arrived: float, deadline: float
    ) -> "asyncio.Future[Answer]":
        answer: asyncio.Future[Answer] = self._loop.create_future()
        queue.put(
            Question(
                inputs.group,
                inputs.rows,
                inputs.parts,
                arrived=arrived,
                deadline=deadline,
                receive=receive,
                answer=answer,
            )
        )
        return answer

    async def _answer_rest(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["path"].strip("/").split("/"):
            case ["predict"]:
                await self._predict(_header(scope, b"maas-model").decode("latin-1"), scope, receive, send)
            case ["predict", name]:
                await self._predict(name, scope, receive, send)
            case ["v2", "models", name, "infer"]:
                await self._infer_rest(name, "", scope, receive, send)
            case ["v2", "models", name, "versions", version, "infer"]:
                await self._infer_rest(name, version, scope, receive, send)
            case ["v2", *rest]:
                _allow(scope, "GET")
                await _send_json(send, self._describe(rest))
            case _:
                raise PathNotFound(f"nothing is served at {scope['path'][:200]}", name=scope["path"][:200])

    def _describe(self, path: Sequence[str]) -> dict[str, Any]:
        match path:
            case []:
                table = self._serving.table
                return {"name": "maas", "version": table.server_version, "extensions": list(EXTENSIONS)}
            case ["health", "live"]:
                return {"live": True}
            case ["health", "ready"]:
                if not self._serving.is_ready():
                    raise VersionNotReady("not every deployment has a version that is ready")
                return {"ready": True}
            case ["models", name] | ["models", name, "ready"]:
                queue = self._serving.deployment(name).main()
            case ["models", name, "versions", version] | ["models", name, "versions", version, "ready"]:
                queue = self._serving.deployment(name).choose(version)
            case _:
                raise PathNotFound(f"nothing is served at /v2/{'/'.join(path)[:200]}", name="/".join(path)[:200])
        served = queue.served
        if path[-1] == "ready":
            if not queue.is_connected:
                raise VersionNotReady(f"version {served.version} of {name} is {served.state}")
            return {"name": name, "ready": True}
        return _metadata(name, list(self._serving.deployment(name).queues), _described(queue))

    async def _infer_rest(self, name: str, version: str, scope: Scope, receive: Receive, send: Send) -> None:
        _allow(scope, "POST")
        arrived = time.monotonic()
        body = await _read_body(receive, rest_infer.MAX_BODY_BYTES)
        body = rest_infer.unpacked_body(body, _header(scope, b"content-encoding"))
        request, binary = rest_infer.decode_infer(body, _header(scope, rest_infer.BINARY_HEADER))
        queue = self._serving.deployment(name).choose(version)
        served = _described(queue)
        wanted = rest_infer.read_wanted(served, request)
        inputs = rest_infer.read_inputs(served, request, binary)
        answer = await self._compute(queue, inputs, receive, arrived, arrived + DEFAULT_TIMEOUT_SECONDS)
        content, json_length = rest_infer.encode_infer(name, served, request, wanted, answer)
        if json_length is None:
            await _send_body(send, 200, content, [(b"content-type", b"application/json")])
        else:
            headers = [
                (b"content-type", b"application/octet-stream"),
                (rest_infer.BINARY_HEADER, str(json_length).encode()),
            ]
            await _send_body(send, 200, content, headers)

    async def _predict(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        _allow(scope, "POST")
        arrived = time.monotonic()
        body = await _read_body(receive, rest_infer.MAX_BODY_BYTES)
        body = rest_infer.unpacked_body(body, _header(scope, b"content-encoding"))
        texts, as_list = rest_infer.decode_predict(body)
        deployment = self._serving.deployment_or_default(name)
        queue = deployment.choose("")
        served = _described(queue)
        inputs = rest_infer.read_texts(served, texts)
        answer = await self._compute(queue, inputs, receive, arrived, arrived + DEFAULT_TIMEOUT_SECONDS)
        content = rest_infer.encode_predictions(deployment.name, served, answer, as_list=as_list)
        await _send_body(send, 200, content, [(b"content-type", b"application/json")])

    async def _refuse(self, failure: Failure, scope: Scope, send: Send, *, is_grpc: bool) -> None:
        status = status_of(failure)
        self._metrics.count_refused(status.name, failure.reason)
        request_id = _header(scope, b"x-request-id")
        if is_grpc:
            headers = grpc_infer.error_headers(failure, request_id)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [(b"content-type", b"application/json")]
        if isinstance(failure, Overloaded | Unavailable):
            headers.append((b"retry-after", str(max(1, round(failure.retry_after_seconds))).encode()))
        if request_id:
            headers.append((b"x-request-id", request_id))
        content = {"error": failure.message, "reason": failure.reason, "code": status.name}
        await _send_body(send, status.http, rest_infer.encode_json(content), headers)


async def _read_body(receive: Receive, limit: int) -> bytes:
    """Return the whole body. Raises MessageTooLarge, CallerGone."""
    message = await receive()
    if message["type"] == "http.disconnect":
        raise CallerGone
    body: bytes = message["body"]
    if not message["more_body"]:
        if len(body) > limit + 5:
            raise MessageTooLarge(f"the body has more than {limit} bytes")
        return body
    parts, size_bytes = [body], len(body)
    while message["more_body"]:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        parts.append(message["body"])
        size_bytes += len(message["body"])
        if size_bytes > limit + 5:
            raise MessageTooLarge(f"the body has more than {limit} bytes")
    return b"".join(parts)


def _described(queue: VersionQueue) -> ServedVersion:
    """Return what a version takes and gives. Raises VersionNotReady while that is not known."""
    served = queue.served
    if not served.inputs:
        raise VersionNotReady(f"version {served.version} of {queue.deployment} is {served.state}: {served.message}")
    return served


def _metadata(name: str, versions: Sequence[str], served: ServedVersion) -> dict[str, Any]:
    inputs = [_tensor(tensor.name, tensor.datatype, tensor.shape) for tensor in served.inputs]
    if served.text_input:
        inputs.append(_tensor(served.text_input, "BYTES", (-1,)))
    return {
        "name": name,
        "versions": list(versions),
        "platform": f"{served.engine}_{served.precision}",
        "inputs": inputs,
        "outputs": [_tensor(tensor.name, tensor.datatype, tensor.shape) for tensor in served.outputs],
    }


def _tensor(name: str, datatype: str, shape: Sequence[int]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def _allow(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        raise MethodNotAllowed(f"{scope['path'][:200]} takes {method}, not {scope['method'][:20]}")


def _header(scope: Scope, name: bytes) -> bytes:
    """Return a header, empty when it is not there."""
    return next((value for key, value in scope["headers"] if key == name), b"")


async def _send_json(send: Send, content: dict[str, Any]) -> None:
    await _send_body(send, 200, rest_infer.encode_json(content), [(b"content-type", b"application/json")])


async def _send_body(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
