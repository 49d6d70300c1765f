"""Many callers at once, whose requests share batches: each gets its own answer."""

import asyncio
import struct
from collections.abc import Iterator

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from cluster_under_test import WORDS, Cluster
from maas.oip.v2.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from maas_engine.engine import open_engine
from maas_engine.predictor import Predictor
from maas_package.package import Package
from maas_package.tensors import Array

METHOD = "/inference.GRPCInferenceService/ModelInfer"
REQUESTS = 2_000
CALLERS = 50
CHANNELS = 10
TOLERANCE = 1e-5


def tokens_of(number: int) -> NDArray[np.int64]:
    generator = np.random.default_rng(number)
    return generator.integers(2, len(WORDS), (generator.integers(1, 5), generator.integers(1, 25)), dtype=np.int64)


def texts_of(number: int) -> list[str]:
    generator = np.random.default_rng(number)
    return [" ".join(generator.choice(WORDS, size)) for size in generator.integers(1, 25, generator.integers(1, 4))]


def text_input(number: int) -> dict[str, Array]:
    return {"text": np.array(texts_of(number), dtype=np.object_)}


def message(deployment: str, number: int) -> bytes:
    request = ModelInferRequest(model_name=deployment, id=str(number))
    if number % 2:
        tokens = tokens_of(number)
        request.inputs.add(name="tokens", datatype="INT64", shape=list(tokens.shape))
        request.raw_input_contents.append(tokens.tobytes())
    else:
        texts = texts_of(number)
        request.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
        request.raw_input_contents.append(b"".join(struct.pack("<I", len(text)) + text.encode() for text in texts))
    return request.SerializeToString()


async def ask_all(endpoint: str, deployment: str) -> dict[int, ModelInferResponse]:
    answers: dict[int, ModelInferResponse] = {}
    numbers = iter(range(REQUESTS))

    async def call(ask: "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]", numbers: Iterator[int]) -> None:
        for number in numbers:
            answers[number] = ModelInferResponse.FromString(await ask(message(deployment, number), timeout=30))

    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(endpoint, options) for _ in range(CHANNELS)]
    try:
        async with asyncio.TaskGroup() as tasks:
            for caller in range(CALLERS):
                tasks.create_task(call(channels[caller % CHANNELS].unary_unary(METHOD), numbers))
    finally:
        for channel in channels:
            await channel.close()
    return answers


async def test_each_of_many_callers_whose_requests_share_batches_gets_its_own_answer(
    cluster: Cluster, reviews: str, packages: list[Package]
) -> None:
    answers = await ask_all(cluster.endpoint, reviews)
    predictor = Predictor(packages[0], open_engine(packages[0], packages[0].manifest.servables[0], threads=1))
    assert len(answers) == REQUESTS
    for number, response in answers.items():
        alone = (
            predictor.predict({"tokens": tokens_of(number)})
            if number % 2
            else predictor.predict_texts(texts_of(number))
        ).outputs["logits"]
        assert response.id == str(number)
        index = [output.name for output in response.outputs].index("logits")
        got = np.frombuffer(response.raw_output_contents[index], np.float32).reshape(alone.shape)
        np.testing.assert_allclose(got, alone, atol=TOLERANCE)
