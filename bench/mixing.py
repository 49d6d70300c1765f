"""20,000 requests that all differ, from 200 callers at once: each gets its own answer, equal to the unbatched one.

Half of them are tensors of 1 to 4 rows and 4 to 40 tokens, half 1 to 3 texts of 1 to 40 words, so that batches are
mixed from many callers and are of ragged lengths.
"""

import argparse
import asyncio
import itertools
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np
from cluster import Cluster, Way, running_cluster
from load import METHOD
from packages import seed_package
from report import add_arguments, publish, say, table

from maas.oip.v2.grpc_service_pb2 import ModelInferRequest, ModelInferResponse
from maas_engine.predictor import Predictor, open_predictor

TOLERANCE = 1e-5
_CHANNELS = 16
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, made from its number alone."""

    tokens: np.ndarray | None
    texts: tuple[str, ...]

    @classmethod
    def number(cls, number: int) -> "Asked":
        generator = np.random.default_rng(number)
        if number % 2:
            shape = (int(generator.integers(1, 5)), int(generator.integers(4, 41)))
            return cls(generator.integers(2, 10_000, shape, dtype=np.int64), ())
        lengths = generator.integers(1, 41, size=generator.integers(1, 4))
        return cls(None, tuple(" ".join(f"word{n}" for n in generator.integers(0, 9_000, size)) for size in lengths))

    def message(self, deployment: str) -> bytes:
        """Return it as a serialized ModelInfer."""
        request = ModelInferRequest(model_name=deployment)
        if self.tokens is not None:
            request.inputs.add(name="tokens", datatype="INT64", shape=list(self.tokens.shape))
            request.raw_input_contents.append(self.tokens.tobytes())
        else:
            request.inputs.add(name="text", datatype="BYTES", shape=[len(self.texts)])
            raw = b"".join(struct.pack("<I", len(text)) + text.encode() for text in self.texts)
            request.raw_input_contents.append(raw)
        return request.SerializeToString()

    def alone(self, predictor: Predictor) -> np.ndarray:
        """Return the answer of an engine that computes nothing else with it."""
        if self.tokens is not None:
            return predictor.predict({"tokens": self.tokens}).outputs["logits"]
        return predictor.predict_texts(self.texts).outputs["logits"]


def main() -> None:
    """Ask, compare; print and with --write keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--callers", type=int, default=200)
    add_arguments(parser)
    arguments = parser.parse_args()
    way: Way = "gateway"
    with tempfile.TemporaryDirectory() as folder, running_cluster() as cluster:
        package = seed_package(Path(folder, "seed"))
        cluster.deploy("seed", package)
        cluster.question("seed").until_answered(cluster.ports[way])
        begun = time.monotonic()
        answers = asyncio.run(ask_all(cluster.ports[way], arguments.requests, arguments.callers))
        spent = time.monotonic() - begun
        rows_a_batch = mean_rows(cluster)
        say(f"{len(answers)} answers in {spent:.1f} s, {rows_a_batch:.1f} rows a batch")
        predictor = open_predictor(package)
        alone = [Asked.number(number).alone(predictor) for number in range(arguments.requests)]
    differences = {number: difference(answers[number], alone[number]) for number in answers}
    wrong = sum(not found <= TOLERANCE for found in differences.values())
    # An answer that another request would have got too proves nothing.
    told_apart = sum(difference(one, other) > TOLERANCE for one, other in itertools.pairwise(alone))
    head = ["requests", "callers", "req/s", "rows a batch", "unanswered", "wrong", "largest difference", "tolerance"]
    head.append("differ from the next request's")
    line = [f"{arguments.requests:,}", str(arguments.callers), f"{arguments.requests / spent:,.0f}"]
    line += [f"{rows_a_batch:.1f}", str(arguments.requests - len(answers)), str(wrong)]
    line += [f"{max(differences.values()):.1e}", f"{TOLERANCE:g}", f"{told_apart / (arguments.requests - 1):.2%}"]
    publish("mixing", table(head, [line]), dict(zip(head, line, strict=True)), arguments)
    if wrong or len(answers) < arguments.requests:
        raise SystemExit(
            f"{wrong} of {len(answers)} answers are wrong, {arguments.requests - len(answers)} are missing"
        )


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference of two answers; infinite where they have not even as many rows."""
    return float(np.abs(one - other).max()) if one.shape == other.shape else float("inf")


async def ask_all(port: int, requests: int, callers: int) -> dict[int, np.ndarray]:
    """Let the callers ask at the same time, each one request after the other."""
    answers: dict[int, np.ndarray] = {}
    numbers = iter(range(requests))
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(_CHANNELS)]
    try:
        async with asyncio.TaskGroup() as tasks:
            for caller in range(callers):
                ask = channels[caller % _CHANNELS].unary_unary(METHOD)
                tasks.create_task(_call(ask, numbers, answers))
    finally:
        for channel in channels:
            await channel.close()
    return answers


async def _call(ask, numbers, answers: dict[int, np.ndarray]) -> None:
    for number in numbers:
        try:
            raw = await ask(Asked.number(number).message("seed"), timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            say(f"request {number}: {error.code().name} {error.details()}")
            continue
        response = ModelInferResponse.FromString(raw)
        index = [output.name for output in response.outputs].index("logits")
        values = np.frombuffer(response.raw_output_contents[index], np.float32)
        answers[number] = values.reshape(tuple(response.outputs[index].shape))


def mean_rows(cluster: Cluster) -> float:
    """Return how many rows a batch had."""
    metrics = cluster.metrics()

    def total(name: str) -> float:
        return sum(value for key, value in metrics.items() if key.startswith(f"maas_inference_batch_rows_{name}"))

    return total("sum") / max(total("count"), 1.0)


if __name__ == "__main__":
    main()
