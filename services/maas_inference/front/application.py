"""The ASGI application that Envoy runs. Its settings come from the environment that Envoy was started with."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Generator, MutableMapping
from functools import partial
from typing import Any, Final, TypeAlias

from maas_inference.front import grpc_infer
from maas_inference.front.bodies import Bodies
from maas_inference.front.door import Door
from maas_inference.front.envoy_filter import ADMIN_SOCKET_VARIABLE
from maas_inference.front.failures import (
    InternalError,
    MediaTypeWrong,
    MethodNotAllowed,
    MethodNotImplemented,
    status_of,
)
from maas_inference.front.grpc_inference import GrpcInference, UnaryCall
from maas_inference.front.grpc_stream import InferStream
from maas_inference.front.link import keep_link
from maas_inference.front.metrics import FrontMetrics
from maas_inference.front.question import CallerGone, Receive, Send
from maas_inference.front.rest import JSON, Request, RestApi
from maas_inference.front.rest_infer import encode_json
from maas_inference.front.serving import Serving
from maas_inference.inquiry import INQUIRY_SOCKET, Ask, asker
from maas_inference.table import FRONT_SOCKET
from maas_runtime.failures import Failure, Overloaded, Unavailable
from maas_runtime.logs import configure_logging

logger = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]

_GARBAGE_THRESHOLD: Final = 20_000


class Started:
    """Stands for a task where there is none: the request is answered by callbacks."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()

    def add_done_callback(self, callback: object, *, context: object = None) -> None:
        """Forget it: it is there to hear of exceptions, and no callback lets one out."""


STARTED: Final = Started()


class Application:
    """Answers one request, or is the application from its start to its end."""

    _asgi_single_callable = True
    """pyvoy reads it: this is ASGI 3, although calling it makes no coroutine for every request."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return what the rest happens in."""
        if scope["type"] == "http":
            front: Front = scope["state"]["front"]
            return front(scope, receive, send)
        return _live(scope["state"], receive, send)


app: Final = Application()


def _make_task(loop: asyncio.AbstractEventLoop, awaitable: Any, **options: Any) -> Any:
    """Be the loop's task factory: pyvoy makes a task of whatever the application returns."""
    return awaitable if awaitable is STARTED else asyncio.Task(awaitable, loop=loop, **options)


async def _live(state: dict[str, Any], receive: Receive, send: Send) -> None:
    await receive()
    asyncio.get_running_loop().set_task_factory(_make_task)
    configure_logging("maas_inference.front", os.environ.get("MAAS_LOG_LEVEL", "INFO"))
    try:
        async with asyncio.TaskGroup() as tasks:
            metrics = FrontMetrics()
            serving = Serving(metrics, tasks)
            run_dir = os.environ["MAAS_RUN_DIR"]
            state["front"] = Front(serving, metrics, asker(os.path.join(run_dir, INQUIRY_SOCKET)))
            background = [
                tasks.create_task(serving.sweep()),
                tasks.create_task(keep_link(os.path.join(run_dir, FRONT_SOCKET), serving, metrics)),
                tasks.create_task(Door(serving, os.environ[ADMIN_SOCKET_VARIABLE]).keep()),
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
    """Routes requests, and gives each failure the form that its caller understands."""

    def __init__(self, serving: Serving, metrics: FrontMetrics, ask: Ask) -> None:
        bodies = Bodies()
        self._bodies = bodies
        self._metrics = metrics
        self._inference = GrpcInference(serving, metrics, bodies)
        self._rest = RestApi(serving, bodies, ask)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer one request, whatever it is, in what is returned; STARTED: by callbacks."""
        if (
            scope["path"] != grpc_infer.METHOD_PATH
            or grpc_infer.CONTENT_TYPE not in scope["headers"]
            or scope["method"] != "POST"
        ):
            return self._answer(scope, receive, send)
        self._begin_infer(scope, receive, send)
        return STARTED

    def _begin_infer(self, scope: Scope, receive: Receive, send: Send) -> None:
        UnaryCall(self._inference, scope["headers"], receive, send, partial(self._refuse_now, scope, send)).begin()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], scope["headers"]
        try:
            if path == grpc_infer.METHOD_PATH:
                _check_grpc(scope)
                self._begin_infer(scope, receive, send)
            elif path == grpc_infer.STREAM_PATH:
                _check_grpc(scope)
                await InferStream(self._inference, self._bodies, headers, receive, send).run()
            elif _is_grpc(scope):
                raise MethodNotImplemented(f"an inference front does not answer {path[:200]}")
            else:
                await self._rest.answer(Request(scope["method"], path, dict(headers), receive), send)
        except (CallerGone, OSError):
            return  # ASGI's `send` raises OSError once the caller has hung up
        except Failure as failure:
            self._refuse_now(scope, send, failure)
        except Exception:
            request_id = dict(headers).get(b"x-request-id", b"").decode("latin-1")
            logger.exception("a request failed", extra={"path": path, "request_id": request_id})
            self._refuse_now(scope, send, InternalError(f"internal error; request id {request_id or 'unknown'}"))

    def _refuse_now(self, scope: Scope, send: Send, failure: Failure) -> None:
        """Send the whole refusal. What `send` returns need not be waited for: the body is whole."""
        status = status_of(failure)
        self._metrics.count_refused(status.name, failure.reason)
        if _is_grpc(scope) and not isinstance(failure, MediaTypeWrong | MethodNotAllowed):
            headers = grpc_infer.error_headers(failure, scope["headers"])
            send({"type": "http.response.start", "status": 200, "headers": headers})
            send({"type": "http.response.body", "body": b""})
            return
        content = encode_json({"error": failure.message, "reason": failure.reason, "code": status.name})
        headers = [JSON, (b"content-length", str(len(content)).encode())]
        if isinstance(failure, Overloaded | Unavailable):
            headers.append((b"retry-after", str(max(1, round(failure.retry_after_seconds))).encode()))
        if isinstance(failure, MethodNotAllowed):
            headers.append((b"allow", failure.allowed.encode()))
        headers += [header for header in scope["headers"] if header[0] == b"x-request-id"]
        send({"type": "http.response.start", "status": status.http, "headers": headers})
        send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})


def _is_grpc(scope: Scope) -> bool:
    """Say whether a request is a gRPC call, by its path or by what it says of itself."""
    return scope["path"].startswith(grpc_infer.SERVICE_PREFIX) or any(
        name == b"content-type" and value.startswith(b"application/grpc") for name, value in scope["headers"]
    )


def _check_grpc(scope: Scope) -> None:
    """Raises MediaTypeWrong, MethodNotAllowed."""
    grpc_infer.check_content_type(scope["headers"])
    if scope["method"] != "POST":
        raise MethodNotAllowed("gRPC methods take POST", allowed="POST")
