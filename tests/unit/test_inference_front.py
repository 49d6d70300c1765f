"""The ASGI application without Envoy: any bytes get an answer, and a bad one is never INTERNAL."""

import asyncio
import base64
import json
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from maas.oip.v2.grpc_service_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from maas_inference.counts import FrontCounts
from maas_inference.datatypes import ELEMENT_SIZES
from maas_inference.front import failures as front_failures
from maas_inference.front.application import STARTED, Front, Started
from maas_inference.front.door import share_to_let_in
from maas_inference.front.failures import STATUS_OF_KIND, status_of
from maas_inference.front.grpc_infer import METHOD_PATH, SERVICE_PREFIX, frame
from maas_inference.front.metrics import FrontMetrics
from maas_inference.front.question import Answer, Question
from maas_inference.front.rest_infer import softmax
from maas_inference.front.serving import Serving
from maas_inference.front.version_queue import VersionQueue
from maas_inference.inquiry import Inquiry, Outcome
from maas_inference.manager.front_metrics import front_families
from maas_inference.table import ModelTable, ServedDeployment, ServedVersion, Tensor
from maas_inference.wire import Batch, Reply, TensorHeader
from maas_runtime import errors
from maas_runtime.failures import Failure

DATATYPES = tuple(ELEMENT_SIZES)
REVIEWS = ServedVersion(
    "1",
    "tiny",
    1,
    "ready",
    inputs=(Tensor("tokens", "INT64", (-1, -1)),),
    outputs=(Tensor("logits", "FP32", (-1, 2)),),
    labels=("negative", "positive"),
    text_input="text",
)
EVERYTHING = ServedVersion(
    "1",
    "all",
    1,
    "ready",
    inputs=tuple(Tensor(f"in-{datatype}", datatype, (-1, 2)) for datatype in DATATYPES),
    outputs=tuple(Tensor(f"out-{datatype}", datatype, (-1, 2)) for datatype in DATATYPES),
)


class EchoWorker:
    """Answers each batch at once: zeros as logits, or every input as the output of its datatype."""

    def __init__(self, queue: Any, served: ServedVersion) -> None:
        self._queue = queue
        self._served = served

    def send(self, batch: Batch, parts: Sequence[bytes | memoryview]) -> None:
        rows = sum(batch.rows)
        if self._served is REVIEWS:
            payload = struct.pack("<2f", 0.0, 1.0) * rows
            tensors = (TensorHeader("logits", "FP32", (rows, 2), len(payload)),)
        else:
            payload = b"".join(parts)
            tensors = tuple(
                TensorHeader(f"out-{tensor.datatype}", tensor.datatype, tensor.shape, tensor.size_bytes)
                for tensor in batch.tensors
            )
        reply = Reply(batch.batch, 0, len(batch.rows), 0.001, tensors)
        asyncio.get_running_loop().call_soon(self._queue.replied, reply, memoryview(payload))

    def close(self) -> None:
        """Nothing to hang up."""


async def answer_inquiry(inquiry: Inquiry) -> Outcome:
    return Outcome(200, {"about": inquiry.about, "model": inquiry.model, "version": inquiry.version})


class Response:
    def __init__(self, messages: Sequence[dict[str, Any]]) -> None:
        self.status: int = messages[0]["status"]
        headers = messages[0]["headers"] + (messages[2]["headers"] if len(messages) > 2 else [])
        self.headers = {name.decode(): value for name, value in headers}
        self.body: bytes = messages[1]["body"]

    @property
    def grpc_status(self) -> int:
        return int(self.headers["grpc-status"])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def answer_all(requests: Sequence[tuple[str, str, dict[str, bytes], bytes]]) -> list[Response]:
    """Answer (method, path, headers, body) by a front of its own; a body comes in two pieces."""
    async with asyncio.TaskGroup() as tasks:
        metrics = FrontMetrics()
        serving = Serving(metrics, tasks)
        front = Front(serving, metrics, answer_inquiry)
        table = ModelTable(
            1, "0.1", (ServedDeployment("reviews", (REVIEWS,)), ServedDeployment("everything", (EVERYTHING,)))
        )
        serving.apply(table)
        for name, served in (("reviews", REVIEWS), ("everything", EVERYTHING)):
            queue = serving.deployments[name].queues["1"]
            queue.connected(EchoWorker(queue, served))
        responses = [await _answer(front, *request) for request in requests]
        serving.apply(ModelTable(2))
    return responses


