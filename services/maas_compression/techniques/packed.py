"""Weights that an ONNX file keeps as a few bits each, and that onnxruntime decodes once, when it loads the file.

A weight is levels[index] times the scales that it has. The indices are packed into bytes; nodes of the graph take them
out again: BitShift and Mod for the index, Gather for the level, Mul for the scales. All their inputs are constants, so
onnxruntime computes them while loading and runs at the speed of the float weights that they give (measured for a table
of 30,522 x 384 in 4 bits: 5.98 MB, loaded in 0.4 s, then the node that reads it is the same Gather as before).
DequantizeLinear is not folded so: with it the same table is dequantized as a whole for every call, 58 ms instead of
0.2. The types UINT4 and UINT2 would be decoded as fast, but need operator sets 21 and 25 and know no 3 bits.

Shapes: R rows, C columns, L levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from maas_compression.techniques.graphs import PACKED_NODE

# Widths that fill a byte without a rest; an index of 3 bits is one of 2 and one of 1.
_FIELD_BITS = (8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """What stands for one float32 weight of the graph, seen as a matrix [R, C].

    `indices`: uint8 [R, C], each below 2^bits. `levels`: float32 [L]. Each of `scales` is float16 or float32 and
    multiplies it: [R, 1], [1, C], or [R, C / g, 1] for groups of g neighbours in a row.
    """

    name: str
    shape: tuple[int, ...]
    bits: int
    indices: NDArray[np.uint8]
    levels: NDArray[np.float32]
    scales: Sequence[NDArray[np.floating]]

    def decoded(self) -> NDArray[np.float32]:
        """Return the weight that the engine will see."""
        values = self.levels[self.indices]
        rows, columns = values.shape
        for scale in self.scales:
            wide = scale.astype(np.float32)
            values = (values.reshape(rows, scale.shape[1], -1) * wide if scale.ndim == 3 else values * wide).reshape(
                rows, columns
            )
        return values.reshape(self.shape)


def store_packed(model: onnx.ModelProto, weights: Sequence[PackedWeight]) -> None:
    """Replace the initializers of these names, in place, by the packed form and the nodes that decode it."""
    names = {weight.name for weight in weights}
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    nodes = [node for weight in weights for node in _decoding(weight, kept)] + list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)


def _decoding(weight: PackedWeight, initializers: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Return the nodes that compute the tensor `weight.name`; what they read is appended to `initializers`."""
    graph = _Writer(weight.name, initializers)
    count = weight.indices.size
    flat = np.ascontiguousarray(weight.indices).reshape(-1)
    parts, offset = [], 0
    for bits in _FIELD_BITS:
        if not weight.bits & bits:
            continue
        part = graph.fields((flat >> offset) & (2**bits - 1), bits, count)
        if offset:
            part = graph.node("Mul", part, graph.constant(np.array(2**offset, np.int32), f"place{offset}"))
        parts.append(part)
        offset += bits
    index = parts[0]
    for part in parts[1:]:
        index = graph.node("Add", index, part)
    values = graph.node("Gather", graph.constant(weight.levels.astype(np.float32), "levels"), index)
    for number, scale in enumerate(weight.scales):
        grouped = (weight.indices.shape[0], scale.shape[1], -1) if scale.ndim == 3 else weight.indices.shape
        values = graph.reshaped(values, grouped)
        factor = graph.constant(scale, f"scale{number}")
        if scale.dtype == np.float16:
            factor = graph.node("Cast", factor, to=TensorProto.FLOAT)
        values = graph.node("Mul", values, factor)
    graph.reshaped(values, weight.shape, output=weight.name)
    return graph.nodes


class _Writer:
    """Collects nodes and constants whose names all begin with the weight's."""

    def __init__(self, prefix: str, initializers: list[onnx.TensorProto]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = prefix
        self._initializers = initializers

    def constant(self, value: NDArray[np.generic], role: str) -> str:
        name = f"{self._prefix}_{role}"
        self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{self._prefix}_decoded{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], f"{PACKED_NODE}{name}", **attributes))
        return name

    def reshaped(self, value: str, shape: Sequence[int], output: str = "") -> str:
        return self.node(
            "Reshape", value, self.constant(np.array(shape, np.int64), f"shape{len(self.nodes)}"), output=output
        )

    def fields(self, values: NDArray[np.uint8], bits: int, count: int) -> str:
        """Return the name of int32 [count]: fields of `bits` bits, packed with the first in the lowest bits."""
        packed = self.constant(pack_bits(values, bits)[:, np.newaxis], f"packed{bits}")
        if bits < 8:
            shifts = self.constant(np.arange(0, 8, bits, dtype=np.uint8), f"shifts{bits}")
            packed = self.node("BitShift", packed, shifts, direction="RIGHT")
            packed = self.node("Mod", packed, self.constant(np.array(2**bits, np.uint8), f"modulus{bits}"))
        wide = self.node("Cast", packed, to=TensorProto.INT32)
        flat = self.reshaped(wide, (-1,))
        if count * bits % 8 == 0:
            return flat
        ends = [
            self.constant(np.array([value], np.int64), f"{role}{bits}")
            for role, value in (("begin", 0), ("end", count))
        ]
        return self.node("Slice", flat, *ends)


def pack_bits(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return values below 2^bits (1, 2, 4 or 8 bits) packed along the last axis, the first in the lowest bits."""
    per_byte = 8 // bits
    rest = -values.shape[-1] % per_byte
    padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, rest)])
    fields = padded.reshape(*values.shape[:-1], -1, per_byte)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(fields << np.arange(0, 8, bits, dtype=np.uint8), axis=-1)
    return packed
