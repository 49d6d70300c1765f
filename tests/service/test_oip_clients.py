"""The clients that people have: tritonclient over gRPC and HTTP, blocking and with asyncio, and its streams."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from oip_server import DATATYPES, TEXTS, OipServer, oip_server, until
from tritonclient.utils import InferenceServerException

from maas.oip.v2 import grpc_service_pb2 as oip

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture(scope="module")
def server() -> Iterator[OipServer]:
    with oip_server() as started:
        yield started


def array_of(datatype: str, rows: int) -> Any:
    if datatype == "BYTES":
        return np.array([["a", "ü"]] * rows, np.object_)
    return (np.arange(2 * rows).reshape(rows, 2) % 2).astype(DATATYPES[datatype])


def tokens_of(number: int, rows: int = 1) -> Any:
    return np.random.default_rng(number).integers(1, 20, (rows, 5), dtype=np.int64)


def inputs_for(kind: Any, model: str, rows: int, **options: Any) -> list[Any]:
    arrays = {f"in-{datatype}": (datatype, array_of(datatype, rows)) for datatype in DATATYPES}
    if model == "reviews":
        arrays = {"tokens": ("INT64", tokens_of(1, rows))}
    inputs = []
    for name, (datatype, array) in arrays.items():
        sent = kind.InferInput(name, list(array.shape), datatype)
        # JSON has no half floats in Triton's protocol.
        binary = options if datatype != "FP16" else {}
        sent.set_data_from_numpy(array, **binary)
        inputs.append(sent)
    return inputs


def check(result: Any, model: str, rows: int) -> None:
    if model == "reviews":
        assert result.as_numpy("logits").shape == (rows, 2)
        return
    for datatype in DATATYPES:
        expected = array_of(datatype, rows)
        if datatype == "BYTES":
            expected = np.char.encode(expected.astype(str), "utf-8")
        np.testing.assert_array_equal(result.as_numpy(f"out-{datatype}"), expected)


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("model", ["reviews", "everything"])
def test_the_grpc_client_infers(server: OipServer, model: str, rows: int, compression: str | None) -> None:
    with triton_grpc.InferenceServerClient(server.address) as client:
        result = client.infer(
            model, inputs_for(triton_grpc, model, rows), request_id="7", compression_algorithm=compression
        )
    check(result, model, rows)
    assert result.get_response().id == "7"


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", ["reviews", "everything"])
def test_the_http_client_infers(server: OipServer, model: str, binary: bool, compression: str | None) -> None:
    client = triton_http.InferenceServerClient(server.address)
    try:
        result = client.infer(
            model,
            inputs_for(triton_http, model, 3, binary_data=binary),
            request_id="7",
            request_compression_algorithm=compression,
            response_compression_algorithm=compression,
        )
    finally:
        client.close()
    check(result, model, 3)
    assert result.get_response()["id"] == "7"


@pytest.mark.parametrize("model", ["reviews", "everything"])
async def test_the_asyncio_grpc_client_infers_and_reads(server: OipServer, model: str) -> None:
    async with triton_grpc_aio.InferenceServerClient(server.address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(model, "1")
        assert (await client.get_server_metadata()).name == "maas"
        assert (await client.get_model_metadata(model)).name == model
        assert (await client.get_model_config(model)).config.name == model
        assert len((await client.get_model_repository_index()).models) == 2
        assert (await client.get_inference_statistics(model)).model_stats[0].name == model
        results = await asyncio.gather(
            *(client.infer(model, inputs_for(triton_grpc_aio, model, rows)) for rows in range(1, 20))
        )
    for rows, result in enumerate(results, 1):
        check(result, model, rows)


@pytest.mark.parametrize("model", ["reviews", "everything"])
async def test_the_asyncio_http_client_infers_and_reads(server: OipServer, model: str) -> None:
    async with triton_http_aio.InferenceServerClient(server.address) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(model)
        assert not await client.is_model_ready("nobody")
        assert (await client.get_model_config(model))["name"] == model
        assert len(await client.get_model_repository_index()) == 2
        assert (await client.get_inference_statistics(model))["model_stats"][0]["name"] == model
        results = await asyncio.gather(
            *(client.infer(model, inputs_for(triton_http_aio, model, rows)) for rows in range(1, 20))
        )
    for rows, result in enumerate(results, 1):
        check(result, model, rows)


def test_both_clients_manage_the_repository(server: OipServer) -> None:
    with triton_grpc.InferenceServerClient(server.address) as over_grpc:
        over_http = triton_http.InferenceServerClient(server.address)
        try:
            for client in (over_grpc, over_http):
                client.load_model("reviews")
                assert client.is_model_ready("reviews")
                with pytest.raises(InferenceServerException, match="nobody"):
                    client.unload_model("nobody")
                with pytest.raises(InferenceServerException, match="shared memory"):
                    client.get_system_shared_memory_status()
        finally:
            over_http.close()


@pytest.mark.parametrize("kind", [triton_grpc, triton_http])
def test_options_of_both_clients_are_taken(server: OipServer, kind: Any) -> None:
    client = kind.InferenceServerClient(server.address)
    try:
        outputs = [kind.InferRequestedOutput("logits", class_count=2)]
        result = client.infer(
            "reviews",
            inputs_for(kind, "reviews", 2),
            outputs=outputs,
            priority=2,
            timeout=20_000_000,
            parameters={"mine": "x"},
        )
        classes = result.as_numpy("logits")
        assert classes.shape == (2, 2)
        assert {element.split(b":")[2] for element in classes[0]} == {b"negative", b"positive"}
        with pytest.raises(InferenceServerException, match="time"):
            client.infer("reviews", inputs_for(kind, "reviews", 1), timeout=1)
    finally:
        client.close()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", [triton_grpc, triton_http])
def test_a_text_is_a_bytes_tensor(server: OipServer, kind: Any, text: str) -> None:
    client = kind.InferenceServerClient(server.address)
    try:
        sent = kind.InferInput("text", [1], "BYTES")
        sent.set_data_from_numpy(np.array([text], np.object_))
        assert client.infer("reviews", [sent]).as_numpy("logits").shape == (1, 2)
    finally:
        client.close()


# Streams


class Stream:
    """tritonclient's stream: requests go in, results and errors come out of a queue."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.got: queue.Queue[tuple[Any, Any]] = queue.Queue()
        client.start_stream(lambda result, error: self.got.put((result, error)))

    def ask(self, model: str, number: int, **options: Any) -> None:
        sent = triton_grpc.InferInput("tokens", [1, 5], "INT64")
        sent.set_data_from_numpy(tokens_of(number))
        self.client.async_stream_infer(model, [sent], request_id=str(number), **options)

    def take(self, count: int) -> list[tuple[Any, Any]]:
        return [self.got.get(timeout=20) for _ in range(count)]


