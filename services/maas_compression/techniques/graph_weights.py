"""Which of a graph's constants are weights, what for, and along which axes a neuron's inputs lie."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from maas_compression.techniques.graphs import GraphUnusable, graphs_of

MATRICES, EMBEDDINGS, ALL = "matrices", "embeddings", "all"
"""The parts of a model that a technique can be told to change."""

LEAST_WEIGHTS = 1024
"""A constant of fewer numbers is left alone: what decodes it would take as many bytes as it saves."""

_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True, slots=True)
class GraphWeight:
    """One float32 constant of at least two dimensions.

    `fan_in_axes` are those that are summed over; a table that is looked up has none. `names`: what a recipe may call
    it: the constant's own name, those of the nodes that read it, and that of the bias which is added behind it.
    """

    name: str
    part: str
    fan_in_axes: tuple[int, ...]
    names: frozenset[str]
    value: NDArray[np.float32]


def graph_weights(
    model: onnx.ModelProto, part: str = ALL, keep: Collection[str] = (), least: int = LEAST_WEIGHTS
) -> tuple[GraphWeight, ...]:
    """Return the weights of that part with at least `least` numbers, in the order of the file, without those that
    `keep` names.

    Raises GraphUnusable when there are none.
    """
    roles = dict(_roles(model.graph))
    found = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name not in roles:
            continue
        its_part, fan_in_axes = roles[tensor.name]
        names = _names(model.graph, tensor.name)
        is_large = len(tensor.dims) >= 2 and int(np.prod(tensor.dims)) >= least
        if is_large and part in (ALL, its_part) and not is_kept(names, keep):
            found.append(GraphWeight(tensor.name, its_part, fan_in_axes, names, numpy_helper.to_array(tensor)))
    if not found:
        kept = f" beside {', '.join(keep)}" if keep else ""
        raise GraphUnusable(f"the graph has no float weights left to change ({part}{kept}): leave this step out")
    return tuple(found)


def is_kept(names: Collection[str], keep: Collection[str]) -> bool:
    """Return whether a recipe's `keep` names one of them; `*` stands for anything."""
    return any(fnmatchcase(name, pattern) for name in names for pattern in keep)


def drop_unread(model: onnx.ModelProto) -> None:
    """Remove initializers that no node reads any more, in place."""
    read = {output.name for output in model.graph.output}
    read |= {name for graph in graphs_of(model.graph) for node in graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _names(graph: onnx.GraphProto, weight: str) -> frozenset[str]:
    """Return what the weight may be called; torch's exporter calls a transposed one `val_42`, but not its bias."""
    readers = [node for node in graph.node if weight in node.input]
    products = {name for node in readers for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    biases = [
        name
        for node in graph.node
        if node.op_type == "Add" and products & set(node.input)
        for name in node.input
        if name in constants
    ]
    layers = [name.removesuffix(".bias") for name in biases]
    return frozenset({weight, *layers, *(node.name for node in readers if node.name)})


def _roles(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    """Yield a constant's name, its part, and its fan-in axes, for each node that says what it is."""
    dimensions: Mapping[str, int] = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        inputs = list(node.input)
        match node.op_type:
            case "MatMul":
                yield inputs[1], (MATRICES, (dimensions.get(inputs[1], 2) - 2,))
                yield inputs[0], (MATRICES, (dimensions.get(inputs[0], 2) - 1,))
            case "Gemm":
                yield inputs[1], (MATRICES, (1 if attributes.get("transB", 0) else 0,))
            case "Conv":
                yield inputs[1], (MATRICES, tuple(range(1, dimensions.get(inputs[1], 4))))
            case kind if kind in _RECURRENT:
                yield inputs[1], (MATRICES, (2,))
                yield inputs[2], (MATRICES, (2,))
            case "Gather" if attributes.get("axis", 0) == 0:
                yield inputs[0], (EMBEDDINGS, ())
            case "Slice":
                yield inputs[0], (EMBEDDINGS, ())
