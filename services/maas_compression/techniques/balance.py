"""Balancing: what is large in an activation's channel moves into the weights behind it, before either is rounded."""

from collections import defaultdict
from collections.abc import Collection

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from maas_compression.techniques.calibration import Batches, channel_sizes

_LEAST = 1e-5


def balance(model: onnx.ModelProto, layers: Collection[str], batches: Batches, alpha: float) -> int:
    """Divide each LayerNormalization's channel j by s_j and multiply row j of the matrices behind it, in place.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha): SmoothQuant (Xiao et al., 2023, arXiv:2211.10438, equation 4), where
    X_j is the norm's output on the calibration batches and W_j row j of all matrices of `layers` that read it. The
    division is done in the norm's own weight and bias, so it costs nothing; whoever else reads the norm (the sum
    around the next part) gets its output times s. As floats the answers stay the same but for rounding. Returns how
    many norms were balanced.
    """
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    uses = {name: len(nodes) for name, nodes in readers.items()}
    norms = {}
    for node in graph.node:
        matrices = [reader for reader in readers[node.output[0]] if _is_matrix_of(reader, node.output[0], layers)]
        own = [initializers.get(name) for name in node.input[1:]]
        if node.op_type != "LayerNormalization" or not matrices or not own or None in own:
            continue
        # What others use too cannot be scaled for one.
        parts = [*node.input[1:], *(matrix.input[1] for matrix in matrices)]
        if all(name in initializers and uses[name] == 1 for name in parts):
            norms[node.output[0]] = (node, matrices)
    sizes = channel_sizes(model, norms, batches) if norms else {}
    for name, (norm, matrices) in norms.items():
        weights = [numpy_helper.to_array(initializers[matrix.input[1]]) for matrix in matrices]
        scale = _scale(sizes[name], np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0), alpha)
        for part in norm.input[1:]:
            _set(initializers[part], numpy_helper.to_array(initializers[part]) / scale)
        for matrix, weight in zip(matrices, weights, strict=True):
            _set(initializers[matrix.input[1]], weight * scale[:, np.newaxis])
        _restore(graph, norm, matrices, scale)
    return len(norms)


def _is_matrix_of(node: onnx.NodeProto, states: str, layers: Collection[str]) -> bool:
    return node.op_type == "MatMul" and node.name in layers and node.input[0] == states


def _scale(activation: NDArray[np.float32], weight: NDArray[np.float32], alpha: float) -> NDArray[np.float32]:
    scale = np.maximum(activation, _LEAST) ** alpha / np.maximum(weight, _LEAST) ** (1 - alpha)
    return np.maximum(scale, _LEAST).astype(np.float32)


def _restore(
    graph: onnx.GraphProto, norm: onnx.NodeProto, matrices: list[onnx.NodeProto], scale: NDArray[np.float32]
) -> None:
    """Give all readers but the matrices the norm's output as it was."""
    output = norm.output[0]
    restored = f"{output}_restored"
    chosen = {matrix.name for matrix in matrices}
    others = [node for node in graph.node if output in node.input and node.name not in chosen]
    if not others and all(value.name != output for value in graph.output):
        return
    if any(value.name == output for value in graph.output):
        # An output keeps its name: what the matrices read is called otherwise.
        norm.output[0] = f"{output}_balanced"
        for matrix in matrices:
            matrix.input[0] = norm.output[0]
        restored = output
    else:
        for node in others:
            for index, name in enumerate(node.input):
                if name == output:
                    node.input[index] = restored
    graph.initializer.append(numpy_helper.from_array(scale, f"{norm.name}_balance"))
    after = list(graph.node).index(norm) + 1
    node = helper.make_node("Mul", [norm.output[0], f"{norm.name}_balance"], [restored], name=f"{norm.name}_restored")
    graph.node.insert(after, node)


def _set(tensor: onnx.TensorProto, value: NDArray[np.floating]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), tensor.name))