def test_each_answer_of_a_stream_is_its_requests(server: OipServer) -> None:
    with triton_grpc.InferenceServerClient(server.address) as client:
        stream = Stream(client)
        for number in range(300):
            stream.ask("reviews", number)
        got = stream.take(300)
        client.stop_stream()
        assert [error for _, error in got if error] == []
        by_id = {int(result.get_response().id): result for result, _ in got}
        assert len(by_id) == 300
        for number in range(0, 300, 37):
            sent = triton_grpc.InferInput("tokens", [1, 5], "INT64")
            sent.set_data_from_numpy(tokens_of(number))
            expected = client.infer("reviews", [sent]).as_numpy("logits")
            np.testing.assert_allclose(by_id[number].as_numpy("logits"), expected, rtol=1e-4, atol=1e-6)


def test_a_wrong_request_does_not_end_its_stream(server: OipServer) -> None:
    with triton_grpc.InferenceServerClient(server.address) as client:
        stream = Stream(client)
        stream.ask("nobody", 1)
        stream.ask("reviews", 2)
        stream.ask("everything", 3)
        stream.ask("reviews", 4, timeout=1)
        stream.ask("reviews", 5)
        got = stream.take(5)
        client.stop_stream()
    messages = [str(error) for _, error in got if error]
    assert len(messages) == 3
    assert any("nobody" in message for message in messages)
    assert {result.get_response().id for result, _ in got if result} == {"2", "5"}


def test_an_answer_says_that_it_is_its_requests_last(server: OipServer) -> None:
    with triton_grpc.InferenceServerClient(server.address) as client:
        stream = Stream(client)
        stream.ask("reviews", 1, enable_empty_final_response=True)
        ((result, error),) = stream.take(1)
        client.stop_stream()
    assert error is None
    assert result.get_response().parameters["triton_final_response"].bool_param


