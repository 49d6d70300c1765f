"""The Open Inference Protocol from outside, over gRPC and REST, on two models: what a good request gets, and a bad one.

Messages are the official wire format, packed by hand where it matters; test_oip_clients.py asks with the real clients,
test_oip_hostile.py what breaks servers.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import numpy as np
import pytest
from oip_server import DATATYPES, TEXTS, OipServer, oip_server, until

from maas.errors import from_rpc_error
from maas.oip.v2 import grpc_service_pb2 as oip

SERVICE = "/inference.GRPCInferenceService/"
MODELS = ("reviews", "everything")
NUMBERS = tuple(name for name in DATATYPES if name != "BYTES")
TYPED = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@pytest.fixture(scope="module")
def server() -> Iterator[OipServer]:
    with oip_server() as started:
        yield started


@pytest.fixture(scope="module")
def channel(server: OipServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def call(channel: grpc.Channel, method: str, request: Any, **options: Any) -> Any:
    response = getattr(oip, f"{method}Response")
    rpc = channel.unary_unary(
        SERVICE + method, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
    )
    return rpc(request, timeout=20, **options)


def infer(channel: grpc.Channel, request: oip.ModelInferRequest, **options: Any) -> oip.ModelInferResponse:
    response: oip.ModelInferResponse = call(channel, "ModelInfer", request, **options)
    return response


def refused(ask: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    error = from_rpc_error(caught.value)
    assert error.args[0]
    return error.code, error.reason


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def http(server: OipServer, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urlopen(Request(server.url + path, data, named, method=method), timeout=20) as response:
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())
    except HTTPError as error:
        with error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


def post(server: OipServer, path: str, body: Any, **headers: str) -> Answer:
    return http(server, "POST", path, body, **{"content_type": "application/json"} | headers)


def values_of(datatype: str, rows: int = 1) -> Any:
    """Return an array [rows, 2] with the extremes of the datatype first."""
    if datatype == "BYTES":
        return np.array([[b"", "é\0".encode()]] * rows, np.object_)
    if datatype == "BOOL":
        return np.array([[True, False]] * rows)
    numpy_type = DATATYPES[datatype]
    info = np.finfo(numpy_type) if datatype.startswith("FP") else np.iinfo(numpy_type)
    return np.array([[info.min, info.max]] * rows, numpy_type)


def raw_of(array: Any) -> bytes:
    if array.dtype == np.object_:
        return b"".join(struct.pack("<I", len(element)) + element for element in array.ravel())
    return bytes(array.tobytes())


def grpc_request(model: str, *, typed: bool = False, rows: int = 1) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=model, id="x-1")
    for name, datatype, array in inputs_of(model, rows):
        if typed and datatype == "FP16":
            continue
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if typed:
            getattr(tensor.contents, TYPED[datatype]).extend(array.ravel().tolist())
        else:
            request.raw_input_contents.append(raw_of(array))
    return request


def rest_request(model: str, rows: int = 1) -> dict[str, Any]:
    inputs = []
    for name, datatype, array in inputs_of(model, rows):
        flat = [value.decode() for value in array.ravel()] if datatype == "BYTES" else array.ravel().tolist()
        inputs.append({"name": name, "datatype": datatype, "shape": list(array.shape), "data": flat})
    return {"id": "x-1", "inputs": inputs}


def inputs_of(model: str, rows: int = 1) -> Iterator[tuple[str, str, Any]]:
    if model == "reviews":
        yield "tokens", "INT64", np.arange(1, 1 + 3 * rows, dtype=np.int64).reshape(rows, 3) % 20
    else:
        for datatype in DATATYPES:
            yield f"in-{datatype}", datatype, values_of(datatype, rows)


def outputs_of(model: str) -> list[tuple[str, str]]:
    return [("logits", "FP32")] if model == "reviews" else [(f"out-{name}", name) for name in DATATYPES]


# gRPC: the server and its models


def test_the_server_is_live_over_grpc(channel: grpc.Channel) -> None:
    assert call(channel, "ServerLive", oip.ServerLiveRequest()).live


def test_the_server_is_ready_over_grpc(channel: grpc.Channel) -> None:
    assert call(channel, "ServerReady", oip.ServerReadyRequest()).ready


def test_the_server_tells_name_version_and_extensions_over_grpc(channel: grpc.Channel) -> None:
    metadata = call(channel, "ServerMetadata", oip.ServerMetadataRequest())
    assert metadata.name == "maas"
    assert metadata.version
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(metadata.extensions)


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_ready_over_grpc(channel: grpc.Channel, model: str, version: str) -> None:
    assert call(channel, "ModelReady", oip.ModelReadyRequest(name=model, version=version)).ready


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("model", MODELS)
def test_metadata_names_every_tensor_over_grpc(channel: grpc.Channel, model: str, version: str) -> None:
    metadata = call(channel, "ModelMetadata", oip.ModelMetadataRequest(name=model, version=version))
    assert (metadata.name, list(metadata.versions)) == (model, ["1"])
    assert metadata.platform == "onnxruntime_fp32"
    assert [(tensor.name, tensor.datatype) for tensor in metadata.outputs] == outputs_of(model)
    sent = {name: (datatype, len(array.shape)) for name, datatype, array in inputs_of(model)}
    told = {tensor.name: (tensor.datatype, len(tensor.shape)) for tensor in metadata.inputs}
    assert sent.items() <= told.items()
    assert all(tensor.shape[0] == -1 for tensor in (*metadata.inputs, *metadata.outputs))


@pytest.mark.parametrize("model", MODELS)
def test_the_configuration_has_types_and_dimensions_without_rows(channel: grpc.Channel, model: str) -> None:
    config = call(channel, "ModelConfig", oip.ModelConfigRequest(name=model)).config
    assert (config.name, config.backend, config.max_batch_size) == (model, "onnxruntime", 32)
    assert oip.DataType.Name(config.input[-1].data_type) == "TYPE_STRING"
    assert list(config.output[0].dims) == [2]


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_an_unknown_model_is_not_found_over_grpc(channel: grpc.Channel, method: str) -> None:
    request = getattr(oip, f"{method}Request")(name="nobody")
    assert refused(lambda: call(channel, method, request)) == ("NOT_FOUND", "DEPLOYMENT_NOT_SERVED")


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"])
@pytest.mark.parametrize("version", ["2", "01", "x", "9" * 400])
def test_an_unknown_version_is_not_found_over_grpc(channel: grpc.Channel, method: str, version: str) -> None:
    request = getattr(oip, f"{method}Request")(name="reviews", version=version)
    assert refused(lambda: call(channel, method, request)) == ("NOT_FOUND", "VERSION_NOT_SERVED")


def test_the_repository_lists_every_version_over_grpc(channel: grpc.Channel) -> None:
    for ready in (False, True):
        index = call(channel, "RepositoryIndex", oip.RepositoryIndexRequest(ready=ready))
        assert {(model.name, model.version, model.state) for model in index.models} == {
            (name, "1", "READY") for name in MODELS
        }


def test_a_loaded_model_can_be_loaded_again_over_grpc(channel: grpc.Channel) -> None:
    call(channel, "RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="everything"))
    assert call(channel, "ModelReady", oip.ModelReadyRequest(name="everything")).ready


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_an_unknown_model_is_neither_loaded_nor_unloaded_over_grpc(channel: grpc.Channel, method: str) -> None:
    request = getattr(oip, f"{method}Request")(model_name="nobody")
    assert refused(lambda: call(channel, method, request)) == ("NOT_FOUND", "DEPLOYMENT_NOT_SERVED")


@pytest.mark.parametrize("model", MODELS)
def test_statistics_count_rows_requests_and_failures(server: OipServer, channel: grpc.Channel, model: str) -> None:
    def statistics() -> oip.ModelStatistics:
        (found,) = call(channel, "ModelStatistics", oip.ModelStatisticsRequest(name=model, version="1")).model_stats
        counted: oip.ModelStatistics = found
        return counted

    before = statistics()
    for _ in range(3):
        infer(channel, grpc_request(model, rows=2))
    until(lambda: statistics().inference_count >= before.inference_count + 6)
    after = statistics()
    assert after.execution_count > before.execution_count
    for field in ("success", "queue", "compute_infer"):
        assert getattr(after.inference_stats, field).ns > getattr(before.inference_stats, field).ns
    assert after.inference_stats.success.count >= before.inference_stats.success.count + 3
    of_all = call(channel, "ModelStatistics", oip.ModelStatisticsRequest()).model_stats
    assert [found.name for found in of_all] == ["everything", "reviews"]
    (over_rest,) = http(server, "GET", f"/v2/models/{model}/versions/1/stats").json["model_stats"]
    assert over_rest["inference_count"] >= after.inference_count


@pytest.mark.parametrize(
    "method", ["SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "TraceSetting", "LogSettings", "NoSuchMethod"]
)
def test_what_is_not_offered_is_unimplemented(channel: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(SERVICE + method)(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# gRPC: inference


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("model", MODELS)
def test_raw_contents_are_answered_raw(channel: grpc.Channel, model: str, rows: int) -> None:
    request = grpc_request(model, rows=rows)
    response = infer(channel, request)
    assert (response.model_name, response.model_version, response.id) == (model, "1", "x-1")
    assert [(output.name, output.datatype) for output in response.outputs] == outputs_of(model)
    assert all(list(output.shape) == [rows, 2] for output in response.outputs)
    assert len(response.raw_output_contents) == len(response.outputs)
    assert not any(output.HasField("contents") for output in response.outputs)
    if model == "everything":
        assert list(response.raw_output_contents) == list(request.raw_input_contents)


def test_typed_contents_are_answered_typed(channel: grpc.Channel) -> None:
    raw = infer(channel, grpc_request("reviews", rows=2))
    typed = infer(channel, grpc_request("reviews", typed=True, rows=2))
    assert not typed.raw_output_contents
    expected = np.frombuffer(raw.raw_output_contents[0], np.float32)
    np.testing.assert_allclose(typed.outputs[0].contents.fp32_contents, expected, rtol=1e-5)


def test_half_floats_have_no_typed_contents(channel: grpc.Channel) -> None:
    request = grpc_request("everything", typed=True)
    request.inputs.add(name="in-FP16", datatype="FP16", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    assert refused(lambda: infer(channel, request)) == ("INVALID_ARGUMENT", "CONTENTS_WRONG")


@pytest.mark.parametrize("datatype", DATATYPES)
def test_each_datatype_comes_back_as_it_was_sent(channel: grpc.Channel, datatype: str) -> None:
    request = grpc_request("everything", rows=3)
    request.outputs.add(name=f"out-{datatype}")
    (raw,) = infer(channel, request).raw_output_contents
    assert raw == raw_of(values_of(datatype, rows=3))


@pytest.mark.parametrize("model", MODELS)
def test_the_version_can_be_named_over_grpc(channel: grpc.Channel, model: str) -> None:
    request = grpc_request(model)
    request.model_version = "1"
    assert infer(channel, request).model_version == "1"


@pytest.mark.parametrize("model", MODELS)
def test_an_id_is_optional_and_any_text(channel: grpc.Channel, model: str) -> None:
    request = grpc_request(model)
    for identifier in ("", "é" * 300, "a\nb"):
        request.id = identifier
        assert infer(channel, request).id == identifier


def test_requested_outputs_come_in_the_order_asked_for(channel: grpc.Channel) -> None:
    request = grpc_request("everything")
    names = [f"out-{datatype}" for datatype in ("UINT64", "BOOL", "BYTES")]
    for name in names:
        request.outputs.add(name=name)
    response = infer(channel, request)
    assert [output.name for output in response.outputs] == names
    assert [len(raw) for raw in response.raw_output_contents] == [16, 2, 11]


@pytest.mark.parametrize("model", MODELS)
def test_inputs_may_come_in_any_order(channel: grpc.Channel, model: str) -> None:
    request = grpc_request(model)
    turned = oip.ModelInferRequest(model_name=model)
    turned.inputs.extend(reversed(request.inputs))
    turned.raw_input_contents.extend(reversed(request.raw_input_contents))
    assert infer(channel, turned).raw_output_contents == infer(channel, request).raw_output_contents


@pytest.mark.parametrize("model", MODELS)
def test_unknown_parameters_are_ignored(channel: grpc.Channel, model: str) -> None:
    request = grpc_request(model)
    request.parameters["sequence_id"].int64_param = 7
    request.parameters["color"].string_param = "blue"
    request.parameters["empty"].SetInParent()
    request.inputs[0].parameters["color"].double_param = 1.5
    assert infer(channel, request).id == "x-1"


@pytest.mark.parametrize("name", ["priority", "timeout"])
@pytest.mark.parametrize("kind", ["int64_param", "uint64_param"])
@pytest.mark.parametrize("model", MODELS)
def test_known_parameters_take_integers(channel: grpc.Channel, model: str, name: str, kind: str) -> None:
    request = grpc_request(model)
    setattr(request.parameters[name], kind, 10_000_000)
    assert infer(channel, request).id == "x-1"


@pytest.mark.parametrize("name", ["priority", "timeout"])
@pytest.mark.parametrize(
    ("kind", "value"), [("string_param", "1"), ("bool_param", True), ("double_param", 1.0), ("int64_param", -1)]
)
def test_known_parameters_of_a_wrong_type_are_refused(channel: grpc.Channel, name: str, kind: str, value: Any) -> None:
    request = grpc_request("reviews")
    setattr(request.parameters[name], kind, value)
    assert refused(lambda: infer(channel, request)) == ("INVALID_ARGUMENT", "PARAMETER_INVALID")


@pytest.mark.parametrize("model", MODELS)
def test_a_timeout_of_a_microsecond_is_over(channel: grpc.Channel, model: str) -> None:
    request = grpc_request(model)
    request.parameters["timeout"].int64_param = 1
    assert refused(lambda: infer(channel, request)) == ("DEADLINE_EXCEEDED", "DEADLINE_EXPIRED")


def test_classification_names_the_largest_elements(channel: grpc.Channel) -> None:
    request = grpc_request("reviews", rows=2)
    request.outputs.add(name="logits").parameters["classification"].int64_param = 1
    response = infer(channel, request)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [2, 1])
    value, index, label = response.raw_output_contents[0][4:].split(b":", 2)
    assert float(value) == pytest.approx(float(value))
    assert label.startswith((b"negative", b"positive")[int(index)])


def test_classes_of_a_text_are_refused(channel: grpc.Channel) -> None:
    request = grpc_request("everything")
    request.outputs.add(name="out-BYTES").parameters["classification"].int64_param = 1
    assert refused(lambda: infer(channel, request)) == ("INVALID_ARGUMENT", "PARAMETER_INVALID")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("model", MODELS)
def test_compressed_messages_are_taken(channel: grpc.Channel, model: str, encoding: str) -> None:
    compression = grpc.Compression.Gzip if encoding == "gzip" else grpc.Compression.Deflate
    request = grpc_request(model, rows=60)
    response = infer(channel, request, compression=compression)
    assert response.raw_output_contents == infer(channel, request).raw_output_contents


def _wrong(model: str, change: str) -> oip.ModelInferRequest:
    request = grpc_request(model)
    first = request.inputs[0]
    match change:
        case "no inputs":
            del request.inputs[:], request.raw_input_contents[:]
        case "an unknown input":
            first.name = "nobody"
        case "an input twice":
            request.inputs.add().CopyFrom(first)
            request.raw_input_contents.append(request.raw_input_contents[0])
        case "another datatype":
            first.datatype = "FP32" if first.datatype != "FP32" else "FP64"
        case "an unknown datatype":
            first.datatype = "INT128"
        case "no datatype":
            first.datatype = ""
        case "no shape":
            del first.shape[:]
        case "a dimension more":
            first.shape.append(1)
        case "a negative dimension":
            first.shape[1] = -1
        case "no rows":
            first.shape[0] = 0
        case "a product that overflows":
            first.shape[:] = [2**62, 2**62]
        case "too few bytes":
            request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
        case "too many bytes":
            request.raw_input_contents[0] += b"\0"
        case "a raw content too few":
            del request.raw_input_contents[-1]
            request.inputs[-1].contents.SetInParent()
            if not request.raw_input_contents:
                request.raw_input_contents.extend([b"", b""])
        case "a raw content too many":
            request.raw_input_contents.append(b"")
        case "raw and typed":
            first.contents.int64_contents.append(1)
        case "typed in another's field":
            del request.raw_input_contents[:]
            first.contents.fp64_contents.append(1)
        case "too few typed elements":
            del request.raw_input_contents[:]
            getattr(first.contents, TYPED[first.datatype]).append(1)
        case "an unknown output":
            request.outputs.add(name="nobody")
        case "an output twice":
            request.outputs.add(name=outputs_of(model)[0][0])
            request.outputs.add(name=outputs_of(model)[0][0])
        case "an unknown model":
            request.model_name = "nobody"
        case "no model":
            request.model_name = ""
        case "an unknown version":
            request.model_version = "7"
    return request


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("no inputs", "TENSOR_MISSING"),
        ("an unknown input", "TENSOR_UNKNOWN"),
        ("an input twice", "TENSOR_MISSING"),
        ("another datatype", "DATATYPE_WRONG"),
        ("an unknown datatype", "DATATYPE_WRONG"),
        ("no datatype", "DATATYPE_WRONG"),
        ("no shape", "SHAPE_WRONG"),
        ("a dimension more", "SHAPE_WRONG"),
        ("a negative dimension", "SHAPE_WRONG"),
        ("no rows", "SHAPE_WRONG"),
        ("a product that overflows", "CONTENTS_WRONG|SHAPE_WRONG"),
        ("too few bytes", "CONTENTS_WRONG"),
        ("too many bytes", "CONTENTS_WRONG"),
        ("a raw content too few", "CONTENTS_WRONG"),
        ("a raw content too many", "CONTENTS_WRONG"),
        ("raw and typed", "CONTENTS_WRONG"),
        ("typed in another's field", "CONTENTS_WRONG"),
        ("too few typed elements", "CONTENTS_WRONG"),
        ("an unknown output", "OUTPUT_UNKNOWN"),
        ("an output twice", "OUTPUT_TWICE"),
        ("an unknown model", "SERVED_MODEL_NOT_FOUND"),
        ("no model", "SERVED_MODEL_NOT_FOUND"),
        ("an unknown version", "SERVED_VERSION_NOT_FOUND"),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_request_has_its_reason_over_grpc(channel: grpc.Channel, model: str, change: str, reason: str) -> None:
    code, got = refused(lambda: infer(channel, _wrong(model, change)))
    assert code == ("NOT_FOUND" if reason.endswith("NOT_FOUND") else "INVALID_ARGUMENT")
    assert got in reason.split("|")
    assert infer(channel, grpc_request(model)).id == "x-1"


# REST: the server and its models


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2", {"name": "maas"}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        *((f"/v2/models/{model}{version}/ready", {"name": model, "ready": True})
          for model in MODELS for version in ("", "/versions/1")),
        *((f"/v2/models/{model}{version}", {"name": model, "versions": ["1"], "platform": "onnxruntime_fp32"})
          for model in MODELS for version in ("", "/versions/1")),
        *((f"/v2/models/{model}{version}/config", {"name": model, "backend": "onnxruntime", "max_batch_size": 32})
          for model in MODELS for version in ("", "/versions/1")),
    ],
)  # fmt: skip
def test_what_can_be_read_is_json(server: OipServer, path: str, expected: dict[str, Any], slash: str) -> None:
    answer = http(server, "GET", path + slash)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert expected.items() <= answer.json.items()
    head = http(server, "HEAD", path + slash)
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize("model", MODELS)
def test_metadata_is_the_same_over_rest_and_grpc(server: OipServer, channel: grpc.Channel, model: str) -> None:
    over_grpc = call(channel, "ModelMetadata", oip.ModelMetadataRequest(name=model))
    over_rest = http(server, "GET", f"/v2/models/{model}").json
    for kind in ("inputs", "outputs"):
        assert over_rest[kind] == [
            {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
            for tensor in getattr(over_grpc, kind)
        ]


@pytest.mark.parametrize("end", ["", "/ready", "/config", "/stats"])
@pytest.mark.parametrize("path", ["/v2/models/nobody", "/v2/models/reviews/versions/2", "/v2/models/nobody/versions/1"])
def test_an_unknown_model_or_version_is_404(server: OipServer, path: str, end: str) -> None:
    answer = http(server, "GET", path + end)
    assert answer.status == 404
    assert set(answer.json) == {"error", "reason", "code"}
    assert answer.json["code"] == "NOT_FOUND"


@pytest.mark.parametrize("path", ["/", "/v1", "/v2/models", "/v2/nothing", "/v2/models/reviews/nothing", "/v2/health"])
def test_a_path_that_is_not_there_is_404(server: OipServer, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = http(server, method, path)
        assert (answer.status, answer.json["reason"]) == (404, "PATH_NOT_FOUND")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/models/reviews", "/v2/models/reviews/ready",
                                  "/v2/models/reviews/config", "/v2/models/reviews/stats"])  # fmt: skip
def test_what_is_read_is_not_written(server: OipServer, path: str, method: str) -> None:
    answer = http(server, method, path)
    assert (answer.status, answer.json["reason"], answer.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", "GET, HEAD")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v2/models/reviews/infer", "/v2/models/reviews/versions/1/infer", "/predict",
                                  "/v2/repository/index", "/v2/repository/models/reviews/load"])  # fmt: skip
def test_what_is_posted_is_not_read(server: OipServer, path: str, method: str) -> None:
    answer = http(server, method, path)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_the_repository_lists_every_version_over_rest(server: OipServer) -> None:
    for body in (None, b"", {}, {"ready": True}, {"ready": False}):
        answer = http(server, "POST", "/v2/repository/index", body)
        assert answer.status == 200
        assert {(model["name"], model["version"], model["state"]) for model in answer.json} == {
            (name, "1", "READY") for name in MODELS
        }
    assert http(server, "POST", "/v2/repository/index", {"ready": "yes"}).status == 400


def test_a_model_is_loaded_over_rest_and_an_unknown_one_is_not(server: OipServer) -> None:
    assert http(server, "POST", "/v2/repository/models/everything/load", {}).status == 200
    for action in ("load", "unload"):
        answer = http(server, "POST", f"/v2/repository/models/nobody/{action}", {})
        assert (answer.status, answer.json["reason"]) == (404, "DEPLOYMENT_NOT_SERVED")


@pytest.mark.parametrize("path", ["/v2/trace/setting", "/v2/logging", "/v2/systemsharedmemory/status"])
def test_what_is_not_offered_is_501(server: OipServer, path: str) -> None:
    assert http(server, "GET", path).status == 501


# REST: inference


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("version", ["", "/versions/1"])
@pytest.mark.parametrize("model", MODELS)
def test_json_is_answered_in_json(server: OipServer, model: str, version: str, rows: int) -> None:
    sent = rest_request(model, rows)
    answer = post(server, f"/v2/models/{model}{version}/infer", sent)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    content = answer.json
    assert (content["model_name"], content["model_version"], content["id"]) == (model, "1", "x-1")
    assert [(output["name"], output["datatype"]) for output in content["outputs"]] == outputs_of(model)
    assert all(output["shape"] == [rows, 2] for output in content["outputs"])
    if model == "everything":
        assert [output["data"] for output in content["outputs"]] == [tensor["data"] for tensor in sent["inputs"]]


@pytest.mark.parametrize("model", MODELS)
def test_nested_data_is_flattened(server: OipServer, model: str) -> None:
    flat = rest_request(model, 2)
    nested = rest_request(model, 2)
    for tensor in nested["inputs"]:
        middle = len(tensor["data"]) // 2
        tensor["data"] = [tensor["data"][:middle], tensor["data"][middle:]]
    answers = [post(server, f"/v2/models/{model}/infer", sent).json for sent in (flat, nested)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("model", MODELS)
def test_nulls_are_what_is_not_there(server: OipServer, model: str) -> None:
    sent = rest_request(model) | {"id": None, "parameters": None, "outputs": None}
    for tensor in sent["inputs"]:
        tensor["parameters"] = None
    answer = post(server, f"/v2/models/{model}/infer", sent)
    assert answer.status == 200
    assert "id" not in answer.json


@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream", "text/plain", ""])
@pytest.mark.parametrize("model", MODELS)
def test_the_content_type_does_not_matter(server: OipServer, model: str, content_type: str) -> None:
    assert post(server, f"/v2/models/{model}/infer", rest_request(model), content_type=content_type).status == 200


def binary_request(model: str, rows: int = 1, **more: Any) -> tuple[bytes, int]:
    inputs, tail = [], b""
    for name, datatype, array in inputs_of(model, rows):
        raw = raw_of(array)
        parameters = {"binary_data_size": len(raw)}
        inputs.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": parameters})
        tail += raw
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + tail, len(header)


@pytest.mark.parametrize("model", MODELS)
def test_binary_data_is_answered_in_json_unless_asked_for(server: OipServer, model: str) -> None:
    body, length = binary_request(model)
    answer = post(server, f"/v2/models/{model}/infer", body, inference_header_content_length=str(length))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json["outputs"][0]["data"]


@pytest.mark.parametrize("how", ["binary_data_output", "binary_data"])
@pytest.mark.parametrize("model", MODELS)
def test_binary_data_stands_behind_the_json(server: OipServer, model: str, how: str) -> None:
    more: dict[str, Any] = {"parameters": {"binary_data_output": True}}
    if how == "binary_data":
        more = {"outputs": [{"name": name, "parameters": {"binary_data": True}} for name, _ in outputs_of(model)]}
    body, length = binary_request(model, 2, **more)
    answer = post(server, f"/v2/models/{model}/infer", body, inference_header_content_length=str(length))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")
    json_length = int(answer.headers["inference-header-content-length"])
    outputs = json.loads(answer.body[:json_length])["outputs"]
    tail = answer.body[json_length:]
    assert sum(output["parameters"]["binary_data_size"] for output in outputs) == len(tail)
    assert all("data" not in output for output in outputs)
    if model == "everything":
        assert tail == body[length:]


def test_json_and_binary_outputs_stand_beside_each_other(server: OipServer) -> None:
    outputs = [
        {"name": "out-INT8", "parameters": {"binary_data": False}},
        {"name": "out-FP64", "parameters": {"binary_data": True}},
        {"name": "out-BYTES"},
    ]
    sent = rest_request("everything") | {"outputs": outputs, "parameters": {"binary_data_output": True}}
    answer = post(server, "/v2/models/everything/infer", sent)
    json_length = int(answer.headers["inference-header-content-length"])
    got = json.loads(answer.body[:json_length])["outputs"]
    assert [output["name"] for output in got] == ["out-INT8", "out-FP64", "out-BYTES"]
    assert got[0]["data"] == [-128, 127]
    assert [output.get("parameters") for output in got] == [None, {"binary_data_size": 16}, {"binary_data_size": 11}]
    assert answer.body[json_length:] == raw_of(values_of("FP64")) + raw_of(values_of("BYTES"))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("model", MODELS)
def test_compressed_bodies_are_taken_and_given(server: OipServer, model: str, encoding: str) -> None:
    pack, unpack = (gzip.compress, gzip.decompress) if encoding == "gzip" else (zlib.compress, zlib.decompress)
    sent = rest_request(model, rows=80)
    path = f"/v2/models/{model}/infer"
    packed = pack(json.dumps(sent).encode())
    answer = post(server, path, packed, content_encoding=encoding, accept_encoding=encoding)
    assert (answer.status, answer.headers["content-encoding"]) == (200, encoding)
    assert json.loads(unpack(answer.body)) == post(server, path, sent).json


def test_small_answers_and_refused_encodings_are_not_compressed(server: OipServer) -> None:
    path = "/v2/models/reviews/infer"
    assert "content-encoding" not in post(server, path, rest_request("reviews"), accept_encoding="gzip").headers
    for accepted in ("identity", "br", "gzip;q=0", "gzip; q=0.0, deflate;q=0"):
        answer = post(server, path, rest_request("reviews", 80), accept_encoding=accepted)
        assert "content-encoding" not in answer.headers


def test_parameters_over_rest_are_those_of_grpc(server: OipServer) -> None:
    path = "/v2/models/reviews/infer"
    known = {"priority": 3, "timeout": 10_000_000, "color": ["blue"], "sequence_id": 1}
    assert post(server, path, rest_request("reviews") | {"parameters": known}).status == 200
    answer = post(server, path, rest_request("reviews") | {"parameters": {"timeout": 1}})
    assert (answer.status, answer.json["code"]) == (504, "DEADLINE_EXCEEDED")
    for wrong in ({"priority": "1"}, {"timeout": -1}, {"timeout": 1.5}, {"priority": True}, {"binary_data_output": 1}):
        answer = post(server, path, rest_request("reviews") | {"parameters": wrong})
        assert (answer.status, answer.json["reason"]) == (400, "PARAMETER_INVALID"), wrong


def test_a_header_says_how_long_a_rest_request_may_take(server: OipServer) -> None:
    for path, body in (("/v2/models/reviews/infer", rest_request("reviews")), ("/predict/reviews", {"text": TEXTS[0]})):
        assert post(server, path, body, maas_timeout_ms="20000").status == 200
        answer = post(server, path, body, maas_timeout_ms="0")
        assert (answer.status, answer.json["reason"]) == (504, "DEADLINE_EXPIRED")
        for wrong in ("soon", "-1", "1.5", "9" * 40):
            answer = post(server, path, body, maas_timeout_ms=wrong)
            assert (answer.status, answer.json["reason"]) == (400, "TIMEOUT_HEADER_INVALID")


def test_classification_over_rest_names_the_largest_elements(server: OipServer) -> None:
    outputs = [{"name": "logits", "parameters": {"classification": 5}}]
    output = post(server, "/v2/models/reviews/infer", rest_request("reviews", 2) | {"outputs": outputs}).json["outputs"]
    assert (output[0]["datatype"], output[0]["shape"]) == ("BYTES", [2, 2])
    values = [float(element.split(":")[0]) for element in output[0]["data"]]
    assert values[0] >= values[1]
    assert sorted(element.split(":")[2] for element in output[0]["data"][:2]) == ["negative", "positive"]


def test_predict_is_for_models_that_take_text(server: OipServer) -> None:
    assert post(server, "/predict/reviews", {"text": TEXTS[1]}).json["label"] in ("negative", "positive")
    answer = post(server, "/predict/everything", {"text": TEXTS[1]})
    assert (answer.status, answer.json["reason"]) == (400, "TEXT_NOT_TAKEN")
    assert "/infer" in answer.json["error"]


def _wrong_json(model: str, change: str) -> Any:
    sent = rest_request(model)
    first = sent["inputs"][0]
    match change:
        case "no inputs at all":
            del sent["inputs"]
        case "an empty list of inputs":
            sent["inputs"] = []
        case "inputs that are no list":
            sent["inputs"] = {"tokens": 1}
        case "an unknown input":
            first["name"] = "nobody"
        case "an input twice":
            sent["inputs"].append(first)
        case "no name":
            del first["name"]
        case "a name that is a number":
            first["name"] = 3
        case "an unknown datatype":
            first["datatype"] = "INT128"
        case "another datatype":
            first["datatype"] = "FP32"
            first["data"] = [1.0] * len(first["data"])
        case "a shape of texts":
            first["shape"] = ["1", "2"]
        case "a shape of fractions":
            first["shape"] = [1.5, 2]
        case "a negative dimension":
            first["shape"] = [-1, 2]
        case "a huge dimension":
            first["shape"] = [2**63, 2]
        case "no rows":
            first["shape"][0] = 0
        case "no data":
            del first["data"]
        case "data that is no list":
            first["data"] = 1
        case "too few elements":
            first["data"] = first["data"][:-1]
        case "too many elements":
            first["data"] = [*first["data"], first["data"][0]]
        case "elements of another type":
            first["data"] = ["1"] * len(first["data"])
        case "elements that are null":
            first["data"] = [None] * len(first["data"])
        case "elements that are objects":
            first["data"] = [{}] * len(first["data"])
        case "an unknown output":
            sent["outputs"] = [{"name": "nobody"}]
        case "an output twice":
            sent["outputs"] = [{"name": outputs_of(model)[0][0]}] * 2
        case "an id that is a number":
            sent["id"] = 7
        case "parameters that are a list":
            sent["parameters"] = []
        case "a binary size without binary data":
            first["parameters"] = {"binary_data_size": 8}
        case "a body that is a list":
            return [sent]
        case "a body that is a number":
            return 7
    return sent


@pytest.mark.parametrize(
    "change",
    [
        "no inputs at all", "an empty list of inputs", "inputs that are no list", "an unknown input", "an input twice",
        "no name", "a name that is a number", "an unknown datatype", "another datatype", "a shape of texts",
        "a shape of fractions", "a negative dimension", "a huge dimension", "no rows", "no data",
        "data that is no list", "too few elements", "too many elements", "elements of another type",
        "elements that are null", "elements that are objects", "an unknown output", "an output twice",
        "an id that is a number", "parameters that are a list", "a binary size without binary data",
        "a body that is a list", "a body that is a number",
    ],
)  # fmt: skip
@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_request_is_400_with_a_reason_over_rest(server: OipServer, model: str, change: str) -> None:
    answer = post(server, f"/v2/models/{model}/infer", _wrong_json(model, change))
    assert answer.status == 400, answer.body
    assert set(answer.json) == {"error", "reason", "code"}
    assert answer.json["code"] == "INVALID_ARGUMENT"
    assert post(server, f"/v2/models/{model}/infer", rest_request(model)).status == 200
