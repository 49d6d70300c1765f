"""Everything of the Open Inference Protocol comes through the one port of a cluster, wherever it is answered."""

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from cluster_under_test import Cluster, until
from maas.oip.v2 import grpc_service_pb2 as oip


@pytest.fixture(params=[triton_grpc, triton_http], ids=["grpc", "http"])
def client(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[Any]:
    client = request.param.InferenceServerClient(cluster.endpoint)
    try:
        yield client
    finally:
        client.close()


def as_dict(answer: Any) -> Any:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(answer, preserving_proto_field_name=True) if hasattr(answer, "DESCRIPTOR") else answer


def tokens() -> Any:
    tensor = triton_grpc.InferInput("tokens", [1, 3], "INT64")
    tensor.set_data_from_numpy(np.array([[1, 2, 3]], np.int64))
    return tensor


def test_the_server_and_its_models_are_described(client: Any, reviews: str) -> None:
    assert client.is_server_live()
    until(client.is_server_ready, 20, "ready")
    assert client.is_model_ready(reviews)
    assert as_dict(client.get_server_metadata())["name"] == "maas"
    assert as_dict(client.get_model_metadata(reviews))["versions"] == ["1"]
    config = as_dict(client.get_model_config(reviews))
    assert config.get("config", config)["backend"] == "onnxruntime"


def test_the_repository_is_listed_and_loaded(client: Any, reviews: str) -> None:
    index = as_dict(client.get_model_repository_index())
    models = index["models"] if isinstance(index, dict) else index
    assert (reviews, "1", "READY") in {(model["name"], model["version"], model["state"]) for model in models}
    client.load_model(reviews)
    with pytest.raises(InferenceServerException, match="nobody"):
        client.unload_model("nobody")
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.get_system_shared_memory_status()


def test_statistics_count_what_was_asked(client: Any, cluster: Cluster, reviews: str) -> None:
    def counted() -> int:
        (model,) = as_dict(client.get_inference_statistics(reviews, "1"))["model_stats"]
        return int(model.get("inference_count", 0))

    before = counted()
    with triton_grpc.InferenceServerClient(cluster.endpoint) as other:
        other.infer(reviews, [tokens()])
    until(lambda: counted() > before, 20, "counted")


def test_a_stream_comes_through_the_gateway(cluster: Cluster, reviews: str) -> None:
    got: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton_grpc.InferenceServerClient(cluster.endpoint) as client:
        client.start_stream(lambda result, error: got.put((result, error)))
        for number in range(200):
            client.async_stream_infer(reviews if number else "nobody", [tokens()], request_id=str(number))
        answers = [got.get(timeout=20) for _ in range(200)]
        client.stop_stream()
    assert {result.get_response().id for result, _ in answers if result} == {str(n) for n in range(1, 200)}
    assert ["nobody" in str(error) for _, error in answers if error] == [True]


def test_a_stream_that_is_half_closed_ends_well(cluster: Cluster, reviews: str) -> None:
    request = oip.ModelInferRequest(model_name=reviews, id="1", raw_input_contents=[bytes(24)])
    request.inputs.add(name="tokens", datatype="INT64", shape=[1, 3])
    with grpc.insecure_channel(cluster.endpoint) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelStreamInferResponse.FromString,
        )(iter([request] * 100), timeout=20)
        assert [response.infer_response.id for response in call] == ["1"] * 100
        assert call.code() is grpc.StatusCode.OK