async def test_the_asyncio_client_streams(server: OipServer) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(100):
            sent = triton_grpc_aio.InferInput("tokens", [1, 5], "INT64")
            sent.set_data_from_numpy(tokens_of(number))
            yield {"model_name": "reviews", "inputs": [sent], "request_id": str(number)}

    async with triton_grpc_aio.InferenceServerClient(server.address) as client:
        ids = set()
        async for result, error in client.stream_infer(requests()):
            assert error is None
            ids.add(result.get_response().id)
            if len(ids) == 100:
                break
    assert ids == {str(number) for number in range(100)}


def stream_stub(channel: grpc.Channel) -> Any:
    return channel.stream_stream(
        STREAM,
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelStreamInferResponse.FromString,
    )


def stream_request(number: int) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="reviews", id=str(number))
    request.inputs.add(name="tokens", datatype="INT64", shape=[1, 5])
    request.raw_input_contents.append(tokens_of(number).tobytes())
    return request


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 500])
def test_a_half_closed_stream_answers_all_and_ends_well(server: OipServer, count: int) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = stream_stub(channel)(iter([stream_request(number) for number in range(count)]), timeout=20)
        answered = [response.infer_response.id for response in call]
        assert call.code() is grpc.StatusCode.OK
    assert sorted(answered, key=int) == [str(number) for number in range(count)]


def test_a_stream_may_be_idle_between_requests(server: OipServer) -> None:
    go_on = threading.Event()

    def requests() -> Iterator[oip.ModelInferRequest]:
        yield stream_request(1)
        go_on.wait(20)
        yield stream_request(2)

    with grpc.insecure_channel(server.address) as channel:
        call = stream_stub(channel)(requests(), timeout=20)
        assert next(call).infer_response.id == "1"
        with triton_grpc.InferenceServerClient(server.address) as other:
            assert other.is_server_live()
        go_on.set()
        assert next(call).infer_response.id == "2"
        assert next(call, None) is None


def test_a_streams_own_deadline_ends_it(server: OipServer) -> None:
    held = threading.Event()

    def requests() -> Iterator[oip.ModelInferRequest]:
        yield stream_request(1)
        held.wait(20)

    with grpc.insecure_channel(server.address) as channel:
        call = stream_stub(channel)(requests(), timeout=0.5)
        assert next(call).infer_response.id == "1"
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        held.set()


def test_a_stream_answers_compressed_what_is_sent_compressed(server: OipServer) -> None:
    request = oip.ModelInferRequest(model_name="reviews", id="1")
    request.inputs.add(name="tokens", datatype="INT64", shape=[200, 5])
    request.raw_input_contents.append(tokens_of(1, 200).tobytes())
    with grpc.insecure_channel(server.address) as channel:
        call = stream_stub(channel)(iter([request] * 3), timeout=20, compression=grpc.Compression.Gzip)
        sizes = [len(response.infer_response.raw_output_contents[0]) for response in call]
        assert sizes == [1600, 1600, 1600]
        assert dict(call.initial_metadata()).get("grpc-encoding", "gzip") == "gzip"


def test_cancelled_streams_leave_nothing_behind(server: OipServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        for turn in range(20):
            call = stream_stub(channel)(iter([stream_request(number) for number in range(200)]), timeout=20)
            for _ in range(turn % 4):
                next(call)
            call.cancel()
    with triton_grpc.InferenceServerClient(server.address) as client:

        def answers() -> bool:
            sent = triton_grpc.InferInput("tokens", [1, 5], "INT64")
            sent.set_data_from_numpy(tokens_of(1))
            return client.infer("reviews", [sent], client_timeout=5).as_numpy("logits").shape == (1, 2)

        until(answers)


async def test_sixteen_streams_at_once_never_mix(server: OipServer) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:

        async def one(stream: int) -> None:
            call = channel.stream_stream(
                STREAM,
                request_serializer=oip.ModelInferRequest.SerializeToString,
                response_deserializer=oip.ModelStreamInferResponse.FromString,
            )(stream_request(stream * 1000 + number) for number in range(100))
            got = {response.infer_response.id async for response in call}
            assert got == {str(stream * 1000 + number) for number in range(100)}

        await asyncio.gather(*(one(stream) for stream in range(16)))
