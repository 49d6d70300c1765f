"""prune's masks: weights become zero and stay where they are.

A dense file with zeros is as large and as fast as without: engines on CPUs multiply zeros too. What masks are good
for is a store or an engine that leaves zeros out (a packed file; NVIDIA's sparse tensor cores for 2:4).
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

Weights = NDArray[np.float32]

_OPERATORS = ("Conv", "Gemm", "MatMul", "LSTM", "GRU", "RNN")


def magnitude_masks(matrices: Mapping[str, Weights], share: float) -> dict[str, NDArray[np.bool_]]:
    """Return which weights stay: the largest of all matrices together, so that `share` of all weights go.

    Compared by |w| / the root of the mean square of its matrix: matrices of small numbers are not emptied first.
    """
    scores = {name: np.abs(weight) / max(_root_mean_square(weight), 1e-30) for name, weight in matrices.items()}
    ordered = np.concatenate([score.ravel() for score in scores.values()])
    count = round(share * ordered.size)
    if count == 0:
        return {name: np.ones(score.shape, bool) for name, score in scores.items()}
    threshold = np.partition(ordered, count - 1)[count - 1]
    return {name: score > threshold for name, score in scores.items()}


def two_of_four_mask(matrix: Weights) -> NDArray[np.bool_]:
    """Return which weights stay, [O, I]: the two largest of each four neighbouring inputs of an output.

    That is the pattern that NVIDIA's sparse tensor cores compute with (Mishra et al., 2021, arXiv:2104.08378). The
    last inputs, where their number is no multiple of 4, all stay.
    """
    whole = matrix.shape[-1] // 4 * 4
    groups = np.abs(matrix[..., :whole]).reshape(*matrix.shape[:-1], whole // 4, 4)
    ranks = groups.argsort(axis=-1, kind="stable").argsort(axis=-1, kind="stable")
    mask = np.ones(matrix.shape, bool)
    mask[..., :whole] = (ranks >= 2).reshape(*matrix.shape[:-1], whole)
    return mask


def module_matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the matrices of all layers, [O, I]; embeddings are tables and stay whole."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in tables
    }


def graph_matrices(model: onnx.ModelProto) -> dict[str, Weights]:
    """Return the float weights of the graph's layers, by name."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type not in _OPERATORS:
            continue
        for name in node.input:
            tensor = constants.get(name)
            if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and _is_matrix(node, tensor):
                found[name] = numpy_helper.to_array(tensor)
    return found


def inputs_last(model: onnx.ModelProto, name: str, matrix: Weights) -> Weights:
    """Return a view of a graph's matrix in which each row has the inputs of one output."""
    node = next(node for node in model.graph.node if name in node.input)
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not transposed):
        return np.swapaxes(matrix, -1, -2) if list(node.input).index(name) == 1 else matrix
    return matrix.reshape(matrix.shape[0], -1) if node.op_type == "Conv" else matrix


def _is_matrix(node: onnx.NodeProto, tensor: onnx.TensorProto) -> bool:
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return tensor.name in node.input[1:3]
    return len(tensor.dims) >= 2


def _root_mean_square(weight: Weights) -> float:
    return float(np.sqrt(np.mean(np.square(weight, dtype=np.float64))))
