"""Matrices as onnxruntime's MatMulIntegerToFloat, with the scales of the activations fixed beforehand."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from maas_compression.techniques.calibration import Range

_DOMAIN = "com.microsoft"
_MOST_WEIGHT = 63
"""7 of 8 bits, less one: see quantized_dynamically."""
_MOST_ACTIVATION = 255
_LEAST_WIDTH = 1e-20
"""A tensor that is always 0 has a scale all the same."""


def calibrated_tensors(model: onnx.ModelProto, layers: Collection[str]) -> set[str]:
    """Return the activations whose ranges `make_matrices_integers` needs."""
    return {node.input[0] for node in model.graph.node if node.op_type == "MatMul" and node.name in layers}


def make_matrices_integers(
    model: onnx.ModelProto, layers: Collection[str], ranges: Mapping[str, Range], *, per_channel: bool
) -> None:
    """Replace each MatMul of `layers` by a product of integers that gives floats, in place; a bias goes into it.

    x = scale_x * (q_x - zero_x), q_x in 0 to 255, scale_x = (high - low) / 255; w = scale_w * q_w, q_w in -63 to 63,
    scale_w = max|w| / 63 of an output, or of the matrix without `per_channel`. y = scale_x * scale_w * (q_x - zero_x)
    · q_w + bias.
    """
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    biases = _biases(graph, layers, initializers)
    nodes: list[onnx.NodeProto] = []
    quantized: set[str] = set()
    for node in graph.node:
        if node.op_type == "MatMul" and node.name in layers:
            states, weight = node.input[0], numpy_helper.to_array(initializers[node.input[1]])
            if states not in quantized:
                nodes.append(_quantize(graph, states, ranges[states]))
                quantized.add(states)
            bias, output = biases.get(node.output[0], ("", node.output[0]))
            scale = _store_weight(graph, node.name, weight, per_channel=per_channel)
            inputs = [f"{states}_integers", f"{node.name}_integers", f"{states}_scale", scale, f"{states}_zero_point"]
            inputs += [f"{node.name}_zero_point"] + ([bias] if bias else [])
            nodes.append(helper.make_node("MatMulIntegerToFloat", inputs, [output], name=node.name, domain=_DOMAIN))
        elif not (
            node.op_type == "Add" and any(biases.get(name, ("", ""))[1] == node.output[0] for name in node.input)
        ):
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if all(one.domain != _DOMAIN for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))


def _biases(
    graph: onnx.GraphProto, layers: Collection[str], initializers: Mapping[str, onnx.TensorProto]
) -> dict[str, tuple[str, str]]:
    """Return the bias that is added to a MatMul's output and to nothing else, and what the sum is called."""
    outputs = {value.name for value in graph.output}
    products = {node.output[0] for node in graph.node if node.op_type == "MatMul" and node.name in layers}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            if name in products:
                readers.setdefault(name, []).append(node)
    biases = {}
    for product, nodes in readers.items():
        if len(nodes) != 1 or nodes[0].op_type != "Add" or product in outputs:
            continue
        bias = next(name for name in nodes[0].input if name != product)
        if bias in initializers and len(initializers[bias].dims) == 1 and initializers[bias].dims[0] > 1:
            biases[product] = bias, nodes[0].output[0]
    return biases


def _quantize(graph: onnx.GraphProto, states: str, limits: Range) -> onnx.NodeProto:
    low, high = limits
    scale = np.float32(max(high - low, _LEAST_WIDTH) / _MOST_ACTIVATION)
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, _MOST_ACTIVATION))
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), f"{states}_scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(zero, np.uint8), f"{states}_zero_point"))
    inputs = [states, f"{states}_scale", f"{states}_zero_point"]
    return helper.make_node("QuantizeLinear", inputs, [f"{states}_integers"], name=f"{states}_quantized")


def _store_weight(graph: onnx.GraphProto, name: str, weight: NDArray[np.float32], *, per_channel: bool) -> str:
    largest: NDArray[np.float32] = np.max(np.abs(weight), axis=0 if per_channel else None)
    scale = np.where(largest > 0, largest / _MOST_WEIGHT, 1).astype(np.float32)
    integers = np.rint(weight / scale).astype(np.int8)
    graph.initializer.append(numpy_helper.from_array(integers, f"{name}_integers"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros_like(scale, np.int8), f"{name}_zero_point"))
    return f"{name}_scale"
