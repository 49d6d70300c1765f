"""How fast this host computes the model's own products: as floats, as 8-bit integers, as bfloat16."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from maas_compression.advice.model_facts import Product

Clock = Callable[[], float]

_SECONDS = 0.1
"""For one product in one form."""
_LEAST_RUNS = 5


@dataclass(frozen=True, slots=True)
class ProductSpeed:
    """Seconds of one product of states [rows, inputs] with weights [inputs, outputs]; bf16 is None without openvino."""

    product: Product
    rows: int
    float_seconds: float
    int8_seconds: float
    bf16_seconds: float | None

    @property
    def int8_gain(self) -> float:
        """How many times faster 8-bit integers are, activations turned into integers included."""
        return self.float_seconds / self.int8_seconds

    @property
    def bf16_gain(self) -> float | None:
        """How many times faster bfloat16 is."""
        return None if self.bf16_seconds is None else self.float_seconds / self.bf16_seconds


def measure_product(
    product: Product, rows: int, *, threads: int, with_bf16: bool, clock: Clock = time.perf_counter
) -> ProductSpeed:
    """Measure one product in each form, on one thread or more."""
    generator = np.random.default_rng(0)
    states = generator.standard_normal((rows, product.inputs)).astype(np.float32)
    weights = generator.standard_normal((product.inputs, product.outputs)).astype(np.float32)
    floats = _float_graph(weights)
    return ProductSpeed(
        product=product,
        rows=rows,
        float_seconds=_onnxruntime_seconds(floats, states, threads, clock),
        int8_seconds=_onnxruntime_seconds(_int8_graph(weights), states, threads, clock),
        bf16_seconds=_openvino_bf16_seconds(floats, states, threads, clock) if with_bf16 else None,
    )


def _float_graph(weights: NDArray[np.float32]) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return _graph(nodes, {"w": weights}, weights)


def _int8_graph(weights: NDArray[np.float32]) -> onnx.ModelProto:
    """The nodes that dynamic quantization writes: onnxruntime makes one of them."""
    scale = np.abs(weights).max(axis=0) / 63
    integers = np.rint(weights / scale).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["x8", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["x8", "w8", "xz", "wz"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["float_sum"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "ws"], ["scale"]),
        helper.make_node("Mul", ["float_sum", "scale"], ["y"]),
    ]
    tensors = {"w8": integers, "ws": scale.astype(np.float32), "wz": np.zeros(weights.shape[1], np.int8)}
    return _graph(nodes, tensors, weights)


def _graph(
    nodes: list[onnx.NodeProto], tensors: Mapping[str, NDArray[np.generic]], weights: NDArray[np.float32]
) -> onnx.ModelProto:
    inputs, outputs = weights.shape
    return helper.make_model(
        helper.make_graph(
            nodes,
            "product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, inputs])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, outputs])],
            [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
        ),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 18)],
    )


def _onnxruntime_seconds(model: onnx.ModelProto, states: NDArray[np.float32], threads: int, clock: Clock) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return _least_seconds(lambda: session.run(None, {"x": states}), clock)


def _openvino_bf16_seconds(model: onnx.ModelProto, states: NDArray[np.float32], threads: int, clock: Clock) -> float:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString(), b""),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16"},
    )
    request = compiled.create_infer_request()
    return _least_seconds(lambda: request.infer([states], share_inputs=True), clock)


def _least_seconds(run: Callable[[], object], clock: Clock) -> float:
    """Return the time of the fastest run: what the processor can do, whatever else it does beside."""
    run()
    end = clock() + _SECONDS
    runs, least = 0, math.inf
    while runs < _LEAST_RUNS or clock() < end:
        begin = clock()
        run()
        least = min(least, clock() - begin)
        runs += 1
    return least
