"""PyTriton: Triton's binary before a function in this process."""

import os
import sys

import models
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

model, port = sys.argv[1], int(sys.argv[2])
signature = models.SIGNATURES[model]
network = models.load(model)


@batch
def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
    return {signature.output: models.predict(network, inputs[signature.input])}


config = TritonConfig(
    grpc_address="127.0.0.1", grpc_port=port, http_address="127.0.0.1", http_port=port + 1, allow_metrics=False
)
with Triton(config=config) as triton:
    delay = DynamicBatcher(max_queue_delay_microseconds=round(float(os.environ["BENCH_DELAY_MS"]) * 1000))
    triton.bind(
        model_name=model,
        infer_func=infer,
        inputs=[Tensor(name=signature.input, dtype=np.int64, shape=(signature.tokens,))],
        outputs=[Tensor(name=signature.output, dtype=np.float32, shape=(signature.width,))],
        config=ModelConfig(max_batch_size=int(os.environ["BENCH_MAX_BATCH_ROWS"]), batcher=delay),
    )
    triton.serve()
