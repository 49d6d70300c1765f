"""Which of a graph's constants are weights, what for, and along which axes a neuron's inputs lie."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MATRICES, EMBEDDINGS, ALL = "matrices", "embeddings", "all"
"""The parts of a model that a technique can be told to change."""

LEAST_WEIGHTS = 1024
"""A constant of fewer numbers is left alone: what decodes it would take as many bytes as it saves."""

_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True, slots=True)
class GraphWeight:
    """One float32 constant of at least two dimensions and LEAST_WEIGHTS numbers.

    `fan_in_axes` are those that are summed over; a table that is looked up has none. `names`: what a recipe may call
    it: the constant's own name and those of the nodes that read it.
    """

    name: str
    part: str
    fan_in_axes: tuple[int, ...]
    names: frozenset[str]
    value: NDArray[np.float32]


def graph_weights(model: onnx.ModelProto, part: str = ALL, keep: Collection[str] = ()) -> tuple[GraphWeight, ...]:
    """Return the weights of that part in the order of the file, without those that `keep` names."""
    roles = dict(_roles(model.graph))
    found = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name not in roles:
            continue
        its_part, fan_in_axes = roles[tensor.name]
        nodes = [node.name for node in model.graph.node if tensor.name in node.input]
        names = frozenset({tensor.name, *filter(None, nodes)})
        is_large = len(tensor.dims) >= 2 and int(np.prod(tensor.dims)) >= LEAST_WEIGHTS
        if is_large and part in (ALL, its_part) and not names & set(keep):
            found.append(GraphWeight(tensor.name, its_part, fan_in_axes, names, numpy_helper.to_array(tensor)))
    return tuple(found)


def constants_as_initializers(model: onnx.ModelProto) -> None:
    """Turn Constant nodes that hold a tensor into initializers, in place: other exporters write weights so."""
    nodes = []
    for node in model.graph.node:
        values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        if node.op_type == "Constant" and values:
            values[0].name = node.output[0]
            model.graph.initializer.append(values[0])
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def drop_unread(model: onnx.ModelProto) -> None:
    """Remove initializers that no node reads any more, in place; also where they were listed as inputs."""
    read = {name for node in _all_nodes(model.graph) for name in node.input}
    read |= {output.name for output in model.graph.output}
    unread = {tensor.name for tensor in model.graph.initializer if tensor.name not in read}
    for values in (model.graph.initializer, model.graph.input):
        kept = [value for value in values if value.name not in unread]
        del values[:]
        values.extend(kept)


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _all_nodes(inner)


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
