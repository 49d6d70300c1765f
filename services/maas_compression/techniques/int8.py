"""int8: matrices multiplied as 8-bit integers, with scales found while running or from calibration rows."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import onnx
from onnx import TensorProto

from maas_compression.materials import Materials
from maas_compression.recipe import Int8
from maas_compression.techniques.graphs import float_graph, write_graph_package
from maas_package.package import Package
from maas_runtime.failures import FieldViolation, InvalidInput

LAYER_TYPES = ("Attention", "Conv", "ConvTranspose", "Gather", "Gemm", "LSTM", "MatMul")
"""Operators whose weights, an input of at least two dimensions, can be integers."""
_DYNAMIC_TYPES = ("Attention", "Conv", "Gather", "LSTM", "MatMul")  # a Gemm becomes a MatMul and an Add on the way
_LISTED = 8


class LayerUnknown(InvalidInput):
    """No layer that can be quantized has this name."""

    reason = "LAYER_UNKNOWN"


def apply_int8(source: Package, technique: Int8, folder: Path, materials: Materials) -> Package:
    """Write the package whose served form multiplies 8-bit integers to `folder`, which must be new or empty.

    Raises LayerUnknown, and what float_graph, most_sensitive_layers and write_graph_package raise.
    """
    # Judging layers imports this package's graphs, so this package cannot import it while it is imported itself.
    from maas_compression.measuring.sensitivity import most_sensitive_layers

    model = float_graph(source)
    kept = kept_layers(model, technique.keep)
    others = [name for name in layer_names(model) if name not in kept]
    kept += most_sensitive_layers(source, model, others, materials, technique.keep_most_sensitive)
    return write_graph_package(source, quantized_dynamically(model, technique, kept), folder, precision="int8")


def layer_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the layers that int8 makes integers of, in the graph's order."""
    matrices = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1
    }
    return tuple(
        node.name for node in model.graph.node if node.op_type in LAYER_TYPES and not matrices.isdisjoint(node.input)
    )


def kept_layers(model: onnx.ModelProto, patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the layers that a name or a pattern (fnmatch's: `encoder.layers.0.*`) means. Raises LayerUnknown."""
    names = layer_names(model)
    kept: set[str] = set()
    for pattern in patterns:
        # A layer's name may hold what means something in a pattern.
        found = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not found:
            listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
            raise LayerUnknown(
                f"keep: no layer is called {pattern!r}; there are {len(names)}: {listed}",
                violations=(FieldViolation("keep", f"no layer is called {pattern!r}"),),
            )
        kept |= found
    return tuple(name for name in names if name in kept)


def quantized_dynamically(model: onnx.ModelProto, technique: Int8, kept: Iterable[str] = ()) -> onnx.ModelProto:
    """Return the graph with weights as integers, and activations turned into integers while it runs.

    The layers in `kept`, and what is quantized already, stay as they are. Right on every processor: weights take 7 of
    their 8 bits. A processor with AVX2 and no VNNI adds two products in 16 bits, which overflow with 8-bit weights:
    the seed's LSTM then differs by 0.026 instead of 0.003. Each output has a scale of its own: with one for a
    tensor, vectors of all-MiniLM-L6-v2 keep a cosine of 0.63 to 0.92 to what they were, with these 0.987 or more. The
    LSTM answers as well with either. Speed and size are the same (measured).
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as scratch, _quiet():
        target = Path(scratch, "model.onnx")
        quantize_dynamic(
            _copied(model),
            str(target),
            op_types_to_quantize=list(_DYNAMIC_TYPES),
            nodes_to_exclude=_excluded(kept),
            weight_type=QuantType.QInt8,
            reduce_range=True,
            per_channel=technique.per_channel,
        )
        return onnx.load(str(target))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime's advice off the root logger: pre-processing gains nothing on a graph of known shapes."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _excluded(kept: Iterable[str]) -> list[str]:
    # The quantizer renames a Gemm when it splits it.
    return [name for layer in kept for name in (layer, f"{layer}_MatMul")]
