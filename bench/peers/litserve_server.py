"""LitServe with batching, one worker process, JSON over HTTP."""

import os
import sys
from typing import Any

import litserve
import models
import numpy as np


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002  # the library's signature
        self.network = models.load(sys.argv[1])

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        return np.asarray(request["inputs"], np.int64)[0]

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        return models.predict(self.network, tokens)

    def unbatch(self, answers: np.ndarray) -> list[np.ndarray]:
        return list(answers)

    def encode_response(self, answer: np.ndarray) -> dict[str, Any]:
        return {"outputs": [answer.tolist()]}


if __name__ == "__main__":
    api = Api(
        max_batch_size=int(os.environ["BENCH_MAX_BATCH_ROWS"]),
        batch_timeout=float(os.environ["BENCH_DELAY_MS"]) / 1000,
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
