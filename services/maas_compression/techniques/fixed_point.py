"""fixed_point: weights as integers with a scale of a power of two, in the weights file and in the served file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from maas_compression.recipe import FixedPoint
from maas_compression.techniques.graph_weights import graph_weights
from maas_compression.techniques.graphs import float_graph, write_graph_package
from maas_compression.techniques.repackage import repackage
from maas_package.manifest import FixedPointStorage
from maas_package.package import Package, write_package
from maas_package.trainable import WeightsInvalid, load_module

_INTEGER_TYPES = (np.int8, np.int16, np.int32)


def apply_fixed_point(source: Package, technique: FixedPoint, folder: Path) -> Package:
    """Write the package with w' = round(w * 2^p) / 2^p to `folder`, which must be new or empty.

    Every float tensor is stored in the smallest of int8, int16 and int32 that holds round(w * 2^p). Of a version
    without a trainable form these are matrices and tables; vectors stay as they are. Raises WeightsInvalid when a
    tensor does not fit 32 bits, GraphMissing or GraphUnusable.
    """
    scale = 2.0**-technique.fractional_bits
    if source.manifest.architecture is None or source.manifest.weights is None:
        model = float_graph(source)
        round_weights(model, scale)
        store_integers(model, scale)
        return write_graph_package(source, model, folder, precision=f"fixed{technique.fractional_bits}")
    module = load_module(source)
    scales = {name: scale for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    package = repackage(source, module, folder, FixedPointStorage(scales))
    servable = package.manifest.servables[0]
    path = package.path(servable.path)
    served = onnx.load(str(path))
    store_integers(served, scale)
    onnx.checker.check_model(served)
    onnx.save(served, str(path))
    fixed = replace(servable, precision=f"fixed{technique.fractional_bits}")
    return write_package(folder, replace(package.manifest, servables=(fixed,), files=()))


def round_weights(model: onnx.ModelProto, scale: float) -> None:
    """Round matrices and tables to multiples of `scale`, in place. Raises WeightsInvalid, or GraphUnusable."""
    weights = {weight.name: weight.value for weight in graph_weights(model, least=1)}
    for tensor in model.graph.initializer:
        if tensor.name not in weights:
            continue
        integers = np.rint(weights[tensor.name].astype(np.float64) / scale)
        if _smallest(integers) is None:
            raise WeightsInvalid(
                f"{tensor.name} does not fit 32-bit integers at the scale {scale:g}; take fewer fraction bits"
            )
        tensor.CopyFrom(numpy_helper.from_array((integers * scale).astype(np.float32), tensor.name))


def store_integers(model: onnx.ModelProto, scale: float) -> None:
    """Let each float32 initializer be stored as integers and multiplied by `scale`, in place.

    Those that are no multiples of `scale` within 32 bits are constants of the network, not weights, and stay as they
    are. So the answers stay the same to the bit. onnxruntime folds Cast and
    Mul when it loads the file: it runs as fast as before. (DequantizeLinear takes 16-bit integers only from operator
    set 21 on.)
    """
    graph = model.graph
    nodes, initializers = [], []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            initializers.append(tensor)
            continue
        integers = _smallest(numpy_helper.to_array(tensor).astype(np.float64) / scale)
        if integers is None:
            initializers.append(tensor)
            continue
        initializers.append(numpy_helper.from_array(integers, f"{tensor.name}_integers"))
        nodes.append(
            helper.make_node("Cast", [f"{tensor.name}_integers"], [f"{tensor.name}_cast"], to=TensorProto.FLOAT)
        )
        nodes.append(helper.make_node("Mul", [f"{tensor.name}_cast", "fixed_point_scale"], [tensor.name]))
    initializers.append(numpy_helper.from_array(np.array(scale, np.float32), "fixed_point_scale"))
    nodes += list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(initializers)
    graph.node.extend(nodes)


def _smallest(values: NDArray[np.float64]) -> NDArray[np.signedinteger] | None:
    """Return the values in the smallest type of integers that holds them, or None when none does."""
    if not (values == np.rint(values)).all():
        return None
    largest = np.abs(values).max(initial=0)
    dtype = next((dtype for dtype in _INTEGER_TYPES if largest <= np.iinfo(dtype).max), None)
    return None if dtype is None else values.astype(dtype)
