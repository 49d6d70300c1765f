"""REST: the paths of the Open Inference Protocol and its extensions, and /predict."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from maas_inference.description import model_config, model_metadata, repository_index, server_metadata
from maas_inference.front import rest_infer
from maas_inference.front.bodies import MAX_BODY_BYTES, Bodies, too_large
from maas_inference.front.computing import DEFAULT_TIMEOUT_SECONDS, compute, described
from maas_inference.front.failures import MethodNotAllowed, MethodNotImplemented, PathNotFound, VersionNotReady
from maas_inference.front.options import NO_OPTIONS, read_options
from maas_inference.front.question import Receive, Send
from maas_inference.front.serving import Serving
from maas_inference.front.version_queue import VersionQueue
from maas_inference.front.wanted import classified
from maas_inference.inquiry import Ask, Inquiry

T = TypeVar("T")

Headers = dict[bytes, bytes]

JSON: Final = (b"content-type", b"application/json")
_BINARY: Final = (b"content-type", b"application/octet-stream")
_LARGE_BYTES: Final = 1 << 20
"""Larger bodies are taken apart, and larger answers put together, in a thread: others' answers come in between."""


class Request(NamedTuple):
    """One request, before its body."""

    method: str
    path: str
    headers: Headers
    receive: Receive


class Response(NamedTuple):
    """An answer with no failure in it."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    status: int = 200


class RestApi:
    """Answers requests at every path that is no gRPC method."""

    def __init__(self, serving: Serving, bodies: Bodies, ask: Ask) -> None:
        self._serving = serving
        self._bodies = bodies
        self._ask = ask

    async def answer(self, request: Request, send: Send) -> None:
        """Answer one request. Raises a Failure before anything is sent, CallerGone, OSError."""
        response = await self._response(request)
        body = response.body
        headers = [*response.headers, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else body})

    async def _response(self, request: Request) -> Response:
        match request.path.strip("/").split("/"):
            case ["predict"]:
                return await self._predict(request.headers.get(b"maas-model", b"").decode("latin-1"), request)
            case ["predict", name]:
                return await self._predict(name, request)
            case ["v2", "models", name, "infer"]:
                return await self._infer(name, "", request)
            case ["v2", "models", name, "versions", version, "infer"]:
                return await self._infer(name, version, request)
            case ["v2", "models", "stats"]:
                return await self._asked(request, "GET", Inquiry("statistics"))
            case ["v2", "models", name, "stats"]:
                return await self._asked(request, "GET", Inquiry("statistics", name))
            case ["v2", "models", name, "versions", version, "stats"]:
                return await self._asked(request, "GET", Inquiry("statistics", name, version))
            case ["v2", "repository", "index"]:
                return await self._index(request)
            case ["v2", "repository", "models", name, "load"]:
                return await self._asked(request, "POST", Inquiry("load", name))
            case ["v2", "repository", "models", name, "unload"]:
                return await self._asked(request, "POST", Inquiry("unload", name))
            case ["v2", *rest]:
                content = self._describe(rest, request)
                return Response(rest_infer.encode_json(content))
            case _:
                raise _path_not_found(request)

    def _describe(self, path: list[str], request: Request) -> dict[str, Any]:
        match path:
            case []:
                _allow(request, "GET")
                return server_metadata(self._serving.table)
            case ["health", "live"]:
                _allow(request, "GET")
                return {"live": True}
            case ["health", "ready"]:
                _allow(request, "GET")
                if not self._serving.is_ready():
                    raise VersionNotReady("not every deployment has a version that is ready")
                return {"ready": True}
            case ["trace", *_] | ["logging"] | ["models", _, "trace", *_]:
                raise MethodNotImplemented("traces and logs are set where the server is started, not by a call")
            case ["systemsharedmemory" | "cudasharedmemory", *_]:
                raise MethodNotImplemented("shared memory is not offered: send tensors in the request")
            case ["models", name, *rest]:
                return self._describe_model(name, rest, request)
            case _:
                raise _path_not_found(request)

    def _describe_model(self, name: str, path: list[str], request: Request) -> dict[str, Any]:
        match path:
            case [] | ["ready" | "config"]:
                version = ""
            case ["versions", version] | ["versions", version, "ready" | "config"]:
                pass
            case _:
                raise _path_not_found(request)
        _allow(request, "GET")
        deployment = self._serving.deployment(name)
        queue = deployment.choose(version) if version else deployment.main()
        match path[-1:]:
            case ["ready"]:
                return _readiness(name, queue)
            case ["config"]:
                return model_config(name, described(queue))
        return model_metadata(name, deployment.queues, described(queue))

    async def _infer(self, name: str, version: str, request: Request) -> Response:
        _allow(request, "POST")
        arrived = time.monotonic()
        deadline = _deadline(request, arrived)
        body = await self._read(request, deadline)
        sent, binary = await _aside(
            len(body), lambda: rest_infer.decode_infer(body, request.headers.get(rest_infer.BINARY_HEADER, b""))
        )
        queue = self._serving.deployment(name).choose(version)
        served = described(queue)
        wanted = rest_infer.read_wanted(served, sent)
        are_binary = rest_infer.read_binary(sent)
        options = read_options(sent.parameters) if sent.parameters else NO_OPTIONS
        inputs = await _aside(len(body), lambda: rest_infer.read_inputs(served, sent, binary))
        answer = await compute(queue, inputs, request.receive, arrived, deadline, options)
        if wanted.classes:
            answer = classified(served, wanted, answer)
        content, json_length = await _aside(
            sum(map(len, answer.raws)),
            lambda: rest_infer.encode_infer(name, served, sent, wanted, are_binary, answer),
        )
        if json_length is None:
            return await _packed(Response(content), request)
        headers = (_BINARY, (rest_infer.BINARY_HEADER, str(json_length).encode()))
        return await _packed(Response(content, headers), request)

    async def _predict(self, name: str, request: Request) -> Response:
        _allow(request, "POST")
        arrived = time.monotonic()
        deadline = _deadline(request, arrived)
        body = await self._read(request, deadline)
        texts, as_list = await _aside(len(body), lambda: rest_infer.decode_predict(body))
        deployment = self._serving.deployment_or_default(name)
        queue = deployment.choose("")
        served = described(queue)
        inputs = rest_infer.read_texts(served, texts)
        answer = await compute(queue, inputs, request.receive, arrived, deadline)
        content = rest_infer.encode_predictions(deployment.name, served, answer, as_list=as_list)
        return await _packed(Response(content), request)

    async def _index(self, request: Request) -> Response:
        _allow(request, "POST")
        body = await self._read(request, time.monotonic() + DEFAULT_TIMEOUT_SECONDS)
        ready_only = rest_infer.decode_index(body) if body else False
        return Response(
            rest_infer.encode_json(repository_index(self._serving.table.deployments, ready_only=ready_only))
        )

    async def _asked(self, request: Request, method: str, inquiry: Inquiry) -> Response:
        _allow(request, method)
        outcome = await self._ask(inquiry)
        return Response(rest_infer.encode_json(outcome.content), status=outcome.status)

    async def _read(self, request: Request, deadline: float) -> bytes:
        length = request.headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > len(str(MAX_BODY_BYTES)) or int(length) > MAX_BODY_BYTES):
            raise too_large()
        body = await self._bodies.read(request.receive, deadline)
        encoding = request.headers.get(b"content-encoding", b"")
        return await _aside(len(body), lambda: rest_infer.unpacked_body(body, encoding)) if encoding else body


def _deadline(request: Request, arrived: float) -> float:
    timeout = request.headers.get(rest_infer.TIMEOUT_HEADER)
    return arrived + (DEFAULT_TIMEOUT_SECONDS if timeout is None else rest_infer.parse_timeout(timeout))


async def _packed(response: Response, request: Request) -> Response:
    """Return an answer of inference compressed, if the caller takes that.

    Nothing else is: tritonclient's asyncio client says that it takes gzip, and reads it in these answers only.
    """
    accepted = request.headers.get(b"accept-encoding", b"")
    body, encoding = await _aside(len(response.body), lambda: rest_infer.packed_body(response.body, accepted))
    if not encoding:
        return response
    headers = (*response.headers, (b"content-encoding", encoding), (b"vary", b"accept-encoding"))
    return response._replace(body=body, headers=headers)


async def _aside(size_bytes: int, work: Callable[[], T]) -> T:
    """Do the work here, or in a thread when there is much of it."""
    return await asyncio.to_thread(work) if size_bytes > _LARGE_BYTES else work()


def _readiness(name: str, queue: VersionQueue) -> dict[str, Any]:
    if not queue.is_connected:
        raise VersionNotReady(f"version {queue.served.version} of {name} is {queue.served.state}")
    return {"name": name, "ready": True}


def _allow(request: Request, method: str) -> None:
    if request.method != method and not (request.method == "HEAD" and method == "GET"):
        raise MethodNotAllowed(
            f"{request.path[:200]} takes {method}, not {request.method[:20]}",
            allowed="GET, HEAD" if method == "GET" else method,
        )


def _path_not_found(request: Request) -> PathNotFound:
    return PathNotFound(f"nothing is served at {request.path[:200]}", name=request.path[:200])