async def _answer(front: Front, method: str, path: str, headers: dict[str, bytes], body: bytes) -> Response:
    middle = len(body) // 2
    pieces = iter(
        [
            {"type": "http.request", "body": body[:middle], "more_body": True},
            {"type": "http.request", "body": body[middle:], "more_body": False},
        ]
    )
    sent: list[dict[str, Any]] = []
    is_answered = asyncio.Event()

    async def receive() -> dict[str, Any]:
        return next(pieces)

    def send(message: dict[str, Any]) -> Started:
        """Take a message at once, as pyvoy does; what is returned need not be waited for."""
        sent.append(message)
        ends = "http.response.trailers" if sent[0].get("trailers") else "http.response.body"
        if message["type"] == ends and not message.get("more_body"):
            is_answered.set()
        return STARTED

    if path.startswith(SERVICE_PREFIX):
        headers = {"content-type": b"application/grpc"} | headers
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value) for name, value in headers.items()],
    }
    async with asyncio.timeout(10):
        await front(scope, receive, send)
        await is_answered.wait()
    return Response(sent)


def answer(method: str, path: str, body: bytes = b"", **headers: bytes) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(answer_all([(method, path, named, body)]))[0]


def infer(request: ModelInferRequest) -> ModelInferResponse:
    response = answer("POST", METHOD_PATH, frame(request.SerializeToString()))
    assert response.grpc_status == 0, response.headers
    return ModelInferResponse.FromString(response.body[5:])


def everything(typed: bool) -> ModelInferRequest:
    request = ModelInferRequest(model_name="everything", id="é")
    for datatype in DATATYPES:
        tensor = request.inputs.add(name=f"in-{datatype}", datatype=datatype, shape=[1, 2])
        if typed:
            field = front_fields()[datatype]
            getattr(tensor.contents, field).extend([True, False] if datatype == "BOOL" else [1, 2])
        else:
            request.raw_input_contents.append(bytes(range(1, 1 + 2 * ELEMENT_SIZES[datatype])))
    return request


def front_fields() -> dict[str, str]:
    fields = {f"{sign}INT{bits}": f"{sign.lower()}int_contents" for sign in ("", "U") for bits in (8, 16, 32)}
    return fields | {
        "BOOL": "bool_contents",
        "INT64": "int64_contents",
        "UINT64": "uint64_contents",
        "FP32": "fp32_contents",
        "FP64": "fp64_contents",
    }


def test_raw_contents_of_every_datatype_come_back_raw_with_the_id() -> None:
    request = everything(typed=False)
    response = infer(request)
    assert list(response.raw_output_contents) == list(request.raw_input_contents)
    assert [(out.datatype, list(out.shape)) for out in response.outputs] == [(name, [1, 2]) for name in DATATYPES]
    assert (response.id, response.model_name, response.model_version) == ("é", "everything", "1")


def test_requested_outputs_come_back_in_the_order_asked_for() -> None:
    request = everything(typed=False)
    for name in ("out-FP64", "out-INT8"):
        request.outputs.add(name=name)
    response = infer(request)
    assert [output.name for output in response.outputs] == ["out-FP64", "out-INT8"]
    assert [len(raw) for raw in response.raw_output_contents] == [16, 2]


def test_typed_contents_come_back_typed() -> None:
    tokens = InferTensorContents(int64_contents=[1, 2, 3, 4])
    request = ModelInferRequest(model_name="reviews")
    request.inputs.add(name="tokens", datatype="INT64", shape=[2, 2], contents=tokens)
    response = infer(request)
    assert list(response.outputs[0].contents.fp32_contents) == [0, 1, 0, 1]
    assert not response.raw_output_contents


def test_json_of_every_datatype_comes_back() -> None:
    inputs = [
        {
            "name": f"in-{name}",
            "datatype": name,
            "shape": [1, 2],
            "data": [[True, False]] if name == "BOOL" else [[1, 2]],
        }
        for name in DATATYPES
    ]
    content = answer("POST", "/v2/models/everything/infer", json.dumps({"inputs": inputs}).encode()).json
    assert [out["data"] for out in content["outputs"]] == [
        [True, False] if name == "BOOL" else [1, 2] for name in DATATYPES
    ]


