"""What BentoML serves."""

import os

import bentoml
import models
import numpy as np


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Bench:
    def __init__(self) -> None:
        self.network = models.load(os.environ["BENCH_MODEL"])

    @bentoml.api(
        batchable=True, batch_dim=0, max_batch_size=int(os.environ["BENCH_MAX_BATCH_ROWS"]), max_latency_ms=10_000
    )
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return models.predict(self.network, inputs.astype(np.int64))
