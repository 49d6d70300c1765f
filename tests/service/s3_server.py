"""A real S3 server in this process (moto), whose answers can be made to fail."""

import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from obstore.store import S3Store
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Fault = Callable[[dict[str, Any], Callable[..., Any], Application], Iterable[bytes]]
"""Answers a request instead of the server, which it may ask."""


class S3Server:
    """Where it is, what it holds, and how it fails."""

    def __init__(self) -> None:
        self._application: Application = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self._port = 0
        self.fault: Fault | None = None
        """Stands between the caller and the server while it is set."""
        self.requests: list[str] = []
        """Method and path of all that was asked."""
        self.bucket = ""
        """The newest."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def new_bucket(self) -> str:
        """Make an empty bucket, and return its URL for MAAS_REGISTRY_BLOBS_URL."""
        self.bucket = f"b-{uuid.uuid4().hex}"
        request = urllib.request.Request(f"{self.endpoint}/{self.bucket}", method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            pass
        return f"s3://{self.bucket}/maas?endpoint={self.endpoint}&region=us-east-1"

    def overwrite(self, sha256: str, content: bytes) -> None:
        """Let the object of a blob have other bytes."""
        store = S3Store(
            self.bucket,
            prefix="maas",
            config={"endpoint": self.endpoint, "access_key_id": "key", "secret_access_key": "secret"},
            client_options={"allow_http": True},
        )
        store.put(f"blobs/{sha256[:2]}/{sha256}", content)

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True, request_handler=_Quiet)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def stop(self) -> None:
        """Be gone: nobody listens, what is open breaks. What is stored stays."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
        self._server = None

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if self.fault is None:
            return self._application(environ, start_response)
        return self.fault(environ, start_response, self._application)


def server_error(environ: dict[str, Any], start_response: Callable[..., Any], _: Application) -> Iterable[bytes]:
    """The server is there, and broken."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("503 Slow Down", [("Content-Length", "0")])
    return [b""]


def cut_short(environ: dict[str, Any], start_response: Callable[..., Any], ask: Application) -> Iterable[bytes]:
    """Bytes that are read stop half way, and the connection with them."""
    if environ["REQUEST_METHOD"] != "GET":
        return ask(environ, start_response)
    content = b"".join(ask(environ, start_response))
    return _half(content)


def _half(content: bytes) -> Iterator[bytes]:
    yield content[: len(content) // 2]
    raise ConnectionAbortedError


@contextmanager
def started_s3() -> Iterator[S3Server]:
    """A server on a free port, until the context ends."""
    server = S3Server()
    server.start()
    try:
        yield server
    finally:
        server.stop()


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Say nothing."""

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            super().handle()