def test_binary_data_stands_behind_the_json_in_both_directions() -> None:
    inputs = [
        {"name": "tokens", "datatype": "INT64", "shape": [1, 2], "parameters": {"binary_data_size": 16}},
    ]
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    response = answer(
        "POST",
        "/v2/models/reviews/infer",
        header + struct.pack("<2q", 1, 2),
        inference_header_content_length=str(len(header)).encode(),
    )
    length = int(response.headers["inference-header-content-length"])
    assert json.loads(response.body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert struct.unpack("<2f", response.body[length:]) == (0, 1)


def test_predict_says_class_label_and_probabilities() -> None:
    content = answer("POST", "/predict/reviews", b'{"text": "good"}').json
    assert content["probabilities"] == pytest.approx(softmax([0, 1]), abs=1e-6)
    assert {key: content[key] for key in ("predicted", "label", "model", "version")} == {
        "predicted": 1,
        "label": "positive",
        "model": "reviews",
        "version": "1",
    }


def test_text_for_a_model_of_tensors_is_refused() -> None:
    assert answer("POST", "/predict/everything", b'{"text": "good"}').json["reason"] == "TEXT_NOT_TAKEN"


def test_a_grpc_error_carries_reason_field_and_request_id() -> None:
    request = ModelInferRequest(model_name="reviews")
    request.inputs.add(name="tokens", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(b"12345678")
    response = answer("POST", METHOD_PATH, frame(request.SerializeToString()), x_request_id=b"r-1")
    assert (response.status, response.grpc_status) == (200, 3)
    assert response.headers["x-request-id"] == b"r-1"
    details = status_pb2.Status.FromString(base64.b64decode(response.headers["grpc-status-details-bin"] + b"=="))
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert details.details[0].Unpack(info)
    assert details.details[1].Unpack(bad)
    assert info.reason == "DATATYPE_WRONG"
    assert bad.field_violations[0].field == "tokens"


def test_the_front_and_the_runtime_agree_on_every_kind() -> None:
    for kind, code in errors.STATUS_OF_KIND.items():
        assert STATUS_OF_KIND[kind].name == code.name
        assert STATUS_OF_KIND[kind].code == code.value[0]
    own = [kind for kind in vars(front_failures).values() if isinstance(kind, type) and issubclass(kind, Failure)]
    assert all(any(base in STATUS_OF_KIND for base in kind.__mro__) for kind in own if kind is not Failure)
    assert status_of(front_failures.MessageTooLarge("x")).http == 413


def test_numbers_are_shown_as_prometheus_has_them() -> None:
    counted = FrontMetrics()
    metrics = counted.of_version("reviews", "1")
    for seconds in (0.0001, 0.003, 99):
        metrics.total.observe(seconds)
    metrics.statuses["OK"] += 3
    sent = msgspec.json.decode(msgspec.json.encode(counted.counts()), type=FrontCounts)
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in front_families({"0": sent})
        for sample in family.samples
    }
    assert samples["maas_inference_total_seconds_bucket", "reviews", "1", "0", "0.004"] == 2
    assert samples["maas_inference_total_seconds_bucket", "reviews", "1", "0", "+Inf"] == 3
    assert samples["maas_inference_total_seconds_count", "reviews", "1", "0"] == 3
    assert samples["maas_inference_requests_total", "reviews", "1", "0", "OK"] == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "text",
                    "texts",
                    "inputs",
                    "outputs",
                    "name",
                    "datatype",
                    "shape",
                    "data",
                    "parameters",
                    "binary_data_size",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["tokens", "text", "other"]),
        "datatype": st.sampled_from(["INT64", "BYTES", "FP16", "NONE"]),
        "shape": st.lists(st.integers(-1, 3) | st.just(2**63), max_size=3),
    },
    optional={
        "data": JSON | st.lists(st.integers(0, 5), max_size=6) | st.lists(st.text(max_size=3), max_size=4),
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 20) | st.booleans()}),
    },
)
BODIES = (
    st.binary(max_size=40)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.lists(TENSOR, max_size=3).map(lambda tensors: json.dumps({"inputs": tensors}).encode())
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["GET", "POST", "DELETE"]),
            st.sampled_from(
                ["/predict", "/predict/reviews", "/predict/no", "/v2/models/reviews/infer",
                 "/v2/models/everything/infer", "/v2", "/v2/models", "/v2/models/reviews/versions/1/ready", "/", "//"]
            ) | st.text(max_size=10),
            st.dictionaries(
                st.sampled_from(["content-encoding", "inference-header-content-length", "maas-model"]),
                st.sampled_from([b"gzip", b"deflate", b"br", b"0", b"7", b"-1", b"999", b"reviews", b"\xff"]),
            ),
            BODIES,
        ),
        min_size=1,
        max_size=10,
    )
)  # fmt: skip
def test_no_rest_request_is_ever_an_internal_error(requests: list[tuple[str, str, dict[str, bytes], bytes]]) -> None:
    for response in asyncio.run(answer_all(requests)):
        assert response.status in (200, 400, 404, 405, 413, 415, 429, 501, 503)
        assert response.status == 200 or set(response.json) == {"error", "reason", "code"}


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    request = ModelInferRequest(
        model_name=draw(st.sampled_from(["reviews", "everything", "no", ""])),
        model_version=draw(st.sampled_from(["", "1", "2"])),
        id=draw(st.text(max_size=3)),
    )
    for _ in range(draw(st.integers(0, 2))):
        tensor = request.inputs.add(
            name=draw(st.sampled_from(["tokens", "text", "no"])),
            datatype=draw(st.sampled_from(["INT64", "BYTES", "FP16", "BOOL", ""])),
            shape=draw(st.lists(st.integers(-2, 3), max_size=3)),
        )
        tensor.contents.int64_contents.extend(draw(st.lists(st.integers(0, 9), max_size=4)))
        tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=4), max_size=2)))
    request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=24), max_size=2)))
    for name in draw(st.lists(st.sampled_from(["logits", "no"]), max_size=2)):
        request.outputs.add(name=name)
    return request.SerializeToString()


