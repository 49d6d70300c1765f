"""What breaks servers: bytes that are no message, bodies that lie, floods, and callers that stall.

Each gets the status of its own fault, in JSON over REST; the server stays, and answers others meanwhile. gRPC is spoken
here over HTTP/1.1, which Envoy takes too, so that every byte can be wrong.
"""

import contextlib
import gzip
import json
import select
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from oip_server import OipServer, oip_server, until

from maas.oip.v2 import grpc_service_pb2 as oip

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
PATHS = ("/v2/models/reviews/infer", "/v2/models/everything/infer", "/predict/reviews")
MIB = 1 << 20
BOMB = gzip.compress(bytes(300 << 20), 1)


@pytest.fixture(scope="module")
def server() -> Iterator[OipServer]:
    with oip_server() as started:
        yield started


@pytest.fixture(autouse=True)
def the_server_goes_on(server: OipServer) -> Iterator[None]:
    """After each test the same process still answers."""
    yield
    assert server.front.poll() is None
    assert exchange(server, "POST", PATHS[0], json.dumps(good_json()).encode()).status == 200


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def grpc_status(self) -> int:
        """The status in the headers. Envoy sends no trailers over HTTP/1.1, so it is 0 for an answer with a message."""
        return int(self.headers.get("grpc-status", "0" if self.body or self.status != 200 else "-1"))


