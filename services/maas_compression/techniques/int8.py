"""int8: matrices multiplied as 8-bit integers, with scales found while running or from calibration rows."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path

import onnx
from onnx import TensorProto

from maas_compression.materials import Materials
from maas_compression.recipe import Int8
from maas_compression.techniques.balance import balance
from maas_compression.techniques.calibration import Batches, activation_ranges, calibration_batches
from maas_compression.techniques.graphs import float_graph, write_graph_package
from maas_compression.techniques.integer_matrices import calibrated_tensors, make_matrices_integers
from maas_compression.techniques.openvino_int8 import quantized_for_openvino
from maas_package.package import Package
from maas_package.tensors import Array
from maas_runtime.failures import FieldViolation, InvalidInput

LAYER_TYPES = ("Attention", "Conv", "ConvTranspose", "Gather", "Gemm", "LSTM", "MatMul")
"""Operators whose weights, an input of at least two dimensions, can be integers."""
_DYNAMIC_TYPES = ("Attention", "Conv", "Gather", "LSTM", "MatMul")  # a Gemm becomes a MatMul and an Add on the way
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_GIVE_FLOATS = ("GatherBlockQuantized", "MatMulIntegerToFloat", "MatMulNBits")
"""Operators of onnxruntime's own, after which nobody infers a type."""
_LISTED = 8


class LayerUnknown(InvalidInput):
    """No layer that can be quantized has this name."""

    reason = "LAYER_UNKNOWN"


def apply_int8(source: Package, technique: Int8, folder: Path, materials: Materials) -> Package:
    """Write the package whose served form multiplies 8-bit integers to `folder`, which must be new or empty.

    Raises LayerUnknown, TrainingDataMissing, and what float_graph and write_graph_package raise.
    """
    # Judging layers imports this package's graphs, so this package cannot import it while it is imported itself.
    from maas_compression.measuring.sensitivity import most_sensitive_layers

    model = float_graph(source)
    kept = kept_layers(model, technique.keep)
    chosen = [name for name in layer_names(model) if name not in kept]
    kept += most_sensitive_layers(source, model, chosen, materials, technique.keep_most_sensitive)
    chosen = [name for name in chosen if name not in kept]
    needs_rows = technique.mode == "static" or technique.balance > 0 or technique.engine == "openvino"
    batches = calibration_batches(source, technique.calibration_rows, materials) if needs_rows else ()
    if technique.balance:
        balanced = balance(model, chosen, batches, technique.balance)
        materials.log(f"int8: {balanced} norms balanced")
    if technique.engine == "openvino":
        return quantized_for_openvino(source, model, kept, batches, folder, precision="int8")
    if technique.mode == "static":
        model = _with_fixed_scales(model, technique, chosen, batches)
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
            _with_types(model),
            str(target),
            op_types_to_quantize=list(_DYNAMIC_TYPES),
            nodes_to_exclude=_excluded(kept),
            weight_type=QuantType.QInt8,
            reduce_range=True,
            per_channel=technique.per_channel,
            # The types behind operators of onnxruntime's own, which int4 leaves, are not told by ONNX.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return onnx.load(str(target))


def _with_fixed_scales(
    model: onnx.ModelProto, technique: Int8, layers: Sequence[str], batches: Batches
) -> onnx.ModelProto:
    """Return the graph whose matrices and convolutions have scales from the batches; the rest is left as it is.

    Matrices are written as onnxruntime's MatMulIntegerToFloat rather than by its own static quantizer: its operators
    took 101 ms (QOperator) and 103 ms (QDQ) for 16 reviews on all-MiniLM-L6-v2, more than 82 ms with the scales found
    while running, since the results are rounded too. Convolutions are its own quantizer's.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel

    if any(node.op_type in _CONVOLUTIONS and node.name in layers for node in model.graph.node):
        model = _with_fixed_convolutions(model, technique, layers, batches)
    split = ONNXModel(model)
    split.replace_gemm_with_matmul()
    model = split.model
    chosen = set(_excluded(layers))
    matrices = {
        node.name
        for node in model.graph.node
        if node.name in chosen and node.op_type == "MatMul" and _is_plain(model, node)
    }
    ranges = activation_ranges(
        model,
        calibrated_tensors(model, matrices),
        batches,
        method=technique.calibration,
        percentile=technique.percentile,
    )
    make_matrices_integers(model, matrices, ranges, per_channel=technique.per_channel)
    return model


def _with_fixed_convolutions(
    model: onnx.ModelProto, technique: Int8, layers: Sequence[str], batches: Batches
) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    method = {
        "minmax": CalibrationMethod.MinMax,
        "percentile": CalibrationMethod.Percentile,
        "entropy": CalibrationMethod.Entropy,
    }[technique.calibration]
    with tempfile.TemporaryDirectory() as scratch, _quiet(), redirect_stdout(StringIO()):
        target = Path(scratch, "model.onnx")
        quantize_static(
            _with_types(model),
            str(target),
            _CalibrationReader(batches),
            QuantFormat.QDQ,
            list(_CONVOLUTIONS),
            per_channel=technique.per_channel,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=list(layers),
            calibrate_method=method,
            # Read a batch at a time: the collector would keep the activations of all.
            extra_options={"CalibStridedMinMax": 1},
        )
        return onnx.load(str(target))


class _CalibrationReader:
    """What onnxruntime's calibration reads batches from."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._waiting = iter(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._waiting = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._waiting, None)
        return None if batch is None else dict(batch)


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


def _is_plain(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Return whether the node multiplies by a matrix of its own."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = weights.get(node.input[1])
    return weight is not None and len(weight.dims) == 2 and weight.data_type == TensorProto.FLOAT


def _with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy that says what comes out of onnxruntime's own operators: the quantizer passes by what follows a
    tensor of unknown type.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.value_info}
    for node in copy.graph.node:
        if node.op_type in _GIVE_FLOATS and node.output[0] not in known:
            copy.graph.value_info.append(onnx.helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None))
    return copy


def _excluded(kept: Iterable[str]) -> list[str]:
    # The quantizer renames a Gemm when it splits it.
    return [name for layer in kept for name in (layer, f"{layer}_MatMul")]