def _requests(bodies: Sequence[bytes], headers: dict[str, bytes]) -> Iterator[tuple[str, str, dict[str, bytes], bytes]]:
    for body in bodies:
        yield "POST", METHOD_PATH, headers, body


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.binary(max_size=30) | messages().map(frame) | st.binary(max_size=30).map(frame), min_size=1, max_size=10
    ),
    st.dictionaries(
        st.sampled_from(["grpc-timeout", "grpc-encoding"]), st.sampled_from([b"1S", b"x", b"gzip", b"0n", b""])
    ),
)
def test_no_grpc_request_is_ever_an_internal_error(bodies: list[bytes], headers: dict[str, bytes]) -> None:
    for response in asyncio.run(answer_all(list(_requests(bodies, headers)))):
        assert response.status == 200
        assert response.grpc_status in (0, 3, 4, 5, 8, 12, 13, 14)
        assert response.grpc_status != 13 or b"grpc-encoding" in response.headers["grpc-message"]


class SlowWorker:
    """Takes batches and answers none."""

    def send(self, batch: Batch, parts: Sequence[bytes | memoryview]) -> None:
        """Keep it for ever."""

    def close(self) -> None:
        """Nothing to hang up."""


async def test_under_overload_requests_are_refused_unread_and_a_few_are_looked_at() -> None:
    async with asyncio.TaskGroup() as tasks:
        serving = Serving(FrontMetrics(), tasks)
        serving.apply(ModelTable(1, "0.1", (ServedDeployment("reviews", (REVIEWS,)),)))
        queue = serving.deployments["reviews"].queues["1"]
        queue.connected(EchoWorker(queue, REVIEWS))
        now = time.monotonic()
        assert not serving.sheds(now, now + 0.001)
        await asyncio.gather(*[_asked(queue) for _ in range(500)])  # so that its pace is known
        queue.connected(SlowWorker())
        waiting = [_asked(queue) for _ in range(4000)]
        now = time.monotonic()
        await serving.look_after(now)
        shed = [serving.sheds(now, now + 1e-6) for _ in range(80)]
        assert shed.count(False) == 10
        assert not any(serving.sheds(now, now + 3600) for _ in range(80)), "who has time may wait"
        queue.fail_all("the test ends")
        await asyncio.gather(*waiting, return_exceptions=True)
        serving.apply(ModelTable(2))


def _asked(queue: VersionQueue) -> "asyncio.Future[Answer]":
    answer = asyncio.get_running_loop().create_future()
    now = time.monotonic()
    group = (("tokens", "INT64", (1,)),)

    async def there() -> dict[str, Any]:
        return {"type": "http.request"}

    queue.put(Question(group, 1, [bytes(8)], arrived=now, deadline=now + 60, receive=there, answer=answer))
    return answer


def test_the_door_lets_in_little_more_than_is_accepted_and_opens_when_nothing_is_refused() -> None:
    capacity, offered = 100, 300
    share = 1.0
    for _ in range(20):
        came = round(offered * share)
        share = share_to_let_in(share, came, max(0, came - capacity))
    assert capacity < offered * share < 1.3 * capacity
    for _ in range(10):
        share = share_to_let_in(share, round(offered * share), 0)
    assert share == 1.0
    assert share_to_let_in(1.0, 0, 0) == 1.0
    for _ in range(50):
        share = share_to_let_in(share, 10, 10)
    assert 0 < share <= 0.05