def connect(server: OipServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def head(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: a", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def receive(connection: socket.socket) -> Answer:
    """Read one response, whose connection the server may or may not close."""
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        headers = {}
        while line := stream.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        body = b""
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int(stream.readline(), 16):
                body += stream.read(size)
                stream.readline()
            while line := stream.readline().strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
        else:
            body = stream.read(int(headers.get("content-length", 0)))
        return Answer(status, headers, body)


def exchange(server: OipServer, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named.setdefault("content-length", str(len(body)))
    with connect(server) as connection:
        connection.sendall(head(method, path, named))
        with contextlib.suppress(OSError):  # the answer may come before all is sent
            connection.sendall(body)
        return receive(connection)


def grpc_exchange(server: OipServer, body: bytes, path: str = INFER, **headers: str) -> Answer:
    return exchange(server, "POST", path, body, **{"content-type": "application/grpc", "te": "trailers"} | headers)


def frame(message: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(message)) + message


def good_json() -> dict[str, Any]:
    return {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}]}


def good_message(rows: int = 1) -> bytes:
    request = oip.ModelInferRequest(model_name="reviews", id="x")
    request.inputs.add(name="tokens", datatype="INT64", shape=[rows, 2])
    request.raw_input_contents.append(np.ones((rows, 2), np.int64).tobytes())
    return request.SerializeToString()


def memory_bytes(server: OipServer) -> int:
    status = Path(f"/proc/{server.front.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


# JSON


def _json(tensor: str) -> bytes:
    return b'{"inputs": [' + tensor.encode() + b"]}"


NASTY = {
    "nothing": b"",
    "a brace": b"{",
    "not UTF-8": b'{"inputs": "\xff\xfe"}',
    "a lone surrogate": b'{"text": "\\ud800", "inputs": []}',
    "zero bytes": b"\0" * 100,
    "lists 100,000 deep": b"[" * 100_000,
    "closed lists 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "objects 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "data 100,000 deep": _json(
        '{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": ' + "[" * 100_000 + "1" + "]" * 100_000 + "}"
    ),
    "data 900 deep of nothing": _json(
        '{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": ' + "[" * 900 + "]" * 900 + "}"
    ),
    "1e999": _json('{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [1e999]}'),
    "2 to the 70": _json(f'{{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [{2**70}]}}'),
    "2 to the 64": _json(f'{{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [{2**64}]}}'),
    "a number of 10,000 digits": _json(
        '{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [' + "9" * 10_000 + "]}"
    ),
    "a dimension of 10,000 digits": _json(
        '{"name": "tokens", "datatype": "INT64", "shape": [' + "9" * 10_000 + ', 1], "data": [1]}'
    ),
    "NaN": _json('{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [NaN]}'),
    "Infinity": _json('{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [-Infinity]}'),
    "a fraction": _json('{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [1.5]}'),
    "true for a number": _json('{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [true]}'),
    "a dimension of 2 to the 63": _json(
        f'{{"name": "tokens", "datatype": "INT64", "shape": [{2**63}, {2**63}], "data": [1]}}'
    ),
    "a negative dimension": _json('{"name": "tokens", "datatype": "INT64", "shape": [-1, -1], "data": [1]}'),
    "no rows": _json('{"name": "tokens", "datatype": "INT64", "shape": [0, 1], "data": []}'),
    "no columns": _json('{"name": "tokens", "datatype": "INT64", "shape": [1, 0], "data": []}'),
    "64 dimensions": _json('{"name": "tokens", "datatype": "INT64", "shape": [' + "1," * 63 + '1], "data": [1]}'),
    "2,000 rows": _json('{"name": "tokens", "datatype": "INT64", "shape": [2000, 1], "data": [' + "1," * 1999 + "1]}"),
    "a word id that is not there": _json('{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [99999]}'),
    "an input 1,000 times": _json(
        ",".join(['{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [1]}'] * 1000)
    ),
    "an output 100,000 times": b'{"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [1]}],'
    b'"outputs": [' + b'{"name": "logits"},' * 99_999 + b'{"name": "logits"}]}',
    "a name of a megabyte": _json(f'{{"name": "{"n" * MIB}", "datatype": "INT64", "shape": [1, 1], "data": [1]}}'),
    "a datatype of a megabyte": _json(f'{{"name": "tokens", "datatype": "{"n" * MIB}", "shape": [1, 1], "data": [1]}}'),
    "a text of two megabytes": b'{"text": "' + b"a" * (2 * MIB) + b'", "inputs": []}',
    "2,000 texts": json.dumps({"texts": ["a"] * 2000, "inputs": []}).encode(),
    "text of wrong types": b'{"text": {"a": [1]}, "inputs": []}',
    "classes that are a text": b'{"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [1]}],'
    b'"outputs": [{"name": "logits", "parameters": {"classification": "all"}}]}',
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", NASTY.values(), ids=NASTY.keys())
def test_nasty_json_is_400_with_a_reason(server: OipServer, path: str, body: bytes) -> None:
    answer = exchange(server, "POST", path, body, content_type="application/json")
    assert answer.status == 400, answer.body[:300]
    assert set(answer.json) == {"error", "reason", "code"}
    assert len(answer.body) < 4000


@pytest.mark.parametrize("model", ["reviews", "everything"])
@pytest.mark.parametrize(
    "length", ["-1", "1e3", "99999999", "9" * 5000, "0", "1", "x", "5.0", "0x10", " ", "18446744073709551616"]
)
def test_a_json_length_that_lies_is_400(server: OipServer, model: str, length: str) -> None:
    answer = exchange(
        server,
        "POST",
        f"/v2/models/{model}/infer",
        b'{"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 1], '
        b'"parameters": {"binary_data_size": 8}}]}' + b"\1" * 8,
        inference_header_content_length=length,
    )
    assert answer.status == 400
    assert answer.json["reason"]


@pytest.mark.parametrize("size", [0, 7, 9, -8, 2**63, "8", 8.0, True, None, [8]])
def test_a_binary_size_that_lies_is_400(server: OipServer, size: Any) -> None:
    tensor = {"name": "tokens", "datatype": "INT64", "shape": [1, 1], "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [tensor]}).encode()
    length = str(len(header))
    answer = exchange(server, "POST", PATHS[0], header + b"\1" * 8, inference_header_content_length=length)
    assert answer.status == 400
    assert answer.json["reason"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_is_not_compressed_as_it_says_is_400(server: OipServer, path: str, encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    for body in (b"", b"{}", pack(b"{}" * 50)[:-5], b"\x1f\x8b" + b"\0" * 40):
        answer = exchange(server, "POST", path, body, content_encoding=encoding)
        assert (answer.status, answer.json["reason"]) == (400, "BODY_ENCODING_INVALID")


def test_an_unknown_encoding_is_415(server: OipServer) -> None:
    answer = exchange(server, "POST", PATHS[0], b"{}", content_encoding="br")
    assert (answer.status, answer.json["reason"]) == (415, "ENCODING_UNSUPPORTED")


def test_a_bomb_is_not_unpacked(server: OipServer) -> None:
    before = memory_bytes(server)
    answer = exchange(server, "POST", PATHS[0], BOMB, content_encoding="gzip")
    assert (answer.status, answer.json["reason"]) == (413, "MESSAGE_TOO_LARGE")
    assert memory_bytes(server) < before + 250 * MIB


# HTTP


@pytest.mark.parametrize("path", PATHS)
def test_a_body_over_the_bound_is_413_before_it_is_sent(server: OipServer, path: str) -> None:
    with connect(server) as connection:
        connection.sendall(head("POST", path, {"content-length": str(10**12)}) + b"{")
        answer = receive(connection)
    assert (answer.status, answer.json["reason"]) == (413, "MESSAGE_TOO_LARGE")


@pytest.mark.parametrize("path", [*PATHS, INFER, STREAM])
def test_a_flood_without_a_length_is_stopped_and_not_held(server: OipServer, path: str) -> None:
    before = memory_bytes(server)
    with connect(server) as connection:
        headers = {"transfer-encoding": "chunked"}
        if path in (INFER, STREAM):
            headers["content-type"] = "application/grpc"
        connection.sendall(head("POST", path, headers))
        chunk = struct.pack(">BI", 0, 2**32 - 1) + b"a" * (MIB - 5)
        with contextlib.suppress(OSError):
            for _ in range(400):
                connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        answer = receive(connection)
    if path in (INFER, STREAM):
        assert answer.grpc_status == 8
    else:
        assert (answer.status, answer.json["reason"]) == (413, "MESSAGE_TOO_LARGE")
    assert memory_bytes(server) < before + 200 * MIB


@pytest.mark.parametrize("path", [*PATHS, INFER, STREAM])
def test_a_body_that_is_cut_off_leaves_nothing(server: OipServer, path: str) -> None:
    for _ in range(20):
        with connect(server) as connection:
            connection.sendall(head("POST", path, {"content-length": "1000", "content-type": "application/grpc"}))
            connection.sendall(b'{"text": ')


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nContent-Length: 6",
        b"Content-Length: -5",
        b"Content-Length: five",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: gzip",
        b"X: " + b"a" * 100_000,
        b"\r\n".join(b"X-%d: a" % number for number in range(3000)),
        b"no colon",
        b": no name",
        b"X: \0",
    ],
)
def test_headers_that_lie_are_refused(server: OipServer, lines: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(b"POST /predict/reviews HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n\r\nhello")
        answered = connection.recv(1000)
    assert answered.split(b" ")[1] in (b"400", b"431", b"501"), answered


@pytest.mark.parametrize(
    "start", [b"\0\xff\xfe" * 50, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n"]
)
def test_what_is_no_http_ends_its_connection_only(server: OipServer, start: bytes) -> None:
    with connect(server) as connection, contextlib.suppress(OSError):
        connection.sendall(start)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1000):
            pass


@pytest.mark.parametrize("path", ["/v2/models/%2e%2e/ready", "/v2/models/a%00b", "/v2/models/" + "a" * 5000,
                                  "/v2/models/reviews%20", "/v2/models/..", "/v2//models//reviews/x"])  # fmt: skip
def test_odd_paths_are_4xx_in_json(server: OipServer, path: str) -> None:
    answer = exchange(server, "GET", path)
    assert 400 <= answer.status < 500
    assert not answer.body or answer.json["error"]


def test_a_path_beyond_ascii_is_refused_in_json(server: OipServer) -> None:
    answer = exchange(server, "GET", "/v2/models/%ff")
    assert (answer.status, answer.json["code"]) == (403, "INVALID_ARGUMENT")


# gRPC


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        b"\0\0\0\0",
        frame(good_message())[:-1],
        frame(good_message()) + b"\0",
        frame(good_message()) * 2,
        b"\0\xff\xff\xff\xff" + good_message(),
        frame(good_message(), flag=2),
        frame(good_message(), flag=255),
        frame(b"\xff" * 20),
        frame(b"\x0a\xff\xff\xff\xff\x0f"),
        frame(b"\x0a\x02\xff\xfe"),
        frame(b"\x2a\x7f" + b"\x2a\x7d" * 3),
        frame(b"\x08\x01" * 100),
        frame(b"\x0b" * 10_000),
        frame(b"\x0b" * 50 + b"\x0c" * 50),
    ],
    ids=["nothing", "a flag", "half a head", "a byte too few", "a byte too many", "two messages", "a length of 4 GiB",
         "flag 2", "flag 255", "no message", "a length beyond the end", "a name that is not UTF-8",
         "nested lengths that lie", "a name that is a number", "10,000 open groups", "empty groups"],
)  # fmt: skip
def test_bytes_that_are_no_request_are_refused(server: OipServer, body: bytes) -> None:
    answer = grpc_exchange(server, body)
    assert answer.status == 200
    # What is a message of unknown fields only asks for a model without a name.
    assert answer.grpc_status in (3, 5), answer.headers


def test_wire_types_that_do_not_fit_are_refused(server: OipServer) -> None:
    fixed32 = b"\x3d\1\2\3\4"  # field 7 as fixed32 is unknown to the parser: no raw contents
    message = oip.ModelInferRequest(model_name="reviews")
    message.inputs.add(name="tokens", datatype="INT64", shape=[1, 1])
    answer = grpc_exchange(server, frame(message.SerializeToString() + fixed32))
    assert answer.grpc_status == 3


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/grp", ""])
@pytest.mark.parametrize("path", [INFER, STREAM])
def test_what_is_no_grpc_is_415(server: OipServer, path: str, content_type: str) -> None:
    answer = grpc_exchange(server, frame(good_message()), path, **{"content-type": content_type})
    assert answer.status == 415


@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc+proto", "application/grpc;a=b"])
def test_every_grpc_content_type_is_taken(server: OipServer, content_type: str) -> None:
    answer = grpc_exchange(server, frame(good_message()), **{"content-type": content_type})
    assert (answer.status, answer.grpc_status) == (200, 0)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.parametrize("path", [INFER, STREAM])
def test_grpc_is_posted(server: OipServer, path: str, method: str) -> None:
    answer = exchange(server, method, path, frame(good_message()), content_type="application/grpc")
    assert (answer.status, answer.headers.get("allow")) == (405, "POST")


@pytest.mark.parametrize("timeout", ["", "1", "S", "1s", "-1S", "123456789S", "1.5S", "1 S", "9" * 500])
@pytest.mark.parametrize("path", [INFER, STREAM])
def test_a_timeout_that_is_none_is_refused(server: OipServer, path: str, timeout: str) -> None:
    answer = grpc_exchange(server, frame(good_message()), path, grpc_timeout=timeout)
    # Without a value there is no timeout.
    assert answer.grpc_status == (0 if not timeout else 3)


@pytest.mark.parametrize("path", [INFER, STREAM])
@pytest.mark.parametrize(
    ("flag", "encoding", "status"),
    [(1, None, 13), (1, "identity", 13), (1, "snappy", 12), (1, "GZIP", 12), (0, "snappy", 0), (0, "gzip", 0)],
)
def test_compression_follows_the_rules_of_grpc(
    server: OipServer, path: str, flag: int, encoding: str | None, status: int
) -> None:
    headers = {} if encoding is None else {"grpc-encoding": encoding}
    answer = grpc_exchange(server, frame(good_message(), flag), path, **headers)
    assert answer.grpc_status == status
    if status == 12:
        assert "gzip" in answer.headers["grpc-accept-encoding"]


def test_large_answers_are_compressed_for_those_who_compress(server: OipServer) -> None:
    headers = {"grpc-encoding": "gzip", "grpc-accept-encoding": "identity, gzip"}
    small, large = (frame(gzip.compress(good_message(rows)), 1) for rows in (1, 500))
    answer = grpc_exchange(server, large, **headers)
    assert (answer.headers["grpc-encoding"], answer.body[0]) == ("gzip", 1)
    response = oip.ModelInferResponse.FromString(gzip.decompress(answer.body[5:]))
    assert list(response.outputs[0].shape) == [500, 2]
    assert grpc_exchange(server, small, **headers).body[0] == 0
    assert grpc_exchange(server, large, grpc_encoding="gzip").body[0] == 0
    assert grpc_exchange(server, frame(good_message(500)), grpc_accept_encoding="gzip").body[0] == 0


def test_a_bomb_over_grpc_is_not_unpacked(server: OipServer) -> None:
    before = memory_bytes(server)
    for path in (INFER, STREAM):
        answer = grpc_exchange(server, frame(BOMB, 1), path, grpc_encoding="gzip")
        assert answer.grpc_status == 8
    assert memory_bytes(server) < before + 250 * MIB


def test_a_message_of_a_failure_is_escaped(server: OipServer) -> None:
    request = oip.ModelInferRequest(model_name="ü\n%\0" * 10)
    answer = grpc_exchange(server, frame(request.SerializeToString()))
    assert answer.grpc_status == 5
    assert answer.headers["grpc-message"].isascii()
    assert "%C3%BC" in answer.headers["grpc-message"] or "%0A" in answer.headers["grpc-message"]


def test_a_failure_of_huge_names_fits_into_headers(server: OipServer) -> None:
    request = oip.ModelInferRequest(model_name="reviews")
    request.inputs.add(name="n" * MIB, datatype="INT64" * 10_000, shape=[1] * 10_000)
    request.raw_input_contents.append(b"")
    answer = grpc_exchange(server, frame(request.SerializeToString()))
    assert answer.grpc_status == 3
    assert sum(len(value) for value in answer.headers.values()) < 8000


@pytest.mark.parametrize("method", ["Nothing", "", "ModelInfer/", "ModelInfer/x"])
def test_a_method_that_is_not_there_is_unimplemented(server: OipServer, method: str) -> None:
    assert grpc_exchange(server, frame(b""), f"/inference.GRPCInferenceService/{method}").grpc_status == 12


def test_another_service_is_unimplemented(server: OipServer) -> None:
    assert grpc_exchange(server, frame(b""), "/other.Service/Method").grpc_status == 12


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (frame(good_message()) + b"\0\0", 3),
        (frame(good_message())[:-4], 3),
        (b"\0\xff\xff\xff\xff", 8),
        (frame(b"", flag=7), 3),
    ],
)
def test_a_stream_that_is_no_sequence_of_messages_ends_with_its_status(
    server: OipServer, body: bytes, status: int
) -> None:
    assert grpc_exchange(server, body, STREAM).grpc_status == status


def test_a_message_that_is_no_request_is_an_answer_of_its_stream(server: OipServer) -> None:
    answer = grpc_exchange(server, frame(b"\xff" * 9) + frame(good_message()) + frame(b""), STREAM)
    assert answer.grpc_status == 0
    messages = []
    rest = answer.body
    while rest:
        size = int.from_bytes(rest[1:5], "big")
        messages.append(oip.ModelStreamInferResponse.FromString(rest[5 : 5 + size]))
        rest = rest[5 + size :]
    assert sorted(bool(message.error_message) for message in messages) == [False, True, True]
    assert {message.infer_response.id for message in messages} == {"x", ""}


def test_elements_that_do_not_add_up_are_refused(server: OipServer) -> None:
    for raw in (b"\xff\xff\xff\xff", b"\1\0\0\0", b"\0\0\0", b"\0\0\0\0" * 3, b"\0\0\0\0" * (4 * MIB), b""):
        for shape in ([1], [2], [MIB]):
            request = oip.ModelInferRequest(model_name="reviews")
            request.inputs.add(name="text", datatype="BYTES", shape=shape)
            request.raw_input_contents.append(raw)
            assert grpc_exchange(server, frame(request.SerializeToString())).grpc_status == 3


# Callers that stall, and those that must not wait for them


@pytest.mark.parametrize("path", [PATHS[0], INFER])
def test_a_body_that_never_ends_is_given_up_at_its_deadline(server: OipServer, path: str) -> None:
    deadline = {"maas-timeout-ms": "600"} if path == PATHS[0] else {"grpc-timeout": "600m"}
    content_type = "application/grpc" if path == INFER else "application/json"
    with connect(server) as connection:
        headers = {"content-length": "100000", "content-type": content_type, **deadline}
        connection.sendall(head("POST", path, headers) + b"{")
        stopped = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stopped.wait(0.05):
                    connection.sendall(b" ")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            answer = receive(connection)
        finally:
            stopped.set()
            dripping.join()
    if path == INFER:
        assert answer.grpc_status == 4
    else:
        assert (answer.status, answer.json["code"]) == (504, "DEADLINE_EXCEEDED")


def test_stalled_callers_hold_up_nobody(server: OipServer) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(200):
            connection = stack.enter_context(connect(server))
            path, content_type = ((PATHS[0], "application/json"), (INFER, "application/grpc"))[number % 2]
            headers = {"content-length": "1000", "content-type": content_type}
            connection.sendall(head("POST", path, headers) + b"{"[: number % 4])
        started = time.monotonic()
        for _ in range(20):
            assert grpc_exchange(server, frame(good_message())).grpc_status == 0
        assert time.monotonic() - started < 20


def test_a_stream_whose_answers_nobody_reads_is_not_read_further(server: OipServer) -> None:
    message = frame(good_message(500))
    before = memory_bytes(server)
    sent = 0
    with connect(server) as connection:
        headers = {"transfer-encoding": "chunked", "content-type": "application/grpc"}
        connection.sendall(head("POST", STREAM, headers))
        connection.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while sent < 400 * MIB:
                connection.sendall(f"{len(message):x}\r\n".encode() + message + b"\r\n")
                sent += len(message)
        assert sent < 100 * MIB
        assert memory_bytes(server) < before + 100 * MIB
        assert grpc_exchange(server, frame(good_message())).grpc_status == 0


def test_a_large_json_body_does_not_stop_others(server: OipServer) -> None:
    numbers = "1," * (8 * MIB) + "1"
    body = _json(f'{{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [{numbers}]}}')
    answers = []
    large = threading.Thread(target=lambda: answers.append(exchange(server, "POST", PATHS[0], body)))
    large.start()
    asked = 0
    while large.is_alive():
        assert grpc_exchange(server, frame(good_message())).grpc_status == 0
        asked += 1
    large.join()
    assert (answers[0].status, answers[0].json["reason"]) == (400, "CONTENTS_WRONG")
    assert asked > 1


def test_bodies_that_are_being_received_are_bounded_together(server: OipServer) -> None:
    """Twelve callers send 63 MiB each and do not end; the ninth is told to come again."""
    refused = threading.Event()

    def send(connection: socket.socket) -> None:
        piece = b" " * MIB
        with contextlib.suppress(OSError):
            for _ in range(63):
                # Who is refused is told before the connection is reset.
                if select.select([connection], [], [], 0)[0]:
                    break
                connection.sendall(piece)
            if b"429" in connection.recv(20):
                refused.set()

    with contextlib.ExitStack() as stack:
        callers = []
        for _ in range(12):
            connection = stack.enter_context(connect(server))
            connection.sendall(head("POST", PATHS[0], {"content-length": str(64 * MIB)}))
            connection.settimeout(None)
            callers.append((connection, threading.Thread(target=send, args=(connection,))))
        for _, caller in callers:
            caller.start()
        assert refused.wait(20)
        assert memory_bytes(server) < 1200 * MIB
        for connection, caller in callers:
            connection.shutdown(socket.SHUT_RDWR)
            caller.join(20)
    until(lambda: exchange(server, "POST", PATHS[0], json.dumps(good_json()).encode()).status == 200)


def test_a_real_client_over_http2_meets_the_bound(server: OipServer) -> None:
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        request = oip.ModelInferRequest(model_name="reviews", raw_input_contents=[bytes(65 * MIB)])
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFER, request_serializer=oip.ModelInferRequest.SerializeToString)(request, timeout=20)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
